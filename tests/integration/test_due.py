"""Finding the running mailings that have due messages."""

from collections.abc import AsyncIterator

import asyncpg
import pytest
from sqlalchemy.ext.asyncio import AsyncEngine
from tests.factories import ROUTE, add_due_messages
from tests.processes import until

from mailer.clock import elapsed
from mailer.db.engine import asyncpg_connection
from mailer.dispatch.due import SCAN_BATCH, DueMailings

FIRST_OTHER_ID = 1_000_000
"""Ids from this one on belong to no mailing in the database."""


@pytest.fixture
async def connection(engine: AsyncEngine) -> AsyncIterator[asyncpg.Connection]:
    async with engine.connect() as pooled:
        yield await asyncpg_connection(pooled)


@pytest.mark.parametrize("other_count", [0, SCAN_BATCH - 1, SCAN_BATCH, SCAN_BATCH + 1])
async def test_a_due_message_is_found_among_any_number_of_mailings_without_a_notification(
    engine: AsyncEngine, connection: asyncpg.Connection, other_count: int
) -> None:
    mailing_id = await add_due_messages(engine, 1)
    others = range(FIRST_OTHER_ID, FIRST_OTHER_ID + other_count)
    running = dict.fromkeys([*others, mailing_id])
    due_mailings = DueMailings(ROUTE, running)

    async def find_due() -> list[int] | None:
        """Check the next mailings; return those with due messages, None when there are none."""
        await due_mailings.refresh(connection)
        batch = due_mailings.scheduler.next_batch(running, capacity=10, now=elapsed())
        return batch.mailing_ids or None

    assert await until(find_due) == [mailing_id]
