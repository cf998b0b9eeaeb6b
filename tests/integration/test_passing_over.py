"""A mailing that cannot be gone through keeps no other waiting."""

from collections.abc import Awaitable, Callable

import pytest
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine
from tests.sample import add_clients, add_due_messages, do, execute, value

from mailer.mailing import moving, replanning, resending
from mailer.mailing.passing_over import PassedOver

CHUNK = 100
UNREADABLE = """UPDATE mailing SET client_filter = '{{"no": 1}}' WHERE id = {}"""
STEPS: dict[str, Callable[[AsyncConnection, PassedOver], Awaitable[object]]] = {
    "replanning = true, filter_changed = true": lambda db, passed_over: replanning.replan_chunk(
        db, CHUNK, passed_over
    ),
    "retry_before = now()": lambda db, passed_over: resending.resend_chunk(db, CHUNK, passed_over),
}


@pytest.mark.parametrize("pending", STEPS, ids=["replan", "retry"])
async def test_mailing_with_an_unreadable_filter_is_passed_over(
    engine: AsyncEngine, pending: str
) -> None:
    await add_clients(engine, 2)
    broken, good = [await add_due_messages(engine, 2) for _ in range(2)]
    await execute(engine, f"UPDATE mailing SET {pending}", UNREADABLE.format(broken))  # noqa: S608  # of a test
    passed_over = PassedOver()

    assert not await do(engine, lambda db: STEPS[pending](db, passed_over))
    assert passed_over == {broken}
    assert await do(engine, lambda db: STEPS[pending](db, passed_over))
    assert not await do(engine, lambda db: STEPS[pending](db, passed_over))

    left = "SELECT array_agg(id) FROM mailing WHERE replanning OR retry_before IS NOT NULL"
    assert await value(engine, left) == [broken]
    found = await do(engine, lambda db: moving.look(db, passed_over=passed_over))
    assert not found.replans
    assert not found.retries
    assert good not in passed_over


BAD_CHECK = "UPDATE mailing SET clients_count = -1"
ABOUT_DATA = {"value": "SELECT 1 / 0", "constraint": BAD_CHECK}
NOT_ABOUT_DATA = {
    "statement": "SELECT no_such_function()",
    "state": "DO $$ BEGIN RAISE EXCEPTION 'not now'; END $$",
}


@pytest.mark.parametrize("statement", ABOUT_DATA.values(), ids=ABOUT_DATA)
async def test_mailing_whose_data_the_database_refuses_is_passed_over(
    engine: AsyncEngine, statement: str
) -> None:
    mailing_id = await add_due_messages(engine, 1)
    passed_over = PassedOver()
    async with engine.connect() as connection:
        with passed_over.on_error(mailing_id):
            await connection.execute(text(statement))
    assert passed_over == {mailing_id}


@pytest.mark.parametrize("statement", NOT_ABOUT_DATA.values(), ids=NOT_ABOUT_DATA)
async def test_error_of_the_database_that_no_data_explains_is_raised(
    engine: AsyncEngine, statement: str
) -> None:
    mailing_id = await add_due_messages(engine, 1)
    passed_over = PassedOver()
    async with engine.connect() as connection:
        with pytest.raises(DBAPIError), passed_over.on_error(mailing_id):
            await connection.execute(text(statement))
    assert not passed_over
