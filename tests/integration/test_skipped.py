"""Mailings with invalid data are skipped and block no other mailing."""

from collections.abc import Awaitable, Callable

import pytest
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine
from tests.factories import add_clients, add_due_messages, do, execute, value

from mailer.mailing import pending_work, replanning, retrying
from mailer.mailing.skipped import SkippedMailings

CHUNK = 100
UNREADABLE = """UPDATE mailing SET client_filter = '{{"no": 1}}' WHERE id = {}"""
STEPS: dict[str, Callable[[AsyncConnection, SkippedMailings], Awaitable[object]]] = {
    "is_replanning = true, filter_changed = true": lambda db, skipped: replanning.replan_chunk(
        db, CHUNK, skipped
    ),
    "retry_before = now()": lambda db, skipped: retrying.retry_chunk(db, CHUNK, skipped),
}


@pytest.mark.parametrize("pending", STEPS, ids=["replan", "retry"])
async def test_a_mailing_with_an_unreadable_filter_is_skipped(
    engine: AsyncEngine, pending: str
) -> None:
    await add_clients(engine, 2)
    broken, readable = [await add_due_messages(engine, 2) for _ in range(2)]
    await execute(engine, f"UPDATE mailing SET {pending}", UNREADABLE.format(broken))  # noqa: S608  # a change above
    skipped = SkippedMailings()

    assert not await do(engine, lambda db: STEPS[pending](db, skipped))
    assert skipped == {broken}
    assert await do(engine, lambda db: STEPS[pending](db, skipped))
    assert not await do(engine, lambda db: STEPS[pending](db, skipped))

    remaining = "SELECT array_agg(id) FROM mailing WHERE is_replanning OR retry_before IS NOT NULL"
    assert await value(engine, remaining) == [broken]
    work = await do(engine, lambda db: pending_work.find_pending_work(db, skipped=skipped))
    assert not work.must_replan
    assert not work.must_retry
    assert readable not in skipped


BAD_CHECK = "UPDATE mailing SET clients_count = -1"
DATA_ERRORS = {"value": "SELECT 1 / 0", "constraint": BAD_CHECK}
OTHER_ERRORS = {
    "statement": "SELECT no_such_function()",
    "state": "DO $$ BEGIN RAISE EXCEPTION 'not now'; END $$",
}


@pytest.mark.parametrize("statement", DATA_ERRORS.values(), ids=DATA_ERRORS)
async def test_a_mailing_whose_data_cause_a_database_error_is_skipped(
    engine: AsyncEngine, statement: str
) -> None:
    mailing_id = await add_due_messages(engine, 1)
    skipped = SkippedMailings()
    async with engine.connect() as connection:
        with skipped.on_error(mailing_id):
            await connection.execute(text(statement))
    assert skipped == {mailing_id}


@pytest.mark.parametrize("statement", OTHER_ERRORS.values(), ids=OTHER_ERRORS)
async def test_other_database_errors_are_raised(engine: AsyncEngine, statement: str) -> None:
    mailing_id = await add_due_messages(engine, 1)
    skipped = SkippedMailings()
    async with engine.connect() as connection:
        with pytest.raises(DBAPIError), skipped.on_error(mailing_id):
            await connection.execute(text(statement))
    assert not skipped
