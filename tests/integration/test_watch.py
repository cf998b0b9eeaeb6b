"""What a worker reads of the mailings: all at first, then what has changed."""

import asyncio
from collections.abc import AsyncIterator

import asyncpg
import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine
from tests.processes import until
from tests.sample import add_due_messages, add_mailing, execute, value

from mailer.db.engine import raw
from mailer.dispatch.loop_failures import LoopFailures
from mailer.dispatch.requests import Requests
from mailer.dispatch.watch import MailingWatch
from mailer.mailing import moving


@pytest.fixture
async def reader(engine: AsyncEngine) -> AsyncIterator[asyncpg.Connection]:
    """A worker's connection."""
    async with engine.connect() as pooled:
        yield await raw(pooled)


async def snapshot(reader: asyncpg.Connection) -> str:
    return (await moving.now(reader))[1]


async def test_only_what_has_changed_is_read(
    engine: AsyncEngine, reader: asyncpg.Connection
) -> None:
    stays, changes, ends = [await add_due_messages(engine, 0) for _ in range(3)]
    before = await snapshot(reader)
    assert await moving.changed(reader, before) == {}

    await execute(engine, f"UPDATE mailing SET text = 'New' WHERE id = {changes}")  # noqa: S608  # of a test
    await execute(engine, f"UPDATE mailing SET deleted_at = now() WHERE id = {ends}")  # noqa: S608  # of a test
    comes = await add_mailing(engine)

    read = await moving.changed(reader, before)
    assert read.keys() == {changes, ends, comes}
    assert stays not in read
    assert read[ends] is None
    changed = read[changes]
    assert changed is not None
    assert changed.text == "New"


async def test_change_that_is_committed_late_is_read_then(
    engine: AsyncEngine, reader: asyncpg.Connection
) -> None:
    late, soon = [await add_due_messages(engine, 0) for _ in range(2)]
    async with engine.begin() as connection:
        pause = text("UPDATE mailing SET status = 'paused' WHERE id = :id")
        await connection.execute(pause, {"id": late})
        first = await snapshot(reader)
        await execute(engine, f"UPDATE mailing SET text = 'New' WHERE id = {soon}")  # noqa: S608  # of a test
        assert (await moving.changed(reader, first)).keys() == {soon}
        second = await snapshot(reader)
    assert (await moving.changed(reader, second)).keys() == {late}
    assert await moving.changed(reader, await snapshot(reader)) == {}


async def test_rows_of_another_server_are_no_changes(
    engine: AsyncEngine, reader: asyncpg.Connection
) -> None:
    mailing_id = await add_due_messages(engine, 0)
    await execute(
        engine,
        "ALTER TABLE mailing DISABLE TRIGGER mailing_notes_change",
        "UPDATE mailing SET changed_by = '4000000000000'",
        "ALTER TABLE mailing ENABLE TRIGGER mailing_notes_change",
    )
    before = await snapshot(reader)
    assert await moving.changed(reader, before) == {}
    await execute(engine, "UPDATE mailing SET status = 'paused'")
    assert (await moving.changed(reader, before)).keys() == {mailing_id}


async def test_all_are_read_in_slices_in_the_order_of_their_ids(
    engine: AsyncEngine, reader: asyncpg.Connection
) -> None:
    mailings = [await add_due_messages(engine, 0) for _ in range(5)]
    read, after = [], 0
    while some := await moving.under_way(reader, after, 2):
        assert len(some) <= 2
        read += list(some)
        after = read[-1]
    assert read == mailings


SESSION_ASKED = """
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
async def test_all_running_mailings_are_looked_at_once_the_database_may_send_again(
    engine: AsyncEngine, shared_database_url: str, stop: str, go: str
) -> None:
    mailings = {await add_due_messages(engine, 0) for _ in range(2)}
    told: list[set[int]] = []
    watch = MailingWatch(
        shared_database_url, Requests(), LoopFailures(), lambda changed: told.append(set(changed))
    )

    async def are_all_told() -> bool | None:
        return mailings in told or None

    async def write_origin(change: str) -> None:
        await execute(
            engine,
            f"UPDATE origin SET {change}, written_by = pg_current_xact_id()::xid::text::bigint",  # noqa: S608  # of a test
        )
        moment = await value(engine, "SELECT clock_timestamp()")

        async def has_asked() -> bool | None:
            return await value(engine, SESSION_ASKED.format(moment)) or None

        await until(has_asked)

    following = asyncio.create_task(watch.run())
    try:
        await until(are_all_told)
        await write_origin(stop)
        told.clear()
        await write_origin(go)
        await until(are_all_told)
    finally:
        following.cancel()
        await asyncio.wait({following})
