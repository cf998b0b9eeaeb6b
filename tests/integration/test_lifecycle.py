"""What moves mailings on by itself, while it runs."""

import asyncio
from typing import Any

from sqlalchemy import event, text
from sqlalchemy.ext.asyncio import AsyncEngine
from tests.patience import PATIENCE
from tests.sample import add_due_messages, add_mailing, execute, value

from mailer.dispatch.lifecycle import Lifecycle
from mailer.dispatch.loop_failures import LoopFailures
from mailer.mailing import together

ENDED = "SELECT count(*) FROM mailing WHERE status = 'finished'"


async def test_a_step_that_fails_for_one_mailing_does_not_stop_the_others(
    engine: AsyncEngine,
) -> None:
    broken = await add_mailing(engine, clients=2)
    await execute(
        engine,
        f"UPDATE mailing SET client_filter = '{{\"no\": 1}}', audience_cursor = 0"  # noqa: S608  # of a test
        f" WHERE id = {broken}",
    )
    done = await add_due_messages(engine, 2)
    await execute(engine, "UPDATE message SET status = 'delivered', sent_at = now()")
    lifecycle = Lifecycle(
        engine, LoopFailures(), on_messages=lambda _: None, is_sending=lambda: False
    )
    running = asyncio.create_task(lifecycle.run())
    try:
        async with asyncio.timeout(PATIENCE):
            while await value(engine, ENDED) == 0:
                await asyncio.sleep(0.05)
    finally:
        running.cancel()
    assert await value(engine, f"SELECT status FROM mailing WHERE id = {done}") == "finished"  # noqa: S608  # likewise


async def test_it_ends_though_it_is_woken_as_it_is_cancelled(engine: AsyncEngine) -> None:
    lifecycle = Lifecycle(
        engine, LoopFailures(), on_messages=lambda _: None, is_sending=lambda: False
    )
    running = asyncio.create_task(lifecycle.run())
    await asyncio.sleep(0.3)  # it rests now, or is about to
    lifecycle.wake()
    await asyncio.sleep(0)
    running.cancel()
    await asyncio.wait([running], timeout=PATIENCE)
    assert running.cancelled()


ADD_RUNNING = """
    WITH added AS (
        INSERT INTO mailing (datetime_start, datetime_end, text, clients_count, status,
            audience_until, audience_cursor)
        SELECT now(), now() + interval '1 hour', 'Hello', 1, 'running', 1, 1
        FROM generate_series(1, 2000) RETURNING id)
    INSERT INTO ledger (mailing_id, scheduled) SELECT id, 1 FROM added"""


async def test_mailing_that_is_through_ends_at_the_first_look_though_thousands_wait(
    engine: AsyncEngine,
) -> None:
    await execute(engine, ADD_RUNNING)
    done = await add_due_messages(engine, 1)
    await execute(engine, "UPDATE message SET status = 'delivered', sent_at = now()")
    lifecycle = Lifecycle(
        engine, LoopFailures(), on_messages=lambda _: None, is_sending=lambda: False
    )
    lifecycle.touch([done])
    lifecycle.touch(range(1, done))
    lifecycle.touch([done])
    statements: list[str] = []
    event.listen(
        engine.sync_engine, "before_cursor_execute", lambda *args: statements.append(args[2])
    )
    running = asyncio.create_task(lifecycle.run())
    try:
        async with asyncio.timeout(PATIENCE):
            while not any("is_settled = true" in each for each in statements):
                await asyncio.sleep(0.05)
    finally:
        running.cancel()
        await asyncio.wait({running})
    ends = next(n for n, each in enumerate(statements) if "is_settled = true" in each)
    assert sum("looked_up_to" in each for each in statements[:ends]) == 1


FINISHED = text("SELECT count(*) FROM mailing WHERE status = 'finished'")


async def test_those_of_which_something_became_finish_before_all_others_are_looked_at(
    engine: AsyncEngine,
) -> None:
    await execute(engine, ADD_RUNNING, ADD_RUNNING)
    many = 2 * together.SLICE
    done = [await add_mailing(engine) for _ in range(many)]
    lifecycle = Lifecycle(
        engine, LoopFailures(), on_messages=lambda _: None, is_sending=lambda: False
    )
    lifecycle.touch(done)
    looks = looks_before = 0

    def note(*args: Any) -> None:
        nonlocal looks
        looks += "looked_up_to" in args[2]

    event.listen(engine.sync_engine, "before_cursor_execute", note)
    running = asyncio.create_task(lifecycle.run())
    try:
        async with asyncio.timeout(PATIENCE), engine.connect() as connection:
            while looks_before <= 2:
                looks_now = looks
                if (await connection.execute(FINISHED)).scalar_one() == many:
                    break
                looks_before = looks_now
                await asyncio.sleep(0.01)
    finally:
        running.cancel()
        event.remove(engine.sync_engine, "before_cursor_execute", note)
    assert looks_before <= 2
