"""Reading of running mailings by a worker: all at the start, then changes only."""

import asyncio
from collections.abc import AsyncIterator

import asyncpg
import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine
from tests.factories import add_due_messages, add_mailing, execute, value
from tests.processes import until_true

from mailer.db.engine import asyncpg_connection
from mailer.dispatch.in_flight import InFlightRequests
from mailer.dispatch.loop_failures import LoopFailures
from mailer.dispatch.running_mailings import RunningMailings
from mailer.mailing import tracking


@pytest.fixture
async def reader(engine: AsyncEngine) -> AsyncIterator[asyncpg.Connection]:
    """The connection over which a worker reads the mailings."""
    async with engine.connect() as pooled:
        yield await asyncpg_connection(pooled)


async def snapshot(reader: asyncpg.Connection) -> str:
    """Return the PostgreSQL snapshot of a read that starts now; a later read continues from it."""
    return (await tracking.database_now(reader))[1]


async def test_only_changed_mailings_are_read(
    engine: AsyncEngine, reader: asyncpg.Connection
) -> None:
    _unchanged_id, changed_id, deleted_id = [await add_due_messages(engine, 0) for _ in range(3)]
    before = await snapshot(reader)
    assert await tracking.read_changed(reader, before) == {}

    await execute(engine, f"UPDATE mailing SET text = 'New' WHERE id = {changed_id}")  # noqa: S608  # values of the test
    await execute(engine, f"UPDATE mailing SET deleted_at = now() WHERE id = {deleted_id}")  # noqa: S608  # values of the test
    created_id = await add_mailing(engine)

    mailings = await tracking.read_changed(reader, before)
    assert mailings.keys() == {changed_id, deleted_id, created_id}
    assert mailings[deleted_id] is None
    changed = mailings[changed_id]
    assert changed is not None
    assert changed.text == "New"


async def test_a_change_that_is_not_committed_during_a_read_is_read_by_the_next_one(
    engine: AsyncEngine, reader: asyncpg.Connection
) -> None:
    late_id, early_id = [await add_due_messages(engine, 0) for _ in range(2)]
    async with engine.begin() as connection:
        pause = text("UPDATE mailing SET status = 'paused' WHERE id = :id")
        await connection.execute(pause, {"id": late_id})
        first_read = await snapshot(reader)
        await execute(engine, f"UPDATE mailing SET text = 'New' WHERE id = {early_id}")  # noqa: S608  # values of the test
        assert (await tracking.read_changed(reader, first_read)).keys() == {early_id}
        second_read = await snapshot(reader)
    assert (await tracking.read_changed(reader, second_read)).keys() == {late_id}
    assert await tracking.read_changed(reader, await snapshot(reader)) == {}


async def test_rows_from_another_server_do_not_count_as_changes(
    engine: AsyncEngine, reader: asyncpg.Connection
) -> None:
    """A row of a restored dump has the id of another server's transaction, which may be higher."""
    mailing_id = await add_due_messages(engine, 0)
    await execute(
        engine,
        "ALTER TABLE mailing DISABLE TRIGGER note_mailing_change",
        "UPDATE mailing SET changed_by = '4000000000000'",
        "ALTER TABLE mailing ENABLE TRIGGER note_mailing_change",
    )
    before = await snapshot(reader)
    assert await tracking.read_changed(reader, before) == {}
    await execute(engine, "UPDATE mailing SET status = 'paused'")
    assert (await tracking.read_changed(reader, before)).keys() == {mailing_id}


async def test_running_mailings_are_read_in_batches_by_id(
    engine: AsyncEngine, reader: asyncpg.Connection
) -> None:
    mailing_ids = [await add_due_messages(engine, 0) for _ in range(5)]
    read_ids: list[int] = []
    after = 0
    while batch := await tracking.read_active(reader, after, 2):
        assert len(batch) <= 2
        read_ids += batch
        after = read_ids[-1]
    assert read_ids == mailing_ids


CHECKS_SINCE = """
    SELECT count(*) FROM pg_stat_activity
    WHERE datname = current_database() AND query = 'SELECT sending_is_allowed()'
        AND query_start > '{}'"""
"""Number of workers that have checked since a moment whether the database may send."""


async def set_origin(engine: AsyncEngine, change: str) -> None:
    """Change the record of where the database runs, and wait until a worker has checked it."""
    await execute(
        engine,
        f"UPDATE origin SET {change}, written_by = pg_current_xact_id()::xid::text::bigint",  # noqa: S608  # values of the test
    )
    since = await value(engine, "SELECT clock_timestamp()")

    async def has_checked() -> bool:
        return bool(await value(engine, CHECKS_SINCE.format(since)) > 0)

    await until_true(has_checked)


@pytest.mark.parametrize(
    ("forbid_sending", "allow_sending"),
    [
        ("timeline = timeline + 1", "timeline = timeline - 1"),
        ("held_since = now()", "held_since = NULL"),
    ],
    ids=["moved", "restored"],
)
async def test_all_running_mailings_are_checked_when_the_database_may_send_again(
    engine: AsyncEngine, shared_database_url: str, forbid_sending: str, allow_sending: str
) -> None:
    mailing_ids = {await add_due_messages(engine, 0) for _ in range(2)}
    reported: list[set[int]] = []
    running_mailings = RunningMailings(
        shared_database_url,
        InFlightRequests(),
        LoopFailures(),
        on_change=lambda changed_ids: reported.append(set(changed_ids)),
    )

    async def are_all_reported() -> bool:
        return mailing_ids in reported

    task = asyncio.create_task(running_mailings.run())
    try:
        await until_true(are_all_reported)
        await set_origin(engine, forbid_sending)
        reported.clear()
        await set_origin(engine, allow_sending)
        await until_true(are_all_reported)
    finally:
        task.cancel()
        await asyncio.wait({task})
