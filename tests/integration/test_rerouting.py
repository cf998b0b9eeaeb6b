"""Messages get the new routes after a change, whatever other transactions do meanwhile."""

import asyncio
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine
from tests.event_timeout import EVENT_TIMEOUT, let_run
from tests.factories import (
    CHUNK,
    add_clients,
    add_delivered_mailing,
    add_due_messages,
    advance,
    do,
    execute,
    rows,
    value,
)

from mailer.access.model import COMMAND_LINE
from mailer.dispatch.in_flight import InFlightRequests
from mailer.dispatch.loop_failures import LoopFailures
from mailer.dispatch.running_mailings import RunningMailings
from mailer.gateway import routes
from mailer.mailing import enqueuing, finishing, retrying, service, small_audiences, starting
from mailer.mailing.mailing_batches import MAILINGS_PER_BATCH
from mailer.mailing.model import MailingChange, NewMailing
from mailer.mailing.rerouting import REROUTE_BATCH, reroute_chunk
from mailer.mailing.skipped import SkippedMailings

Step = Callable[[AsyncConnection], Awaitable[object]]
COUNT_QUEUED = "SELECT count(*) FROM rerouting"


async def apply(connection: AsyncConnection, name: str = "new") -> bool:
    """Make one gateway the only one."""
    return await routes.apply_routes(connection, {name: None})


async def messages_by_gateways(engine: AsyncEngine) -> dict[tuple[str, ...], int]:
    """Return the number of messages by the gateways of their routes."""
    found = await rows(
        engine,
        "SELECT gateways, count(*) AS messages FROM message JOIN route ON route.id = route"
        " GROUP BY gateways",
    )
    return {tuple(row["gateways"]): row["messages"] for row in found}


async def create_due_mailing(engine: AsyncEngine) -> int:
    """Create a mailing to everybody that is due now; return its id."""
    now = datetime.now(UTC)
    hour = timedelta(hours=1)
    new = NewMailing(datetime_start=now - hour, datetime_end=now + hour, text="Hello")
    return (await service.create(engine, new, COMMAND_LINE)).id


async def enqueue_small(connection: AsyncConnection) -> object:
    return await small_audiences.enqueue_small(connection, SkippedMailings())


async def until_waiting(task: asyncio.Task[object]) -> None:
    """Wait until a task surely waits for a lock that the test holds."""
    await let_run(task)
    assert not task.done()


@pytest.mark.parametrize("enqueue", [enqueue_small, enqueuing.enqueue_chunk])
async def test_a_mailing_that_starts_before_new_routes_are_committed_gets_them(
    engine: AsyncEngine, enqueue: Step
) -> None:
    await add_clients(engine, 3)
    await create_due_mailing(engine)
    async with engine.begin() as connection:
        await apply(connection)
        await do(engine, starting.start_due)
        enqueuing_task = asyncio.create_task(do(engine, enqueue))
        await until_waiting(enqueuing_task)
    await enqueuing_task
    assert await value(engine, COUNT_QUEUED) == 0
    assert await messages_by_gateways(engine) == {("new",): 3}


async def test_a_mailing_that_is_retried_before_new_routes_are_committed_gets_them(
    engine: AsyncEngine,
) -> None:
    mailing_id = await add_due_messages(engine, 3)
    await execute(engine, "UPDATE message SET status = 'undelivered', reason = 'rejected_400'")
    await do(engine, finishing.finish)
    async with engine.begin() as connection:
        await apply(connection)
        await service.retry(engine, mailing_id, COMMAND_LINE)
        retry = asyncio.create_task(do(engine, lambda db: retrying.retry_chunk(db, CHUNK)))
        await until_waiting(retry)
    await retry
    assert await value(engine, COUNT_QUEUED) == 0
    assert await messages_by_gateways(engine) == {("new",): 3}


@pytest.mark.parametrize("enqueue", [enqueue_small, enqueuing.enqueue_chunk])
async def test_a_change_waits_for_messages_that_are_being_enqueued(
    engine: AsyncEngine, enqueue: Step
) -> None:
    await add_clients(engine, 3)
    await create_due_mailing(engine)
    await do(engine, starting.start_due)
    async with engine.begin() as connection:
        await enqueue(connection)
        change = asyncio.create_task(do(engine, apply))
        await until_waiting(change)
    await change
    assert await messages_by_gateways(engine) == {("default",): 3}
    await advance(engine)
    assert await messages_by_gateways(engine) == {("new",): 3}


async def test_a_change_does_not_wait_for_locked_mailings(engine: AsyncEngine) -> None:
    await add_due_messages(engine, 1)
    async with engine.begin() as connection:
        await connection.execute(text("SELECT FROM mailing FOR UPDATE"))
        async with asyncio.timeout(EVENT_TIMEOUT):
            assert await do(engine, apply)
        assert not await do(engine, reroute_chunk)  # it skips the mailing meanwhile
    await advance(engine)
    assert await messages_by_gateways(engine) == {("new",): 1}


async def test_a_change_during_a_chunk_starts_the_mailing_again(engine: AsyncEngine) -> None:
    await add_due_messages(engine, 1)
    await do(engine, lambda db: apply(db, "first"))
    async with engine.begin() as connection:
        await connection.execute(text("SELECT FROM message FOR UPDATE"))
        chunk = asyncio.create_task(do(engine, reroute_chunk))
        await until_waiting(chunk)
        change = asyncio.create_task(do(engine, lambda db: apply(db, "second")))
        await let_run(change)
    await asyncio.gather(chunk, change)
    await advance(engine)
    assert await messages_by_gateways(engine) == {("second",): 1}


async def test_a_new_gateway_of_a_mailing_during_a_chunk_starts_it_again(
    engine: AsyncEngine,
) -> None:
    async with engine.begin() as connection:
        await routes.apply_routes(connection, {"a": None, "b": None})
    mailing_id = await add_due_messages(engine, 1)
    change_of = MailingChange(gateway="b")
    async with engine.begin() as connection:
        await routes.apply_routes(connection, {"a": None, "b": None, "c": None})
    async with engine.begin() as connection:
        await connection.execute(text("SELECT FROM message FOR UPDATE"))
        chunk = asyncio.create_task(do(engine, reroute_chunk))
        await until_waiting(chunk)
        change = asyncio.create_task(service.change(engine, mailing_id, change_of, COMMAND_LINE))
        await let_run(change)
    await asyncio.gather(chunk, change)
    await advance(engine)
    assert await messages_by_gateways(engine) == {("b",): 1}


async def test_two_workers_share_the_mailings(engine: AsyncEngine) -> None:
    for _ in range(MAILINGS_PER_BATCH + 1):
        await add_due_messages(engine, 1)
    await do(engine, apply)
    async with engine.begin() as connection:
        assert await reroute_chunk(connection)
        assert await do(engine, reroute_chunk)
        assert not await do(engine, reroute_chunk)  # the others are locked
    assert await value(engine, COUNT_QUEUED) == 0
    assert await messages_by_gateways(engine) == {("new",): MAILINGS_PER_BATCH + 1}


async def test_large_mailings_are_rerouted_in_chunks(engine: AsyncEngine) -> None:
    chunk = REROUTE_BATCH // MAILINGS_PER_BATCH
    for _ in range(MAILINGS_PER_BATCH):
        await add_due_messages(engine, chunk + 1)
    await do(engine, apply)
    assert await do(engine, reroute_chunk)
    assert await messages_by_gateways(engine) == {
        ("new",): REROUTE_BATCH,
        ("default",): MAILINGS_PER_BATCH,
    }
    assert await value(engine, COUNT_QUEUED) == MAILINGS_PER_BATCH
    assert await do(engine, reroute_chunk)
    assert await value(engine, COUNT_QUEUED) == 0
    assert set(await messages_by_gateways(engine)) == {("new",)}


@pytest.mark.parametrize(
    "end",
    [
        "UPDATE mailing SET status = 'finished', is_closed = true WHERE id = 1",
        "UPDATE mailing SET deleted_at = now() WHERE id = 1",
        "DELETE FROM mailing WHERE id = 1",
    ],
    ids=["closed", "deleted", "purged"],
)
async def test_an_ended_mailing_leaves_the_queue(engine: AsyncEngine, end: str) -> None:
    await add_delivered_mailing(engine)
    await add_due_messages(engine, 1)
    await do(engine, apply)
    assert await value(engine, COUNT_QUEUED) == 2
    await execute(engine, "DELETE FROM message WHERE mailing_id = 1", end)
    await advance(engine)
    assert await value(engine, COUNT_QUEUED) == 0
    assert await messages_by_gateways(engine) == {("new",): 1}


async def test_workers_are_told_which_mailings_have_rerouted_messages(
    engine: AsyncEngine, shared_database_url: str
) -> None:
    mailing_ids = {await add_due_messages(engine, 1) for _ in range(2)}
    reported: asyncio.Queue[set[int]] = asyncio.Queue()
    mailings = RunningMailings(
        shared_database_url,
        InFlightRequests(),
        LoopFailures(),
        on_change=lambda ids: reported.put_nowait(set(ids)),
    )
    task = asyncio.create_task(mailings.run())
    try:
        async with asyncio.timeout(EVENT_TIMEOUT):
            assert await reported.get() == mailing_ids  # all are new to it
            await do(engine, apply)
            await do(engine, reroute_chunk)
            assert await reported.get() == mailing_ids
    finally:
        task.cancel()
        await asyncio.wait({task})
