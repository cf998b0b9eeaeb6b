"""The list of mailings and the page of a mailing, without a browser."""

import re
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta

import httpx
import pytest
from sqlalchemy.ext.asyncio import AsyncEngine
from tests.api.browser_session import (
    BROWSER,
    ESCAPED,
    HOSTILE,
    SITE,
    create_running_mailing,
    get_page,
    post,
)
from tests.api.calls import NEW, create_mailing, update_messages
from tests.asgi_client import inside
from tests.factories import (
    OPEN,
    add_clients,
    add_mailing,
    add_messages,
    create_channel,
    create_channels,
    execute,
    value,
)

from mailer.app import create_app
from mailer.gateway.channel import Channels
from mailer.gateway.protocol import TemporaryFailure
from mailer.statuses import OUTCOMES, STATUSES

UNKNOWN_ID = 10**9
"""An id that no mailing has."""


# ---- the list -------------------------------------------------------------------------------


async def test_the_list_without_mailings_links_to_the_form(api: httpx.AsyncClient) -> None:
    page = await get_page(api, "/mailings")
    assert "There are no mailings yet." in page
    assert '<a href="/mailings/new">Create the first one</a>' in page


async def test_the_list_shows_mailings_newest_first_and_escaped(api: httpx.AsyncClient) -> None:
    first = await create_mailing(api, NEW)
    second = await create_mailing(api, NEW | {"text": HOSTILE})
    page = await get_page(api, "/mailings")
    assert "2 mailings" in page
    assert f'<a href="/mailings/{second["id"]}">{ESCAPED}</a>' in page
    is_newest_first = page.index(f"#{second['id']}<") < page.index(f"#{first['id']}<")
    assert is_newest_first
    assert "<script>alert" not in page
    assert f'data-live="/live/mailings?ids={second["id"]},{first["id"]}"' in page


async def test_the_list_is_filtered_and_keeps_its_filter(
    api: httpx.AsyncClient,
) -> None:
    paused = (await create_mailing(api, NEW | {"text": "Apples"}))["id"]
    await api.post(f"/mailings/{paused}/pause")
    await create_mailing(api, NEW | {"text": "Pears"})
    page = await get_page(api, "/mailings?status=paused&search=")
    assert 'value="paused" checked' in page
    assert 'value="running" checked' not in page
    assert "1 mailing<" in page
    assert "Pears" not in page
    page = await get_page(api, "/mailings?search=pears")
    assert 'value="pears"' in page
    assert "Pears" in page
    assert "Apples" not in page
    assert f"#{paused}<" in await get_page(api, f"/mailings?search=%23{paused}")
    nothing = await get_page(api, "/mailings?search=plums")
    assert "No mailings match." in nothing
    assert "data-live" not in nothing


async def test_links_between_pages_of_the_list_keep_the_filter(api: httpx.AsyncClient) -> None:
    ids = [(await create_mailing(api, NEW))["id"] for _ in range(3)]
    page = await get_page(api, "/mailings?status=scheduled&limit=2")
    older = f"/mailings?status=scheduled&amp;limit=2&amp;before={ids[1]}"
    assert f'<a href="{older}" rel="next">' in page
    assert "Newer" not in page
    page = await get_page(api, older.replace("&amp;", "&"))
    assert f'after={ids[0]}" rel="prev"' in page
    assert "Older" not in page


@pytest.mark.parametrize(
    ("query", "field"),
    [("status=odd", "status"), ("search=%00", "search"), (f"search={'x' * 201}", "search")],
)
async def test_an_invalid_filter_of_the_list_is_an_error_beside_its_field(
    api: httpx.AsyncClient, query: str, field: str
) -> None:
    await create_mailing(api, NEW)
    page = await get_page(api, f"/mailings?{query}", 400)
    assert f'id="{field}-error"' in page
    assert f'<a href="#{field}">' in page
    assert "Your order is ready." not in page


async def test_a_hostile_filter_is_escaped(api: httpx.AsyncClient) -> None:
    response = await api.get(f"{SITE}/mailings", params={"search": HOSTILE, "before": HOSTILE})
    assert response.status_code == 400
    assert "<script>alert" not in response.text


async def test_rows_of_ended_mailings_are_not_updated_live(
    api: httpx.AsyncClient, engine: AsyncEngine
) -> None:
    await add_mailing(engine, status="finished")
    assert "data-live" not in await get_page(api, "/mailings")


@pytest.mark.parametrize("ids", ["", "x", "1,", "1,,2", "-1", "1 ,2", "1" * 30])
async def test_live_rows_are_requested_by_valid_ids_alone(api: httpx.AsyncClient, ids: str) -> None:
    await get_page(api, f"/live/mailings?ids={ids}", 400)


# ---- a mailing ------------------------------------------------------------------------------


@pytest.mark.parametrize("subpath", ["", "/messages", "/retry", "/cancel"])
async def test_pages_of_an_unknown_mailing_are_404(api: httpx.AsyncClient, subpath: str) -> None:
    page = await get_page(api, f"/mailings/{UNKNOWN_ID}{subpath}", 404)
    assert "There is no such mailing." in page
    await get_page(api, f"/mailings/x{subpath}", 404)


async def test_an_unknown_action_is_404(api: httpx.AsyncClient) -> None:
    mailing_id = (await create_mailing(api, NEW))["id"]
    await get_page(api, f"/mailings/{mailing_id}/explode", 404)
    assert (await post(api, f"/mailings/{mailing_id}/explode")).status_code == 404


async def test_the_page_shows_all_fields_of_a_mailing_escaped(
    api: httpx.AsyncClient, engine: AsyncEngine
) -> None:
    await add_clients(engine, 3)
    lists = {"operator_codes": ["916"], "tags": ["<b>", "vip"], "time_zones": ["UTC"]}
    window = {"send_interval_time_start": "09:00", "send_interval_time_end": "21:00"}
    payload = NEW | window | {"text": HOSTILE, "client_filter": lists, "on_unknown": "hold"}
    mailing_id = (await create_mailing(api, payload))["id"]
    api.cookies.set("time_zone", "Asia/Tokyo")
    page = await get_page(api, f"/mailings/{mailing_id}")
    api.cookies.clear()
    assert f'<p class="text">{ESCAPED}</p>' in page
    assert "the operator code is 916" in page
    assert "the tag is one of: &lt;b&gt;, vip" in page
    assert "the time zone is UTC" in page
    assert "1 Jan 2040, 18:00</time>" in page
    assert "1 Jan 2040, 09:00 UTC</span>" in page
    assert "09:00 to 21:00 in each client's local time" in page
    assert "are not sent again" in page
    assert "It starts automatically" in page
    assert "<script>alert" not in page


@pytest.mark.parametrize(
    ("client_filter", "description"),
    [
        (None, "All clients"),
        ("912, <i>,", "Clients whose operator code or tag is one of: 912, &lt;i&gt;"),
        (",".join(f"t{n}" for n in range(40)), "t29 and 10 more"),
    ],
    ids=["null", "terms", "many"],
)
async def test_the_audience_is_described_in_words(
    api: httpx.AsyncClient, client_filter: object, description: str
) -> None:
    mailing_id = (await create_mailing(api, NEW | {"client_filter": client_filter}))["id"]
    assert description in await get_page(api, f"/mailings/{mailing_id}")


async def test_the_counts_add_up_to_the_audience_and_link_to_the_messages(
    api: httpx.AsyncClient, engine: AsyncEngine
) -> None:
    clients = await add_clients(engine, 4)
    mailing_id = await create_running_mailing(api, engine)
    await update_messages(engine, clients[0], status="delivered", sent_at=datetime.now(UTC))
    await update_messages(engine, clients[1], status="undelivered", reason="rejected_400")
    await update_messages(engine, clients[2], status="unknown", reason="timeout")
    page = await get_page(api, f"/mailings/{mailing_id}")
    assert 'aria-label="1 of 4 delivered"' in page
    assert "4 clients in the audience." in page
    for state in ("delivered", "undelivered", "unknown", "scheduled"):
        link = f'<a href="/mailings/{mailing_id}/messages?status={state}">1</a>'
        assert f'{link} <span class="faint">25%</span>' in page
    assert "the gateway rejected it with 400" in page
    assert f'/mailings/{mailing_id}/messages?status=unknown&amp;reason=timeout">1</a>' in page


async def test_the_length_of_tables_is_limited(api: httpx.AsyncClient, engine: AsyncEngine) -> None:
    for code in range(900, 922):  # 22 codes; a table has 20 rows
        await add_clients(engine, 1, operator_code=str(code))
    mailing_id = await create_running_mailing(api, engine)
    page = await get_page(api, f"/mailings/{mailing_id}")
    assert '<th scope="row">919</th>' in page
    assert '<th scope="row">920</th>' not in page
    assert '<th scope="row">2 others</th> <td class="number">2</td>' in page


async def test_the_page_shows_counts_by_gateway_if_several_were_used(
    api: httpx.AsyncClient, engine: AsyncEngine
) -> None:
    clients = await add_clients(engine, 3)
    mailing_id = await add_mailing(engine, clients=3)
    await add_messages(engine, mailing_id, clients[:2], "delivered")
    await add_messages(engine, mailing_id, clients[2:], "unknown", "timeout")
    await execute(
        engine,
        "UPDATE message SET gateway = 'main', parts = CASE status WHEN 'delivered' THEN 4 END",
    )
    assert "By gateway" not in await get_page(api, f"/mailings/{mailing_id}")

    await execute(engine, "UPDATE message SET gateway = 'spare' WHERE status = 'unknown'")

    page = await get_page(api, f"/mailings/{mailing_id}")
    table = page[page.index('id="by-gateway"') :].partition("</table>")[0]
    rows = [re.findall(r">([^<>]+)</t[hd]>", row) for row in table.split("<tr>")[1:]]
    assert rows == [
        ["Gateway", *(STATUSES[name].label for name in OUTCOMES), "parts"],
        ["main", "0", "2", "0", "0", "0", "8"],
        ["spare", "0", "0", "0", "1", "0", "0"],
    ]


async def test_the_page_of_a_finished_mailing_says_that_receipts_are_awaited(
    api: httpx.AsyncClient, engine: AsyncEngine
) -> None:
    clients = await add_clients(engine, 4)
    mailing_id = await add_mailing(engine, clients=4, status="finished")
    await add_messages(engine, mailing_id, clients[:2], "sent")
    await add_messages(engine, mailing_id, clients[2:3], "sent", "no_receipt")
    await add_messages(engine, mailing_id, clients[3:], "delivered")

    page = re.sub(r"</?time[^>]*>", "", await get_page(api, f"/mailings/{mailing_id}"))

    assert "Nothing is left to send. Receipts still come in." in page
    assert "2 messages await a receipt, until 18 Jan 2020, 12:00 at the latest." in page
    assert f'data-live="/live/mailings/{mailing_id}"' in page

    await execute(engine, "UPDATE message SET status = 'delivered' WHERE reason IS NULL")
    page = await get_page(api, f"/mailings/{mailing_id}")
    assert "Nothing is left to send." in page
    assert "Receipts still come in." not in page
    assert "await a receipt" not in page


async def test_the_page_shows_that_the_audience_is_being_enqueued(
    api: httpx.AsyncClient, engine: AsyncEngine
) -> None:
    await add_clients(engine, 3)
    mailing_id = await create_running_mailing(api, engine)
    assert "being created" not in await get_page(api, f"/mailings/{mailing_id}")
    await execute(engine, "UPDATE mailing SET audience_cursor = 1")  # as while enqueuing
    assert "being created: 3 of 3 so far." in await get_page(api, f"/mailings/{mailing_id}")
    await execute(engine, "UPDATE mailing SET is_replanning = true")
    assert "The change is being applied" in await get_page(api, f"/mailings/{mailing_id}")


@pytest.fixture
async def api_with_open_breaker(engine: AsyncEngine) -> AsyncIterator[httpx.AsyncClient]:
    """The application with a gateway whose breaker opened on 15 January 2030 after a 503."""
    channel = create_channel(breaker_failures=1, breaker_reset=15)
    opened_at = datetime(2030, 1, 15, 6, tzinfo=UTC)
    generation = channel.breaker.acquire(now=0)
    assert generation is not None
    channel.breaker.record(generation, TemporaryFailure("http_503"), now=0, at=opened_at)
    transport = inside(create_app(engine, Channels([channel]), settings=OPEN))
    async with httpx.AsyncClient(transport=transport, base_url="http://mailer/api/v1") as client:
        yield client


async def test_a_held_mailing_shows_since_when_and_why(
    api_with_open_breaker: httpx.AsyncClient, engine: AsyncEngine
) -> None:
    await add_clients(engine, 1)
    mailing_id = await create_running_mailing(api_with_open_breaker, engine)
    page = await get_page(api_with_open_breaker, f"/mailings/{mailing_id}")
    assert '<span class="status held">Held</span>' in page
    assert "15 Jan 2030, 06:00</time>: the gateway answered 503." in page
    assert '<span class="status held">Held</span>' in await get_page(
        api_with_open_breaker, "/mailings"
    )
    message_id = await value(engine, "SELECT max(id) FROM message")
    message_page = await get_page(
        api_with_open_breaker, f"/mailings/{mailing_id}/messages/{message_id}"
    )
    assert "It waits until the gateway accepts messages again." in message_page


async def test_the_page_shows_that_no_gateway_is_configured(
    api: httpx.AsyncClient, engine: AsyncEngine
) -> None:
    await add_clients(engine, 1)
    mailing_id = await create_running_mailing(api, engine)
    page = await get_page(api, f"/mailings/{mailing_id}")
    assert "No gateway is configured, so nothing is sent." in page
    assert "It is being sent" not in page
    running = (await get_page(api, "/")).partition('id="running"')[2]
    assert "No gateway is configured, so nothing is sent." in running


@pytest.fixture
async def api_with_gateway(engine: AsyncEngine) -> AsyncIterator[httpx.AsyncClient]:
    """The application with a gateway that accepts one message a second."""
    app = create_app(engine, create_channels(gateway_rate=1), settings=OPEN)
    async with httpx.AsyncClient(transport=inside(app), base_url="http://mailer/api/v1") as client:
        yield client


async def test_the_page_shows_when_the_next_sending_window_opens(
    api_with_gateway: httpx.AsyncClient, engine: AsyncEngine
) -> None:
    clients = await add_clients(engine, 2, "916", "Europe/Moscow")
    now = datetime.now(UTC)
    mailing_id = await add_mailing(
        engine, clients=2, start=now - timedelta(hours=1), lasts=timedelta(days=2)
    )
    opens = (now + timedelta(hours=5)).replace(minute=0, second=0, microsecond=0)
    await add_messages(engine, mailing_id, clients, "scheduled", at=opens)
    for path in (f"/mailings/{mailing_id}", "/", "/mailings"):
        page = " ".join(re.sub(r"<[^>]*>", "", await get_page(api_with_gateway, path)).split())
        assert f"{opens:%H:%M} (Europe/Moscow)." in page, path
        assert "It is being sent" not in page
        assert "0 a second" not in page
        assert "Try now" not in page

    # after a failure, the pause of the message ends before the window opens
    await execute(engine, "UPDATE message SET attempts = 1, retry_at = due_at - interval '1 h'")
    page = await get_page(api_with_gateway, f"/mailings/{mailing_id}")
    assert "The next sending window opens at" in page
    assert "Try now" not in page

    await execute(engine, "UPDATE message SET due_at = now() - interval '1 s'")
    assert "It is being sent" in await get_page(api_with_gateway, f"/mailings/{mailing_id}")


async def add_mailing_halfway(engine: AsyncEngine, count: int) -> tuple[datetime, list[int], int]:
    """Create clients, and a mailing to them that started an hour ago and ends in an hour.

    Returns the current time, the ids of the clients, and the id of the mailing.
    """
    now = datetime.now(UTC)
    clients = await add_clients(engine, count)
    start, lasts = now - timedelta(hours=1), timedelta(hours=2)
    return now, clients, await add_mailing(engine, clients=count, start=start, lasts=lasts)


async def test_a_button_ends_the_pause_of_failed_messages(
    api_with_gateway: httpx.AsyncClient, engine: AsyncEngine
) -> None:
    now, clients, mailing_id = await add_mailing_halfway(engine, 1)
    await add_messages(engine, mailing_id, clients, "scheduled", at=now + timedelta(minutes=15))
    await execute(
        engine,
        """UPDATE message SET attempts = 1, retry_at = due_at, updated_at = now(), failures =
            '[{"attempt": 1, "claimed_at": "2030-01-15T05:59:00Z",
            "ended_at": "2030-01-15T06:00:00Z", "reason": "http_500"}]'""",
    )
    path = f"/mailings/{mailing_id}"
    message_id = await value(engine, "SELECT max(id) FROM message")
    message_path = f"{path}/messages/{message_id}"
    assert "Failed messages are retried from" in await get_page(api_with_gateway, path)
    for page_path in (path, message_path):
        return_field = f'<input type="hidden" name="return_path" value="{page_path}"'
        assert f'action="/gateway/try">{return_field}' in await get_page(
            api_with_gateway, page_path
        )

    response = await api_with_gateway.post(
        f"{SITE}/gateway/try", data={"return_path": message_path}, headers={"Origin": SITE}
    )
    assert response.status_code == 303
    assert await value(engine, "SELECT due_at <= now() FROM message") is True
    for page_path in (path, message_path):
        assert "Try now" not in await get_page(api_with_gateway, page_path)

    # the pause has ended, but the message waits for its sending window
    await execute(engine, "UPDATE message SET due_at = now() + interval '1 hour', retry_at = now()")
    assert "Try now" not in await get_page(api_with_gateway, message_path)


async def test_the_page_shows_that_messages_due_after_the_end_expire(
    api_with_gateway: httpx.AsyncClient, engine: AsyncEngine
) -> None:
    now, clients, mailing_id = await add_mailing_halfway(engine, 2)
    await add_messages(engine, mailing_id, clients[:1], "delivered", at=now - timedelta(minutes=30))
    await add_messages(engine, mailing_id, clients[1:], "scheduled", at=now + timedelta(hours=3))
    await execute(
        engine,
        "UPDATE message SET attempts = 1, retry_at = due_at WHERE status = 'scheduled'",
    )
    path = f"/mailings/{mailing_id}"
    for page_path in (path, "/"):
        page = await get_page(api_with_gateway, page_path)
        assert (
            "Nothing is due before the end. The remaining messages are cancelled at <time" in page
        )
        assert "It is being sent" not in page
        assert "0 a second" not in page
    assert "Try now" in await get_page(api_with_gateway, path)
    russian = await api_with_gateway.get(f"{SITE}{path}", headers={"Accept-Language": "ru"})
    assert "До окончания ничего не будет отправлено." in russian.text


async def test_the_page_shows_one_estimate_and_the_failed_messages_beside_it(
    api_with_gateway: httpx.AsyncClient, engine: AsyncEngine
) -> None:
    clients = await add_clients(engine, 100)
    now = datetime.now(UTC)
    mailing_id = await add_mailing(
        engine, clients=100, start=now - timedelta(hours=1), lasts=timedelta(days=2)
    )
    waiting, reached, without_window = clients[:60], clients[60:70], clients[70:]
    await add_messages(engine, mailing_id, waiting, "scheduled", at=now)
    await add_messages(engine, mailing_id, reached, "delivered", at=now)
    await add_messages(engine, mailing_id, without_window, "cancelled", "no_window", at=now)
    page = await get_page(api_with_gateway, f"/mailings/{mailing_id}")
    assert "60 remaining clients will get it by" in page
    assert "All clients will get it" not in page
    assert "0 undelivered, 0 delivery unknown, 30 cancelled" in page
    assert "finishes at about" not in page
    assert "finishes at about" in await get_page(api_with_gateway, "/")

    await execute(engine, "UPDATE mailing SET status = 'paused'")
    page = await get_page(api_with_gateway, f"/mailings/{mailing_id}")
    assert "No estimate while it waits." in page
    assert "will get it by" not in page


# ---- actions --------------------------------------------------------------------------------


async def shown_buttons(api: httpx.AsyncClient, mailing_id: int) -> set[str]:
    """Return the ids of the buttons on a mailing's page."""
    page = await get_page(api, f"/mailings/{mailing_id}")
    ids = ("edit", "pause", "resume", "retry", "duplicate", "cancel", "delete")
    return {button_id for button_id in ids if f'id="{button_id}"' in page}


async def test_buttons_match_the_state(api: httpx.AsyncClient, engine: AsyncEngine) -> None:
    clients = await add_clients(engine, 2)
    always = {"duplicate", "delete"}
    while_open = always | {"edit", "cancel"}
    scheduled = (await create_mailing(api, NEW))["id"]
    assert await shown_buttons(api, scheduled) == while_open | {"pause"}
    running = await create_running_mailing(api, engine)
    assert await shown_buttons(api, running) == while_open | {"pause"}
    await update_messages(engine, clients[0], status="undelivered", reason="rejected_400")
    assert await shown_buttons(api, running) == while_open | {"pause", "retry"}
    await api.post(f"/mailings/{running}/pause")
    assert await shown_buttons(api, running) == while_open | {"resume", "retry"}
    await api.post(f"/mailings/{running}/cancel")
    assert await shown_buttons(api, running) == always
    ended = await add_mailing(engine, start=datetime.now(UTC) - timedelta(days=1))
    assert await shown_buttons(api, ended) == always


async def test_confirmations_state_the_effects_with_numbers(
    api: httpx.AsyncClient, engine: AsyncEngine
) -> None:
    clients = await add_clients(engine, 5)
    mailing_id = await create_running_mailing(api, engine, text=HOSTILE)
    await update_messages(engine, clients[0], status="delivered", sent_at=datetime.now(UTC))
    await update_messages(engine, clients[1], status="undelivered", reason="rejected_400")
    await update_messages(engine, clients[2], status="unknown", reason="timeout")

    async def check_confirmation(verb: str, *sentences: str) -> None:
        page = await get_page(api, f"/mailings/{mailing_id}/{verb}")
        assert [sentence for sentence in sentences if sentence not in page] == []
        assert f'action="/mailings/{mailing_id}/{verb}"' in page
        assert "<script>alert" not in page
        assert "<header>" in page

    await check_confirmation(
        "cancel",
        "2 waiting messages will not be sent.",
        "1 message that a gateway has accepted stays",
    )
    await check_confirmation(
        "retry",
        "1 undelivered message will be sent again.",
        "1 message with delivery unknown",
        "get it twice",
    )
    await check_confirmation(
        "delete", "2 waiting messages will not be sent.", "5 messages are deleted too"
    )


@pytest.mark.parametrize("verb", ["pause", "resume"])
async def test_a_pause_and_a_resumption_ask_for_no_confirmation(
    api: httpx.AsyncClient, verb: str
) -> None:
    mailing_id = (await create_mailing(api, NEW))["id"]
    await get_page(api, f"/mailings/{mailing_id}/{verb}", 404)


async def test_a_confirmation_for_a_script_is_a_fragment(
    api: httpx.AsyncClient,
) -> None:
    mailing_id = (await create_mailing(api, NEW))["id"]
    fragment = await api.get(f"{SITE}/mailings/{mailing_id}/cancel", headers={"HX-Request": "true"})
    assert "<header>" not in fragment.text
    assert 'id="question"' in fragment.text


async def test_confirmations_before_the_start_mention_the_start(
    api: httpx.AsyncClient, engine: AsyncEngine
) -> None:
    await add_clients(engine, 3)
    mailing_id = (await create_mailing(api, NEW))["id"]
    assert "The mailing will not start: 3 clients will not get it." in await get_page(
        api, f"/mailings/{mailing_id}/cancel"
    )


@pytest.mark.parametrize(
    ("verbs", "flash", "status"),
    [
        (["pause"], "mailing-paused", "paused"),
        (["pause", "resume"], "mailing-resumed", "scheduled"),
        (["cancel"], "mailing-cancelled", "cancelled"),
    ],
)
async def test_an_action_redirects_to_the_mailing_with_a_message(
    api: httpx.AsyncClient, verbs: list[str], flash: str, status: str
) -> None:
    mailing_id = (await create_mailing(api, NEW))["id"]
    for verb in verbs:
        response = await post(api, f"/mailings/{mailing_id}/{verb}")
    api.cookies.clear()  # other tests share `api`: the cookie would show them the message
    assert response.status_code == 303
    assert response.headers["location"] == f"/mailings/{mailing_id}"
    assert f"done={flash}.{mailing_id};" in response.headers["set-cookie"]
    assert (await api.get(f"/mailings/{mailing_id}")).json()["status"] == status


@pytest.mark.parametrize(
    ("referer", "location"),
    [
        ("/mailings?status=running&search=a", "/mailings?status=running&search=a"),
        ("/mailings", "/mailings"),
        ("/mailings/1", None),
        ("/clients", None),
        ("//other/mailings", None),
        (None, None),
    ],
)
async def test_a_pause_leads_back_to_the_list_with_its_filters(
    api: httpx.AsyncClient, referer: str | None, location: str | None
) -> None:
    mailing_id = (await create_mailing(api, NEW))["id"]
    headers = {} if referer is None else {"Referer": f"{SITE}{referer}"}
    if referer is not None and referer.startswith("//"):
        headers = {"Referer": f"http:{referer}"}
    response = await api.post(f"{SITE}/mailings/{mailing_id}/pause", headers=BROWSER | headers)
    api.cookies.clear()
    assert response.status_code == 303
    assert response.headers["location"] == (location or f"/mailings/{mailing_id}")


async def test_rows_of_running_and_paused_mailings_have_a_button(
    api: httpx.AsyncClient, engine: AsyncEngine
) -> None:
    await create_mailing(api, NEW)
    running = await create_running_mailing(api, engine)
    assert re.findall(r'action="/mailings/(\d+)/(\w+)"', await get_page(api, "/mailings")) == [
        (f"{running}", "pause")
    ]
    await api.post(f"/mailings/{running}/pause")
    assert re.findall(r'action="/mailings/(\d+)/(\w+)"', await get_page(api, "/mailings")) == [
        (f"{running}", "resume")
    ]


async def test_the_message_about_a_pause_has_an_undo_button_and_is_shown_once(
    api: httpx.AsyncClient,
) -> None:
    mailing_id = (await create_mailing(api, NEW))["id"]
    await post(api, f"/mailings/{mailing_id}/pause")
    page = await get_page(api, "/mailings")
    assert f"Mailing {mailing_id} is paused." in page
    assert f'action="/mailings/{mailing_id}/resume" id="undo"' in page
    assert "is paused." not in await get_page(api, "/mailings")


@pytest.mark.parametrize("cookie", ["mailing-paused.", "mailing-paused.x", "x.1", ".", "a.b.c"])
async def test_a_forged_message_is_harmless(api: httpx.AsyncClient, cookie: str) -> None:
    headers = BROWSER | {"Cookie": f"done={cookie}"}
    response = await api.get(f"{SITE}/mailings", headers=headers)
    assert response.status_code == 200
    assert "/mailings/0/resume" not in response.text


async def test_deleting_a_mailing_redirects_to_the_list(api: httpx.AsyncClient) -> None:
    mailing_id = (await create_mailing(api, NEW))["id"]
    response = await post(api, f"/mailings/{mailing_id}/delete")
    api.cookies.clear()
    assert (response.status_code, response.headers["location"]) == (303, "/mailings")
    await get_page(api, f"/mailings/{mailing_id}", 404)


async def test_retry_sends_failed_messages_again(
    api: httpx.AsyncClient, engine: AsyncEngine
) -> None:
    clients = await add_clients(engine, 1)
    mailing_id = await create_running_mailing(api, engine)
    await update_messages(engine, clients[0], status="undelivered", reason="rejected_400")
    response = await post(api, f"/mailings/{mailing_id}/retry")
    api.cookies.clear()
    assert response.status_code == 303
    assert "are being scheduled again" in await get_page(api, f"/mailings/{mailing_id}")


@pytest.mark.parametrize("verb", ["pause", "resume", "retry", "cancel"])
async def test_an_action_that_is_not_allowed_is_409_with_a_link_back(
    api: httpx.AsyncClient, verb: str
) -> None:
    mailing_id = (await create_mailing(api, NEW))["id"]
    await api.post(f"/mailings/{mailing_id}/cancel")
    response = await post(api, f"/mailings/{mailing_id}/{verb}")
    assert response.status_code == 409
    assert "This cannot be done now" in response.text
    assert f'href="/mailings/{mailing_id}">Back' in response.text
