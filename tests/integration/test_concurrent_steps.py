"""Two workers may do the same step for mailings at the same time; its effect happens once.

`other` is one of the workers, with a transaction that the test commits. The other worker runs its
steps by `do`, each in a transaction of its own.
"""

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime

import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine
from tests.event_timeout import EVENT_TIMEOUT
from tests.factories import (
    HOUR,
    add_delivered_mailing,
    add_due_messages,
    add_mailing,
    clear,
    do,
    execute,
    mailing_counts,
    resend,
    running,
    value,
)

from mailer.access.model import COMMAND_LINE
from mailer.mailing import finishing, purging, retrying, service, starting
from mailer.statistics.verify import find_differences

LOCK_MAILING = text("SELECT FROM mailing WHERE id = :id FOR UPDATE")


@pytest.fixture
async def other(engine: AsyncEngine) -> AsyncIterator[AsyncConnection]:
    """A worker with an open transaction."""
    async with engine.connect() as connection:
        yield connection


async def test_two_workers_start_each_mailing_once(
    engine: AsyncEngine, other: AsyncConnection
) -> None:
    now = datetime.now(UTC)
    later = await add_mailing(engine, start=now - HOUR, status="scheduled")
    earlier = await add_mailing(engine, start=now - 2 * HOUR, status="scheduled")
    async with asyncio.timeout(EVENT_TIMEOUT):  # nobody waits for the open transaction
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
    assert await finishing.end_scheduled_messages(other, 3)
    # skips the three locked messages, and waits with the other two for the row of counts
    end_task = asyncio.create_task(clear(engine))
    await asyncio.wait({end_task}, timeout=0.2)
    await other.commit()

    assert await end_task
    assert await mailing_counts(engine, mailing_id) == {"cancelled": 5}
    assert not await clear(engine)
    assert await find_differences(engine) == []


async def test_two_workers_retry_each_message_once(
    engine: AsyncEngine, other: AsyncConnection
) -> None:
    one, two = await add_due_messages(engine, 2), await add_due_messages(engine, 2)
    await execute(engine, "UPDATE message SET status = 'undelivered'")
    for mailing_id in (one, two):
        await service.retry(engine, mailing_id, COMMAND_LINE)
    async with asyncio.timeout(EVENT_TIMEOUT):
        assert await retrying.retry_chunk(other, 9)  # one mailing
        assert await resend(engine)  # the other one
        assert not await resend(engine)  # does not wait for the first one
    await other.commit()

    assert not await resend(engine)
    for mailing_id in (one, two):
        assert await mailing_counts(engine, mailing_id) == {"scheduled": 2}


async def test_two_workers_finish_each_mailing_once(
    engine: AsyncEngine, other: AsyncConnection
) -> None:
    mailing_id = await add_delivered_mailing(engine)
    assert await finishing.finish(other) == [(mailing_id, "finished")]
    finish_task = asyncio.create_task(do(engine, finishing.finish))
    await asyncio.wait({finish_task}, timeout=0.2)
    await other.commit()

    assert await finish_task == []


async def test_two_workers_purge_each_message_once(
    engine: AsyncEngine, other: AsyncConnection
) -> None:
    mailing_id = await add_due_messages(engine, 5)
    await service.delete(engine, mailing_id, COMMAND_LINE)
    assert await purging.purge(other, 3) == 3
    purge_task = asyncio.create_task(do(engine, lambda db: purging.purge(db, 9)))
    await asyncio.wait({purge_task}, timeout=0.2)
    await other.commit()

    assert await purge_task == 5 - 3
    await do(engine, lambda db: purging.purge(db, 9))
    assert await value(engine, "SELECT count(*) FROM mailing") == 0


async def test_a_mailing_retried_while_another_one_is_locked_keeps_running(
    engine: AsyncEngine, other: AsyncConnection
) -> None:
    locked, retried = await add_delivered_mailing(engine), await add_delivered_mailing(engine)
    await execute(
        engine,
        f"UPDATE message SET status = 'undelivered' WHERE mailing_id = {retried}",  # noqa: S608  # values of the test
    )
    await other.execute(LOCK_MAILING, {"id": locked})
    # finishing skips the locked mailing; if it waited for it, it would finish both after the retry
    finish_task = asyncio.create_task(do(engine, finishing.finish))
    await asyncio.wait({finish_task}, timeout=0.3)
    await service.retry(engine, retried, COMMAND_LINE)
    assert await resend(engine)
    await other.commit()
    await finish_task

    assert await mailing_counts(engine, retried) == {"scheduled": 2}
    assert [mailing.id for mailing in await running(engine) if mailing.id == retried] == [retried]
