"""Slots in time that workers reserve for mailings with a rate, in the database."""

import asyncio
from collections.abc import AsyncIterator
from datetime import timedelta

import asyncpg
import pytest
from sqlalchemy.ext.asyncio import AsyncEngine
from tests.factories import add_mailing, execute, value

from mailer.db.engine import asyncpg_connection
from mailer.message.pace import SLOT_SLACK, SLOTS_AHEAD, ReservedSlots, reserve_slots


@pytest.fixture
async def connection(engine: AsyncEngine) -> AsyncIterator[asyncpg.Connection]:
    async with engine.connect() as pooled:
        yield await asyncpg_connection(pooled)


async def set_rate(engine: AsyncEngine, mailing_id: int, rate: str) -> None:
    await execute(engine, f"UPDATE mailing SET rate = {rate} WHERE id = {mailing_id}")  # noqa: S608  # of the test


async def reserve(connection: asyncpg.Connection, mailing_id: int, slots: int) -> ReservedSlots:
    [reserved] = await reserve_slots(connection, {mailing_id: slots})
    return reserved


async def test_workers_get_consecutive_slots(
    engine: AsyncEngine, connection: asyncpg.Connection
) -> None:
    mailing_id = await add_mailing(engine)
    await set_rate(engine, mailing_id, "100")
    first = await reserve(connection, mailing_id, 5)
    second = await reserve(connection, mailing_id, 5)
    assert (first.slots, second.slots) == (5, 5)
    assert first.next_at == first.first_at + timedelta(seconds=0.05) == second.first_at


async def test_slots_are_reserved_only_a_short_time_ahead(
    engine: AsyncEngine, connection: asyncpg.Connection
) -> None:
    mailing_id = await add_mailing(engine)
    await set_rate(engine, mailing_id, "100")
    first = await reserve(connection, mailing_id, 1_000)
    assert 1 <= first.slots <= (SLOTS_AHEAD + SLOT_SLACK) * 100 + 1
    slow = await add_mailing(engine)
    await set_rate(engine, slow, "0.5")
    assert (await reserve(connection, slow, 5)).slots == 1
    assert (await reserve(connection, slow, 5)).slots == 0


async def test_higher_rate_ends_the_wait_for_a_slot_of_the_lower_one(
    engine: AsyncEngine, connection: asyncpg.Connection
) -> None:
    mailing_id = await add_mailing(engine)
    await set_rate(engine, mailing_id, "0.01")
    assert (await reserve(connection, mailing_id, 1)).slots == 1
    assert (await reserve(connection, mailing_id, 1)).slots == 0
    await set_rate(engine, mailing_id, "100")
    assert (await reserve(connection, mailing_id, 10)).slots == 10


async def test_a_mailing_without_a_rate_has_no_slots(
    engine: AsyncEngine, connection: asyncpg.Connection
) -> None:
    mailing_id = await add_mailing(engine)
    assert await reserve_slots(connection, {mailing_id: 1}) == []
    assert await value(engine, "SELECT count(*) FROM mailing_pace") == 0
    await set_rate(engine, mailing_id, "1")
    await set_rate(engine, mailing_id, "NULL")
    assert await reserve_slots(connection, {mailing_id: 1}) == []


async def test_workers_that_reserve_slots_of_the_same_mailings_get_different_ones(
    engine: AsyncEngine,
) -> None:
    mailing_ids = [await add_mailing(engine) for _ in range(3)]
    for mailing_id in mailing_ids:
        await set_rate(engine, mailing_id, "10000")

    async def work(ids: list[int]) -> list[ReservedSlots]:
        async with engine.connect() as pooled:
            connection = await asyncpg_connection(pooled)
            return [
                slots
                for _ in range(20)
                for slots in await reserve_slots(connection, dict.fromkeys(ids, 5))
            ]

    both = await asyncio.gather(work(mailing_ids), work(mailing_ids[::-1]))
    reserved = [slots for of_worker in both for slots in of_worker if slots.slots]
    assert len({(slots.mailing_id, slots.first_at) for slots in reserved}) == len(reserved)
