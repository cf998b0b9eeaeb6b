"""What holds for every page: policy, languages, clocks, errors, and whose requests are taken."""

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
from tests.api.calls import DUE, NEW, create
from tests.api.visits import BROWSER
from tests.asked import inside
from tests.patience import PATIENCE
from tests.sample import OPEN, add_clients, begin
from tests.virtual_time import in_virtual_time

from mailer.admin.live import EACH, MOST, Live, Look
from mailer.app import create_app
from mailer.report import lately

SITE = "http://mailer"


async def page(
    api: httpx.AsyncClient,
    path: str = "/",
    status: int = 200,
    headers: dict[str, str] | None = None,
) -> str:
    answer = await api.get(f"{SITE}{path}", headers=BROWSER | (headers or {}))
    assert answer.status_code == status
    assert answer.headers["content-type"] == "text/html; charset=utf-8"
    return " ".join(answer.text.split())


async def test_pages_run_no_inline_script_and_ask_no_other_host(api: httpx.AsyncClient) -> None:
    answer = await api.get(f"{SITE}/")
    policy = answer.headers["content-security-policy"]
    assert policy.startswith("default-src 'none'; script-src 'self'; style-src 'self';")
    assert "unsafe" not in policy
    assert not re.search(r"<script(?! src=)|<style|\sstyle=|\son\w+=|https?://", answer.text)


async def test_pages_that_say_what_is_wrong_have_the_same_policy(api: httpx.AsyncClient) -> None:
    answer = await api.get(f"{SITE}/nothing", headers=BROWSER)
    assert answer.status_code == 404
    assert answer.headers["content-security-policy"].startswith("default-src 'none'; script-src")


async def test_pages_are_kept_by_nobody_but_the_browser(api: httpx.AsyncClient) -> None:
    answer = await api.get(f"{SITE}/")
    assert answer.headers["cache-control"] == "private, no-store"
    assert answer.headers["vary"] == "Cookie, Accept-Language, HX-Request"


async def test_overview_shows_what_runs_and_what_comes_next_and_escapes_it(
    api: httpx.AsyncClient, engine: AsyncEngine
) -> None:
    await add_clients(engine, 3)
    due = await create(api, DUE | {"text": "<script>alert(1)</script>"})
    await begin(engine)
    await create(api, NEW | {"text": "Later & better"})
    shown = await page(api)
    assert f'<a href="/mailings/{due["id"]}">&lt;script&gt;alert(1)&lt;/script&gt;</a>' in shown
    assert "3 clients" in shown
    assert "Later &amp; better" in shown
    assert "alert(1)</script>" not in shown.replace("&lt;", "<").split("<main")[0]


async def test_overview_with_nothing_in_it_leads_on(api: httpx.AsyncClient) -> None:
    shown = await page(api)
    assert "Nothing is being sent." in shown
    assert "No mailing waits for its start." in shown


@pytest.mark.parametrize(
    ("accepted", "cookie", "language"),
    [
        ("", "", "en"),
        ("ru", "", "ru"),
        ("de-DE, ru;q=0.8, en;q=0.5", "", "ru"),
        ("de, en;q=0.9, ru;q=0.8", "", "en"),
        ("ru;q=0, en;q=0.1", "", "en"),
        ("de", "", "en"),
        ("en", "ru", "ru"),
        ("ru", "en", "en"),
        ("ru", "xx", "ru"),
        ("ru;q=x, \x7f;;,", "", "en"),
    ],
)
async def test_language_is_what_was_chosen_or_what_the_browser_prefers(
    api: httpx.AsyncClient, accepted: str, cookie: str, language: str
) -> None:
    headers = {"Accept-Language": accepted, "Cookie": f"language={cookie}"}
    assert f'<html lang="{language}"' in await page(api, headers=headers)


@pytest.mark.parametrize(
    ("cookie", "zone"),
    [
        ("Asia/Tokyo", "Asia/Tokyo"),
        ("Asia%2FTokyo", "Asia/Tokyo"),
        ("Mars/Base", "UTC"),
        ("", "UTC"),
    ],
)
async def test_moments_are_on_the_clock_that_a_cookie_names(
    api: httpx.AsyncClient, cookie: str, zone: str
) -> None:
    assert f'data-zone="{zone}"' in await page(api, headers={"Cookie": f"time_zone={cookie}"})


async def test_preferences_are_kept_and_lead_back(api: httpx.AsyncClient) -> None:
    form = {"language": "ru", "time_zone": "Asia/Tokyo", "back": "/mailings?status=running"}
    answer = await api.post(f"{SITE}/preferences", data=form, headers=BROWSER)
    assert answer.status_code == 303
    assert answer.headers["location"] == "/mailings?status=running"
    kept = answer.headers.get_list("set-cookie")
    assert [each.split(";")[0] for each in kept] == ["language=ru", 'time_zone="Asia/Tokyo"']
    api.cookies.clear()  # the file's other tests have the same client


@pytest.mark.parametrize("back", ["", "//evil.example/", "/\\evil.example", "https://evil.example"])
async def test_preferences_lead_to_no_other_site_and_keep_nothing_unknown(
    api: httpx.AsyncClient, back: str
) -> None:
    form = {"language": "xx", "time_zone": "Mars/Base\r\nX: y", "back": back}
    answer = await api.post(f"{SITE}/preferences", data=form, headers=BROWSER)
    assert answer.headers["location"] == "/"
    assert "set-cookie" not in answer.headers


async def test_unknown_pages_say_so_to_people_and_to_programs(api: httpx.AsyncClient) -> None:
    assert "There is no such page" in await page(api, "/nothing", 404)
    answer = await api.get(f"{SITE}/nothing")
    assert answer.headers["content-type"] == "application/problem+json"
    answer = await api.get(f"{SITE}/api/v1/mailings/1", headers=BROWSER)
    assert answer.status_code == 404
    assert answer.headers["content-type"] == "application/problem+json"


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Sec-Fetch-Site": "cross-site"}, 403),
        ({"Sec-Fetch-Site": "same-site"}, 403),
        ({"Origin": "http://evil.example"}, 403),
        ({"Origin": "null"}, 403),
        ({"Sec-Fetch-Site": "same-origin", "Origin": "http://mailer"}, 303),
        ({"Sec-Fetch-Site": "none"}, 303),
        ({"Origin": "http://mailer"}, 303),
        ({}, 403),
    ],
)
async def test_what_another_site_has_a_browser_send_is_refused(
    api: httpx.AsyncClient, headers: dict[str, str], status: int
) -> None:
    answer = await api.post(f"{SITE}/preferences", headers=headers)
    assert answer.status_code == status


async def test_api_too_refuses_what_another_site_has_a_browser_send(
    api: httpx.AsyncClient,
) -> None:
    mailing = await create(api, NEW)
    headers = {"Sec-Fetch-Site": "cross-site"}
    assert (await api.post(f"/mailings/{mailing['id']}/cancel", headers=headers)).status_code == 403
    assert (await api.get(f"/mailings/{mailing['id']}", headers=headers)).status_code == 200


async def follow(live: Live, key: Hashable, look: Look, told: list[str]) -> None:
    """Add to `told` each event as it comes."""
    events = live.stream(key, look, None).iterator
    assert isinstance(events, AsyncIterable)
    async for event in events:
        told.append(str(event))  # noqa: PERF401  # looked at before it ends


@in_virtual_time
async def test_live_page_gets_its_sections_at_once_and_again_only_when_they_change() -> None:
    live = Live()
    told: list[str] = []
    shown = {"a": "<p id=a>1</p>", "b": "<p id=b>1</p>"}

    async def look() -> dict[str, str]:
        return dict(shown)

    following = asyncio.create_task(follow(live, "page", look, told))
    await asyncio.sleep(0.1)
    assert len(told) == 1
    assert all(html in told[0] for html in shown.values())
    shown["b"] = "<p id=b>2</p>"
    await asyncio.sleep(4.2)
    assert len(told) == 2
    assert "id=b>2" in told[1]
    assert "id=a" not in told[1]
    live.stop()
    await following


async def test_one_person_keeps_no_more_pages_up_to_date_than_each_may() -> None:
    live = Live()

    async def look() -> dict[str, str]:
        return {}

    async def gone(*_: object) -> Any:
        raise ConnectionResetError

    opened = [live.stream("page", look, "ann") for _ in range(EACH)]
    with pytest.raises(ServiceUnavailableException):
        live.stream("page", look, "ann")
    others = [live.stream("page", look, None) for _ in range(MOST - EACH)]
    with pytest.raises(ServiceUnavailableException):
        live.stream("page", look, "bob")
    for each in (opened[0], others[0]):  # of those who go before it begins, too
        respond = each.to_asgi_response(None, None)  # type: ignore[arg-type]  # asks for nothing of it
        with pytest.raises((ConnectionResetError, BaseExceptionGroup)):
            await respond({"type": "http"}, gone, gone)  # type: ignore[arg-type]  # a part of a scope
    live.stream("page", look, "ann")
    live.stream("page", look, "bob")


@in_virtual_time
async def test_live_page_says_that_it_is_out_of_date_while_nothing_can_be_looked_up() -> None:
    live = Live()
    told: list[str] = []
    failing = True

    async def look() -> dict[str, str]:
        if failing:
            raise ConnectionRefusedError
        return {"a": "<p id=a>1</p>"}

    following = asyncio.create_task(follow(live, "page", look, told))
    await asyncio.sleep(0.1)
    assert len(told) == 1
    assert "event: stale" in told[0]
    failing = False
    await asyncio.sleep(2.1)
    assert "event: fresh" in told[1]
    assert "id=a" in told[2]
    live.stop()
    await following


@in_virtual_time
async def test_live_page_is_told_to_ask_again_so_that_who_is_signed_out_is_told() -> None:
    live = Live(lasts=0.1)
    told: list[str] = []

    async def look() -> dict[str, str]:
        return {"a": "<p id=a>1</p>"}

    await follow(live, "page", look, told)
    assert len(told) == 2
    assert "id=a" in told[0]
    assert "event: again" in told[1]
    assert Live()._lasts <= 60  # noqa: SLF001  # no test waits for a minute


async def test_many_live_pages_are_looked_at_less_often_and_one_at_a_time() -> None:
    live = Live()
    looking = most_looking = 0

    async def look() -> dict[str, str]:
        nonlocal looking, most_looking
        looking += 1
        most_looking = max(most_looking, looking)
        await asyncio.sleep(0.02)
        looking -= 1
        return {}

    assert live.period == 2.0
    following = [asyncio.create_task(follow(live, key, look, [])) for key in range(4)]
    async with asyncio.timeout(PATIENCE):
        while live.period < 8:  # a look takes 0.02 s or more, and all together a hundredth
            await asyncio.sleep(0.01)
    assert most_looking == 1
    live.stop()
    await asyncio.wait_for(asyncio.gather(*following), PATIENCE)
    assert live.period == 2.0


async def test_overview_answers_its_live_sections(engine: AsyncEngine) -> None:
    app = create_app(engine, live=Live(lasts=0), settings=OPEN)  # it ends after the first look
    transport = inside(app)
    async with httpx.AsyncClient(transport=transport, base_url=SITE) as client:
        answer = await client.get("/live/overview")
    assert answer.headers["content-type"].startswith("text/event-stream")
    for section in ("gateway", "backlog", "running", "next", "lately"):
        assert f'id="{section}"' in answer.text


async def test_outcomes_of_the_last_day_are_counted_by_the_hour(engine: AsyncEngine) -> None:
    now = datetime(2030, 1, 15, 12, 30, tzinfo=UTC)
    async with engine.connect() as connection:
        hours = await lately.outcomes(connection, now)
    assert len(hours) == 25
    assert hours[0].start == datetime(2030, 1, 14, 12, tzinfo=UTC)
    assert hours[-1].start == datetime(2030, 1, 15, 12, tzinfo=UTC)
    assert {b.start - a.start for a, b in pairwise(hours)} == {timedelta(hours=1)}
