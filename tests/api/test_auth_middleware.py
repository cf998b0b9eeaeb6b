"""Authentication of the API: without a key of the required scope a request is refused."""

import asyncio
import hashlib
import json
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import pytest
from litestar import Request
from sqlalchemy import event
from sqlalchemy.ext.asyncio import AsyncEngine
from structlog.testing import capture_logs
from tests.api.browser_session import shared_app
from tests.api.calls import NEW
from tests.api.repeats import ANNA, COUNT_MAILINGS, NEW_CLIENT, is_replay, post
from tests.asgi_client import inside
from tests.event_timeout import EVENT_TIMEOUT
from tests.factories import do, execute, value

from mailer.access import keys
from mailer.access.middleware import address_of
from mailer.access.model import COMMAND_LINE
from mailer.access.sessions import create as begin_session
from mailer.roles import SCOPES, Scope
from mailer.settings import Settings
from mailer.web.request_log import log_requests

CLIENTS = "/api/v1/clients"
AUDIT = "/api/v1/audit"
NO_KEY = "Send an API key, as Authorization: Bearer."
BAD_KEY = "The API key is unknown, revoked or expired."
MONITORING_PATHS = ["/metrics", "/health/live", "/health/ready"]
LAST_USED = "SELECT last_used_at FROM api_key"
UNKNOWN_SECRET = "w" * 43
"""Has the format of a secret of a key (after its prefix) or of a session, but belongs to none."""


@asynccontextmanager
async def served(engine: AsyncEngine, settings: Settings | None = None) -> AsyncIterator[Any]:
    """Yield a client of the application behind the request log; default settings unless given."""
    app = log_requests(shared_app(engine, settings or Settings()))
    transport = inside(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://mailer") as client:
        yield client


@pytest.fixture
async def protected(engine: AsyncEngine) -> AsyncIterator[httpx.AsyncClient]:
    """A client of the application with default settings, under which requests need a key."""
    async with served(engine) as client:
        yield client


async def create_key(engine: AsyncEngine, scope: Scope = "write", **fields: Any) -> dict[str, str]:
    """Create a key; return the header that authenticates with it."""
    new = keys.NewKey(**{"name": scope, "scope": scope} | fields)
    _, secret = await do(engine, lambda db: keys.create(db, new, COMMAND_LINE))
    return {"Authorization": f"Bearer {secret}"}


def assert_is_unauthorized(answer: httpx.Response, detail: str) -> None:
    """Assert that an answer is a complete problem 401 with this detail."""
    assert (answer.status_code, answer.json()["detail"]) == (401, detail)
    assert answer.headers["Content-Type"] == "application/problem+json"
    assert answer.headers["WWW-Authenticate"] == 'Bearer realm="mailer"'


async def api_calls(protected: httpx.AsyncClient) -> list[tuple[str, str]]:
    """Return every method and path of the API, with the id 1, as its schema lists them."""
    schema = (await protected.get("/openapi.json")).json()
    return [
        (method, re.sub(r"{\w+}", "1", path))
        for path, item in schema["paths"].items()
        for method in item
        if path.startswith("/api/") and method in {"get", "post", "put", "patch", "delete"}
    ]


async def test_stored_idempotent_requests_do_not_reveal_phones(
    engine: AsyncEngine, protected: httpx.AsyncClient
) -> None:
    """A digest of what is known about a request would let a reader of the database try all phones.

    So the stored digest must also cover the secret of the API key.
    """
    protected.headers.update(await create_key(engine) | {"Content-Type": "application/json"})
    body = json.dumps(ANNA)
    created = await protected.post(CLIENTS, content=body, headers={"Idempotency-Key": "created"})
    await protected.post(CLIENTS, content=body, headers={"Idempotency-Key": "refused"})
    file = {"Content-Type": "text/csv", "Idempotency-Key": "file"}
    rows = "phone,tag\n79160000001,vip\n"
    await protected.post(f"{CLIENTS}/import", content=rows, headers=file)
    await protected.delete(f"{CLIENTS}/{created.json()['id']}")
    stored = await value(engine, "SELECT string_agg(t::text, '') FROM idempotency AS t")
    assert "refused" in stored  # so the requests are stored
    for path, media_type, content in (
        (CLIENTS, "application/json", body),
        (f"{CLIENTS}/import", "text/csv", rows),
    ):
        for empty_credential in ("", "\n"):
            known_parts = f"POST\n{path}\n{empty_credential}\n{media_type}\n{content}"
            assert hashlib.sha256(known_parts.encode()).hexdigest() not in stored


async def test_no_route_of_the_api_is_open_without_a_key(protected: httpx.AsyncClient) -> None:
    calls = await api_calls(protected)
    assert len(calls) > 15
    for method, path in calls:
        assert_is_unauthorized(await protected.request(method, path), NO_KEY)


@pytest.mark.parametrize("scope", SCOPES)
async def test_reading_writing_and_administration_need_their_scopes(
    engine: AsyncEngine, protected: httpx.AsyncClient, scope: Scope
) -> None:
    header = await create_key(engine, scope)
    for method, path in await api_calls(protected):
        required: Scope = "read" if method == "get" else "write"
        if path == AUDIT or path.startswith("/api/v1/webhooks"):
            required = "admin"
        answer = await protected.request(method, path, headers=header)
        if SCOPES.index(scope) < SCOPES.index(required):
            detail = f"This needs a key of scope {required}; this one has {scope}."
            assert (answer.status_code, answer.json()["detail"]) == (403, detail), path
        else:  # admitted; the request has no body, and ids of no objects
            assert answer.status_code in {200, 204, 400, 404, 415}, (method, path)


@pytest.mark.parametrize(
    "header", ["", "Bearer", "Bearer ", "Basic {}", "{}", "Token {}", "Bearer:{}"]
)
async def test_a_header_without_a_bearer_key_is_401(
    engine: AsyncEngine, protected: httpx.AsyncClient, header: str
) -> None:
    secret = (await create_key(engine))["Authorization"].removeprefix("Bearer ")
    answer = await protected.get(CLIENTS, headers={"Authorization": header.format(secret)})
    assert answer.status_code == 401
    assert answer.headers["WWW-Authenticate"] == 'Bearer realm="mailer"'


@pytest.mark.parametrize("header", ["bearer {}", "BEARER {}", "Bearer  {}"])
async def test_case_and_spaces_of_the_authentication_scheme_are_ignored(
    engine: AsyncEngine, protected: httpx.AsyncClient, header: str
) -> None:
    secret = (await create_key(engine))["Authorization"].removeprefix("Bearer ")
    answer = await protected.get(CLIENTS, headers={"Authorization": header.format(secret)})
    assert answer.status_code == 200


@pytest.mark.parametrize("key", ["mailer_unknown", "x" * 5000, "\xe9", "mailer_", "' OR 1=1 --"])
async def test_an_unknown_key_is_401(protected: httpx.AsyncClient, key: str) -> None:
    headers = {b"Authorization": f"Bearer {key}".encode("latin-1")}
    assert_is_unauthorized(await protected.get(CLIENTS, headers=headers), BAD_KEY)


async def test_a_malformed_key_or_cookie_costs_no_query(
    engine: AsyncEngine, protected: httpx.AsyncClient
) -> None:
    queries: list[str] = []

    def record_query(_connection: object, _cursor: object, statement: str, *_: object) -> None:
        queries.append(statement)

    event.listen(engine.sync_engine, "before_cursor_execute", record_query)
    try:
        for key in ("x", "mailer_", UNKNOWN_SECRET, f"mailer_{'w' * 44}", f"mailer_{'w' * 42}="):
            headers = {"Authorization": f"Bearer {key}"}
            assert_is_unauthorized(await protected.get(CLIENTS, headers=headers), BAD_KEY)
        for cookie in ("x", "w" * 42, "w" * 44):
            answer = await protected.get("/clients", headers={"Cookie": f"session={cookie}"})
            assert answer.status_code == 401
        assert queries == []

        await protected.get("/clients", headers={"Cookie": f"session={UNKNOWN_SECRET}"})
        headers = {"Authorization": f"Bearer mailer_{UNKNOWN_SECRET}"}
        await protected.get(CLIENTS, headers=headers)
        assert len(queries) == 2  # a well-formed key or cookie costs one
    finally:
        event.remove(engine.sync_engine, "before_cursor_execute", record_query)


async def test_a_truncated_extended_or_differently_cased_key_is_401(
    engine: AsyncEngine, protected: httpx.AsyncClient
) -> None:
    header = (await create_key(engine))["Authorization"]
    for wrong in (header[:-1], header + "x", header.swapcase()):
        assert_is_unauthorized(
            await protected.get(CLIENTS, headers={"Authorization": wrong}), BAD_KEY
        )


@pytest.mark.parametrize(
    ("address", "normalized"),
    [
        ("::ffff:192.0.2.7", "192.0.2.7"),
        ("0:0::FFFF:c000:207", "192.0.2.7"),
        ("192.0.2.7", "192.0.2.7"),
        ("2001:db8::7", "2001:db8::7"),
        ("::ffff:x", "::ffff:x"),
    ],
)
def test_ipv4_addresses_mapped_to_ipv6_are_normalized(address: str, normalized: str) -> None:
    assert address_of(Request({"type": "http", "client": (address, 1)})) == normalized  # type: ignore[arg-type]  # an incomplete scope


async def test_a_revoked_key_is_refused(engine: AsyncEngine, protected: httpx.AsyncClient) -> None:
    header = await create_key(engine)
    assert (await protected.get(CLIENTS, headers=header)).status_code == 200
    await do(engine, lambda db: keys.revoke(db, 1, COMMAND_LINE))
    assert_is_unauthorized(await protected.get(CLIENTS, headers=header), BAD_KEY)


async def test_an_expired_key_is_refused(engine: AsyncEngine, protected: httpx.AsyncClient) -> None:
    header = await create_key(engine, expires_at=datetime.now(UTC) + timedelta(seconds=60))
    assert (await protected.get(CLIENTS, headers=header)).status_code == 200
    await execute(engine, "UPDATE api_key SET expires_at = now() - interval '1 ms'")
    assert_is_unauthorized(await protected.get(CLIENTS, headers=header), BAD_KEY)


async def test_a_session_does_not_authenticate_for_the_api(
    engine: AsyncEngine, protected: httpx.AsyncClient
) -> None:
    await execute(
        engine, "INSERT INTO app_user (name, role, password_hash) VALUES ('a', 'admin', 'x')"
    )
    secret = await do(engine, lambda db: begin_session(db, 1, None, "a browser"))
    for headers in ({"Cookie": f"session={secret}"}, {"Authorization": f"Bearer {secret}"}):
        assert (await protected.get(CLIENTS, headers=headers)).status_code == 401


async def test_options_unknown_paths_and_methods_need_no_key(
    protected: httpx.AsyncClient,
) -> None:
    assert (await protected.options(CLIENTS)).status_code == 204
    assert (await protected.get("/api/v1/nothing")).status_code == 404
    assert (await protected.put(CLIENTS)).status_code == 405


async def test_the_audit_log_names_the_key_of_a_change(
    engine: AsyncEngine, protected: httpx.AsyncClient
) -> None:
    header = await create_key(engine, name="shop")
    await protected.post(CLIENTS, json=ANNA, headers=header)
    actor = (
        "SELECT concat_ws(' ', actor_kind, actor_id, actor) FROM audit"
        " WHERE action = 'client_created'"
    )
    assert await value(engine, actor) == "key 1 shop"


async def test_the_last_use_of_a_key_is_written_once_a_minute(
    engine: AsyncEngine, protected: httpx.AsyncClient
) -> None:
    header = await create_key(engine)
    assert await value(engine, LAST_USED) is None
    await protected.get(CLIENTS, headers=header)
    first = await value(engine, LAST_USED)
    assert datetime.now(UTC) - first < timedelta(seconds=10)
    for seconds_ago, is_written in ((59, False), (61, True)):
        last_use = f"now() - interval '{seconds_ago} s'"
        await execute(engine, f"UPDATE api_key SET last_used_at = {last_use}")  # noqa: S608  # a number above
        before = await value(engine, LAST_USED)
        await protected.get(CLIENTS, headers=header)
        assert (await value(engine, LAST_USED) != before) is is_written


async def test_the_request_rate_is_limited_for_each_key_alone(engine: AsyncEngine) -> None:
    header, other = await create_key(engine), await create_key(engine, "read")
    async with served(engine, Settings(key_rate=5)) as api:
        statuses = [(await api.get(CLIENTS, headers=header)).status_code for _ in range(10)]
        assert statuses == [200] * 10  # requests of two seconds may come at once

        refused: list[httpx.Response] = []
        async with asyncio.timeout(EVENT_TIMEOUT):
            while not refused:
                calls = (api.get(CLIENTS, headers=header) for _ in range(20))
                answers = await asyncio.gather(*calls)
                refused = [answer for answer in answers if answer.status_code == 429]
        for answer in refused:
            assert answer.headers["Content-Type"] == "application/problem+json"
            assert answer.json()["detail"] == "A key may send 5 requests a second."
            assert answer.headers["Retry-After"] == "1"
        assert (await api.get(CLIENTS, headers=other)).status_code == 200

        # after a while the first key may send again
        async with asyncio.timeout(EVENT_TIMEOUT):
            while (await api.get(CLIENTS, headers=header)).status_code == 429:
                await asyncio.sleep(0.2)


async def test_a_rate_of_0_is_no_limit(engine: AsyncEngine) -> None:
    header = await create_key(engine)
    async with served(engine, Settings(key_rate=0)) as api:
        for _ in range(25):
            calls = (api.get(CLIENTS, headers=header) for _ in range(10))
            assert {answer.status_code for answer in await asyncio.gather(*calls)} == {200}


async def test_no_log_or_response_contains_a_key(
    engine: AsyncEngine, protected: httpx.AsyncClient
) -> None:
    headers = await create_key(engine)
    secret = headers["Authorization"].removeprefix("Bearer ")
    wrong = {"Authorization": f"Bearer mailer_{UNKNOWN_SECRET}"}
    path = f"/api/v1/mailings?key={secret}"
    with capture_logs() as logs:
        answers = [await protected.get(path, headers=header) for header in (headers, wrong, {})]
        answers.append(await protected.post(path, json=NEW, headers=headers))
    assert len(logs) >= 8  # at least two for each request
    for output in (logs, [(answer.text, answer.headers) for answer in answers]):
        assert secret not in str(output)
        assert UNKNOWN_SECRET not in str(output)


async def test_idempotency_keys_of_two_api_keys_are_separate(
    engine: AsyncEngine, protected: httpx.AsyncClient
) -> None:
    first_key, second_key = await create_key(engine), await create_key(engine, "admin")
    calls = [
        ("/api/v1/mailings", {"json": NEW, "headers": header}) for header in (first_key, second_key)
    ]
    answers = [await post(protected, call) for call in calls]
    assert [answer.status_code for answer in answers] == [201, 201]
    assert not any(map(is_replay, answers))
    assert await value(engine, COUNT_MAILINGS) == 2

    assert [is_replay(await post(protected, call)) for call in calls] == [True, True]


async def test_a_stored_response_is_not_repeated_after_access_is_lost(
    engine: AsyncEngine, protected: httpx.AsyncClient
) -> None:
    header = await create_key(engine)
    call = (CLIENTS, NEW_CLIENT[1] | {"headers": header})
    assert (await post(protected, call)).status_code == 201
    await execute(engine, "UPDATE api_key SET scope = 'read'")
    assert (await post(protected, call)).status_code == 403
    await do(engine, lambda db: keys.revoke(db, 1, COMMAND_LINE))
    assert (await post(protected, call)).status_code == 401


# ---- monitoring -----------------------------------------------------------------------------


@pytest.mark.parametrize("path", MONITORING_PATHS)
async def test_monitoring_is_open_without_a_configured_token(
    protected: httpx.AsyncClient, path: str
) -> None:
    assert (await protected.get(path)).status_code == 200


@pytest.mark.parametrize("path", MONITORING_PATHS)
@pytest.mark.parametrize("auth", ["required", "none"])
async def test_monitoring_needs_the_configured_token(
    engine: AsyncEngine, path: str, auth: Any
) -> None:
    header = await create_key(engine, "admin")
    async with served(engine, Settings(auth=auth, monitoring_token="Secret-1")) as api:  # noqa: S106  # used in tests alone
        accepted = await api.get(path, headers={"Authorization": "Bearer Secret-1"})
        assert accepted.status_code == 200
        for wrong in ({}, header, {"Authorization": "Bearer secret-1"}):
            answer = await api.get(path, headers=wrong)
            assert_is_unauthorized(answer, "Send the monitoring token, as Authorization: Bearer.")
            assert "Secret-1" not in answer.text
