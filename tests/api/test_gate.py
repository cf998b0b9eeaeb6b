"""The gate of the API: who has no key, a wrong one or too small a one does not come in."""

import asyncio
import hashlib
import json
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
from tests.api.calls import NEW
from tests.api.repeats import ANNA, MAILINGS, NEW_CLIENT, is_replay, post
from tests.api.visits import app_of
from tests.asked import inside
from tests.patience import PATIENCE
from tests.sample import do, execute, value

from mailer.access import keys
from mailer.access.gate import address_of
from mailer.access.model import COMMAND_LINE
from mailer.access.sessions import begin as begin_session
from mailer.settings import SCOPES, Scope, Settings
from mailer.web.observing import observed

CLIENTS = "/api/v1/clients"
AUDIT = "/api/v1/audit"
NO_KEY = "Send an API key, as Authorization: Bearer."
BAD_KEY = "The API key is unknown, revoked or expired."
MONITORED = ["/metrics", "/health/live", "/health/ready"]
LAST_USED = "SELECT last_used_at FROM api_key"


@asynccontextmanager
async def served(engine: AsyncEngine, settings: Settings | None = None) -> AsyncIterator[Any]:
    """Give the application as it is served; unless settings are given, as it is by default."""
    app = observed(app_of(engine, settings or Settings()))
    transport = inside(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://mailer") as client:
        yield client


@pytest.fixture
async def closed(engine: AsyncEngine) -> AsyncIterator[httpx.AsyncClient]:
    """The application with default settings."""
    async with served(engine) as client:
        yield client


async def make_key(engine: AsyncEngine, scope: Scope = "write", **given: Any) -> dict[str, str]:
    """Make a key; return the header that shows it."""
    new = keys.NewKey(**{"name": scope, "scope": scope} | given)
    _, secret = await do(engine, lambda db: keys.add(db, new, COMMAND_LINE))
    return {"Authorization": f"Bearer {secret}"}


def assert_is_unknown(answer: httpx.Response, detail: str) -> None:
    assert (answer.status_code, answer.json()["detail"]) == (401, detail)
    assert answer.headers["Content-Type"] == "application/problem+json"
    assert answer.headers["WWW-Authenticate"] == 'Bearer realm="mailer"'


async def calls(closed: httpx.AsyncClient) -> list[tuple[str, str]]:
    """Return every method and path of the API."""
    schema = (await closed.get("/openapi.json")).json()
    return [
        (method, path.replace("{client_id}", "1").replace("{mailing_id}", "1"))
        for path, item in schema["paths"].items()
        for method in item
        if path.startswith("/api/") and method in {"get", "post", "put", "patch", "delete"}
    ]


async def test_a_phone_cannot_be_guessed_from_what_is_stored_of_a_repeatable_request(
    engine: AsyncEngine, closed: httpx.AsyncClient
) -> None:
    closed.headers.update(await make_key(engine) | {"Content-Type": "application/json"})
    body = json.dumps(ANNA)
    made = await closed.post(CLIENTS, content=body, headers={"Idempotency-Key": "made"})
    await closed.post(CLIENTS, content=body, headers={"Idempotency-Key": "refused"})
    file = {"Content-Type": "text/csv", "Idempotency-Key": "file"}
    rows = "phone,tag\n79160000001,vip\n"
    await closed.post(f"{CLIENTS}/import", content=rows, headers=file)
    await closed.delete(f"{CLIENTS}/{made.json()['id']}")
    kept = await value(engine, "SELECT string_agg(t::text, '') FROM idempotency AS t")
    assert "refused" in kept
    for path, kind, sent in (
        (CLIENTS, "application/json", body),
        (f"{CLIENTS}/import", "text/csv", rows),
    ):
        for known in ("", "\n"):
            guess = hashlib.sha256(f"POST\n{path}\n{known}\n{kind}\n{sent}".encode())
            assert guess.hexdigest() not in kept


async def test_without_a_key_nothing_of_the_api_is_open(closed: httpx.AsyncClient) -> None:
    found = await calls(closed)
    assert len(found) > 15
    for method, path in found:
        assert_is_unknown(await closed.request(method, path), NO_KEY)


@pytest.mark.parametrize("scope", SCOPES)
async def test_a_key_reads_one_for_writing_changes_and_the_log_is_for_admins(
    engine: AsyncEngine, closed: httpx.AsyncClient, scope: Scope
) -> None:
    header = await make_key(engine, scope)
    for method, path in await calls(closed):
        needs: Scope = "read" if method == "get" else "write"
        if path == AUDIT:
            needs = "admin"
        answer = await closed.request(method, path, headers=header)
        if SCOPES.index(scope) < SCOPES.index(needs):
            told = f"This needs a key of scope {needs}; this one has {scope}."
            assert (answer.status_code, answer.json()["detail"]) == (403, told), path
        else:
            assert answer.status_code in {200, 204, 400, 404, 415}, (method, path)


@pytest.mark.parametrize(
    "given", ["", "Bearer", "Bearer ", "Basic {}", "{}", "Token {}", "Bearer:{}"]
)
async def test_what_shows_no_key_is_401(
    engine: AsyncEngine, closed: httpx.AsyncClient, given: str
) -> None:
    secret = (await make_key(engine))["Authorization"].removeprefix("Bearer ")
    answer = await closed.get(CLIENTS, headers={"Authorization": given.format(secret)})
    assert answer.status_code == 401
    assert answer.headers["WWW-Authenticate"] == 'Bearer realm="mailer"'


@pytest.mark.parametrize("given", ["bearer {}", "BEARER {}", "Bearer  {}"])
async def test_the_schemes_case_and_spaces_do_not_count(
    engine: AsyncEngine, closed: httpx.AsyncClient, given: str
) -> None:
    secret = (await make_key(engine))["Authorization"].removeprefix("Bearer ")
    answer = await closed.get(CLIENTS, headers={"Authorization": given.format(secret)})
    assert answer.status_code == 200


@pytest.mark.parametrize("given", ["mailer_unknown", "x" * 5000, "\xe9", "mailer_", "' OR 1=1 --"])
async def test_an_unknown_key_is_401(closed: httpx.AsyncClient, given: str) -> None:
    headers = {b"Authorization": f"Bearer {given}".encode("latin-1")}
    assert_is_unknown(await closed.get(CLIENTS, headers=headers), BAD_KEY)


async def test_what_cannot_be_a_key_or_a_cookie_costs_no_look_into_the_database(
    engine: AsyncEngine, closed: httpx.AsyncClient
) -> None:
    asked: list[str] = []

    def note(*given: object) -> None:
        asked.append(str(given[2]))

    event.listen(engine.sync_engine, "before_cursor_execute", note)
    try:
        for wrong in ("x", "mailer_", "w" * 43, f"mailer_{'w' * 44}", f"mailer_{'w' * 42}="):
            headers = {"Authorization": f"Bearer {wrong}"}
            assert_is_unknown(await closed.get(CLIENTS, headers=headers), BAD_KEY)
        for wrong in ("x", "w" * 42, "w" * 44):
            answer = await closed.get("/clients", headers={"Cookie": f"session={wrong}"})
            assert answer.status_code == 401
        assert asked == []
        await closed.get("/clients", headers={"Cookie": f"session={'w' * 43}"})
        await closed.get(CLIENTS, headers={"Authorization": f"Bearer mailer_{'w' * 43}"})
        assert len(asked) == 2
    finally:
        event.remove(engine.sync_engine, "before_cursor_execute", note)


async def test_a_part_of_a_key_or_another_case_is_401(
    engine: AsyncEngine, closed: httpx.AsyncClient
) -> None:
    shown = (await make_key(engine))["Authorization"]
    for wrong in (shown[:-1], shown + "x", shown.swapcase()):
        assert_is_unknown(await closed.get(CLIENTS, headers={"Authorization": wrong}), BAD_KEY)


@pytest.mark.parametrize(
    ("given", "counted"),
    [
        ("::ffff:192.0.2.7", "192.0.2.7"),
        ("0:0::FFFF:c000:207", "192.0.2.7"),
        ("192.0.2.7", "192.0.2.7"),
        ("2001:db8::7", "2001:db8::7"),
        ("::ffff:x", "::ffff:x"),
    ],
)
def test_an_address_of_ipv4_counts_as_one_however_it_is_written(given: str, counted: str) -> None:
    assert address_of(Request({"type": "http", "client": (given, 1)})) == counted  # type: ignore[arg-type]  # a part of a scope


async def test_a_revoked_key_opens_nothing_any_more(
    engine: AsyncEngine, closed: httpx.AsyncClient
) -> None:
    header = await make_key(engine)
    assert (await closed.get(CLIENTS, headers=header)).status_code == 200
    await do(engine, lambda db: keys.revoke(db, 1, COMMAND_LINE))
    assert_is_unknown(await closed.get(CLIENTS, headers=header), BAD_KEY)


async def test_a_key_opens_nothing_after_its_end(
    engine: AsyncEngine, closed: httpx.AsyncClient
) -> None:
    header = await make_key(engine, expires_at=datetime.now(UTC) + timedelta(seconds=60))
    assert (await closed.get(CLIENTS, headers=header)).status_code == 200
    await execute(engine, "UPDATE api_key SET expires_at = now() - interval '1 ms'")
    assert_is_unknown(await closed.get(CLIENTS, headers=header), BAD_KEY)


async def test_a_session_does_not_open_the_api(
    engine: AsyncEngine, closed: httpx.AsyncClient
) -> None:
    await execute(engine, "INSERT INTO account (name, role, password) VALUES ('a', 'admin', 'x')")
    secret = await do(engine, lambda db: begin_session(db, 1, None, "a browser"))
    for headers in ({"Cookie": f"session={secret}"}, {"Authorization": f"Bearer {secret}"}):
        assert (await closed.get(CLIENTS, headers=headers)).status_code == 401


async def test_the_methods_of_a_path_and_unknown_paths_are_told_to_anybody(
    closed: httpx.AsyncClient,
) -> None:
    assert (await closed.options(CLIENTS)).status_code == 204
    assert (await closed.get("/api/v1/nothing")).status_code == 404
    assert (await closed.put(CLIENTS)).status_code == 405


async def test_what_a_key_does_is_written_down_as_its_doing(
    engine: AsyncEngine, closed: httpx.AsyncClient
) -> None:
    header = await make_key(engine, name="shop")
    await closed.post(CLIENTS, json=ANNA, headers=header)
    who = "SELECT actor_kind || actor_id || actor FROM audit WHERE action = 'client_added'"
    assert await value(engine, who) == "key1shop"


async def test_when_a_key_was_used_is_written_once_a_minute(
    engine: AsyncEngine, closed: httpx.AsyncClient
) -> None:
    header = await make_key(engine)
    assert await value(engine, LAST_USED) is None
    await closed.get(CLIENTS, headers=header)
    first = await value(engine, LAST_USED)
    assert datetime.now(UTC) - first < timedelta(seconds=10)
    for ago, moves in ((59, False), (61, True)):
        await execute(engine, f"UPDATE api_key SET last_used_at = now() - interval '{ago} s'")  # noqa: S608  # of a test
        before = await value(engine, LAST_USED)
        await closed.get(CLIENTS, headers=header)
        assert (await value(engine, LAST_USED) != before) is moves


async def test_a_key_that_asks_too_often_waits_and_others_do_not(engine: AsyncEngine) -> None:
    header, other = await make_key(engine), await make_key(engine, "read")
    async with served(engine, Settings(key_rate=5)) as api:
        statuses = [(await api.get(CLIENTS, headers=header)).status_code for _ in range(10)]
        assert statuses == [200] * 10
        refused: list[httpx.Response] = []
        async with asyncio.timeout(PATIENCE):
            while not refused:
                asked = (api.get(CLIENTS, headers=header) for _ in range(20))
                refused = [a for a in await asyncio.gather(*asked) if a.status_code == 429]
        for answer in refused:
            assert answer.headers["Content-Type"] == "application/problem+json"
            assert answer.json()["detail"] == "A key may ask 5 times a second."
            assert answer.headers["Retry-After"] == "1"
        assert (await api.get(CLIENTS, headers=other)).status_code == 200
        async with asyncio.timeout(PATIENCE):
            while (await api.get(CLIENTS, headers=header)).status_code == 429:
                await asyncio.sleep(0.2)


async def test_a_rate_of_0_is_none(engine: AsyncEngine) -> None:
    header = await make_key(engine)
    async with served(engine, Settings(key_rate=0)) as api:
        for _ in range(25):
            asked = (api.get(CLIENTS, headers=header) for _ in range(10))
            assert {answer.status_code for answer in await asyncio.gather(*asked)} == {200}


async def test_no_key_is_told_in_a_log_or_an_answer(
    engine: AsyncEngine, closed: httpx.AsyncClient
) -> None:
    headers = await make_key(engine)
    secret = headers["Authorization"].removeprefix("Bearer ")
    wrong = {"Authorization": f"Bearer mailer_{'w' * 43}"}
    path = f"/api/v1/mailings?key={secret}"
    with capture_logs() as logs:
        answers = [await closed.get(path, headers=given) for given in (headers, wrong, {})]
        answers.append(await closed.post(path, json=NEW, headers=headers))
    assert len(logs) >= 8
    for told in (logs, [(answer.text, answer.headers) for answer in answers]):
        assert secret not in str(told)
        assert "w" * 43 not in str(told)


async def test_two_keys_never_see_each_others_answers(
    engine: AsyncEngine, closed: httpx.AsyncClient
) -> None:
    first, second = await make_key(engine), await make_key(engine, "admin")
    call = ("/api/v1/mailings", {"json": NEW, "headers": first})
    other = ("/api/v1/mailings", {"json": NEW, "headers": second})
    answers = [await post(closed, call), await post(closed, other)]
    assert [answer.status_code for answer in answers] == [201, 201]
    assert not any(map(is_replay, answers))
    assert await value(engine, MAILINGS) == 2
    assert [is_replay(await post(closed, each)) for each in (call, other)] == [True, True]


async def test_without_a_right_no_answer_is_given_again(
    engine: AsyncEngine, closed: httpx.AsyncClient
) -> None:
    header = await make_key(engine)
    call = (CLIENTS, NEW_CLIENT[1] | {"headers": header})
    assert (await post(closed, call)).status_code == 201
    await execute(engine, "UPDATE api_key SET scope = 'read'")
    assert (await post(closed, call)).status_code == 403
    await do(engine, lambda db: keys.revoke(db, 1, COMMAND_LINE))
    assert (await post(closed, call)).status_code == 401


# ---- monitoring -----------------------------------------------------------------------------


@pytest.mark.parametrize("path", MONITORED)
async def test_without_a_token_anybody_may_look(closed: httpx.AsyncClient, path: str) -> None:
    assert (await closed.get(path)).status_code == 200


@pytest.mark.parametrize("path", MONITORED)
@pytest.mark.parametrize("auth", ["required", "none"])
async def test_with_a_token_only_who_shows_it_may_look(
    engine: AsyncEngine, path: str, auth: Any
) -> None:
    header = await make_key(engine, "admin")
    async with served(engine, Settings(auth=auth, monitoring_token="Secret-1")) as api:  # noqa: S106  # of a test
        right = await api.get(path, headers={"Authorization": "Bearer Secret-1"})
        assert right.status_code == 200
        for wrong in ({}, header, {"Authorization": "Bearer secret-1"}):
            answer = await api.get(path, headers=wrong)
            assert_is_unknown(answer, "Send the monitoring token, as Authorization: Bearer.")
            assert "Secret-1" not in answer.text
