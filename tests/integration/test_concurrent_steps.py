"""Two workers may do the same step for mailings at the same time; its effect happens once.

`other` is one of the workers, with an open transaction that the test commits. The first worker runs
its steps by `do`, each in a transaction of its own.
"""

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime

import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine
from tests.event_timeout import EVENT_TIMEOUT, let_run
from tests.factories import (
    HOUR,
    add_delivered_mailing,
    add_due_messages,
    add_mailing,
    do,
    end_messages,
    execute,
    mailing_counts,
    running,
    schedule_retried,
    value,
)

from mailer.access.model import COMMAND_LINE
from mailer.mailing import finishing, purging, retrying, service, starting
from mailer.mailing.finishing import FinishedMailing
from mailer.statistics.verify import find_differences

LOCK_MAILING = text("SELECT FROM mailing WHERE id = :id FOR UPDATE")


@pytest.fixture
async def other(engine: AsyncEngine) -> AsyncIterator[AsyncConnection]:
    """The connection of another worker; its transaction is open until the test ends it."""
    async with engine.connect() as connection:
        yield connection


async def test_two_workers_start_each_mailing_once(
    engine: AsyncEngine, other: AsyncConnection
) -> None:
    now = datetime.now(UTC)
    later = await add_mailing(engine, start=now - HOUR, status="scheduled")
    earlier = await add_mailing(engine, start=now - 2 * HOUR, status="scheduled")
    async with asyncio.timeout(EVENT_TIMEOUT):  # does not wait for the open transaction
        assert await starting.start_due(other, limit=1) == [later]
        assert await do(engine, starting.start_due) == [earlier]
        assert await do(engine, starting.start_due) == []
    await other.commit()

    assert await do(engine, starting.start_due) == []
    assert {mailing.id for mailing in await running(engine)} == {later, earlier}


async def test_a_rolled_back_start_is_repeated(engine: AsyncEngine, other: AsyncConnection) -> None:
    mailing_id = await add_mailing(engine, start=datetime.now(UTC), status="scheduled")
    assert await starting.start_due(other) == [mailing_id]
    await other.rollback()

    assert await do(engine, starting.start_due) == [mailing_id]


async def test_two_workers_end_each_scheduled_message_once(
    engine: AsyncEngine, other: AsyncConnection
) -> None:
    mailing_id = await add_due_messages(engine, 5)
    await execute(engine, "UPDATE mailing SET status = 'cancelled'")
    assert await finishing.end_scheduled_messages(other, chunk=3)
    # skips the three locked messages, and waits with the other two for the row of counts
    end_task = asyncio.create_task(end_messages(engine))
    await let_run(end_task)
    await other.commit()

    assert await end_task
    assert await mailing_counts(engine, mailing_id) == {"cancelled": 5}
    assert not await end_messages(engine)
    assert await find_differences(engine) == []


async def test_two_workers_retry_each_message_once(
    engine: AsyncEngine, other: AsyncConnection
) -> None:
    one, two = await add_due_messages(engine, 2), await add_due_messages(engine, 2)
    await execute(engine, "UPDATE message SET status = 'undelivered'")
    for mailing_id in (one, two):
        await service.retry(engine, mailing_id, COMMAND_LINE)
    async with asyncio.timeout(EVENT_TIMEOUT):
        assert await retrying.retry_chunk(other, chunk=9)  # one mailing
        assert await schedule_retried(engine)  # the other one
        assert not await schedule_retried(engine)  # does not wait for the locked one
    await other.commit()

    assert not await schedule_retried(engine)
    for mailing_id in (one, two):
        assert await mailing_counts(engine, mailing_id) == {"scheduled": 2}


async def test_two_workers_finish_each_mailing_once(
    engine: AsyncEngine, other: AsyncConnection
) -> None:
    mailing_id = await add_delivered_mailing(engine)
    assert await finishing.finish(other) == [(mailing_id, "finished")]
    async with asyncio.timeout(EVENT_TIMEOUT):  # skips the locked mailing
        assert await do(engine, finishing.finish) == []
    await other.commit()

    assert await do(engine, finishing.finish) == []


async def test_two_workers_purge_each_message_once(
    engine: AsyncEngine, other: AsyncConnection
) -> None:
    mailing_id = await add_due_messages(engine, 5)
    await service.delete(engine, mailing_id, COMMAND_LINE)
    assert await purging.purge(other, chunk=3) == 3
    purge_task = asyncio.create_task(do(engine, lambda db: purging.purge(db, chunk=9)))
    await let_run(purge_task)
    await other.commit()

    assert await purge_task == 5 - 3
    await do(engine, lambda db: purging.purge(db, chunk=9))
    assert await value(engine, "SELECT count(*) FROM mailing") == 0


async def test_finishing_skips_a_mailing_that_another_worker_has_locked(
    engine: AsyncEngine, other: AsyncConnection
) -> None:
    locked, unlocked = await add_delivered_mailing(engine), await add_delivered_mailing(engine)
    await other.execute(LOCK_MAILING, {"id": locked})
    async with asyncio.timeout(EVENT_TIMEOUT):
        assert await do(engine, finishing.finish) == [(unlocked, "finished")]
    await other.commit()

    assert await do(engine, finishing.finish) == [(locked, "finished")]


# ---- a retry while a statement finishes mailings --------------------------------------------

LOCK_PAUSE = "SELECT pg_advisory_xact_lock(1, 1)"
CREATE_PAUSE = f"""
    CREATE FUNCTION pause() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN PERFORM * FROM ({LOCK_PAUSE}) AS pause; RETURN NULL; END $$"""
# Without FOR EACH ROW, a trigger runs once for a statement: after the statement has taken its
# snapshot, and before it reads or locks any row.
PAUSE_UPDATES = """
    CREATE TRIGGER pause BEFORE UPDATE ON mailing
        WHEN (current_setting('test.pauses', true) = 'yes') EXECUTE FUNCTION pause()"""
PAUSE_THIS_TRANSACTION = text("SET LOCAL test.pauses = 'yes'")
DROP_PAUSE = "DROP FUNCTION pause CASCADE"
IS_PAUSED = "SELECT EXISTS (SELECT FROM pg_locks WHERE locktype = 'advisory' AND NOT granted)"


@pytest.fixture
async def paused_finish(
    engine: AsyncEngine, other: AsyncConnection, failed_mailing: int
) -> AsyncIterator[asyncio.Task[list[FinishedMailing]]]:
    """A statement that finishes mailings. It has its snapshot, and waits until `other` commits."""
    del failed_mailing  # it is in the snapshot

    async def finish(connection: AsyncConnection) -> list[FinishedMailing]:
        await connection.execute(PAUSE_THIS_TRANSACTION)
        return await finishing.finish(connection)

    await execute(engine, CREATE_PAUSE, PAUSE_UPDATES)
    await other.execute(text(LOCK_PAUSE))
    task = asyncio.create_task(do(engine, finish))
    async with asyncio.timeout(EVENT_TIMEOUT):
        while not await value(engine, IS_PAUSED):
            await asyncio.sleep(0.01)
    yield task
    await other.rollback()
    await execute(engine, DROP_PAUSE)


@pytest.fixture
async def failed_mailing(engine: AsyncEngine) -> int:
    """A mailing that can be finished now, and whose two messages can be retried."""
    mailing_id = await add_delivered_mailing(engine)
    await execute(engine, "UPDATE message SET status = 'undelivered'")
    return mailing_id


async def test_a_mailing_is_not_finished_when_a_retry_is_requested_meanwhile(
    engine: AsyncEngine,
    failed_mailing: int,
    other: AsyncConnection,
    paused_finish: asyncio.Task[list[FinishedMailing]],
) -> None:
    await service.retry(engine, failed_mailing, COMMAND_LINE)
    await other.commit()

    assert await paused_finish == []

    assert [mailing.id for mailing in await running(engine)] == [failed_mailing]


async def test_a_mailing_is_not_finished_when_a_retry_schedules_its_messages_meanwhile(
    engine: AsyncEngine,
    failed_mailing: int,
    other: AsyncConnection,
    paused_finish: asyncio.Task[list[FinishedMailing]],
) -> None:
    await service.retry(engine, failed_mailing, COMMAND_LINE)
    # this ends the retry: now only the counts show that the mailing must not be finished
    assert await schedule_retried(engine)
    await other.commit()

    assert await paused_finish == []

    assert [mailing.id for mailing in await running(engine)] == [failed_mailing]
    assert await mailing_counts(engine, failed_mailing) == {"scheduled": 2}
