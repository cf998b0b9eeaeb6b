"""A worker that stalls in an open transaction does not block other workers for long.

PostgreSQL ends the session after it was idle in a transaction for a few seconds.
"""

import asyncio

import pytest
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncEngine
from tests.event_timeout import EVENT_TIMEOUT
from tests.factories import add_due_messages, claim

from mailer.db.engine import create_engine, is_unavailable

LOCK_COUNTERS = text("SELECT FROM mailing_counts FOR UPDATE")
"""Lock rows that every claim changes."""


async def test_other_workers_continue_and_the_stalled_worker_loses_its_session(
    engine: AsyncEngine, shared_database_url: str
) -> None:
    mailing_id = await add_due_messages(engine, 1)
    stalled_engine = create_engine(shared_database_url)
    async with stalled_engine.connect() as stalled:
        await stalled.execute(LOCK_COUNTERS)
        async with asyncio.timeout(EVENT_TIMEOUT):
            (claimed,) = await claim(engine, mailing_id)
        assert claimed.mailing_id == mailing_id
        with pytest.raises(DBAPIError) as error:
            await stalled.execute(LOCK_COUNTERS)
        assert is_unavailable(error.value)
    await stalled_engine.dispose()
