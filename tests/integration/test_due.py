"""How a worker finds the running mailings that have something due."""

from collections.abc import AsyncIterator

import asyncpg
import pytest
from sqlalchemy.ext.asyncio import AsyncEngine
from tests.processes import until
from tests.sample import add_due_messages

from mailer.clock import elapsed
from mailer.db.engine import raw
from mailer.dispatch.due import SLICE, DueMailings
from mailer.dispatch.share import FairShare

FIRST_OF_OTHERS = 1_000_000


@pytest.fixture
async def claimer(engine: AsyncEngine) -> AsyncIterator[asyncpg.Connection]:
    async with engine.connect() as pooled:
        yield await raw(pooled)


@pytest.mark.parametrize("before", [0, SLICE - 1, SLICE, SLICE + 1])
async def test_message_is_found_in_every_running_mailing_without_a_signal(
    engine: AsyncEngine, claimer: asyncpg.Connection, before: int
) -> None:
    mailing_id = await add_due_messages(engine, 1)
    others = range(FIRST_OF_OTHERS, FIRST_OF_OTHERS + before)
    running = dict.fromkeys([*others, mailing_id])
    share = FairShare()
    due = DueMailings(share, running)

    async def find() -> list[int] | None:
        await due.refresh(claimer)
        return share.turn(running, 10, elapsed())[0] or None

    assert await until(find) == [mailing_id]
