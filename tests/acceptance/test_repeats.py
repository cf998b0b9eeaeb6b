"""A request under an Idempotency-Key is done once, whoever repeats it and whatever dies."""

import asyncio
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import asyncpg
import pytest
from tests.acceptance.test_main_job import a_mailing, add_clients
from tests.processes import MailerProcess, Mailers, until

from mailer.db.engine import connect

QUICK = {"gateway_timeout": "1", "lease": "3"}
KEY = {"Idempotency-Key": "order-7"}
MAILINGS = "SELECT count(*) FROM mailing"
LOCK = 77
HOLD_UP = """
    CREATE FUNCTION hold_up() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
        PERFORM pg_advisory_xact_lock_shared(77);
        RETURN NULL;
    END $$"""
WAITING = "SELECT count(*) > 0 OR NULL FROM pg_locks WHERE locktype = 'advisory' AND NOT granted"
BREAK = """
    SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity
    WHERE datname = current_database() AND pid <> pg_backend_pid()"""


async def post(mailer: MailerProcess, path: str, body: object) -> tuple[int, bytes, bool]:
    """Ask under the key; return the status, the answer, and whether it is one given again."""
    async with mailer.session.post(f"/api/v1{path}", json=body, headers=KEY) as answer:
        is_replay = answer.headers.get("Idempotency-Replayed") == "true"
        return answer.status, await answer.read(), is_replay


async def insist(mailer: MailerProcess, path: str, body: object) -> tuple[int, bytes, bool]:
    """Ask until the request is not being processed any more."""

    async def ask() -> tuple[int, bytes, bool] | None:
        answer = await post(mailer, path, body)
        return None if answer[0] == 409 and b"still being processed" in answer[1] else answer

    return await until(ask)


@asynccontextmanager
async def held(mailer: MailerProcess, column: str) -> AsyncIterator[asyncpg.Connection]:
    """Hold up who writes a column of a request's row; whoever still waits at the end is cut off.

    PostgreSQL goes on with the statement of a process that died, when it can: this one cannot.
    """
    database = await connect(mailer.database_url, idle_in_transaction_session_timeout="0")
    await database.execute(HOLD_UP)
    await database.execute(f"""
        CREATE TRIGGER held BEFORE UPDATE OF {column} ON idempotency
        FOR EACH STATEMENT EXECUTE FUNCTION hold_up()""")
    await database.execute("SELECT pg_advisory_lock($1)", LOCK)
    try:
        yield database
    finally:
        await database.execute(BREAK)
        await database.execute("DROP FUNCTION hold_up CASCADE")
        await database.close()


@pytest.mark.parametrize(("column", "is_done"), [("effect", False), ("body", True)])
async def test_a_kill_before_or_after_the_commit_leaves_one_mailing_and_one_answer(
    start_mailer: Mailers, column: str, *, is_done: bool
) -> None:
    mailer = await start_mailer(**QUICK)
    await add_clients(mailer, 3)
    body = a_mailing(starts_in=3600)
    async with held(mailer, column):
        asking = asyncio.create_task(post(mailer, "/mailings", body))
        await until(lambda: mailer.query(WAITING))
        assert await mailer.query(MAILINGS) == int(is_done)
        await mailer.stop(signal.SIGKILL)
        with pytest.raises(aiohttp.ClientError):
            await asking
    assert await mailer.query(MAILINGS) == int(is_done)

    second = await start_mailer(**QUICK)
    status, answer, is_replay = await insist(second, "/mailings", body)
    assert (status, is_replay) == (201, False)
    assert await insist(second, "/mailings", body) == (201, answer, True)
    assert await second.query(MAILINGS) == 1
    audited = "SELECT count(*) FROM audit WHERE action = 'mailing_created'"
    assert await second.query(audited) == 1


async def test_a_kill_while_a_file_is_imported_leaves_all_of_it_imported_once(
    start_mailer: Mailers,
) -> None:
    mailer = await start_mailer(**QUICK)
    content = b"phone\n" + b"".join(b"7916%07d\n" % number for number in range(50_000))

    async def send(to: MailerProcess) -> tuple[int, Any] | None:
        headers = KEY | {"Content-Type": "text/csv"}
        async with to.session.post(
            "/api/v1/clients/import", data=content, headers=headers
        ) as answer:
            return None if answer.status == 409 else (answer.status, await answer.json())

    async with held(mailer, "body"):
        asking = asyncio.create_task(send(mailer))
        await until(lambda: mailer.query(WAITING))
        await mailer.stop(signal.SIGKILL)
        with pytest.raises(aiohttp.ClientError):
            await asking

    second = await start_mailer(**QUICK)
    status, report = await until(lambda: send(second))
    assert (status, report["created"], report["unchanged"]) == (200, 50_000, 0)
    assert await until(lambda: send(second)) == (200, report)
    assert await second.query("SELECT count(*) FROM client") == 50_000


async def test_two_processes_that_are_asked_at_once_make_one_mailing(
    start_mailer: Mailers,
) -> None:
    processes = await asyncio.gather(start_mailer(), start_mailer())
    body = a_mailing(starts_in=3600)
    answers = await asyncio.gather(
        *(post(process, "/mailings", body) for process in processes for _ in range(40))
    )
    assert len({(status, answer) for status, answer, _ in answers}) == 1
    assert [is_replay for *_, is_replay in answers].count(False) == 1
    assert await processes[0].query(MAILINGS) == 1


async def test_a_process_that_stood_still_for_longer_than_its_lease_does_nothing_twice(
    start_mailer: Mailers,
) -> None:
    still, other = await asyncio.gather(start_mailer(**QUICK), start_mailer(**QUICK))
    body = a_mailing(starts_in=3600)
    async with held(still, "effect") as database:
        late = asyncio.create_task(post(still, "/mailings", body))
        await until(lambda: still.query(WAITING))
        still.process.send_signal(signal.SIGSTOP)
        await database.execute(BREAK)  # as a firewall, or the server, does after a while
    answer = await insist(other, "/mailings", body)
    assert (answer[0], answer[2]) == (201, False)
    still.process.send_signal(signal.SIGCONT)
    assert (await late)[0] in {201, 409, 503}
    assert await insist(still, "/mailings", body) == (201, answer[1], True)
    assert await other.query(MAILINGS) == 1
