"""Lifecycle, which starts, enqueues and finishes mailings in the background."""

import asyncio
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import event, text
from sqlalchemy.ext.asyncio import AsyncEngine
from tests.event_timeout import EVENT_TIMEOUT
from tests.factories import add_due_messages, add_mailing, add_mailings, execute, value

from mailer.dispatch.lifecycle import Lifecycle
from mailer.dispatch.loop_failures import LoopFailures
from mailer.mailing import mailing_batches
from mailer.sample_data import SampleMailing

ENDED = "SELECT count(*) FROM mailing WHERE status = 'finished'"


async def test_a_failure_for_one_mailing_does_not_stop_the_others(
    engine: AsyncEngine,
) -> None:
    broken = await add_mailing(engine, clients=2)
    await execute(
        engine,
        f"UPDATE mailing SET client_filter = '{{\"no\": 1}}', audience_cursor = 0"  # noqa: S608  # a number
        f" WHERE id = {broken}",
    )
    done = await add_due_messages(engine, 2)
    await execute(engine, "UPDATE message SET status = 'delivered', sent_at = now()")
    lifecycle = Lifecycle(
        engine, LoopFailures(), on_messages=lambda _: None, is_sending=lambda: False
    )
    running = asyncio.create_task(lifecycle.run())
    try:
        async with asyncio.timeout(EVENT_TIMEOUT):
            while await value(engine, ENDED) == 0:
                await asyncio.sleep(0.05)
    finally:
        running.cancel()
    assert await value(engine, f"SELECT status FROM mailing WHERE id = {done}") == "finished"  # noqa: S608  # a number


async def test_a_wake_during_the_cancellation_does_not_prevent_it(engine: AsyncEngine) -> None:
    lifecycle = Lifecycle(
        engine, LoopFailures(), on_messages=lambda _: None, is_sending=lambda: False
    )
    running = asyncio.create_task(lifecycle.run())
    await asyncio.sleep(0.3)  # it waits for work now, or is about to
    lifecycle.wake()
    await asyncio.sleep(0)
    running.cancel()
    await asyncio.wait([running], timeout=EVENT_TIMEOUT)
    assert running.cancelled()


async def add_running(engine: AsyncEngine, count: int) -> None:
    """Create mailings that have an open message by their counts."""
    running = SampleMailing(start=datetime.now(UTC), clients=1)
    await add_mailings(engine, *[running] * count)
    await execute(engine, "UPDATE mailing_counts SET scheduled = 1")


async def test_a_mailing_without_open_messages_finishes_before_thousands_of_others_are_checked(
    engine: AsyncEngine,
) -> None:
    await add_running(engine, 2_000)
    done = await add_due_messages(engine, 1)
    await execute(engine, "UPDATE message SET status = 'delivered', sent_at = now()")
    lifecycle = Lifecycle(
        engine, LoopFailures(), on_messages=lambda _: None, is_sending=lambda: False
    )
    lifecycle.check_finished([done])
    lifecycle.check_finished(range(1, done))
    lifecycle.check_finished([done])
    statements: list[str] = []
    event.listen(
        engine.sync_engine, "before_cursor_execute", lambda *args: statements.append(args[2])
    )
    running = asyncio.create_task(lifecycle.run())
    try:
        async with asyncio.timeout(EVENT_TIMEOUT):
            while not any("is_closed = true" in statement for statement in statements):
                await asyncio.sleep(0.05)
    finally:
        running.cancel()
        await asyncio.wait({running})
    finishes_at = next(
        n for n, statement in enumerate(statements) if "is_closed = true" in statement
    )
    assert sum("last_checked_id" in statement for statement in statements[:finishes_at]) == 1


FINISHED = text("SELECT count(*) FROM mailing WHERE status = 'finished'")


async def test_mailings_with_results_finish_before_all_others_are_checked(
    engine: AsyncEngine,
) -> None:
    await add_running(engine, 4_000)
    count = 2 * mailing_batches.MAILINGS_PER_BATCH
    done = [await add_mailing(engine) for _ in range(count)]
    lifecycle = Lifecycle(
        engine, LoopFailures(), on_messages=lambda _: None, is_sending=lambda: False
    )
    lifecycle.check_finished(done)
    checks = checks_before = 0

    def count_check(*args: Any) -> None:
        nonlocal checks
        checks += "last_checked_id" in args[2]

    event.listen(engine.sync_engine, "before_cursor_execute", count_check)
    running = asyncio.create_task(lifecycle.run())
    try:
        async with asyncio.timeout(EVENT_TIMEOUT), engine.connect() as connection:
            while checks_before <= 2:
                checks_now = checks
                if (await connection.execute(FINISHED)).scalar_one() == count:
                    break
                checks_before = checks_now
                await asyncio.sleep(0.01)
    finally:
        running.cancel()
        event.remove(engine.sync_engine, "before_cursor_execute", count_check)
    assert checks_before <= 2
