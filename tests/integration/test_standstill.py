"""A process that stands still in the middle of a transaction, and those who want its rows."""

import asyncio

import pytest
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncEngine
from tests.patience import PATIENCE
from tests.sample import add_due_messages, claim

from mailer.db.engine import create_engine, is_away

HOLD_LEDGER = text("SELECT FROM ledger FOR UPDATE")


async def test_others_send_on_within_seconds(engine: AsyncEngine, shared_database_url: str) -> None:
    mailing_id = await add_due_messages(engine, 1)
    its_own = create_engine(shared_database_url)
    async with its_own.connect() as standing_still:
        await standing_still.execute(HOLD_LEDGER)
        async with asyncio.timeout(PATIENCE):
            (claimed,) = await claim(engine, mailing_id)
        assert claimed.mailing_id == mailing_id
        with pytest.raises(DBAPIError) as gone:
            await standing_still.execute(HOLD_LEDGER)
        assert is_away(gone.value)
    await its_own.dispose()
