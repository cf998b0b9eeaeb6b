"""A form that creates something makes it once, however often it is sent."""

import asyncio
import hashlib
import html
import re
from urllib.parse import urlencode

import httpx
import pytest
from litestar.routes import HTTPRoute
from sqlalchemy.ext.asyncio import AsyncEngine
from tests.api.visits import BROWSER, SITE, page, signed_in
from tests.sample import execute, value

from mailer.access.gate import DOOR
from mailer.app import create_app
from mailer.settings import Settings

SECRET = "four words as a phrase"  # noqa: S105  # of nobody
FORMS = {
    "/clients/new": {"phone": "79160000001", "time_zone": "UTC"},
    "/mailings/new": {
        "text": "Hello",
        "start": "2040-01-01T09:00",
        "end": "2040-01-02T09:00",
        "audience": "everybody",
        "on_unknown": "retry",
        "time_zone": "UTC",
    },
    "/people/new": {"name": "oleg", "role": "viewer", "password": SECRET, "again": SECRET},
    "/keys": {"name": "shop", "scope": "write", "expires": "90"},
}
"""What creates something, and what is sent to it."""
COUNTS = {
    "/clients/new": "SELECT count(*) FROM client",
    "/mailings/new": "SELECT count(*) FROM mailing",
    "/people/new": "SELECT count(*) FROM account WHERE name = 'oleg'",
    "/keys": "SELECT count(*) FROM api_key",
}
CREATE_NOTHING = frozenset(
    {
        "/account/password",
        "/account/sessions",
        "/clients/import",  # a file sent again changes nothing, and its report names what is wrong
        "/clients/{client_id:int}",
        "/clients/{client_id:int}/delete",
        "/gateway/try",
        "/keys/{key_id:int}/revoke",
        "/login",
        "/logout",
        "/mailings/preview",
        "/mailings/{mailing_id:int}/edit",
        "/mailings/{mailing_id:int}/{verb:str}",
        "/people/{account_id:int}/disable",
        "/people/{account_id:int}/enable",
        "/people/{account_id:int}/password",
        "/people/{account_id:int}/role",
        "/people/{account_id:int}/sign-out",
        "/preferences",
        "/restored",
    }
)
"""Forms that change what is there: sent twice, they leave it as sent once."""
LOSE_ANSWER = """
    UPDATE idempotency SET status = NULL, media_type = NULL, body = NULL, taken_until = now()"""


@pytest.fixture
async def browser(engine: AsyncEngine) -> httpx.AsyncClient:
    """A browser in which an admin is signed in."""
    return await signed_in(engine, "admin")


def action(shown: str) -> str:
    """Where the form of a page goes that has a key."""
    [found] = re.findall(r'action="([^"]*once=[0-9a-f]{32}[^"]*)"', shown)
    return html.unescape(str(found))


async def sent(api: httpx.AsyncClient, path: str, form: dict[str, str]) -> httpx.Response:
    return await api.post(f"{SITE}{path}", data=form, headers=BROWSER)


async def made(engine: AsyncEngine, path: str) -> int:
    return int(await value(engine, COUNTS[path]))


def test_every_form_either_creates_something_once_or_creates_nothing(engine: AsyncEngine) -> None:
    app = create_app(engine, settings=Settings())
    found = {
        route.path
        for route in app.routes
        if isinstance(route, HTTPRoute) and "POST" in route.route_handler_map
        if route.route_handler_map["POST"][0].opt.get(DOOR) == "session"
    }
    assert found == FORMS.keys() | CREATE_NOTHING


@pytest.mark.parametrize("path", FORMS)
async def test_the_repeat_of_a_form_leads_to_what_the_first_made(
    browser: httpx.AsyncClient, engine: AsyncEngine, path: str
) -> None:
    to = action(await page(browser, path))
    first = await sent(browser, to, FORMS[path])
    again = await sent(browser, to, FORMS[path])
    assert first.status_code in {201, 303}
    assert again.status_code == 303
    assert again.headers["location"] == first.headers["location"]
    assert await made(engine, path) == 1


@pytest.mark.parametrize("path", FORMS)
async def test_a_double_click_makes_one(
    browser: httpx.AsyncClient, engine: AsyncEngine, path: str
) -> None:
    to = action(await page(browser, path))
    answers = await asyncio.gather(*(sent(browser, to, FORMS[path]) for _ in range(4)))
    first, *others = sorted(answer.status_code for answer in answers)
    assert first in {201, 303}
    assert others == [303] * 3
    assert len({answer.headers["location"] for answer in answers}) == 1
    assert await made(engine, path) == 1


@pytest.mark.parametrize("path", FORMS)
async def test_a_form_whose_answer_was_lost_leads_to_what_it_made(
    browser: httpx.AsyncClient, engine: AsyncEngine, path: str
) -> None:
    to = action(await page(browser, path))
    first = await sent(browser, to, FORMS[path])
    await execute(engine, LOSE_ANSWER)
    again = await sent(browser, to, FORMS[path])
    assert again.status_code == 303
    assert again.headers["location"] == first.headers["location"]
    assert await made(engine, path) == 1


async def test_the_repeat_of_a_form_for_a_key_tells_of_the_key_without_its_secret(
    browser: httpx.AsyncClient, engine: AsyncEngine
) -> None:
    to = action(await page(browser, "/keys"))
    [secret] = re.findall("mailer_[A-Za-z0-9_-]+", (await sent(browser, to, FORMS["/keys"])).text)
    again = await sent(browser, to, FORMS["/keys"])
    shown = await page(browser, again.headers["location"])
    assert "The key shop was created when you sent the form for the first time" in shown
    assert secret not in again.text + shown
    kept = await value(engine, "SELECT string_agg(t::text, '') FROM idempotency AS t")
    assert secret.encode().hex() not in kept
    await browser.post("/keys/1/revoke")
    assert "for the first time" not in await page(browser, again.headers["location"])


async def test_a_form_opened_anew_or_changed_makes_another(
    api: httpx.AsyncClient, engine: AsyncEngine
) -> None:
    path = "/mailings/new"
    to = action(await page(api, path))
    await sent(api, to, FORMS[path])
    await sent(api, to, FORMS[path] | {"text": "Another"})
    await sent(api, action(await page(api, path)), FORMS[path])
    assert await made(engine, path) == 3


async def test_a_form_that_was_refused_may_be_mended_and_sent_again(
    api: httpx.AsyncClient, engine: AsyncEngine
) -> None:
    path = "/mailings/new"
    to = action(await page(api, path))
    refused = await sent(api, to, FORMS[path] | {"text": ""})
    assert refused.status_code == 400
    assert action(refused.text) == to
    assert (await sent(api, to, FORMS[path])).status_code == 303
    assert (await sent(api, to, FORMS[path])).status_code == 303
    assert await made(engine, path) == 1


async def test_what_was_deleted_is_not_made_again_by_a_repeat(
    api: httpx.AsyncClient, engine: AsyncEngine
) -> None:
    path = "/clients/new"
    to = action(await page(api, path))
    made_at = (await sent(api, to, FORMS[path])).headers["location"]
    await api.delete(f"{SITE}/api/v1{made_at}")
    assert (await sent(api, to, FORMS[path])).status_code in {303, 409}
    assert await value(engine, "SELECT count(*) FROM client WHERE deleted_at IS NULL") == 0


async def test_the_copy_of_a_mailing_is_made_once(
    browser: httpx.AsyncClient, engine: AsyncEngine
) -> None:
    mailing = await browser.post("/mailings/new", data=FORMS["/mailings/new"])
    number = mailing.headers["location"].rpartition("/")[2]
    to = action(await page(browser, f"/mailings/new?from={number}"))
    assert f"from={number}" in to
    for _ in range(2):
        await browser.post(to, data=FORMS["/mailings/new"])
    assert await made(engine, "/mailings/new") == 2


async def test_a_file_that_is_sent_twice_changes_nothing(
    browser: httpx.AsyncClient, engine: AsyncEngine
) -> None:
    seen = []
    for _ in range(2):
        answer = await browser.post(
            "/clients/import",
            content="phone,tag\n79160000001,vip\n79160000002,\n",
            headers={"Content-Type": "text/csv"},
        )
        assert answer.status_code == 200
        seen.append(await value(engine, "SELECT array_agg(client ORDER BY id)::text FROM client"))
    assert seen[0] == seen[1]
    assert await made(engine, "/clients/new") == 2


@pytest.mark.parametrize("path", sorted(CREATE_NOTHING))
async def test_a_form_that_creates_nothing_stores_no_answer(
    browser: httpx.AsyncClient, engine: AsyncEngine, path: str
) -> None:
    path = re.sub(r"\{(\w+):(int|str)\}", r"{\1}", path)
    numbers = {"client_id": 1, "mailing_id": 1, "key_id": 1, "account_id": 1}
    to = path.format(verb="pause", **numbers) + f"?once={'a' * 32}"
    await sent(browser, to, {"back": "/" + "a" * 1900, "language": "en"})
    assert await value(engine, "SELECT count(*) FROM idempotency") == 0


@pytest.mark.parametrize("path", FORMS)
async def test_a_form_that_was_refused_stores_no_answer(
    browser: httpx.AsyncClient, engine: AsyncEngine, path: str
) -> None:
    to = action(await page(browser, path))
    assert (await sent(browser, to, {"back": "/clients"})).status_code == 400
    assert await value(engine, "SELECT count(*) FROM idempotency") == 0


@pytest.mark.parametrize(("length", "leads_to"), [(2000, None), (2001, "/")])
async def test_an_address_to_go_back_to_is_bounded(
    browser: httpx.AsyncClient, length: int, leads_to: str | None
) -> None:
    back = "/" + "a" * (length - 1)
    answer = await sent(browser, "/preferences", {"back": back})
    assert answer.headers["location"] == (leads_to or back)


async def test_what_was_typed_cannot_be_guessed_from_what_is_stored(
    browser: httpx.AsyncClient, engine: AsyncEngine
) -> None:
    to = action(await page(browser, "/people/new"))
    path, _, query = to.partition("?")
    await sent(browser, to, FORMS["/people/new"])
    row = str(await value(engine, "SELECT idempotency::text FROM idempotency"))
    assert query.removeprefix("once=") not in row
    kind = "application/x-www-form-urlencoded"
    for known in ("", "once="):
        head = f"POST\n{path}\n{known}\n\n{kind}\n"
        guess = hashlib.sha256((head + urlencode(FORMS["/people/new"])).encode())
        assert guess.hexdigest() not in row


async def test_a_form_whose_answer_was_lost_leads_to_a_mailing_that_has_ended_since(
    api: httpx.AsyncClient, engine: AsyncEngine
) -> None:
    path = "/mailings/new"
    to = action(await page(api, path))
    first = await sent(api, to, FORMS[path])
    await execute(
        engine,
        LOSE_ANSWER,
        "UPDATE mailing SET datetime_start = now() - interval '2 h', datetime_end = now()",
    )
    form = FORMS[path] | {"start": "2020-01-01T09:00", "end": "2020-01-02T09:00"}
    assert (await sent(api, to, form)).status_code == 400  # another form: it is checked
    again = await sent(api, to, FORMS[path])
    assert again.headers["location"] == first.headers["location"]
