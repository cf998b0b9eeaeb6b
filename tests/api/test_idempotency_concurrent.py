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
    COUNT_MAILINGS,
    CRASHED,
    CRASHED_EARLY,
    CSV,
    NEW_CLIENT,
    NEW_MAILING,
    Call,
    Step,
    api_with_lease,
    blocked_at,
    call_to,
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
IMPORT = call_to("/clients/import", content=FILE, headers=CSV)
COUNT_CLIENTS = "SELECT count(*) FROM client"
COUNT_AUDIT_ENTRIES = "SELECT count(*) FROM audit"
REPLACE_ATTEMPT = "UPDATE idempotency SET attempt = gen_random_uuid()"
"""Sets the state after another worker has acquired the claim, because its lease had expired."""
EXPIRE_LEASE = "UPDATE idempotency SET leased_until = now()"
STORE_OTHER_RESPONSE = """
    UPDATE idempotency SET status = 201, media_type = 'application/json', body = '{}'"""
"""Sets the state after that other worker has stored its response."""
LARGE_FILE = b"phone\n" + b"".join(b"7916%07d\n" % number for number in range(100_000))
IN_PROGRESS_ERROR = "The request with this Idempotency-Key is still being processed; send it again."


async def chunks(content: bytes) -> AsyncIterator[bytes]:
    """Yield a body in chunks: httpx then sends no Content-Length."""
    for start in range(0, len(content), 65_536):
        yield content[start : start + 65_536]


def import_of(content: bytes) -> Call:
    """Return a call that imports a file, in chunks; it can be sent once."""
    return call_to("/clients/import", content=chunks(content), headers=CSV)


@pytest.mark.parametrize(
    "call", [NEW_MAILING, NEW_CLIENT, IMPORT], ids=["mailing", "client", "import"]
)
async def test_one_of_concurrent_repeats_is_executed_and_all_get_its_response(
    engine: AsyncEngine, api: httpx.AsyncClient, call: Call
) -> None:
    responses = await asyncio.gather(*(post(api, call) for _ in range(30)))
    assert len({(response.status_code, response.content) for response in responses}) == 1
    assert responses[0].is_success
    assert sum(not is_replay(response) for response in responses) == 1
    assert await value(engine, COUNT_AUDIT_ENTRIES) == 1


async def test_different_keys_do_not_wait_for_each_other(
    engine: AsyncEngine, api: httpx.AsyncClient
) -> None:
    async with blocked_at(engine, "create mailing"):
        first = asyncio.create_task(post(api, NEW_MAILING))
        await wait_until_blocked(engine)
        assert (await post(api, NEW_CLIENT, "b")).status_code == 201
        assert not first.done()
    assert (await first).status_code == 201


async def test_a_repeat_waits_for_the_first_response_without_a_database_connection(
    engine: AsyncEngine, api: httpx.AsyncClient
) -> None:
    async with blocked_at(engine, "store result"):
        first = asyncio.create_task(post(api, NEW_MAILING))
        await wait_until_blocked(engine)
        repeats = [asyncio.create_task(post(api, NEW_MAILING)) for _ in range(30)]
        await asyncio.sleep(0.3)
        assert (await api.get("/mailings")).status_code == 200
        assert not any(task.done() for task in (first, *repeats))
    response = await first
    assert all([is_same(response, await repeat) for repeat in repeats])


async def test_a_repeat_that_waited_half_a_lease_is_409_with_retry_after(
    engine: AsyncEngine,
) -> None:
    async with api_with_lease(engine, lease=1) as api, blocked_at(engine, "store result"):
        first = asyncio.create_task(post(api, NEW_MAILING))
        await wait_until_blocked(engine)
        response = await post(api, NEW_MAILING)
        assert (response.status_code, response.json()["detail"]) == (409, IN_PROGRESS_ERROR)
        assert response.headers["Retry-After"] == "1"
        assert not is_replay(response)
        assert not first.done()
    assert (await first).status_code == 201


async def test_a_repeated_form_shows_that_the_first_is_still_in_progress(
    engine: AsyncEngine,
) -> None:
    url = f"http://mailer/clients/new?once={'a' * 32}"
    async with api_with_lease(engine, lease=1) as api, blocked_at(engine, "store result"):
        api.headers.update(BROWSER | {"Accept-Language": "ru"})
        first = asyncio.create_task(api.post(url, data=ANNA))
        await wait_until_blocked(engine)
        response = await api.post(url, data=ANNA)
        assert response.status_code == 409
        assert "Эта форма уже отправлена и ещё обрабатывается." in response.text
        assert not first.done()
    assert (await first).status_code == 303


async def test_a_lease_is_renewed_while_the_request_is_in_progress(engine: AsyncEngine) -> None:
    async with api_with_lease(engine, lease=0.6) as api:
        async with blocked_at(engine, "create mailing"):
            first = asyncio.create_task(post(api, NEW_MAILING))
            await wait_until_blocked(engine)
            await asyncio.sleep(1.5)
            assert (await post(api, NEW_MAILING)).json()["detail"] == IN_PROGRESS_ERROR
        response = await first
        assert response.status_code == 201
        assert is_same(response, await post(api, NEW_MAILING))
    assert await value(engine, COUNT_MAILINGS) == 1


@pytest.mark.parametrize(
    ("call", "step"),
    [
        (NEW_MAILING, "create mailing"),
        (NEW_CLIENT, "create client"),
        (IMPORT, "create client"),
    ],
    ids=["mailing", "client", "import"],
)
async def test_a_request_that_lost_its_claim_changes_nothing_and_returns_the_other_workers_response(
    engine: AsyncEngine, api: httpx.AsyncClient, call: Call, step: Step
) -> None:
    async with blocked_at(engine, step):
        late = asyncio.create_task(post(api, call))
        await wait_until_blocked(engine)
        await execute(engine, REPLACE_ATTEMPT)
    await asyncio.sleep(0.3)
    assert not late.done()
    for count in (COUNT_MAILINGS, COUNT_CLIENTS, COUNT_AUDIT_ENTRIES):
        assert await value(engine, count) == 0
    await execute(engine, STORE_OTHER_RESPONSE)
    response = await late
    assert (response.status_code, response.content, is_replay(response)) == (201, b"{}", True)


async def test_a_request_that_lost_its_claim_to_a_dead_worker_is_409(
    engine: AsyncEngine, api: httpx.AsyncClient
) -> None:
    async with blocked_at(engine, "create mailing"):
        late = asyncio.create_task(post(api, NEW_MAILING))
        await wait_until_blocked(engine)
        await execute(engine, REPLACE_ATTEMPT, EXPIRE_LEASE)
    response = await late
    assert (response.status_code, response.json()["detail"]) == (409, IN_PROGRESS_ERROR)
    assert await value(engine, COUNT_MAILINGS) == 0
    assert (await post(api, NEW_MAILING)).status_code == 201


async def test_a_worker_that_acquires_the_claim_after_the_work_finds_its_result(
    engine: AsyncEngine, api: httpx.AsyncClient
) -> None:
    async with blocked_at(engine, "store response"):
        first = asyncio.create_task(post(api, NEW_MAILING))
        await wait_until_blocked(engine)
        await execute(engine, EXPIRE_LEASE)
        second = asyncio.create_task(post(api, NEW_MAILING))
        await wait_until_blocked(engine, count=2)
    responses = await asyncio.gather(first, second)
    assert {response.status_code for response in responses} == {201}
    assert responses[0].content == responses[1].content
    assert await value(engine, COUNT_MAILINGS) == 1


# ---- large bodies ---------------------------------------------------------------------------


async def test_a_repeated_large_file_is_recognized(
    engine: AsyncEngine, api: httpx.AsyncClient
) -> None:
    assert len(LARGE_FILE) > MAX_BODY_BYTES
    first = await post(api, import_of(LARGE_FILE))
    assert first.json()["created"] == 100_000
    assert is_same(first, await post(api, import_of(LARGE_FILE)))
    file_with_another_last_digit = LARGE_FILE[:-2] + b"0\n"
    response = await post(api, import_of(file_with_another_last_digit))
    assert response.status_code == 409
    assert await value(engine, COUNT_CLIENTS) == 100_000


@pytest.mark.parametrize("was_imported", [True, False])
async def test_a_large_file_is_imported_once_although_its_worker_died(
    engine: AsyncEngine, api: httpx.AsyncClient, *, was_imported: bool
) -> None:
    first = await post(api, import_of(LARGE_FILE))
    await execute(engine, CRASHED)
    if not was_imported:
        await execute(engine, CRASHED_EARLY, "DELETE FROM client")
    response = await post(api, import_of(LARGE_FILE))
    assert (response.status_code, response.json()) == (200, first.json())
    assert not is_replay(response)
    assert await value(engine, COUNT_CLIENTS) == 100_000


async def test_a_repeat_with_a_too_large_body_is_413(api: httpx.AsyncClient) -> None:
    await post(api, NEW_MAILING)
    too_large = b" " * (MAX_BODY_BYTES + 1)
    for content in (too_large, chunks(too_large)):
        response = await post(api, call_to("/mailings", content=content))
        assert response.status_code == 413


async def test_a_repeated_import_with_a_too_large_file_is_413(api: httpx.AsyncClient) -> None:
    await post(api, IMPORT)
    headers = CSV | {"Content-Length": str(MAX_IMPORT_BYTES + 1)}
    response = await post(api, call_to("/clients/import", content=b"", headers=headers))
    assert response.status_code == 413


async def test_an_unavailable_database_is_503() -> None:
    engine = create_engine("postgresql://127.0.0.1:1/")
    app = create_app(engine, settings=OPEN)
    transport = inside(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://mailer/api/v1") as api:
        response = await post(api, NEW_MAILING)
    assert (response.status_code, response.headers["Retry-After"]) == (503, "1")
    await engine.dispose()


POST_SCOPE = {
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
"""The scope of an ASGI request with an Idempotency-Key, without its path."""


async def response_statuses(engine: AsyncEngine, path: str, receive: Any) -> list[int]:
    """Return the status of the response to a client whose body comes from `receive`, if any."""
    statuses = []

    async def send(message: Any) -> None:
        if message["type"] == "http.response.start":
            statuses.append(message["status"])

    app = create_app(engine, settings=OPEN, limits=ConnectionLimits(body=0.3))
    await app(POST_SCOPE | {"path": f"/api/v1{path}"}, receive, send)  # type: ignore[arg-type]  # an incomplete scope
    return statuses


async def test_an_aborted_repeat_gets_no_response(
    engine: AsyncEngine, api: httpx.AsyncClient
) -> None:
    await post(api, NEW_MAILING)

    async def receive() -> Any:
        return {"type": "http.disconnect"}

    assert await response_statuses(engine, "/mailings", receive) == []


async def test_a_repeat_sent_byte_by_byte_times_out(
    engine: AsyncEngine, api: httpx.AsyncClient
) -> None:
    await post(api, NEW_MAILING)

    async def receive() -> Any:
        await asyncio.sleep(0.02)
        return {"type": "http.request", "body": b" ", "more_body": True}

    async with asyncio.timeout(EVENT_TIMEOUT):
        assert await response_statuses(engine, "/mailings", receive) == [408]
