"""A mailing that cannot be gone through keeps no other waiting."""

from collections.abc import Awaitable, Callable

import pytest
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
