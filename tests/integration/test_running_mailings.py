"""Reading of running mailings by a worker: all at the start, then changes only."""

import asyncio
from collections.abc import AsyncIterator

import asyncpg
import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine
from tests.factories import add_due_messages, add_mailing, execute, value
from tests.processes import until

from mailer.db.engine import asyncpg_connection
from mailer.dispatch.in_flight import InFlightRequests
from mailer.dispatch.loop_failures import LoopFailures
from mailer.dispatch.running_mailings import RunningMailings
from mailer.mailing import tracking


@pytest.fixture
async def reader(engine: AsyncEngine) -> AsyncIterator[asyncpg.Connection]:
    """The connection of a worker."""
    async with engine.connect() as pooled:
        yield await asyncpg_connection(pooled)


async def snapshot(reader: asyncpg.Connection) -> str:
    return (await tracking.database_now(reader))[1]


async def test_only_changed_mailings_are_read(
    engine: AsyncEngine, reader: asyncpg.Connection
) -> None:
    unchanged, changed_id, deleted = [await add_due_messages(engine, 0) for _ in range(3)]
    before = await snapshot(reader)
    assert await tracking.read_changed(reader, before) == {}

    await execute(engine, f"UPDATE mailing SET text = 'New' WHERE id = {changed_id}")  # noqa: S608  # values of the test
    await execute(engine, f"UPDATE mailing SET deleted_at = now() WHERE id = {deleted}")  # noqa: S608  # values of the test
    created = await add_mailing(engine)

    mailings = await tracking.read_changed(reader, before)
    assert mailings.keys() == {changed_id, deleted, created}
    assert unchanged not in mailings
    assert mailings[deleted] is None
    changed = mailings[changed_id]
    assert changed is not None
    assert changed.text == "New"


async def test_a_change_committed_late_is_read_later(
    engine: AsyncEngine, reader: asyncpg.Connection
) -> None:
    late, early = [await add_due_messages(engine, 0) for _ in range(2)]
    async with engine.begin() as connection:
        pause = text("UPDATE mailing SET status = 'paused' WHERE id = :id")
        await connection.execute(pause, {"id": late})
        first = await snapshot(reader)
        await execute(engine, f"UPDATE mailing SET text = 'New' WHERE id = {early}")  # noqa: S608  # values of the test
        assert (await tracking.read_changed(reader, first)).keys() == {early}
        second = await snapshot(reader)
    assert (await tracking.read_changed(reader, second)).keys() == {late}
    assert await tracking.read_changed(reader, await snapshot(reader)) == {}


async def test_rows_from_another_server_do_not_count_as_changes(
    engine: AsyncEngine, reader: asyncpg.Connection
) -> None:
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
    mailings = [await add_due_messages(engine, 0) for _ in range(5)]
    ids, after = [], 0
    while batch := await tracking.read_active(reader, after, 2):
        assert len(batch) <= 2
        ids += list(batch)
        after = ids[-1]
    assert ids == mailings


CHECKS_SINCE = """
    SELECT count(*) FROM pg_stat_activity
    WHERE datname = current_database() AND query = 'SELECT sending_is_allowed()'
        AND query_start > '{}'"""


@pytest.mark.parametrize(
    ("stop", "go"),
    [
        ("timeline = timeline + 1", "timeline = timeline - 1"),
        ("held_since = now()", "held_since = NULL"),
    ],
    ids=["moved", "held"],
)
async def test_all_running_mailings_are_checked_when_the_database_may_send_again(
    engine: AsyncEngine, shared_database_url: str, stop: str, go: str
) -> None:
    mailings = {await add_due_messages(engine, 0) for _ in range(2)}
    reported: list[set[int]] = []
    running_mailings = RunningMailings(
        shared_database_url,
        InFlightRequests(),
        LoopFailures(),
        lambda changed: reported.append(set(changed)),
    )

    async def are_all_reported() -> bool | None:
        return mailings in reported or None

    async def write_origin(change: str) -> None:
        await execute(
            engine,
            f"UPDATE origin SET {change}, written_by = pg_current_xact_id()::xid::text::bigint",  # noqa: S608  # values of the test
        )
        since = await value(engine, "SELECT clock_timestamp()")

        async def has_checked() -> bool | None:
            return await value(engine, CHECKS_SINCE.format(since)) or None

        await until(has_checked)

    task = asyncio.create_task(running_mailings.run())
    try:
        await until(are_all_reported)
        await write_origin(stop)
        reported.clear()
        await write_origin(go)
        await until(are_all_reported)
    finally:
        task.cancel()
        await asyncio.wait({task})
