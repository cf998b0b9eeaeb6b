"""An audience is enqueued in chunks; replanning waits until no worker sends for the mailing."""

import asyncio
from datetime import UTC, datetime, timedelta
from uuid import UUID, uuid4

import asyncpg
from sqlalchemy.ext.asyncio import AsyncEngine
from tests.event_timeout import EVENT_TIMEOUT, let_run
from tests.factories import (
    GATEWAY,
    HOLD_STOP_LOCK,
    ROUTE,
    add_clients,
    add_mailing,
    add_messages,
    behind_all_stops,
    do,
    enqueue_and_replan,
    execute,
    value,
)

from mailer.db.engine import asyncpg_connection
from mailer.mailing import enqueuing, replanning, starting
from mailer.mailing.enqueuing import ENQUEUE_BATCH, FIRST_BATCH
from mailer.message import store as messages
from mailer.message.model import ClaimedMessage, MessageResult

MANY = 6_000
"""Clients of an audience that takes at least three chunks."""
assert FIRST_BATCH + ENQUEUE_BATCH < MANY
LEASE = timedelta(seconds=60)


async def add_many_clients(engine: AsyncEngine) -> None:
    """Create `MANY` clients in two time zones."""
    await add_clients(engine, MANY // 2)
    await add_clients(engine, MANY // 2, time_zone="Asia/Tokyo")


async def start_mailing(engine: AsyncEngine) -> None:
    """Start a mailing to all clients without enqueuing its audience."""
    await add_mailing(engine, start=datetime.now(UTC), status="scheduled")
    assert await do(engine, starting.start_due)


async def add_mailing_with_message(engine: AsyncEngine) -> int:
    """Create a running mailing with one scheduled message; return the mailing's id."""
    mailing_id = await add_mailing(engine, clients=1, start=datetime.now(UTC))
    await add_messages(engine, mailing_id, await add_clients(engine, 1), "scheduled")
    await execute(engine, "UPDATE mailing SET audience_until = 1, audience_cursor = 1")
    return mailing_id


async def exclude_everybody(engine: AsyncEngine) -> None:
    """Change the filter to one that matches no client, as the service does."""
    await execute(
        engine,
        "UPDATE mailing SET client_filter = '\"999\"', audience_cursor = 0, is_replanning = true,"
        " filter_changed = true, replan_cursor = 0, replan_stop = NULL",
    )


async def claim_one(
    sender: asyncpg.Connection, mailing_id: int, owner: UUID
) -> list[ClaimedMessage]:
    """Claim a due message of a mailing for the worker `owner`. The list is empty without one."""
    cursors = {mailing_id: messages.FIRST_CURSOR}
    source = messages.ClaimSource(ROUTE, cursors, {mailing_id: 1})
    return await messages.claim(sender, source, messages.ClaimTarget(owner, LEASE, GATEWAY))


async def message_state(engine: AsyncEngine) -> str:
    """Return the status and the reason of the only message, separated by a blank."""
    query = "SELECT concat_ws(' ', status, reason) FROM message"
    return str(await value(engine, query))


async def test_every_client_gets_exactly_one_message(engine: AsyncEngine) -> None:
    await add_many_clients(engine)
    await start_mailing(engine)

    await enqueue_and_replan(engine)

    assert await value(engine, "SELECT count(*) FROM message WHERE status = 'scheduled'") == MANY
    assert await value(engine, "SELECT count(DISTINCT client_id) FROM message") == MANY
    assert await value(engine, "SELECT clients_count FROM mailing") == MANY
    assert await value(engine, "SELECT scheduled FROM mailing_counts") == MANY


async def test_the_first_chunk_is_small_so_that_sending_starts_early(engine: AsyncEngine) -> None:
    await add_many_clients(engine)
    await start_mailing(engine)

    await do(engine, enqueuing.enqueue_chunk)

    assert await value(engine, "SELECT count(*) FROM message") == FIRST_BATCH


async def test_a_rolled_back_chunk_is_enqueued_again(engine: AsyncEngine) -> None:
    await add_many_clients(engine)
    await start_mailing(engine)
    await do(engine, enqueuing.enqueue_chunk)
    async with engine.connect() as crashing:
        assert await enqueuing.enqueue_chunk(crashing)
        await crashing.rollback()
    assert await value(engine, "SELECT audience_cursor FROM mailing") == FIRST_BATCH
    assert await value(engine, "SELECT count(*) FROM message") == FIRST_BATCH

    await enqueue_and_replan(engine)

    assert await value(engine, "SELECT count(DISTINCT client_id) FROM message") == MANY


async def test_a_client_created_after_the_start_is_not_enqueued(engine: AsyncEngine) -> None:
    clients = await add_clients(engine, 3)
    await start_mailing(engine)
    await add_clients(engine, 2)

    await enqueue_and_replan(engine)

    enqueued = "SELECT array_agg(client_id ORDER BY client_id) FROM message"
    assert await value(engine, enqueued) == clients
    assert await value(engine, "SELECT clients_count FROM mailing") == 3


async def test_clients_count_is_exact_when_clients_are_erased_before_they_are_enqueued(
    engine: AsyncEngine,
) -> None:
    await add_clients(engine, 5)
    await start_mailing(engine)
    erase = "UPDATE client SET deleted_at = now(), phone = NULL, tag = NULL WHERE id > 3"
    await execute(engine, erase)
    assert await value(engine, "SELECT clients_count FROM mailing") == 5

    await enqueue_and_replan(engine)

    assert await value(engine, "SELECT clients_count FROM mailing") == 3
    assert await value(engine, "SELECT count(*) FROM message") == 3


async def test_two_workers_never_enqueue_the_same_chunk(engine: AsyncEngine) -> None:
    await add_many_clients(engine)
    await start_mailing(engine)

    await asyncio.gather(enqueue_and_replan(engine), enqueue_and_replan(engine))
    await enqueue_and_replan(engine)

    assert await value(engine, "SELECT count(*) FROM message") == MANY
    assert await value(engine, "SELECT clients_count FROM mailing") == MANY


async def test_replanning_waits_until_every_worker_has_applied_the_stop(
    engine: AsyncEngine,
) -> None:
    await add_mailing_with_message(engine)
    await exclude_everybody(engine)
    async with behind_all_stops(engine):  # a worker that has not applied the stop yet
        replan = asyncio.create_task(do(engine, replanning.replan_chunk))
        await let_run(replan)
        assert await message_state(engine) == "scheduled"
        assert await value(engine, "SELECT is_replanning FROM mailing")
    await replan
    await enqueue_and_replan(engine)

    assert await message_state(engine) == "cancelled filter_changed"
    assert not await value(engine, "SELECT is_replanning FROM mailing")


async def test_enqueuing_does_not_wait_until_workers_have_applied_a_stop(
    engine: AsyncEngine,
) -> None:
    await add_clients(engine, 2)
    await start_mailing(engine)
    async with behind_all_stops(engine), asyncio.timeout(EVENT_TIMEOUT):
        await enqueue_and_replan(engine)

    assert await value(engine, "SELECT count(*) FROM message") == 2


async def test_replanning_waits_for_messages_in_flight(engine: AsyncEngine) -> None:
    mailing_id, owner = await add_mailing_with_message(engine), uuid4()
    async with engine.connect() as pooled:
        sender = await asyncpg_connection(pooled)
        [claim] = await claim_one(sender, mailing_id, owner)
        await exclude_everybody(engine)
        await enqueue_and_replan(engine)
        assert await message_state(engine) == "sending"
        assert await value(engine, "SELECT is_replanning FROM mailing")

        await messages.record_results(
            sender, owner, [MessageResult(claim, "scheduled", attempts=0)]
        )
    await enqueue_and_replan(engine)

    assert await message_state(engine) == "cancelled filter_changed"


async def test_replanning_waits_for_a_claim_that_is_not_committed_yet(engine: AsyncEngine) -> None:
    mailing_id, owner = await add_mailing_with_message(engine), uuid4()
    async with engine.connect() as pooled:
        sender = await asyncpg_connection(pooled)
        async with sender.transaction():
            await sender.execute(HOLD_STOP_LOCK.text)  # this worker has not applied the stop yet
            [claim] = await claim_one(sender, mailing_id, owner)
            await exclude_everybody(engine)
            replan = asyncio.create_task(enqueue_and_replan(engine))
            await let_run(replan)
        await replan
        assert await message_state(engine) == "sending"

        await messages.record_results(
            sender, owner, [MessageResult(claim, "scheduled", attempts=0)]
        )
    await enqueue_and_replan(engine)

    assert await message_state(engine) == "cancelled filter_changed"


async def test_messages_of_a_mailing_being_replanned_are_not_claimed(
    engine: AsyncEngine,
) -> None:
    mailing_id, owner = await add_mailing_with_message(engine), uuid4()
    await exclude_everybody(engine)
    async with engine.connect() as pooled, engine.connect() as replanner:
        sender = await asyncpg_connection(pooled)
        assert await claim_one(sender, mailing_id, owner) == []  # before it is replanned

        assert await replanning.replan_chunk(replanner)
        async with asyncio.timeout(EVENT_TIMEOUT):
            assert await claim_one(sender, mailing_id, owner) == []  # while it is replanned
        await replanner.commit()

        # its only message is cancelled now
        assert await claim_one(sender, mailing_id, owner) == []


async def test_a_waiting_replan_delays_no_other_mailing(engine: AsyncEngine) -> None:
    await add_mailing_with_message(engine)
    await exclude_everybody(engine)
    await start_mailing(engine)  # another mailing, to the same client
    async with behind_all_stops(engine), asyncio.timeout(EVENT_TIMEOUT):
        await enqueue_and_replan(engine)

    messages_by_mailing = """
        SELECT array_agg(messages) FROM (
            SELECT count(*) AS messages FROM message GROUP BY mailing_id) AS counted"""
    assert await value(engine, messages_by_mailing) == [1, 1]
