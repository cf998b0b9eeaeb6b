"""API keys: scopes, expiry and revocation, and the pages that create and revoke them."""

import html
import re
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta

import httpx
import pytest
from sqlalchemy.ext.asyncio import AsyncEngine
from tests.api.browser_session import (
    BROWSER,
    ESCAPED,
    HOST_IN_COOKIES,
    HOSTILE,
    SITE,
    create_browser,
    get_page,
    shared_app,
    signed_in_browser,
)
from tests.asgi_client import inside
from tests.factories import OPEN, execute, value

from mailer.access import commands
from mailer.roles import Scope
from mailer.settings import Settings

COUNT_KEYS_AND_ENTRIES = """
    SELECT (SELECT count(*) FROM api_key)
        + (SELECT count(*) FROM audit WHERE target_kind = 'key')"""
"""Counts API keys and audit entries about them: 0 if nothing was created."""
FORM = {"name": "shop", "scope": "write", "expires": "90", "expires_on": ""}


@pytest.fixture
async def protected_api(engine: AsyncEngine) -> AsyncIterator[httpx.AsyncClient]:
    """The API of an application with authentication."""
    transport = inside(shared_app(engine, Settings()))
    async with httpx.AsyncClient(transport=transport, base_url="http://mailer/api/v1") as client:
        yield client


@pytest.fixture
async def api(engine: AsyncEngine) -> httpx.AsyncClient:
    """A browser in which an admin is signed in."""
    return await signed_in_browser(engine, "admin")


async def status_of(
    api: httpx.AsyncClient, secret: str | None, method: str = "GET", path: str = "/clients"
) -> int:
    """Return the status of an API request with a key, or without one; POST creates a client."""
    headers = {} if secret is None else {"Authorization": f"Bearer {secret}"}
    body = {"phone": "79160000001"} if method == "POST" else None
    return (await api.request(method, path, headers=headers, json=body)).status_code


async def create_key(engine: AsyncEngine, scope: Scope = "read", name: str | None = None) -> str:
    """Create a key, by default with the scope as its name; return the secret."""
    return await commands.create_key(engine, name or scope, scope, None)


async def submit_form(api: httpx.AsyncClient, **fields: str) -> httpx.Response:
    """Submit the form of a new key: `FORM`, with some fields changed."""
    return await api.post(f"{SITE}/keys", data=FORM | fields, headers=BROWSER)


def secret_of(response: httpx.Response) -> str:
    """Return the secret that the page of a new key shows."""
    match = re.search(r'<code class="secret">([^<]+)</code>', response.text)
    assert match is not None
    return match[1]


def error_of(response: httpx.Response, field: str) -> str:
    """Return the error beside a field."""
    match = re.search(rf'<p class="error" id="{field}-error">([^<]*)</p>', response.text)
    assert match is not None, response.text
    return html.unescape(match[1])


# ---- what a key allows ----------------------------------------------------------------------


async def test_a_key_allows_what_its_scope_allows(
    engine: AsyncEngine, protected_api: httpx.AsyncClient
) -> None:
    read, write, admin = [await create_key(engine, scope) for scope in ("read", "write", "admin")]
    assert await status_of(protected_api, None) == 401
    assert await status_of(protected_api, "mailer_unknown") == 401
    assert await status_of(protected_api, read) == 200
    assert await status_of(protected_api, read, "POST") == 403
    assert await status_of(protected_api, write, "POST") == 201
    assert await status_of(protected_api, read, path="/audit") == 403
    assert await status_of(protected_api, write, path="/audit") == 403
    assert await status_of(protected_api, admin, path="/audit") == 200


async def test_a_revoked_key_is_refused_from_the_next_request_on(
    engine: AsyncEngine, protected_api: httpx.AsyncClient
) -> None:
    key, other_key = await create_key(engine, name="shop"), await create_key(engine, name="other")
    assert await status_of(protected_api, key) == 200
    await commands.revoke_key(engine, "shop")
    assert await status_of(protected_api, key) == 401
    assert await status_of(protected_api, other_key) == 200


async def test_an_expired_key_is_refused(
    engine: AsyncEngine, protected_api: httpx.AsyncClient
) -> None:
    key = await commands.create_key(engine, "shop", "read", 1)  # day
    assert await status_of(protected_api, key) == 200
    await execute(engine, "UPDATE api_key SET expires_at = now() - interval '1 millisecond'")
    assert await status_of(protected_api, key) == 401
    assert "expired" in (await commands.list_keys(engine))[1]


async def test_the_last_use_is_written_but_not_at_every_request(
    engine: AsyncEngine, protected_api: httpx.AsyncClient
) -> None:
    last_use = "SELECT last_used_at FROM api_key"
    key = await create_key(engine)
    assert await value(engine, last_use) is None
    await status_of(protected_api, key)
    first_use = await value(engine, last_use)
    await status_of(protected_api, key)
    assert await value(engine, last_use) == first_use  # within the same minute

    await execute(engine, "UPDATE api_key SET last_used_at = now() - interval '61 seconds'")
    await status_of(protected_api, key)
    assert await value(engine, last_use) > first_use


async def test_the_secret_of_a_key_is_not_in_the_database(engine: AsyncEngine) -> None:
    secret = await create_key(engine)
    for table in ("api_key", "audit"):
        rows = await value(engine, f"SELECT string_agg(t::text, '') FROM {table} AS t")  # noqa: S608  # a name above
        assert secret.removeprefix("mailer_") not in rows
        assert secret.encode().hex() not in rows


async def test_the_page_is_translated_to_russian(api: httpx.AsyncClient) -> None:
    await get_page(api, "/keys")  # in English first: nothing of it may be cached
    response = await api.get(f"{SITE}/keys", headers={"Accept-Language": "ru"})
    main = re.search("<main.*</main>", response.text, re.DOTALL)
    assert main is not None
    visible_text = re.sub(r"<[^>]*>|MAILER_GATEWAY(S|_URL)", " ", main[0])
    latin_words = set(re.findall("[A-Za-z]{4,}", visible_text))
    assert latin_words == {"mailer"}


# ---- the pages ------------------------------------------------------------------------------


async def test_a_key_is_shown_once_and_works(
    api: httpx.AsyncClient, protected_api: httpx.AsyncClient
) -> None:
    created = await submit_form(api)
    assert created.status_code == 201
    secret = secret_of(created)
    assert created.headers["cache-control"] == "no-store"
    assert "set-cookie" not in created.headers
    assert await status_of(protected_api, secret) == 200
    page = await get_page(api, "/keys")
    assert secret not in page
    assert "shop" in page
    assert "Also create and change clients and mailings" in page


async def test_a_key_with_a_used_name_is_409_and_not_created(
    api: httpx.AsyncClient, engine: AsyncEngine
) -> None:
    secret = secret_of(await submit_form(api))
    repeat = await submit_form(api)
    assert repeat.status_code == 409
    assert secret not in repeat.text
    assert error_of(repeat, "name") == "Another key that is not revoked has this name."
    assert await value(engine, "SELECT count(*) FROM api_key") == 1


async def test_the_name_of_a_revoked_key_can_be_used_again(
    api: httpx.AsyncClient, engine: AsyncEngine
) -> None:
    await submit_form(api)
    await commands.revoke_key(engine, "shop")
    assert (await submit_form(api)).status_code == 201


async def test_unknown_fields_of_the_form_are_ignored(api: httpx.AsyncClient) -> None:
    assert (await submit_form(api, newest="9" * 5_000)).status_code == 201


async def test_without_auth_keys_can_neither_be_created_nor_revoked(
    engine: AsyncEngine,
) -> None:
    await create_key(engine)
    browser = create_browser(engine, OPEN)
    for path in ("/keys", "/keys/1/revoke"):
        assert "Page not found" in await get_page(browser, path, 404)
    assert (await submit_form(browser)).status_code == 404
    assert (await browser.post("/keys/1/revoke")).status_code == 404
    assert await value(engine, "SELECT count(*) FROM api_key WHERE revoked_at IS NULL") == 1
    assert "/keys" not in await get_page(browser, "/")


async def test_only_the_newest_revoked_keys_are_listed(
    api: httpx.AsyncClient, engine: AsyncEngine
) -> None:
    await create_key(engine, name="oldest, not revoked")
    await execute(
        engine,
        "INSERT INTO api_key (name, digest, scope, revoked_at)"
        " SELECT 'revoked ' || n, n::text::bytea, 'read', now() FROM generate_series(1, 102) AS n",
    )
    page = await get_page(api, "/keys")
    for listed in ("revoked 102 ", "revoked 3 ", "oldest, not revoked "):
        assert listed in page
    assert "revoked 2 " not in page
    assert "2 keys that were revoked earlier are not shown." in page


async def test_a_key_expires_as_chosen_in_the_form(
    api: httpx.AsyncClient, engine: AsyncEngine
) -> None:
    last_day = (datetime.now(UTC) + timedelta(days=10)).date()
    api.cookies.set("time_zone", "Asia/Kathmandu", domain=HOST_IN_COOKIES)  # UTC+5:45
    choices_by_name = {"month": "30", "year": "365", "until a day": "day", "forever": "never"}
    for name, choice in choices_by_name.items():
        response = await submit_form(api, name=name, expires=choice, expires_on=str(last_day))
        assert response.status_code == 201
    lifetime_query = "SELECT expires_at - created_at FROM api_key WHERE name = '{}'"
    for name, days in (("month", 30), ("year", 365)):
        lifetime = await value(engine, lifetime_query.format(name))
        assert abs(lifetime - timedelta(days=days)) < timedelta(seconds=10)
    expires_at = await value(engine, "SELECT expires_at FROM api_key WHERE name = 'until a day'")
    end_of_last_day = f"{last_day}T18:15:00+00:00"  # midnight in Kathmandu
    assert expires_at.astimezone(UTC).isoformat() == end_of_last_day
    assert await value(engine, "SELECT expires_at FROM api_key WHERE name = 'forever'") is None


@pytest.mark.parametrize(
    ("change", "field", "message"),
    [
        ({"name": "a\u200fb"}, "name", "must be 1 to 64 characters on one line"),
        ({"name": " "}, "name", "must be 1 to 64 characters on one line"),
        ({"name": "x" * 65}, "name", "must be 1 to 64 characters on one line"),
        ({"name": "a\x1b[2Jb"}, "name", "must be 1 to 64 characters on one line"),
        ({"name": "a\u202eb"}, "name", "must be 1 to 64 characters on one line"),
        ({"name": "a\nb"}, "name", "must be 1 to 64 characters on one line"),
        ({"scope": "all"}, "scope", "must be read, write or admin"),
        ({"expires": "0"}, "expires", "must be one of the listed values"),
        ({"expires": "day"}, "expires_on", "must be a date"),
        ({"expires": "day", "expires_on": "9999-12-31"}, "expires_on", "must be a date"),
        ({"expires": "day", "expires_on": "2020-01-01"}, "expires_on", "must be in the future"),
    ],
)
async def test_an_invalid_field_is_named_and_no_key_is_created(
    api: httpx.AsyncClient, engine: AsyncEngine, change: dict[str, str], field: str, message: str
) -> None:
    response = await submit_form(api, **change)
    assert response.status_code == 400
    assert error_of(response, field).startswith(message)
    assert await value(engine, COUNT_KEYS_AND_ENTRIES) == 0


async def test_a_key_is_revoked_after_a_confirmation(
    api: httpx.AsyncClient, engine: AsyncEngine, protected_api: httpx.AsyncClient
) -> None:
    secret = secret_of(await submit_form(api, name=HOSTILE))
    confirmation = await get_page(api, "/keys/1/revoke")
    assert ESCAPED in confirmation
    assert HOSTILE not in confirmation
    revoked = await api.post(f"{SITE}/keys/1/revoke", headers=BROWSER)
    assert (revoked.status_code, revoked.headers["location"]) == (303, "/keys")
    assert await status_of(protected_api, secret) == 401
    assert "revoked" in await get_page(api, "/keys")
    await get_page(api, "/keys/1/revoke", 404)
    assert (await api.post(f"{SITE}/keys/1/revoke", headers=BROWSER)).status_code == 404
    actions = await value(
        engine, "SELECT array_agg(action ORDER BY id) FROM audit WHERE target_kind = 'key'"
    )
    assert actions == ["key_created", "key_revoked"]


async def test_the_command_lists_keys_newest_first_with_their_state(engine: AsyncEngine) -> None:
    await create_key(engine, name="Лавка 1")
    await create_key(engine, "admin", name="old")
    await commands.revoke_key(engine, "old")
    header, newest, oldest = await commands.list_keys(engine)
    ids = [line.split("  ")[0].strip() for line in (header, newest, oldest)]
    assert ids == ["id", "2", "1"]
    last_use, expiry, state = newest.split()[-3:]
    assert (last_use, expiry, state) == ("never", "never", "revoked")
    assert "Лавка 1" in oldest
    assert oldest.endswith("active")
