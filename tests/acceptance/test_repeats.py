"""A request with an Idempotency-Key takes effect once, despite repeats, kills and freezes."""

import asyncio
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import asyncpg
import pytest
from tests.processes import MailerProcess, Mailers, until, until_true
from tests.servers import CLOSE_CONNECTIONS

from mailer.db.engine import connect
from mailer.sample_data import new_mailing

QUICK = {"gateway_timeout": "1", "lease": "3"}
"""Settings under which the work of a dead process may continue after three seconds."""
KEY = {"Idempotency-Key": "order-7"}
COUNT_MAILINGS = "SELECT count(*) FROM mailing"
LOCK = 77
"""Key of the lock for which the trigger below waits."""
CREATE_WAIT = f"""
    CREATE FUNCTION wait_for_lock() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
        PERFORM pg_advisory_xact_lock_shared({LOCK});
        RETURN NULL;
    END $$"""
IS_WAITING = "SELECT count(*) > 0 FROM pg_locks WHERE locktype = 'advisory' AND NOT granted"
"""Returns whether a session waits for the lock."""


async def post(mailer: MailerProcess, path: str, body: object) -> tuple[int, bytes, bool]:
    """Post with the key; return the status, the body, and whether the response is a replay."""
    async with mailer.session.post(f"/api/v1{path}", json=body, headers=KEY) as response:
        is_replay = response.headers.get("Idempotency-Replayed") == "true"
        return response.status, await response.read(), is_replay


async def post_until_done(
    mailer: MailerProcess, path: str, body: object
) -> tuple[int, bytes, bool]:
    """Post with the key until the request is no longer being processed."""

    async def try_post() -> tuple[int, bytes, bool] | None:
        status, content, is_replay = await post(mailer, path, body)
        is_pending = status == 409 and b"still being processed" in content
        return None if is_pending else (status, content, is_replay)

    return await until(try_post)


@asynccontextmanager
async def blocked_writes(mailer: MailerProcess, column: str) -> AsyncIterator[asyncpg.Connection]:
    """In the block, let sessions wait when they write a column of the table `idempotency`.

    So a process can be killed just before that: `result` is written in the transaction of the
    request's own change, `body` after it. PostgreSQL cannot finish the waiting statement of a
    killed process. At the end these sessions are closed.
    """
    database = await connect(mailer.database_url, idle_in_transaction_session_timeout="0")
    await database.execute(CREATE_WAIT)
    await database.execute(f"""
        CREATE TRIGGER wait BEFORE UPDATE OF {column} ON idempotency
        FOR EACH STATEMENT EXECUTE FUNCTION wait_for_lock()""")
    await database.execute("SELECT pg_advisory_lock($1)", LOCK)
    try:
        yield database
    finally:
        await database.execute(CLOSE_CONNECTIONS)
        await database.execute("DROP FUNCTION wait_for_lock CASCADE")
        await database.close()


@pytest.mark.parametrize(("column", "is_done"), [("result", False), ("body", True)])
async def test_kill_before_or_after_the_commit_leaves_one_mailing_and_one_response(
    start_mailer: Mailers, column: str, *, is_done: bool
) -> None:
    mailer = await start_mailer(**QUICK)
    await mailer.create_clients(3)
    body = new_mailing(starts_in=3600)
    async with blocked_writes(mailer, column):
        request = asyncio.create_task(post(mailer, "/mailings", body))
        await until_true(lambda: mailer.query(IS_WAITING))
        assert await mailer.query(COUNT_MAILINGS) == int(is_done)
        await mailer.stop(signal.SIGKILL)
        with pytest.raises(aiohttp.ClientError):
            await request
    assert await mailer.query(COUNT_MAILINGS) == int(is_done)

    second = await start_mailer(**QUICK)
    status, content, is_replay = await post_until_done(second, "/mailings", body)
    assert (status, is_replay) == (201, False)
    assert await post_until_done(second, "/mailings", body) == (201, content, True)
    assert await second.query(COUNT_MAILINGS) == 1
    entries = "SELECT count(*) FROM audit WHERE action = 'mailing_created'"
    assert await second.query(entries) == 1


async def test_file_is_imported_once_and_completely_despite_a_kill(
    start_mailer: Mailers,
) -> None:
    mailer = await start_mailer(**QUICK)
    content = b"phone\n" + b"".join(b"7916%07d\n" % number for number in range(50_000))

    async def send(process: MailerProcess) -> tuple[int, Any] | None:
        """Upload the file; return status and report, or None while it is still being imported."""
        headers = KEY | {"Content-Type": "text/csv"}
        async with process.session.post(
            "/api/v1/clients/import", data=content, headers=headers
        ) as response:
            return None if response.status == 409 else (response.status, await response.json())

    async with blocked_writes(mailer, "body"):
        request = asyncio.create_task(send(mailer))
        await until_true(lambda: mailer.query(IS_WAITING))
        await mailer.stop(signal.SIGKILL)
        with pytest.raises(aiohttp.ClientError):
            await request

    second = await start_mailer(**QUICK)
    status, report = await until(lambda: send(second))
    assert (status, report["created"], report["unchanged"]) == (200, 50_000, 0)
    assert await until(lambda: send(second)) == (200, report)
    assert await second.query("SELECT count(*) FROM client") == 50_000


async def test_simultaneous_requests_to_two_processes_create_one_mailing(
    start_mailer: Mailers,
) -> None:
    processes = await asyncio.gather(start_mailer(), start_mailer())
    body = new_mailing(starts_in=3600)
    responses = await asyncio.gather(
        *(post(process, "/mailings", body) for process in processes for _ in range(40))
    )
    assert len({(status, content) for status, content, _ in responses}) == 1
    assert [is_replay for *_, is_replay in responses].count(False) == 1
    assert await processes[0].query(COUNT_MAILINGS) == 1


async def test_process_frozen_for_longer_than_its_lease_does_nothing_twice(
    start_mailer: Mailers,
) -> None:
    frozen, other = await asyncio.gather(start_mailer(**QUICK), start_mailer(**QUICK))
    body = new_mailing(starts_in=3600)
    async with blocked_writes(frozen, "result") as database:
        late_request = asyncio.create_task(post(frozen, "/mailings", body))
        await until_true(lambda: frozen.query(IS_WAITING))
        frozen.process.send_signal(signal.SIGSTOP)
        await database.execute(CLOSE_CONNECTIONS)  # as a firewall or a server timeout would do
    status, content, is_replay = await post_until_done(other, "/mailings", body)
    assert (status, is_replay) == (201, False)
    frozen.process.send_signal(signal.SIGCONT)
    late_status, _, _ = await late_request
    assert late_status in {201, 409, 503}
    assert await post_until_done(frozen, "/mailings", body) == (201, content, True)
    assert await other.query(COUNT_MAILINGS) == 1
