"""What it costs to see what a mailing waits for, while a backup keeps a snapshot open."""

import re
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine
from tests.factories import add_clients, add_mailing, add_messages, execute
from tests.statements import recorded_statements

from mailer.db.engine import asyncpg_connection
from mailer.mailing.first_messages import (
    KEPT_FOR,
    MAX_READ_AGE,
    SELECT_FIRST_MESSAGES,
    FirstMessages,
)

SENT = 5_000
"""Messages that were sent while the snapshot was open."""


@pytest.fixture
async def mailing_id(engine: AsyncEngine) -> AsyncIterator[int]:
    """A mailing whose sent messages an old snapshot keeps in the index; one is due tomorrow."""
    now = datetime.now(UTC)
    mailing_id = await add_mailing(engine, start=now - timedelta(hours=1), clients=SENT + 1)
    *sent, waiting = await add_clients(engine, SENT + 1)
    await add_messages(engine, mailing_id, sent, "scheduled", at=now - timedelta(hours=1))
    await add_messages(engine, mailing_id, [waiting], "scheduled", at=now + timedelta(days=1))
    await execute(engine, "ANALYZE message")
    async with engine.connect() as backup:
        await backup.execute(text("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ"))
        await backup.execute(text("SELECT count(*) FROM client"))  # this opens the snapshot
        await execute(
            engine,
            "UPDATE message SET status = 'delivered', attempts = 1, sent_at = now()"
            " WHERE due_at < now()",
        )
        yield mailing_id


async def buffers_of_a_read(engine: AsyncEngine, mailing_id: int) -> int:
    """Return how many blocks PostgreSQL reads to find the first messages of a mailing."""
    async with engine.connect() as connection:
        database = await asyncpg_connection(connection)
        statement = SELECT_FIRST_MESSAGES.text.replace(":ids", "$1::bigint[]")
        rows = await database.fetch(f"EXPLAIN (ANALYZE, BUFFERS) {statement}", [mailing_id])
    found = re.search(r"Buffers: shared hit=(\d+)", "\n".join(row[0] for row in rows))
    return int(found[1]) if found else 0


@pytest.mark.parametrize(("took", "kept"), [(1.0, KEPT_FOR), (2.0, MAX_READ_AGE)])
async def test_what_takes_long_to_read_is_kept_for_twenty_times_as_long_or_half_a_minute(
    engine: AsyncEngine, mailing_id: int, took: float, kept: float
) -> None:
    assert await buffers_of_a_read(engine, mailing_id) > 50  # it reads the entries of sent messages
    times = iter([0.0, took, 10.0, took + kept - 1, took + kept, 43.0])
    reader = FirstMessages(lambda: next(times))
    async with engine.connect() as connection:
        with recorded_statements(engine) as statements:
            reads = [await reader.read(connection, [mailing_id]) for _ in range(3)]
            assert len(statements) == 1
            reads.append(await reader.read(connection, [mailing_id]))
            assert len(statements) == 2
    [first] = reads[0][mailing_id]
    assert first.due_at > datetime.now(UTC)
    assert all(read == reads[0] for read in reads)


async def test_what_is_read_quickly_is_never_kept(engine: AsyncEngine, mailing_id: int) -> None:
    times = iter(n / 1_000 for n in range(100))
    reader = FirstMessages(lambda: next(times))
    async with engine.connect() as connection:
        assert len(await reader.read(connection, [mailing_id])) == 1
        await execute(engine, "UPDATE message SET due_at = now() WHERE status = 'scheduled'")
        [first] = (await reader.read(connection, [mailing_id]))[mailing_id]
    assert first.due_at <= datetime.now(UTC)


async def test_other_mailings_are_read_while_one_is_kept(
    engine: AsyncEngine, mailing_id: int
) -> None:
    other = await add_mailing(engine, clients=1)
    [client_id] = await add_clients(engine, 1, "903")
    await add_messages(engine, other, [client_id], "scheduled")
    times = iter([0.0, 1.0, 2.0, 2.01])
    reader = FirstMessages(lambda: next(times))
    async with engine.connect() as connection:
        assert set(await reader.read(connection, [mailing_id])) == {mailing_id}
        assert set(await reader.read(connection, [mailing_id, other])) == {mailing_id, other}
