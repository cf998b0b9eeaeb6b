"""Keys: what they open, from when and until when; the pages on which they are made and revoked."""

import html
import re
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta

import httpx
import pytest
from sqlalchemy.ext.asyncio import AsyncEngine
from tests.api.visits import BROWSER, ESCAPED, HOSTILE, SITE, app_of, page, signed_in, visitor
from tests.asked import inside
from tests.sample import OPEN, execute, value

from mailer.access import commands
from mailer.settings import Scope, Settings

MADE = """
    SELECT (SELECT count(*) FROM api_key) + count(*) FROM audit WHERE target_kind = 'key'"""
FORM = {"name": "shop", "scope": "write", "expires": "90", "expires_on": ""}


@pytest.fixture
async def guarded(engine: AsyncEngine) -> AsyncIterator[httpx.AsyncClient]:
    """The API where it asks who comes."""
    transport = inside(app_of(engine, Settings()))
    async with httpx.AsyncClient(transport=transport, base_url="http://mailer/api/v1") as client:
        yield client


@pytest.fixture
async def api(engine: AsyncEngine) -> httpx.AsyncClient:
    """A browser in which an admin is signed in."""
    return await signed_in(engine, "admin")


async def call(
    api: httpx.AsyncClient, secret: str | None, method: str = "GET", path: str = "/clients"
) -> int:
    headers = {} if secret is None else {"Authorization": f"Bearer {secret}"}
    body = {"phone": "79160000001"} if method == "POST" else None
    return (await api.request(method, path, headers=headers, json=body)).status_code


async def make(engine: AsyncEngine, scope: Scope = "read", name: str | None = None) -> str:
    return await commands.make_key(engine, name or scope, scope, None)


async def fill(api: httpx.AsyncClient, **given: str) -> httpx.Response:
    return await api.post(f"{SITE}/keys", data=FORM | given, headers=BROWSER)


def secret_of(answer: httpx.Response) -> str:
    found = re.search(r'<code class="secret">([^<]+)</code>', answer.text)
    assert found is not None
    return found[1]


def error_of(answer: httpx.Response, field: str) -> str:
    found = re.search(rf'<p class="error" id="{field}-error">([^<]*)</p>', answer.text)
    assert found is not None, answer.text
    return html.unescape(found[1])


# ---- what a key opens -----------------------------------------------------------------------


async def test_a_key_opens_the_api_as_far_as_its_scope(
    engine: AsyncEngine, guarded: httpx.AsyncClient
) -> None:
    read, write, admin = [await make(engine, scope) for scope in ("read", "write", "admin")]
    assert [await call(guarded, key) for key in (None, "mailer_x", read)] == [401, 401, 200]
    assert [await call(guarded, key, "POST") for key in (read, write)] == [403, 201]
    assert [await call(guarded, key, path="/audit") for key in (read, write)] == [403, 403]
    assert await call(guarded, admin, path="/audit") == 200


async def test_a_revoked_key_opens_nothing_from_the_next_request_on(
    engine: AsyncEngine, guarded: httpx.AsyncClient
) -> None:
    key, other = await make(engine), await make(engine, "write")
    assert await call(guarded, key) == 200
    await commands.revoke_key(engine, "read")
    assert [await call(guarded, each) for each in (key, other)] == [401, 200]


async def test_an_expired_key_opens_nothing(
    engine: AsyncEngine, guarded: httpx.AsyncClient
) -> None:
    key = await commands.make_key(engine, "short", "read", 1)
    assert await call(guarded, key) == 200
    await execute(engine, "UPDATE api_key SET expires_at = now() - interval '1 millisecond'")
    assert await call(guarded, key) == 401
    assert "expired" in (await commands.list_keys(engine))[1]


async def test_last_use_is_written_and_not_at_every_request(
    engine: AsyncEngine, guarded: httpx.AsyncClient
) -> None:
    key = await make(engine)
    assert await value(engine, "SELECT last_used_at FROM api_key") is None
    await call(guarded, key)
    first = await value(engine, "SELECT last_used_at FROM api_key")
    await call(guarded, key)
    assert await value(engine, "SELECT last_used_at FROM api_key") == first
    await execute(engine, "UPDATE api_key SET last_used_at = now() - interval '61 seconds'")
    await call(guarded, key)
    assert await value(engine, "SELECT last_used_at FROM api_key") > first


async def test_what_a_key_shows_is_nowhere_in_the_database(engine: AsyncEngine) -> None:
    secret = await make(engine)
    for table in ("api_key", "audit"):
        rows = await value(engine, f"SELECT string_agg(t::text, '') FROM {table} AS t")  # noqa: S608  # ours
        assert secret.removeprefix("mailer_") not in rows
        assert secret.encode().hex() not in rows


async def test_the_page_speaks_russian(api: httpx.AsyncClient) -> None:
    await page(api, "/keys")  # in English first: nothing of it may stay
    answer = await api.get(f"{SITE}/keys", headers={"Accept-Language": "ru"})
    main = re.search("<main.*</main>", answer.text, re.DOTALL)
    assert main is not None
    said = re.sub(r"<[^>]*>", " ", main[0]).replace("MAILER_GATEWAY_URL", "")
    assert set(re.findall("[A-Za-z]{4,}", said)) == {"mailer"}


# ---- the pages ------------------------------------------------------------------------------


async def test_a_key_is_shown_once_and_works(
    api: httpx.AsyncClient, guarded: httpx.AsyncClient
) -> None:
    made = await fill(api)
    assert made.status_code == 201
    secret = secret_of(made)
    assert made.headers["cache-control"] == "no-store"
    assert "set-cookie" not in made.headers
    assert await call(guarded, secret) == 200
    shown = await page(api, "/keys")
    assert secret not in shown
    assert "shop" in shown
    assert "Change clients and mailings" in shown


async def test_a_form_that_is_sent_again_makes_no_second_key_and_says_the_name_is_taken(
    api: httpx.AsyncClient, engine: AsyncEngine
) -> None:
    secret = secret_of(await fill(api))
    again = await fill(api)
    assert again.status_code == 409
    assert secret not in again.text
    assert error_of(again, "name") == "Another key that is not revoked has this name."
    assert await value(engine, "SELECT count(*) FROM api_key") == 1


async def test_a_name_is_free_again_when_its_key_is_revoked(
    api: httpx.AsyncClient, engine: AsyncEngine
) -> None:
    await fill(api)
    await commands.revoke_key(engine, "shop")
    assert (await fill(api)).status_code == 201


async def test_a_field_that_the_form_lacks_is_nothing_to_it(api: httpx.AsyncClient) -> None:
    assert (await fill(api, newest="9" * 5_000)).status_code == 201


async def test_where_nobody_is_asked_no_key_is_made_that_would_outlast_it(
    engine: AsyncEngine,
) -> None:
    await make(engine)
    browser = visitor(engine, OPEN)
    for path in ("/keys", "/keys/1/revoke"):
        assert "There is no such page" in await page(browser, path, 404)
    assert (await fill(browser)).status_code == 404
    assert (await browser.post("/keys/1/revoke")).status_code == 404
    assert await value(engine, "SELECT count(*) FROM api_key WHERE revoked_at IS NULL") == 1
    assert "/keys" not in await page(browser, "/")


async def test_of_the_revoked_only_the_newest_are_shown_and_the_page_says_so(
    api: httpx.AsyncClient, engine: AsyncEngine
) -> None:
    await make(engine, name="of old")
    await execute(
        engine,
        "INSERT INTO api_key (name, digest, scope, revoked_at)"
        " SELECT 'gone ' || n, n::text::bytea, 'read', now() FROM generate_series(1, 102) AS n",
    )
    shown = await page(api, "/keys")
    assert [name for name in ("gone 102", "gone 3 ", "of old") if name not in shown] == []
    assert "gone 2 " not in shown
    assert "2 keys that were revoked before are not shown." in shown


async def test_a_key_is_good_for_what_was_chosen(
    api: httpx.AsyncClient, engine: AsyncEngine
) -> None:
    day = (datetime.now(UTC) + timedelta(days=10)).date()
    api.cookies.set("time_zone", "Asia/Kathmandu", domain="mailer.local")
    chosen = {"month": "30", "year": "365", "until": "day", "ever": "never"}
    for name, expires in chosen.items():
        answer = await api.post(
            f"{SITE}/keys",
            data=FORM | {"name": name, "expires": expires, "expires_on": str(day)},
            headers=BROWSER,
        )
        assert answer.status_code == 201
    lasts = "SELECT expires_at - created_at FROM api_key WHERE name = '{}'"
    for name, days in (("month", 30), ("year", 365)):
        lasting = await value(engine, lasts.format(name))
        assert abs(lasting - timedelta(days=days)) < timedelta(seconds=10)
    ends = await value(engine, "SELECT expires_at FROM api_key WHERE name = 'until'")
    assert ends.astimezone(UTC).isoformat() == f"{day}T18:15:00+00:00"  # midnight at +05:45
    assert await value(engine, "SELECT expires_at FROM api_key WHERE name = 'ever'") is None


@pytest.mark.parametrize(
    ("given", "field", "said"),
    [
        ({"name": "a\u200fb"}, "name", "must be 1 to 64 characters on one line"),
        ({"name": " "}, "name", "must be 1 to 64 characters on one line"),
        ({"name": "x" * 65}, "name", "must be 1 to 64 characters on one line"),
        ({"name": "a\x1b[2Jb"}, "name", "must be 1 to 64 characters on one line"),
        ({"name": "a\u202eb"}, "name", "must be 1 to 64 characters on one line"),
        ({"name": "a\nb"}, "name", "must be 1 to 64 characters on one line"),
        ({"scope": "all"}, "scope", "must be read, write or admin"),
        ({"expires": "0"}, "expires", "must be one of these"),
        ({"expires": "day"}, "expires_on", "must be a date"),
        ({"expires": "day", "expires_on": "9999-12-31"}, "expires_on", "must be a date"),
        ({"expires": "day", "expires_on": "2020-01-01"}, "expires_on", "must be in the future"),
    ],
)
async def test_a_wrong_field_is_named_and_no_key_is_made(
    api: httpx.AsyncClient, engine: AsyncEngine, given: dict[str, str], field: str, said: str
) -> None:
    answer = await fill(api, **given)
    assert answer.status_code == 400
    assert error_of(answer, field).startswith(said)
    assert await value(engine, MADE) == 0


async def test_a_key_is_revoked_on_a_page_that_asks_first(
    api: httpx.AsyncClient, engine: AsyncEngine, guarded: httpx.AsyncClient
) -> None:
    secret = secret_of(await fill(api, name=HOSTILE))
    asked = await page(api, "/keys/1/revoke")
    assert ESCAPED in asked
    assert HOSTILE not in asked
    revoked = await api.post(f"{SITE}/keys/1/revoke", headers=BROWSER)
    assert (revoked.status_code, revoked.headers["location"]) == (303, "/keys")
    assert await call(guarded, secret) == 401
    assert "revoked" in await page(api, "/keys")
    await page(api, "/keys/1/revoke", 404)
    assert (await api.post(f"{SITE}/keys/1/revoke", headers=BROWSER)).status_code == 404
    actions = await value(
        engine, "SELECT array_agg(action ORDER BY id) FROM audit WHERE target_kind = 'key'"
    )
    assert actions == ["key_made", "key_revoked"]


async def test_keys_are_listed_newest_first_with_their_state(engine: AsyncEngine) -> None:
    await make(engine, name="Лавка 1")
    await make(engine, "admin", name="of old")
    await commands.revoke_key(engine, "of old")
    head, *listed = await commands.list_keys(engine)
    assert [line.split("  ")[0].strip() for line in (head, *listed)] == ["id", "2", "1"]
    assert listed[0].endswith("  never      never    revoked")
    assert "Лавка 1" in listed[1]
    assert listed[1].endswith("good")
