"""A form that creates an object creates it once, however often it is sent."""

import asyncio
import hashlib
import html
import re
from urllib.parse import urlencode

import httpx
import pytest
from litestar.routes import HTTPRoute
from sqlalchemy.ext.asyncio import AsyncEngine
from tests.api.browser_session import BROWSER, SITE, get_page, signed_in_browser
from tests.factories import execute, value

from mailer.access.middleware import AUTH_METHOD
from mailer.app import create_app
from mailer.settings import Settings

SECRET = "four words as a phrase"  # noqa: S105  # used in tests alone
FORMS = {
    "/clients/new": {"phone": "79160000001", "time_zone": "UTC"},
    "/mailings/new": {
        "text": "Hello",
        "start": "2040-01-01T09:00",
        "end": "2040-01-02T09:00",
        "audience": "everybody",
        "on_unknown": "retry",
        "purpose": "marketing",
        "priority": "normal",
        "time_zone": "UTC",
        "then": "draft",  # the button that asks for no confirmation
    },
    "/clients/lists/new": {"name": "Spring"},
    "/users/new": {
        "name": "oleg",
        "role": "viewer",
        "password": SECRET,
        "repeated_password": SECRET,
    },
    "/keys": {"name": "shop", "scope": "write", "expires": "90"},
    "/webhooks/new": {
        "name": "shop",
        "url": "https://93.184.216.34/",  # a public address, so that no host is resolved
        "event-gateway.up": "on",
    },
}
"""Forms that create an object, with the fields to send."""
COUNTS = {
    "/clients/new": "SELECT count(*) FROM client",
    "/clients/lists/new": "SELECT count(*) FROM client_list",
    "/mailings/new": "SELECT count(*) FROM mailing",
    "/users/new": "SELECT count(*) FROM app_user WHERE name = 'oleg'",
    "/keys": "SELECT count(*) FROM api_key",
    "/webhooks/new": "SELECT count(*) FROM webhook",
}
CREATE_NOTHING = frozenset(
    {
        "/profile/password",
        "/profile/sessions",
        "/profile/notices",
        "/profile/notices/test",  # a test mail a minute at most
        "/clients/import",  # importing a file twice changes nothing
        "/clients/import/preview",
        "/clients/import/rejected",
        "/clients/{client_id:int}",
        "/clients/{client_id:int}/delete",
        "/clients/{client_id:int}/opt-out",
        "/clients/{client_id:int}/opt-in",
        "/clients/lists/{list_id:int}/add",  # a client who is on the list stays on it
        "/clients/lists/{list_id:int}/remove",
        "/clients/lists/{list_id:int}/delete",
        "/opt-outs/new",  # an opt-out that exists stays as it is
        "/opt-outs/import",
        "/opt-outs/import/preview",
        "/opt-outs/import/rejected",
        "/opt-outs/{opt_out_id:int}/delete",
        "/replies/preview",
        "/replies/{reply_id:int}/read",
        "/replies/{reply_id:int}/unread",
        "/gateway/try",
        "/gateways/{name:str}/{verb:str}",
        "/keys/{key_id:int}/revoke",
        "/login",
        "/logout",
        "/mailings/preview",
        "/mailings/{mailing_id:int}/edit",
        "/mailings/{mailing_id:int}/launch",
        "/mailings/{mailing_id:int}/start",
        "/mailings/{mailing_id:int}/test",
        "/mailings/{mailing_id:int}/edit/test",
        "/mailings/{mailing_id:int}/{verb:str}",
        "/users/{user_id:int}/disable",
        "/users/{user_id:int}/enable",
        "/users/{user_id:int}/notices",
        "/users/{user_id:int}/notices/test",
        "/users/{user_id:int}/password",
        "/users/{user_id:int}/role",
        "/users/{user_id:int}/sign-out",
        "/preferences",
        "/restored",
        "/webhooks/{webhook_id:int}/edit",
        "/webhooks/{webhook_id:int}/rotate-secret",
        "/webhooks/{webhook_id:int}/{verb:str}",
        "/webhooks/{webhook_id:int}/deliveries/{delivery_id:int}/redeliver",
    }
)
"""Forms that create nothing: sending them twice has the result of sending them once."""
NEED_GATEWAY = frozenset(
    {"/gateways/{name:str}/test", "/mailings/new/test", "/replies/{reply_id:int}/answer"}
)
"""Forms that need a configured gateway; the tests of their pages send them twice."""
LOSE_RESPONSE = """
    UPDATE idempotency SET status = NULL, media_type = NULL, body = NULL, leased_until = now()"""
"""Sets the state after a worker created the object and died before it responded."""


@pytest.fixture
async def browser(engine: AsyncEngine) -> httpx.AsyncClient:
    """A browser in which an admin is signed in."""
    return await signed_in_browser(engine, "admin")


def form_action(page_html: str) -> str:
    """Return the URL, with its idempotency key, to which the form of a page is sent."""
    [url] = re.findall(r' action="([^"]*once=[0-9a-f]{32}[^"]*)"', page_html)
    return html.unescape(str(url))


async def post_form(api: httpx.AsyncClient, path: str, form: dict[str, str]) -> httpx.Response:
    return await api.post(f"{SITE}{path}", data=form, headers=BROWSER)


async def count_created(engine: AsyncEngine, path: str) -> int:
    """Return the number of objects that the form at `path` has created."""
    return int(await value(engine, COUNTS[path]))


def test_every_form_is_listed_as_creating_an_object_or_nothing(engine: AsyncEngine) -> None:
    app = create_app(engine, settings=Settings())
    paths = {
        route.path
        for route in app.routes
        if isinstance(route, HTTPRoute) and "POST" in route.route_handler_map
        if route.route_handler_map["POST"][0].opt.get(AUTH_METHOD) == "session"
    }
    assert paths == FORMS.keys() | CREATE_NOTHING | NEED_GATEWAY


@pytest.mark.parametrize("path", FORMS)
async def test_a_repeated_form_redirects_to_the_object_that_the_first_created(
    browser: httpx.AsyncClient, engine: AsyncEngine, path: str
) -> None:
    action = form_action(await get_page(browser, path))
    first = await post_form(browser, action, FORMS[path])
    repeat = await post_form(browser, action, FORMS[path])
    assert first.status_code in {201, 303}
    assert repeat.status_code == 303
    assert repeat.headers["location"] == first.headers["location"]
    assert await count_created(engine, path) == 1


@pytest.mark.parametrize("path", FORMS)
async def test_a_double_click_creates_one_object(
    browser: httpx.AsyncClient, engine: AsyncEngine, path: str
) -> None:
    action = form_action(await get_page(browser, path))
    responses = await asyncio.gather(*(post_form(browser, action, FORMS[path]) for _ in range(4)))
    first_status, *other_statuses = sorted(response.status_code for response in responses)
    assert first_status in {201, 303}
    assert other_statuses == [303] * 3
    assert len({response.headers["location"] for response in responses}) == 1
    assert await count_created(engine, path) == 1


@pytest.mark.parametrize("path", FORMS)
async def test_a_form_whose_response_was_lost_redirects_to_the_object_it_created(
    browser: httpx.AsyncClient, engine: AsyncEngine, path: str
) -> None:
    action = form_action(await get_page(browser, path))
    first = await post_form(browser, action, FORMS[path])
    await execute(engine, LOSE_RESPONSE)
    repeat = await post_form(browser, action, FORMS[path])
    assert repeat.status_code == 303
    assert repeat.headers["location"] == first.headers["location"]
    assert await count_created(engine, path) == 1


async def test_a_repeated_form_for_an_api_key_shows_the_key_without_its_secret(
    browser: httpx.AsyncClient, engine: AsyncEngine
) -> None:
    action = form_action(await get_page(browser, "/keys"))
    first = await post_form(browser, action, FORMS["/keys"])
    [secret] = re.findall("mailer_[A-Za-z0-9_-]+", first.text)
    repeat = await post_form(browser, action, FORMS["/keys"])
    key_page = await get_page(browser, repeat.headers["location"])
    assert "The key shop was created when you sent the form for the first time" in key_page
    assert secret not in repeat.text + key_page
    stored = await value(engine, "SELECT string_agg(t::text, '') FROM idempotency AS t")
    assert secret.encode().hex() not in stored  # bytes are hexadecimal in the text of a row


async def test_a_repeated_form_for_an_api_key_shows_no_message_once_the_key_is_revoked(
    browser: httpx.AsyncClient,
) -> None:
    action = form_action(await get_page(browser, "/keys"))
    for _ in range(2):
        response = await post_form(browser, action, FORMS["/keys"])
    await browser.post("/keys/1/revoke")
    assert "for the first time" not in await get_page(browser, response.headers["location"])


async def test_a_changed_form_creates_another_object(
    api: httpx.AsyncClient, engine: AsyncEngine
) -> None:
    path = "/mailings/new"
    action = form_action(await get_page(api, path))
    await post_form(api, action, FORMS[path])
    await post_form(api, action, FORMS[path] | {"text": "Another"})
    assert await count_created(engine, path) == 2


async def test_a_form_opened_again_creates_another_object(
    api: httpx.AsyncClient, engine: AsyncEngine
) -> None:
    path = "/mailings/new"
    for _ in range(2):
        action = form_action(await get_page(api, path))
        await post_form(api, action, FORMS[path])
    assert await count_created(engine, path) == 2


async def test_a_refused_form_can_be_corrected_and_sent_again(
    api: httpx.AsyncClient, engine: AsyncEngine
) -> None:
    path = "/mailings/new"
    action = form_action(await get_page(api, path))
    refused = await post_form(api, action, FORMS[path] | {"text": ""})
    assert refused.status_code == 400
    assert form_action(refused.text) == action
    assert (await post_form(api, action, FORMS[path])).status_code == 303
    assert (await post_form(api, action, FORMS[path])).status_code == 303
    assert await count_created(engine, path) == 1


async def test_repeating_a_form_does_not_recreate_a_deleted_object(
    api: httpx.AsyncClient, engine: AsyncEngine
) -> None:
    path = "/clients/new"
    action = form_action(await get_page(api, path))
    location = (await post_form(api, action, FORMS[path])).headers["location"]
    await api.delete(f"{SITE}/api/v1{location}")
    assert (await post_form(api, action, FORMS[path])).status_code in {303, 409}
    assert await value(engine, "SELECT count(*) FROM client WHERE deleted_at IS NULL") == 0


async def test_copying_a_mailing_twice_with_one_form_creates_one_copy(
    browser: httpx.AsyncClient, engine: AsyncEngine
) -> None:
    mailing = await browser.post("/mailings/new", data=FORMS["/mailings/new"])
    mailing_id = mailing.headers["location"].rpartition("/")[2]
    action = form_action(await get_page(browser, f"/mailings/new?from={mailing_id}"))
    assert f"from={mailing_id}" in action
    for _ in range(2):
        await browser.post(action, data=FORMS["/mailings/new"])
    assert await count_created(engine, "/mailings/new") == 2


async def test_importing_a_file_twice_changes_nothing(
    browser: httpx.AsyncClient, engine: AsyncEngine
) -> None:
    stored_clients = []
    for _ in range(2):
        response = await browser.post(
            "/clients/import",
            content="phone,tag\n79160000001,vip\n79160000002,\n",
            headers={"Content-Type": "text/csv"},
        )
        assert response.status_code == 200
        stored_clients.append(
            await value(engine, "SELECT array_agg(client ORDER BY id)::text FROM client")
        )
    assert stored_clients[0] == stored_clients[1]
    assert await value(engine, "SELECT count(*) FROM client") == 2


@pytest.mark.parametrize("path", sorted(CREATE_NOTHING))
async def test_a_form_that_creates_nothing_stores_no_response(
    browser: httpx.AsyncClient, engine: AsyncEngine, path: str
) -> None:
    path = re.sub(r"\{name:str\}", "default", path)
    path = re.sub(r"\{verb:str\}", "pause", path)
    path = re.sub(r"\{\w+_id:int\}", "1", path)
    form = {"return_path": "/" + "a" * 1900, "language": "en"}
    await post_form(browser, f"{path}?once={'a' * 32}", form)
    assert await value(engine, "SELECT count(*) FROM idempotency") == 0


@pytest.mark.parametrize("path", FORMS)
async def test_a_refused_form_stores_no_response(
    browser: httpx.AsyncClient, engine: AsyncEngine, path: str
) -> None:
    action = form_action(await get_page(browser, path))
    assert (await post_form(browser, action, {"return_path": "/clients"})).status_code == 400
    assert await value(engine, "SELECT count(*) FROM idempotency") == 0


async def test_a_redirect_target_of_more_than_2000_characters_is_ignored(
    browser: httpx.AsyncClient,
) -> None:
    longest = "/" + "a" * 1999
    response = await post_form(browser, "/preferences", {"return_path": longest})
    assert response.headers["location"] == longest
    response = await post_form(browser, "/preferences", {"return_path": f"{longest}a"})
    assert response.headers["location"] == "/"


async def test_stored_form_requests_do_not_reveal_their_fields(
    browser: httpx.AsyncClient, engine: AsyncEngine
) -> None:
    """A reader of the row does not find `once`, and without it cannot test guessed fields."""
    action = form_action(await get_page(browser, "/users/new"))
    path, _, query = action.partition("?")
    await post_form(browser, action, FORMS["/users/new"])
    row = str(await value(engine, "SELECT idempotency::text FROM idempotency"))
    assert query.removeprefix("once=") not in row
    media_type = "application/x-www-form-urlencoded"
    for query_without_number in ("", "once="):
        hashed_head = f"POST\n{path}\n{query_without_number}\n\n{media_type}\n"
        guess = hashlib.sha256((hashed_head + urlencode(FORMS["/users/new"])).encode())
        assert guess.hexdigest() not in row


MAILING_ENDS = "UPDATE mailing SET datetime_start = now() - interval '2 h', datetime_end = now()"


async def test_a_form_whose_response_was_lost_redirects_to_a_mailing_that_has_ended(
    api: httpx.AsyncClient, engine: AsyncEngine
) -> None:
    path = "/mailings/new"
    action = form_action(await get_page(api, path))
    first = await post_form(api, action, FORMS[path])
    await execute(engine, LOSE_RESPONSE, MAILING_ENDS)
    repeat = await post_form(api, action, FORMS[path])
    assert repeat.status_code == 303
    assert repeat.headers["location"] == first.headers["location"]


async def test_a_changed_form_whose_response_was_lost_is_validated(
    api: httpx.AsyncClient, engine: AsyncEngine
) -> None:
    path = "/mailings/new"
    action = form_action(await get_page(api, path))
    await post_form(api, action, FORMS[path])
    await execute(engine, LOSE_RESPONSE, MAILING_ENDS)
    changed_form = FORMS[path] | {"start": "2020-01-02T09:00", "end": "2020-01-01T09:00"}
    assert (await post_form(api, action, changed_form)).status_code == 400
