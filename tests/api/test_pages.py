"""Rules for all pages: policy, language, time zone, errors, cross-site requests, live updates."""

import asyncio
import re
from collections.abc import AsyncIterable, Hashable
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from typing import Any

import httpx
import pytest
from litestar.exceptions import ServiceUnavailableException
from sqlalchemy.ext.asyncio import AsyncEngine
from tests.api.browser_session import BROWSER, SITE
from tests.api.calls import DUE, NEW, create_mailing
from tests.asgi_client import inside
from tests.event_timeout import EVENT_TIMEOUT
from tests.factories import OPEN, add_clients, start_and_enqueue
from tests.virtual_time import in_virtual_time

from mailer.admin.live import MAX_STREAMS, MAX_STREAMS_PER_OWNER, LiveUpdates, RenderSections
from mailer.app import create_app
from mailer.statistics import service as statistics


async def get_page(
    api: httpx.AsyncClient,
    path: str = "/",
    status: int = 200,
    headers: dict[str, str] | None = None,
) -> str:
    """Return the HTML of a page, with every run of blanks as one space."""
    response = await api.get(f"{SITE}{path}", headers=BROWSER | (headers or {}))
    assert response.status_code == status
    assert response.headers["content-type"] == "text/html; charset=utf-8"
    return " ".join(response.text.split())


async def test_pages_have_no_inline_scripts_and_load_nothing_from_other_hosts(
    api: httpx.AsyncClient,
) -> None:
    response = await api.get(f"{SITE}/")
    policy = response.headers["content-security-policy"]
    assert policy.startswith("default-src 'none'; script-src 'self'; style-src 'self';")
    assert "unsafe" not in policy
    assert not re.search(r"<script(?! src=)|<style|\sstyle=|\son\w+=|https?://", response.text)


async def test_error_pages_have_the_same_content_security_policy(api: httpx.AsyncClient) -> None:
    response = await api.get(f"{SITE}/nothing", headers=BROWSER)
    assert response.status_code == 404
    assert response.headers["content-security-policy"].startswith("default-src 'none'; script-src")


async def test_pages_are_cached_by_the_browser_alone(api: httpx.AsyncClient) -> None:
    response = await api.get(f"{SITE}/")
    assert response.headers["cache-control"] == "private, no-store"
    assert response.headers["vary"] == "Cookie, Accept-Language, HX-Request"


async def test_the_overview_shows_running_and_next_mailings_escaped(
    api: httpx.AsyncClient, engine: AsyncEngine
) -> None:
    await add_clients(engine, 3)
    due = await create_mailing(api, DUE | {"text": "<script>alert(1)</script>"})
    await start_and_enqueue(engine)
    await create_mailing(api, NEW | {"text": "Later & better"})
    html = await get_page(api)
    assert f'<a href="/mailings/{due["id"]}">&lt;script&gt;alert(1)&lt;/script&gt;</a>' in html
    assert "3 clients" in html
    assert "Later &amp; better" in html
    title_and_header = html.split("<main")[0]
    assert "alert(1)" not in title_and_header


async def test_an_empty_overview_says_so(api: httpx.AsyncClient) -> None:
    html = await get_page(api)
    assert "Nothing is being sent." in html
    assert "No mailings are scheduled." in html


@pytest.mark.parametrize(
    ("accept_language", "chosen", "shown"),
    [
        ("", "", "en"),
        ("ru", "", "ru"),
        ("de-DE, ru;q=0.8, en;q=0.5", "", "ru"),
        ("de, en;q=0.9, ru;q=0.8", "", "en"),
        ("ru;q=0, en;q=0.1", "", "en"),  # q=0: not accepted
        ("de", "", "en"),
        ("en", "ru", "ru"),
        ("ru", "en", "en"),
        ("ru", "xx", "ru"),
        ("ru;q=x, \x7f;;,", "", "en"),  # malformed
    ],
)
async def test_the_language_is_the_chosen_one_or_the_browsers_preference(
    api: httpx.AsyncClient, accept_language: str, chosen: str, shown: str
) -> None:
    headers = {"Accept-Language": accept_language, "Cookie": f"language={chosen}"}
    assert f'<html lang="{shown}"' in await get_page(api, headers=headers)


@pytest.mark.parametrize(
    ("cookie", "zone"),
    [
        ("Asia/Tokyo", "Asia/Tokyo"),
        ("Asia%2FTokyo", "Asia/Tokyo"),
        ("Mars/Base", "UTC"),
        ("", "UTC"),
    ],
)
async def test_times_are_in_the_time_zone_of_the_cookie(
    api: httpx.AsyncClient, cookie: str, zone: str
) -> None:
    assert f'data-zone="{zone}"' in await get_page(api, headers={"Cookie": f"time_zone={cookie}"})


async def test_preferences_are_stored_and_redirect_back(api: httpx.AsyncClient) -> None:
    form = {"language": "ru", "time_zone": "Asia/Tokyo", "return_path": "/mailings?status=running"}
    response = await api.post(f"{SITE}/preferences", data=form, headers=BROWSER)
    assert response.status_code == 303
    assert response.headers["location"] == "/mailings?status=running"
    cookies = response.headers.get_list("set-cookie")
    assert [cookie.split(";")[0] for cookie in cookies] == ["language=ru", 'time_zone="Asia/Tokyo"']
    api.cookies.clear()  # other tests of this file use the same `api`


@pytest.mark.parametrize(
    "return_path", ["", "//evil.example/", "/\\evil.example", "https://evil.example"]
)
async def test_preferences_redirect_to_no_other_site_and_store_no_unknown_value(
    api: httpx.AsyncClient, return_path: str
) -> None:
    form = {"language": "xx", "time_zone": "Mars/Base\r\nX: y", "return_path": return_path}
    response = await api.post(f"{SITE}/preferences", data=form, headers=BROWSER)
    assert response.headers["location"] == "/"
    assert "set-cookie" not in response.headers


async def test_an_unknown_path_is_an_error_page_for_browsers_and_a_problem_for_programs(
    api: httpx.AsyncClient,
) -> None:
    assert "Page not found" in await get_page(api, "/nothing", 404)
    response = await api.get(f"{SITE}/nothing")
    assert response.headers["content-type"] == "application/problem+json"
    response = await api.get(f"{SITE}/api/v1/mailings/1", headers=BROWSER)
    assert response.status_code == 404
    assert response.headers["content-type"] == "application/problem+json"


@pytest.mark.parametrize(
    ("headers", "is_accepted"),
    [
        ({"Sec-Fetch-Site": "cross-site"}, False),
        ({"Sec-Fetch-Site": "same-site"}, False),
        ({"Origin": "http://evil.example"}, False),
        ({"Origin": "null"}, False),
        ({}, False),
        ({"Sec-Fetch-Site": "same-origin", "Origin": "http://mailer"}, True),
        ({"Sec-Fetch-Site": "none"}, True),  # not sent by any website
        ({"Origin": "http://mailer"}, True),
    ],
)
async def test_cross_site_forms_are_refused(
    api: httpx.AsyncClient,
    headers: dict[str, str],
    is_accepted: bool,  # noqa: FBT001  # a case of the table
) -> None:
    response = await api.post(f"{SITE}/preferences", headers=headers)
    assert response.status_code == (303 if is_accepted else 403)


async def test_the_api_refuses_cross_site_writes(
    api: httpx.AsyncClient,
) -> None:
    mailing = await create_mailing(api, NEW)
    headers = {"Sec-Fetch-Site": "cross-site"}
    assert (await api.post(f"/mailings/{mailing['id']}/cancel", headers=headers)).status_code == 403
    assert (await api.get(f"/mailings/{mailing['id']}", headers=headers)).status_code == 200


async def follow(
    live: LiveUpdates, key: Hashable, query_sections: RenderSections, received: list[str]
) -> None:
    """Open a stream and append each of its events to `received`, until the stream ends."""
    events = live.stream(key, query_sections, owner=None).iterator
    assert isinstance(events, AsyncIterable)
    async for event in events:
        received.append(str(event))  # noqa: PERF401  # read before the stream ends


@in_virtual_time
async def test_a_live_page_receives_its_sections_at_once_and_later_only_changed_ones() -> None:
    # in virtual time a refresh takes none, also if the machine pauses meanwhile
    live = LiveUpdates(clock=asyncio.get_running_loop().time)
    received: list[str] = []
    sections = {"a": "<p id=a>1</p>", "b": "<p id=b>1</p>"}

    async def query_sections() -> dict[str, str]:
        return dict(sections)

    following = asyncio.create_task(follow(live, "page", query_sections, received))
    await asyncio.sleep(0.1)
    assert len(received) == 1
    assert all(html in received[0] for html in sections.values())

    sections["b"] = "<p id=b>2</p>"
    await asyncio.sleep(4.2)  # seconds: two refreshes, the second without a change
    assert len(received) == 2
    assert "id=b>2" in received[1]
    assert "id=a" not in received[1]
    live.stop()
    await following


async def test_the_number_of_live_pages_is_limited_for_each_user_and_in_all() -> None:
    live = LiveUpdates()

    async def query_sections() -> dict[str, str]:
        return {}

    async def disconnect(*_: object) -> Any:
        raise ConnectionResetError

    anns_streams = [
        live.stream("page", query_sections, "ann") for _ in range(MAX_STREAMS_PER_OWNER)
    ]
    with pytest.raises(ServiceUnavailableException):
        live.stream("page", query_sections, "ann")
    other_streams = [
        live.stream("page", query_sections, None)
        for _ in range(MAX_STREAMS - MAX_STREAMS_PER_OWNER)
    ]
    with pytest.raises(ServiceUnavailableException):
        live.stream("page", query_sections, "bob")

    # clients disconnect before their streams start; others may then have streams
    for stream in (anns_streams[0], other_streams[0]):
        respond = stream.to_asgi_response(None, None)  # type: ignore[arg-type]  # uses none of them
        with pytest.raises((ConnectionResetError, BaseExceptionGroup)):
            await respond({"type": "http"}, disconnect, disconnect)  # type: ignore[arg-type]  # an incomplete scope
    live.stream("page", query_sections, "ann")
    live.stream("page", query_sections, "bob")


@in_virtual_time
async def test_a_live_page_is_marked_as_stale_while_queries_fail() -> None:
    # in virtual time a refresh takes none, also if the machine pauses meanwhile
    live = LiveUpdates(clock=asyncio.get_running_loop().time)
    received: list[str] = []
    is_failing = True

    async def query_sections() -> dict[str, str]:
        if is_failing:
            raise ConnectionRefusedError
        return {"a": "<p id=a>1</p>"}

    following = asyncio.create_task(follow(live, "page", query_sections, received))
    await asyncio.sleep(0.1)
    assert len(received) == 1
    assert "event: stale" in received[0]

    is_failing = False
    await asyncio.sleep(2.1)  # seconds: until the next refresh
    assert "event: fresh" in received[1]
    assert "id=a" in received[2]
    live.stop()
    await following


@in_virtual_time
async def test_a_stream_ends_with_a_request_to_reconnect_so_that_sessions_are_checked() -> None:
    live = LiveUpdates(lifetime=0.1)  # seconds: the stream ends after the first refresh
    received: list[str] = []

    async def query_sections() -> dict[str, str]:
        return {"a": "<p id=a>1</p>"}

    await follow(live, "page", query_sections, received)
    assert len(received) == 2
    assert "id=a" in received[0]
    assert "event: reconnect" in received[1]
    default_lifetime = LiveUpdates()._lifetime  # noqa: SLF001  # no test can wait for a minute
    assert default_lifetime <= 60


async def test_many_live_pages_are_queried_less_often_and_one_at_a_time() -> None:
    live = LiveUpdates()
    running = max_running = 0

    async def query_sections() -> dict[str, str]:
        nonlocal running, max_running
        running += 1
        max_running = max(max_running, running)
        await asyncio.sleep(0.02)  # seconds: the duration of a query
        running -= 1
        return {}

    min_interval = 2.0  # seconds
    assert live.refresh_interval == min_interval
    following = [asyncio.create_task(follow(live, page, query_sections, [])) for page in range(4)]
    # four queries of 0.02 s or more may take a hundredth of the time: at least 8 s between them
    async with asyncio.timeout(EVENT_TIMEOUT):
        while live.refresh_interval < 8:
            await asyncio.sleep(0.01)
    assert max_running == 1
    live.stop()
    await asyncio.wait_for(asyncio.gather(*following), EVENT_TIMEOUT)
    assert live.refresh_interval == min_interval


async def test_the_overview_streams_its_live_sections(engine: AsyncEngine) -> None:
    live = LiveUpdates(lifetime=0)  # the stream ends after the first query
    app = create_app(engine, live=live, settings=OPEN)
    transport = inside(app)
    async with httpx.AsyncClient(transport=transport, base_url=SITE) as client:
        response = await client.get("/live/overview")
    assert response.headers["content-type"].startswith("text/event-stream")
    for section in ("gateway", "backlog", "running", "upcoming", "last-day"):
        assert f'id="{section}"' in response.text


async def test_outcomes_of_the_last_day_are_counted_by_hour(engine: AsyncEngine) -> None:
    now = datetime(2030, 1, 15, 12, 30, tzinfo=UTC)
    async with engine.connect() as connection:
        hours = await statistics.get_outcomes_last_24_hours(connection, now)
    assert len(hours) == 25  # the first and the last hour are not whole
    assert hours[0].start == datetime(2030, 1, 14, 12, tzinfo=UTC)
    assert hours[-1].start == datetime(2030, 1, 15, 12, tzinfo=UTC)
    lengths = {following.start - hour.start for hour, following in pairwise(hours)}
    assert lengths == {timedelta(hours=1)}
