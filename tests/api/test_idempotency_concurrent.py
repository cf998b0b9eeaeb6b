"""Idempotency-Key with concurrent requests, expired leases and large bodies."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
from sqlalchemy.ext.asyncio import AsyncEngine
from tests.api.browser_session import BROWSER
from tests.api.repeats import (
    ANNA,
    CRASHED,
    CRASHED_EARLY,
    CSV,
    MAILINGS,
    NEW_CLIENT,
    NEW_MAILING,
    Call,
    api_with_lease,
    blocked_at,
    is_replay,
    is_same,
    post,
    wait_until_blocked,
)
from tests.asgi_client import inside
from tests.event_timeout import EVENT_TIMEOUT
from tests.factories import OPEN, execute, value

from mailer.app import create_app
from mailer.client.api import MAX_IMPORT_BYTES
from mailer.db.engine import create_engine
from mailer.web.body import MAX_BODY_BYTES
from mailer.web.server.connection import ConnectionLimits

FILE = b"phone\n79160000005\n79160000006\n"
IMPORT: Call = ("/clients/import", {"content": FILE, "headers": CSV})
CLIENTS = "SELECT count(*) FROM client"
AUDITED = "SELECT count(*) FROM audit"
REPLACE_ATTEMPT = "UPDATE idempotency SET attempt = gen_random_uuid()"
"""The state after another worker took over the claim because its lease expired."""
MANY = b"phone\n" + b"".join(b"7916%07d\n" % number for number in range(100_000))
BUSY = "The request with this Idempotency-Key is still being processed; send it again."


async def chunks(content: bytes) -> AsyncIterator[bytes]:
    """Yield a body without a known length."""
    for start in range(0, len(content), 65_536):
        yield content[start : start + 65_536]


@pytest.mark.parametrize(
    "call", [NEW_MAILING, NEW_CLIENT, IMPORT], ids=["mailing", "client", "import"]
)
async def test_one_of_concurrent_repeats_is_executed_and_all_get_its_response(
    engine: AsyncEngine, api: httpx.AsyncClient, call: Call
) -> None:
    answers = await asyncio.gather(*(post(api, call) for _ in range(30)))
    assert len({(answer.status_code, answer.content) for answer in answers}) == 1
    assert answers[0].is_success
    assert sum(not is_replay(answer) for answer in answers) == 1
    assert await value(engine, AUDITED) == 1


async def test_different_keys_do_not_wait_for_each_other(
    engine: AsyncEngine, api: httpx.AsyncClient
) -> None:
    async with blocked_at(engine, "create"):
        first = asyncio.create_task(post(api, NEW_MAILING))
        await wait_until_blocked(engine)
        assert (await post(api, NEW_CLIENT, "b")).status_code == 201
        assert not first.done()
    assert (await first).status_code == 201


async def test_a_repeat_waits_for_the_first_response_without_a_database_connection(
    engine: AsyncEngine, api: httpx.AsyncClient
) -> None:
    async with blocked_at(engine, "record"):
        first = asyncio.create_task(post(api, NEW_MAILING))
        await wait_until_blocked(engine)
        repeats = [asyncio.create_task(post(api, NEW_MAILING)) for _ in range(30)]
        await asyncio.sleep(0.3)
        assert (await api.get("/mailings")).status_code == 200
        assert not any(task.done() for task in (first, *repeats))
    answer = await first
    assert all([is_same(answer, await repeat) for repeat in repeats])


async def test_a_repeat_that_waited_half_a_lease_is_409_with_retry_after(
    engine: AsyncEngine,
) -> None:
    async with api_with_lease(engine, lease=1) as api, blocked_at(engine, "record"):
        first = asyncio.create_task(post(api, NEW_MAILING))
        await wait_until_blocked(engine)
        answer = await post(api, NEW_MAILING)
        assert (answer.status_code, answer.json()["detail"]) == (409, BUSY)
        assert answer.headers["Retry-After"] == "1"
        assert not is_replay(answer)
        assert not first.done()
    assert (await first).status_code == 201


async def test_a_repeated_form_shows_that_the_first_is_still_in_progress(
    engine: AsyncEngine,
) -> None:
    url = f"http://mailer/clients/new?once={'a' * 32}"
    async with api_with_lease(engine, lease=1) as api, blocked_at(engine, "record"):
        api.headers.update(BROWSER | {"Accept-Language": "ru"})
        first = asyncio.create_task(api.post(url, data=ANNA))
        await wait_until_blocked(engine)
        answer = await api.post(url, data=ANNA)
        assert answer.status_code == 409
        assert "Эта форма уже отправлена и ещё обрабатывается." in answer.text
        assert not first.done()
    assert (await first).status_code == 303


async def test_a_lease_is_renewed_while_the_request_is_in_progress(engine: AsyncEngine) -> None:
    async with api_with_lease(engine, lease=0.6) as api:
        async with blocked_at(engine, "create"):
            first = asyncio.create_task(post(api, NEW_MAILING))
            await wait_until_blocked(engine)
            await asyncio.sleep(1.5)
            assert (await post(api, NEW_MAILING)).json()["detail"] == BUSY
        answer = await first
        assert answer.status_code == 201
        assert is_same(answer, await post(api, NEW_MAILING))
    assert await value(engine, MAILINGS) == 1


@pytest.mark.parametrize(
    ("call", "step"),
    [(NEW_MAILING, "create"), (NEW_CLIENT, "import"), (IMPORT, "import")],
    ids=["mailing", "client", "import"],
)
async def test_a_request_that_lost_its_claim_changes_nothing_and_returns_the_new_owners_response(
    engine: AsyncEngine, api: httpx.AsyncClient, call: Call, step: str
) -> None:
    async with blocked_at(engine, step):
        late = asyncio.create_task(post(api, call))
        await wait_until_blocked(engine)
        await execute(engine, REPLACE_ATTEMPT)
    await asyncio.sleep(0.3)
    assert not late.done()
    done = await value(engine, MAILINGS), await value(engine, CLIENTS), await value(engine, AUDITED)
    assert done == (0, 0, 0)
    # the response of the new owner
    await execute(
        engine,
        "UPDATE idempotency SET status = 201, media_type = 'application/json', body = '{}'",
    )
    answer = await late
    assert (answer.status_code, answer.content, is_replay(answer)) == (201, b"{}", True)


async def test_a_request_that_lost_its_claim_to_a_dead_worker_is_409(
    engine: AsyncEngine, api: httpx.AsyncClient
) -> None:
    async with blocked_at(engine, "create"):
        late = asyncio.create_task(post(api, NEW_MAILING))
        await wait_until_blocked(engine)
        await execute(engine, REPLACE_ATTEMPT, "UPDATE idempotency SET leased_until = now()")
    assert ((await late).status_code, (await late).json()["detail"]) == (409, BUSY)
    assert await value(engine, MAILINGS) == 0
    assert (await post(api, NEW_MAILING)).status_code == 201


async def test_a_takeover_during_the_commit_finds_the_committed_effect(
    engine: AsyncEngine, api: httpx.AsyncClient
) -> None:
    async with blocked_at(engine, "answer"):
        first = asyncio.create_task(post(api, NEW_MAILING))
        await wait_until_blocked(engine)
        await execute(engine, "UPDATE idempotency SET leased_until = now()")
        second = asyncio.create_task(post(api, NEW_MAILING))
        await wait_until_blocked(engine, 2)
    answers = await asyncio.gather(first, second)
    assert {answer.status_code for answer in answers} == {201}
    assert answers[0].content == answers[1].content
    assert await value(engine, MAILINGS) == 1


# ---- large bodies ---------------------------------------------------------------------------


async def test_a_repeated_large_file_is_recognized(
    engine: AsyncEngine, api: httpx.AsyncClient
) -> None:
    assert len(MANY) > MAX_BODY_BYTES
    first = await post(api, ("/clients/import", {"content": chunks(MANY), "headers": CSV}))
    assert first.json()["created"] == 100_000
    repeat = await post(api, ("/clients/import", {"content": chunks(MANY), "headers": CSV}))
    assert is_same(first, repeat)
    other_file = MANY[:-2] + b"0\n"
    answer = await post(api, ("/clients/import", {"content": chunks(other_file), "headers": CSV}))
    assert answer.status_code == 409
    assert await value(engine, CLIENTS) == 100_000


@pytest.mark.parametrize("has_effect", [True, False])
async def test_a_large_file_is_imported_once_although_its_worker_died(
    engine: AsyncEngine, api: httpx.AsyncClient, *, has_effect: bool
) -> None:
    def call() -> Call:
        return "/clients/import", {"content": chunks(MANY), "headers": CSV}

    first = await post(api, call())
    await execute(engine, CRASHED)
    if not has_effect:
        await execute(engine, CRASHED_EARLY, "DELETE FROM client")
    answer = await post(api, call())
    assert (answer.status_code, answer.json(), is_replay(answer)) == (200, first.json(), False)
    assert await value(engine, CLIENTS) == 100_000


async def test_a_repeat_beyond_the_limit_is_413(api: httpx.AsyncClient) -> None:
    await post(api, NEW_MAILING)
    too_much = b" " * (MAX_BODY_BYTES + 1)
    for content in (too_much, chunks(too_much)):
        answer = await post(api, ("/mailings", {"content": content}))
        assert answer.status_code == 413
    headers = CSV | {"Content-Length": str(MAX_IMPORT_BYTES + 1)}
    await post(api, IMPORT, "b")
    answer = await post(api, ("/clients/import", {"content": b"", "headers": headers}), "b")
    assert answer.status_code == 413


async def test_an_unavailable_database_is_503() -> None:
    engine = create_engine("postgresql://127.0.0.1:1/")
    app = create_app(engine, settings=OPEN)
    transport = inside(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://mailer/api/v1") as api:
        answer = await post(api, NEW_MAILING)
    assert (answer.status_code, answer.headers["Retry-After"]) == (503, "1")
    await engine.dispose()


HEAD = {
    "type": "http",
    "asgi": {"version": "3.0"},
    "http_version": "1.1",
    "method": "POST",
    "scheme": "http",
    "raw_path": b"",
    "root_path": "",
    "query_string": b"",
    "headers": [(b"host", b"localhost"), (b"idempotency-key", b"a")],
    "client": None,
    "server": ("mailer", 80),
}


async def statuses_of(engine: AsyncEngine, path: str, receive: Any) -> list[int]:
    """Return the statuses of the responses to a client whose body comes from `receive`."""
    statuses = []

    async def send(message: Any) -> None:
        if message["type"] == "http.response.start":
            statuses.append(message["status"])

    app = create_app(engine, settings=OPEN, limits=ConnectionLimits(body=0.3))
    await app(HEAD | {"path": f"/api/v1{path}"}, receive, send)  # type: ignore[arg-type]  # an incomplete scope
    return statuses


async def test_an_aborted_repeat_gets_no_response(
    engine: AsyncEngine, api: httpx.AsyncClient
) -> None:
    await post(api, NEW_MAILING)

    async def receive() -> Any:
        return {"type": "http.disconnect"}

    assert await statuses_of(engine, "/mailings", receive) == []


async def test_a_repeat_sent_byte_by_byte_times_out(
    engine: AsyncEngine, api: httpx.AsyncClient
) -> None:
    await post(api, NEW_MAILING)

    async def receive() -> Any:
        await asyncio.sleep(0.02)
        return {"type": "http.request", "body": b" ", "more_body": True}

    async with asyncio.timeout(EVENT_TIMEOUT):
        assert await statuses_of(engine, "/mailings", receive) == [408]
