"""Mailings whose stored data cannot be processed are skipped and block no other mailing."""

from collections.abc import Awaitable, Callable
from typing import NamedTuple

import pytest
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine
from tests.factories import add_clients, add_due_messages, do, execute, value

from mailer.mailing import pending_work, replanning, retrying
from mailer.mailing.skipped import SkippedMailings

CHUNK = 100
MAKE_FILTER_UNREADABLE = """UPDATE mailing SET client_filter = '{{"no": 1}}' WHERE id = {}"""
WITH_PENDING_WORK = """
    SELECT array_agg(id) FROM mailing WHERE is_replanning OR retry_before IS NOT NULL"""


class Work(NamedTuple):
    """A kind of work on mailings."""

    make_pending: str
    """Changes the columns of a mailing so that it needs this work."""
    do_chunk: Callable[[AsyncConnection, SkippedMailings], Awaitable[object]]
    """Does a chunk of this work on one mailing. Returns whether there was any."""


REPLAN = Work(
    "is_replanning = true, filter_changed = true",
    lambda db, skipped: replanning.replan_chunk(db, CHUNK, skipped),
)
RETRY = Work(
    # the mailing with the lower id comes first
    "retry_before = now() + id * interval '1 second'",
    lambda db, skipped: retrying.retry_chunk(db, CHUNK, skipped),
)


@pytest.mark.parametrize("work", [REPLAN, RETRY], ids=["replan", "retry"])
async def test_a_mailing_with_an_unreadable_filter_is_skipped(
    engine: AsyncEngine, work: Work
) -> None:
    await add_clients(engine, 2)
    broken, _readable = [await add_due_messages(engine, 2) for _ in range(2)]
    make_pending = f"UPDATE mailing SET {work.make_pending}"  # noqa: S608  # a change above
    await execute(engine, make_pending, MAKE_FILTER_UNREADABLE.format(broken))
    skipped = SkippedMailings()

    assert not await do(engine, lambda db: work.do_chunk(db, skipped))
    assert skipped == {broken}
    assert await do(engine, lambda db: work.do_chunk(db, skipped))  # on the readable mailing
    assert not await do(engine, lambda db: work.do_chunk(db, skipped))

    assert skipped == {broken}
    assert await value(engine, WITH_PENDING_WORK) == [broken]
    pending = await do(engine, lambda db: pending_work.find_pending_work(db, skipped=skipped))
    assert not pending.must_replan
    assert not pending.must_retry


VIOLATE_CONSTRAINT = "UPDATE mailing SET clients_count = -1"
DATA_ERRORS = {"value": "SELECT 1 / 0", "constraint": VIOLATE_CONSTRAINT}
"""Statements that fail because of the data of a mailing."""
OTHER_ERRORS = {
    "statement": "SELECT no_such_function()",
    "state": "DO $$ BEGIN RAISE EXCEPTION 'not now'; END $$",
}
"""Statements that fail for another reason."""


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
