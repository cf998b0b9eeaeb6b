"""The list of mailings and the page of one, as far as they need no browser."""

import re
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta

import httpx
import pytest
from sqlalchemy.ext.asyncio import AsyncEngine
from tests.api.calls import NEW, create, mark
from tests.api.visits import ESCAPED, HOSTILE, SITE, page, post, under_way
from tests.asked import inside
from tests.sample import OPEN, add_clients, add_mailing, add_messages, execute, value

from mailer.app import create_app
from mailer.gateway.breaker import Breaker
from mailer.gateway.pace import Pace
from mailer.gateway.port import Unavailable

FAR = 10**9


# ---- the list -------------------------------------------------------------------------------


async def test_list_without_mailings_leads_on(api: httpx.AsyncClient) -> None:
    shown = await page(api, "/mailings")
    assert "There is no mailing yet." in shown
    assert '<a href="/mailings/new">Write the first one</a>' in shown


async def test_list_shows_mailings_newest_first_and_escapes_them(api: httpx.AsyncClient) -> None:
    first = await create(api, NEW)
    second = await create(api, NEW | {"text": HOSTILE})
    shown = await page(api, "/mailings")
    assert "2 mailings" in shown
    assert f'<a href="/mailings/{second["id"]}">{ESCAPED}</a>' in shown
    assert shown.index(f"#{second['id']}<") < shown.index(f"#{first['id']}<")
    assert "<script>alert" not in shown
    assert f'data-live="/live/mailings?ids={second["id"]},{first["id"]}"' in shown


async def test_list_keeps_its_filter_and_shows_only_what_is_like_that(
    api: httpx.AsyncClient,
) -> None:
    paused = (await create(api, NEW | {"text": "Apples"}))["id"]
    await api.post(f"/mailings/{paused}/pause")
    await create(api, NEW | {"text": "Pears"})
    shown = await page(api, "/mailings?status=paused&search=")
    assert '<option value="paused" selected>' in shown
    assert "1 mailing<" in shown
    assert "Pears" not in shown
    shown = await page(api, "/mailings?search=pears")
    assert 'value="pears"' in shown
    assert "Pears" in shown
    assert "Apples" not in shown
    assert f"#{paused}<" in await page(api, f"/mailings?search=%23{paused}")
    nothing = await page(api, "/mailings?search=plums")
    assert "No mailings match." in nothing
    assert "data-live" not in nothing


async def test_list_goes_page_by_page_with_its_filter(api: httpx.AsyncClient) -> None:
    ids = [(await create(api, NEW))["id"] for _ in range(3)]
    shown = await page(api, "/mailings?status=scheduled&limit=2")
    older = f"/mailings?status=scheduled&amp;limit=2&amp;before={ids[1]}"
    assert f'<a href="{older}" rel="next">' in shown
    assert "Newer" not in shown
    shown = await page(api, older.replace("&amp;", "&"))
    assert f'after={ids[0]}" rel="prev"' in shown
    assert "Older" not in shown


@pytest.mark.parametrize(
    ("query", "field"),
    [("status=odd", "status"), ("search=%00", "search"), (f"search={'x' * 201}", "search")],
)
async def test_wrong_filter_of_the_list_is_told_beside_its_field(
    api: httpx.AsyncClient, query: str, field: str
) -> None:
    await create(api, NEW)
    shown = await page(api, f"/mailings?{query}", 400)
    assert f'id="{field}-error"' in shown
    assert f'<a href="#{field}">' in shown
    assert "Your order is ready." not in shown


async def test_hostile_filter_is_escaped(api: httpx.AsyncClient) -> None:
    answer = await api.get(f"{SITE}/mailings", params={"search": HOSTILE, "before": HOSTILE})
    assert answer.status_code == 400
    assert "<script>alert" not in answer.text


async def test_rows_that_have_ended_do_not_move(
    api: httpx.AsyncClient, engine: AsyncEngine
) -> None:
    await add_mailing(engine, status="finished")
    assert "data-live" not in await page(api, "/mailings")


@pytest.mark.parametrize("ids", ["", "x", "1,", "1,,2", "-1", "1 ,2", "1" * 30])
async def test_rows_are_asked_for_by_ids_alone(api: httpx.AsyncClient, ids: str) -> None:
    await page(api, f"/live/mailings?ids={ids}", 400)


# ---- a mailing ------------------------------------------------------------------------------


@pytest.mark.parametrize("end", ["", "/messages", "/pause", "/resume", "/retry", "/cancel"])
async def test_mailing_that_does_not_exist_is_no_page(api: httpx.AsyncClient, end: str) -> None:
    shown = await page(api, f"/mailings/{FAR}{end}", 404)
    assert "There is no such mailing." in shown
    await page(api, f"/mailings/x{end}", 404)


async def test_nothing_else_can_be_done_with_a_mailing(api: httpx.AsyncClient) -> None:
    mailing_id = (await create(api, NEW))["id"]
    await page(api, f"/mailings/{mailing_id}/explode", 404)
    assert (await post(api, f"/mailings/{mailing_id}/explode")).status_code == 404


async def test_mailing_tells_all_about_itself_and_escapes_it(
    api: httpx.AsyncClient, engine: AsyncEngine
) -> None:
    await add_clients(engine, 3)
    lists = {"operator_codes": ["916"], "tags": ["<b>", "vip"], "time_zones": ["UTC"]}
    mailing_id = (
        await create(
            api,
            NEW
            | {"text": HOSTILE, "client_filter": lists, "on_unknown": "hold"}
            | {"send_interval_time_start": "09:00", "send_interval_time_end": "21:00"},
        )
    )["id"]
    api.cookies.set("time_zone", "Asia/Tokyo")
    shown = await page(api, f"/mailings/{mailing_id}")
    api.cookies.clear()
    assert f'<p class="text">{ESCAPED}</p>' in shown
    assert "the operator code is 916" in shown
    assert "the tag is one of these: &lt;b&gt;, vip" in shown
    assert "the time zone is UTC" in shown
    assert "1 Jan 2040, 18:00</time>" in shown
    assert "1 Jan 2040, 09:00 UTC</span>" in shown
    assert "09:00 to 21:00 on each client's clock" in shown
    assert "is not sent again" in shown
    assert "It starts by itself" in shown
    assert "<script>alert" not in shown


@pytest.mark.parametrize(
    ("client_filter", "words"),
    [
        (None, "Everybody in the directory"),
        ("912, <i>,", "Clients whose operator code or tag is one of these: 912, &lt;i&gt;"),
        (",".join(f"t{n}" for n in range(40)), "t29 and 10 more"),
    ],
    ids=["null", "terms", "many"],
)
async def test_audience_is_told_in_words(
    api: httpx.AsyncClient, client_filter: object, words: str
) -> None:
    mailing_id = (await create(api, NEW | {"client_filter": client_filter}))["id"]
    assert words in await page(api, f"/mailings/{mailing_id}")


async def test_ledger_adds_up_to_the_audience_and_leads_to_the_messages(
    api: httpx.AsyncClient, engine: AsyncEngine
) -> None:
    clients = await add_clients(engine, 4)
    mailing_id = await under_way(api, engine)
    await mark(engine, clients[0], status="delivered", sent_at=datetime.now(UTC))
    await mark(engine, clients[1], status="undelivered", reason="rejected_400")
    await mark(engine, clients[2], status="unknown", reason="timeout")
    shown = await page(api, f"/mailings/{mailing_id}")
    assert 'aria-label="1 of 4 delivered"' in shown
    assert "4 clients in the audience." in shown
    for state in ("delivered", "undelivered", "unknown", "scheduled"):
        link = f'<a href="/mailings/{mailing_id}/messages?status={state}">1</a>'
        assert f'{link} <span class="faint">25%</span>' in shown
    assert "the gateway refused it with 400" in shown
    assert f'/mailings/{mailing_id}/messages?status=unknown&amp;reason=timeout">1</a>' in shown


async def test_tables_are_bounded(api: httpx.AsyncClient, engine: AsyncEngine) -> None:
    for code in range(22):
        await add_clients(engine, 1, operator_code=str(900 + code))
    mailing_id = await under_way(api, engine)
    shown = await page(api, f"/mailings/{mailing_id}")
    assert '<th scope="row">919</th>' in shown
    assert '<th scope="row">920</th>' not in shown
    assert '<th scope="row">2 others</th> <td class="number">2</td>' in shown


async def test_audience_that_is_still_being_taken_is_told(
    api: httpx.AsyncClient, engine: AsyncEngine
) -> None:
    await add_clients(engine, 3)
    mailing_id = await under_way(api, engine)
    assert "being created" not in await page(api, f"/mailings/{mailing_id}")
    await execute(engine, "UPDATE mailing SET audience_cursor = 1")
    assert "being created: 3 of 3 so far." in await page(api, f"/mailings/{mailing_id}")
    await execute(engine, "UPDATE mailing SET replanning = true")
    assert "The change is being applied" in await page(api, f"/mailings/{mailing_id}")


@pytest.fixture
async def held(engine: AsyncEngine) -> AsyncIterator[httpx.AsyncClient]:
    """The application with a gateway that takes nothing."""
    breaker = Breaker(failures=1, reset=15)
    at = datetime(2030, 1, 15, 6, tzinfo=UTC)
    permit = breaker.begin(0)
    assert permit is not None
    breaker.record(permit, Unavailable("http_503"), 0, at)
    transport = inside(create_app(engine, breaker, settings=OPEN))
    async with httpx.AsyncClient(transport=transport, base_url="http://mailer/api/v1") as client:
        yield client


async def test_mailing_that_is_held_says_since_when_and_why(
    held: httpx.AsyncClient, engine: AsyncEngine
) -> None:
    await add_clients(engine, 1)
    mailing_id = await under_way(held, engine)
    shown = await page(held, f"/mailings/{mailing_id}")
    assert '<span class="status held">Held</span>' in shown
    assert "15 Jan 2030, 06:00</time>: the gateway answered 503." in shown
    assert '<span class="status held">Held</span>' in await page(held, "/mailings")
    message_id = await value(engine, "SELECT max(id) FROM message")
    story = await page(held, f"/mailings/{mailing_id}/messages/{message_id}")
    assert "It waits until the gateway takes messages again." in story


async def test_mailing_without_a_gateway_says_that_it_waits_for_one(
    api: httpx.AsyncClient, engine: AsyncEngine
) -> None:
    await add_clients(engine, 1)
    mailing_id = await under_way(api, engine)
    shown = await page(api, f"/mailings/{mailing_id}")
    assert "No gateway is configured: nothing is sent until there is one." in shown
    assert "It is being sent" not in shown
    assert "no gateway is configured" in await page(api, "/")


@pytest.fixture
async def sending(engine: AsyncEngine) -> AsyncIterator[httpx.AsyncClient]:
    """The application with a gateway that takes a message a second."""
    app = create_app(engine, Breaker(10, 15), pace=Pace(50, 1), settings=OPEN)
    async with httpx.AsyncClient(transport=inside(app), base_url="http://mailer/api/v1") as client:
        yield client


async def test_mailing_that_waits_for_its_hours_says_until_when(
    sending: httpx.AsyncClient, engine: AsyncEngine
) -> None:
    clients = await add_clients(engine, 2, "916", "Europe/Moscow")
    now = datetime.now(UTC)
    mailing_id = await add_mailing(
        engine, clients=2, start=now - timedelta(hours=1), lasts=timedelta(days=2)
    )
    opens = (now + timedelta(hours=5)).replace(minute=0, second=0, microsecond=0)
    await add_messages(engine, mailing_id, clients, "scheduled", at=opens)
    for path in (f"/mailings/{mailing_id}", "/", "/mailings"):
        shown = " ".join(re.sub(r"<[^>]*>", "", await page(sending, path)).split())
        assert f"{opens:%H:%M} (Europe/Moscow)." in shown, path
        assert "It is being sent" not in shown
        assert "0 a second" not in shown
        assert "Try now" not in shown
    tried = "UPDATE message SET attempts = 1, retry_at = due_at - interval '1 h'"
    await execute(engine, tried)
    shown = await page(sending, f"/mailings/{mailing_id}")
    assert "The next sending window opens at" in shown
    assert "Try now" not in shown
    await execute(engine, "UPDATE message SET due_at = now() - interval '1 s'")
    assert "It is being sent" in await page(sending, f"/mailings/{mailing_id}")


async def an_hour_old(engine: AsyncEngine, count: int) -> tuple[datetime, list[int], int]:
    """Return the moment, so many clients, and a mailing to them in the middle of its two hours."""
    now = datetime.now(UTC)
    clients = await add_clients(engine, count)
    start, lasts = now - timedelta(hours=1), timedelta(hours=2)
    return now, clients, await add_mailing(engine, clients=count, start=start, lasts=lasts)


async def test_pause_that_a_message_was_asked_for_ends_by_a_button(
    sending: httpx.AsyncClient, engine: AsyncEngine
) -> None:
    now, clients, mailing_id = await an_hour_old(engine, 1)
    await add_messages(engine, mailing_id, clients, "scheduled", at=now + timedelta(minutes=15))
    await execute(
        engine,
        """UPDATE message SET attempts = 1, retry_at = due_at, updated_at = now(), failures =
            '[{"attempt": 1, "claimed_at": "2030-01-15T05:59:00Z",
            "ended_at": "2030-01-15T06:00:00Z", "reason": "http_500"}]'""",
    )
    path = f"/mailings/{mailing_id}"
    message_id = await value(engine, "SELECT max(id) FROM message")
    message = f"{path}/messages/{message_id}"
    assert "Failed messages are retried from" in await page(sending, path)
    for place in (path, message):
        shown = await page(sending, place)
        assert f'action="/gateway/try"><input type="hidden" name="back" value="{place}"' in shown
    answer = await sending.post(
        f"{SITE}/gateway/try", data={"back": message}, headers={"Origin": SITE}
    )
    assert answer.status_code == 303
    assert await value(engine, "SELECT due_at <= now() FROM message") is True
    for place in (path, message):
        assert "Try now" not in await page(sending, place)
    await execute(engine, "UPDATE message SET due_at = now() + interval '1 hour', retry_at = now()")
    assert "Try now" not in await page(sending, message)  # it waits for its sending window


async def test_messages_due_past_the_end_expire_unless_the_end_is_moved(
    sending: httpx.AsyncClient, engine: AsyncEngine
) -> None:
    now, clients, mailing_id = await an_hour_old(engine, 2)
    await add_messages(engine, mailing_id, clients[:1], "delivered", at=now - timedelta(minutes=30))
    await add_messages(engine, mailing_id, clients[1:], "scheduled", at=now + timedelta(hours=3))
    await execute(
        engine,
        "UPDATE message SET attempts = 1, retry_at = due_at WHERE status = 'scheduled'",
    )
    path = f"/mailings/{mailing_id}"
    for place in (path, "/"):
        shown = " ".join((await page(sending, place)).split())
        assert "Nothing is due before the end. The remaining messages expire at <time" in shown
        assert "It is being sent" not in shown
        assert "0 a second" not in shown
    assert "Try now" in await page(sending, path)
    russian = await sending.get(f"{SITE}{path}", headers={"Accept-Language": "ru"})
    assert "До окончания ничего не будет отправлено." in russian.text


async def test_one_estimate_is_shown_and_what_is_lost_beside_it(
    sending: httpx.AsyncClient, engine: AsyncEngine
) -> None:
    clients = await add_clients(engine, 100)
    now = datetime.now(UTC)
    mailing_id = await add_mailing(
        engine, clients=100, start=now - timedelta(hours=1), lasts=timedelta(days=2)
    )
    await add_messages(engine, mailing_id, clients[:60], "scheduled", at=now)
    await add_messages(engine, mailing_id, clients[60:70], "delivered", at=now)
    await add_messages(engine, mailing_id, clients[70:], "cancelled", "no_window", at=now)
    shown = await page(sending, f"/mailings/{mailing_id}")
    assert "60 clients who are left are reached by" in shown
    assert "Everybody is reached" not in shown
    assert "0 undelivered, 0 in doubt, 30 cancelled" in shown
    assert "done at about" not in shown
    assert "done at about" in await page(sending, "/")
    await execute(engine, "UPDATE mailing SET status = 'paused'")
    shown = await page(sending, f"/mailings/{mailing_id}")
    assert "No estimate while sending is on hold." in shown
    assert "reached by" not in shown


# ---- what may be done -----------------------------------------------------------------------


async def controls(api: httpx.AsyncClient, mailing_id: int) -> set[str]:
    shown = await page(api, f"/mailings/{mailing_id}")
    known = ("edit", "pause", "resume", "retry", "duplicate", "cancel", "delete")
    return {control for control in known if f'id="{control}"' in shown}


async def test_controls_fit_the_state(api: httpx.AsyncClient, engine: AsyncEngine) -> None:
    clients = await add_clients(engine, 2)
    always = {"duplicate", "delete"}
    live = always | {"edit", "cancel"}
    scheduled = (await create(api, NEW))["id"]
    assert await controls(api, scheduled) == live | {"pause"}
    running = await under_way(api, engine)
    assert await controls(api, running) == live | {"pause"}
    await mark(engine, clients[0], status="undelivered", reason="rejected_400")
    assert await controls(api, running) == live | {"pause", "retry"}
    await api.post(f"/mailings/{running}/pause")
    assert await controls(api, running) == live | {"resume", "retry"}
    await api.post(f"/mailings/{running}/cancel")
    assert await controls(api, running) == always
    ended = await add_mailing(engine, start=datetime.now(UTC) - timedelta(days=1))
    assert await controls(api, ended) == always


async def test_question_says_what_will_happen_with_numbers(
    api: httpx.AsyncClient, engine: AsyncEngine
) -> None:
    clients = await add_clients(engine, 5)
    mailing_id = await under_way(api, engine, text=HOSTILE)
    await mark(engine, clients[0], status="delivered", sent_at=datetime.now(UTC))
    await mark(engine, clients[1], status="undelivered", reason="rejected_400")
    await mark(engine, clients[2], status="unknown", reason="timeout")
    for verb, told in {
        "cancel": ["2 messages that wait will not be sent.", "1 delivered message stays"],
        "pause": ["2 messages that wait are not sent", "what is not sent by", "The end stays"],
        "retry": ["1 undelivered message is sent again.", "1 message in doubt", "may come twice"],
        "delete": ["2 messages that wait will not be sent.", "5 messages are deleted too"],
        "resume": ["2 messages that wait are sent when they are due."],
    }.items():
        if verb == "resume":
            await page(api, f"/mailings/{mailing_id}/resume", 409)  # it is not paused
            assert (await api.post(f"/mailings/{mailing_id}/pause")).status_code == 200
        shown = await page(api, f"/mailings/{mailing_id}/{verb}")
        assert all(each in shown for each in told), (verb, shown)
        assert f'action="/mailings/{mailing_id}/{verb}"' in shown
        assert "<script>alert" not in shown
        assert "<header>" in shown
    part = await api.get(f"{SITE}/mailings/{mailing_id}/cancel", headers={"HX-Request": "true"})
    assert "<header>" not in part.text
    assert 'id="question"' in part.text


async def test_question_about_a_mailing_that_has_not_begun_speaks_of_its_start(
    api: httpx.AsyncClient, engine: AsyncEngine
) -> None:
    await add_clients(engine, 3)
    mailing_id = (await create(api, NEW))["id"]
    assert "It will not start: 3 clients get nothing." in await page(
        api, f"/mailings/{mailing_id}/cancel"
    )
    assert "at its start" in await page(api, f"/mailings/{mailing_id}/pause")


@pytest.mark.parametrize(
    ("verbs", "said", "status"),
    [
        (["pause"], "mailing-paused", "paused"),
        (["pause", "resume"], "mailing-resumed", "scheduled"),
        (["cancel"], "mailing-cancelled", "cancelled"),
    ],
)
async def test_what_is_done_is_said_on_the_mailings_page(
    api: httpx.AsyncClient, verbs: list[str], said: str, status: str
) -> None:
    mailing_id = (await create(api, NEW))["id"]
    for verb in verbs:
        answer = await post(api, f"/mailings/{mailing_id}/{verb}")
    api.cookies.clear()
    assert answer.status_code == 303
    assert answer.headers["location"] == f"/mailings/{mailing_id}"
    assert f"done={said}" in answer.headers["set-cookie"]
    assert (await api.get(f"/mailings/{mailing_id}")).json()["status"] == status


async def test_deleted_mailing_leads_to_the_list(api: httpx.AsyncClient) -> None:
    mailing_id = (await create(api, NEW))["id"]
    answer = await post(api, f"/mailings/{mailing_id}/delete")
    api.cookies.clear()
    assert (answer.status_code, answer.headers["location"]) == (303, "/mailings")
    await page(api, f"/mailings/{mailing_id}", 404)


async def test_retry_sends_again_what_was_given_up(
    api: httpx.AsyncClient, engine: AsyncEngine
) -> None:
    clients = await add_clients(engine, 1)
    mailing_id = await under_way(api, engine)
    await mark(engine, clients[0], status="undelivered", reason="rejected_400")
    answer = await post(api, f"/mailings/{mailing_id}/retry")
    api.cookies.clear()
    assert answer.status_code == 303
    assert "are being prepared to be sent again" in await page(api, f"/mailings/{mailing_id}")


@pytest.mark.parametrize("verb", ["pause", "resume", "retry", "cancel"])
async def test_what_cannot_be_done_any_more_is_said_on_a_page_that_leads_back(
    api: httpx.AsyncClient, verb: str
) -> None:
    mailing_id = (await create(api, NEW))["id"]
    await api.post(f"/mailings/{mailing_id}/cancel")
    answer = await post(api, f"/mailings/{mailing_id}/{verb}")
    assert answer.status_code == 409
    assert "This cannot be done now" in answer.text
    assert f'href="/mailings/{mailing_id}">Back' in answer.text
