import asyncio
from datetime import UTC, datetime, timedelta
from uuid import uuid4

from sqlalchemy.ext.asyncio import AsyncEngine
from tests.patience import PATIENCE
from tests.sample import (
    HOLD_LOCK,
    add_clients,
    add_mailing,
    add_messages,
    behind_all_stops,
    do,
    execute,
    take_audience,
    value,
)

from mailer.db.engine import raw
from mailer.mailing import audience, moving, replanning
from mailer.mailing.audience import CHUNK, FIRST_CHUNK
from mailer.message import store as messages
from mailer.message.model import FinishedMessage

MANY = 6_000
LEASE = timedelta(seconds=60)
ADD_MANY = f"""
    INSERT INTO client (phone, operator_code, time_zone)
    SELECT '7916' || lpad(n::text, 7, '0'), '916', (ARRAY['UTC', 'Asia/Tokyo'])[1 + n % 2]
    FROM generate_series(1, {MANY}) AS n"""  # noqa: S608  # of a test


async def begun_mailing(engine: AsyncEngine) -> None:
    """A mailing to everybody, begun, of whose audience nothing is taken yet."""
    await add_mailing(engine, start=datetime.now(UTC), status="scheduled")
    assert await do(engine, moving.begin_due)


async def replanned_mailing(engine: AsyncEngine) -> int:
    """A mailing whose filter was changed while it runs, so that its one message must not go out."""
    mailing_id = await add_mailing(engine, clients=1, start=datetime.now(UTC))
    await add_messages(engine, mailing_id, await add_clients(engine, 1), "scheduled")
    await execute(engine, "UPDATE mailing SET audience_until = 1, audience_cursor = 1")
    return mailing_id


async def change_filter(engine: AsyncEngine) -> None:
    """Change the filter as the service does, to one that nobody matches."""
    await execute(
        engine,
        "UPDATE mailing SET client_filter = '\"999\"', audience_cursor = 0, replanning = true,"
        " filter_changed = true, replan_cursor = 0, replan_stop = NULL",
    )


async def one_message(engine: AsyncEngine) -> str:
    query = "SELECT concat_ws(' ', status, reason) FROM message"
    return str(await value(engine, query))


async def test_every_client_gets_exactly_one_message(engine: AsyncEngine) -> None:
    assert FIRST_CHUNK + CHUNK < MANY
    await execute(engine, ADD_MANY)
    await begun_mailing(engine)

    await take_audience(engine)

    assert await value(engine, "SELECT count(*) FROM message WHERE status = 'scheduled'") == MANY
    assert await value(engine, "SELECT count(DISTINCT client_id) FROM message") == MANY
    assert await value(engine, "SELECT clients_count FROM mailing") == MANY
    assert await value(engine, "SELECT scheduled FROM ledger") == MANY


async def test_first_chunk_is_small_so_that_sending_begins_at_once(engine: AsyncEngine) -> None:
    await execute(engine, ADD_MANY)
    await begun_mailing(engine)

    await do(engine, audience.take_chunk)

    assert await value(engine, "SELECT count(*) FROM message") == FIRST_CHUNK


async def test_chunk_that_was_rolled_back_is_taken_again(engine: AsyncEngine) -> None:
    await execute(engine, ADD_MANY)
    await begun_mailing(engine)
    await do(engine, audience.take_chunk)
    async with engine.connect() as connection:
        assert await audience.take_chunk(connection)
        await connection.rollback()
    assert await value(engine, "SELECT audience_cursor FROM mailing") == FIRST_CHUNK
    assert await value(engine, "SELECT count(*) FROM message") == FIRST_CHUNK

    await take_audience(engine)

    assert await value(engine, "SELECT count(DISTINCT client_id) FROM message") == MANY


async def test_client_who_joins_after_the_beginning_is_not_added(engine: AsyncEngine) -> None:
    clients = await add_clients(engine, 3)
    await begun_mailing(engine)
    await add_clients(engine, 2)

    await take_audience(engine)

    taken = "SELECT array_agg(client_id ORDER BY client_id) FROM message"
    assert await value(engine, taken) == clients
    assert await value(engine, "SELECT clients_count FROM mailing") == 3


async def test_clients_count_is_exact_when_clients_go_before_they_are_taken(
    engine: AsyncEngine,
) -> None:
    await add_clients(engine, 5)
    await begun_mailing(engine)
    erase = "UPDATE client SET deleted_at = now(), phone = NULL, tag = NULL WHERE id > 3"
    await execute(engine, erase)
    assert await value(engine, "SELECT clients_count FROM mailing") == 5

    await take_audience(engine)

    assert await value(engine, "SELECT clients_count FROM mailing") == 3
    assert await value(engine, "SELECT count(*) FROM message") == 3


async def test_two_processes_never_take_the_same_chunk(engine: AsyncEngine) -> None:
    await execute(engine, ADD_MANY)
    await begun_mailing(engine)

    await asyncio.gather(take_audience(engine), take_audience(engine))
    await take_audience(engine)

    assert await value(engine, "SELECT count(*) FROM message") == MANY
    assert await value(engine, "SELECT clients_count FROM mailing") == MANY


async def test_replan_waits_until_no_process_may_send(engine: AsyncEngine) -> None:
    await replanned_mailing(engine)
    await change_filter(engine)
    async with behind_all_stops(engine):
        replan = asyncio.create_task(do(engine, replanning.replan_chunk))
        await asyncio.wait({replan}, timeout=0.3)
        assert await one_message(engine) == "scheduled"
        assert await value(engine, "SELECT replanning FROM mailing")
    await replan
    await take_audience(engine)

    assert await one_message(engine) == "cancelled filter_changed"
    assert not await value(engine, "SELECT replanning FROM mailing")


async def test_audience_is_taken_while_processes_send(engine: AsyncEngine) -> None:
    await add_clients(engine, 2)
    await begun_mailing(engine)
    async with behind_all_stops(engine), asyncio.timeout(PATIENCE):
        await take_audience(engine)

    assert await value(engine, "SELECT count(*) FROM message") == 2


async def test_replan_waits_until_what_is_being_sent_is_back(engine: AsyncEngine) -> None:
    mailing_id, owner = await replanned_mailing(engine), uuid4()
    async with engine.connect() as pooled:
        sender = await raw(pooled)
        (claim,) = await messages.claim(sender, {mailing_id: messages.START}, 1, owner, LEASE)
        await change_filter(engine)
        await take_audience(engine)
        assert await one_message(engine) == "sending"
        assert await value(engine, "SELECT replanning FROM mailing")

        await messages.finish(sender, owner, [FinishedMessage(claim, "scheduled", 0)])
    await take_audience(engine)

    assert await one_message(engine) == "cancelled filter_changed"


async def test_replan_waits_for_a_claim_that_it_could_not_see_yet(engine: AsyncEngine) -> None:
    mailing_id, owner = await replanned_mailing(engine), uuid4()
    async with engine.connect() as pooled:
        sender = await raw(pooled)
        async with sender.transaction():
            await sender.execute(HOLD_LOCK.text)
            (claim,) = await messages.claim(sender, {mailing_id: messages.START}, 1, owner, LEASE)
            await change_filter(engine)
            replan = asyncio.create_task(take_audience(engine))
            await asyncio.wait({replan}, timeout=0.3)
        await replan
        assert await one_message(engine) == "sending"

        await messages.finish(sender, owner, [FinishedMessage(claim, "scheduled", 0)])
    await take_audience(engine)

    assert await one_message(engine) == "cancelled filter_changed"


async def test_nothing_is_claimed_of_a_mailing_that_is_being_replanned(
    engine: AsyncEngine,
) -> None:
    mailing_id, owner = await replanned_mailing(engine), uuid4()
    await change_filter(engine)
    async with engine.connect() as pooled, engine.connect() as other:
        sender = await raw(pooled)
        assert await messages.claim(sender, {mailing_id: messages.START}, 1, owner, LEASE) == []

        assert await replanning.replan_chunk(other)  # not committed yet
        async with asyncio.timeout(PATIENCE):
            assert await messages.claim(sender, {mailing_id: messages.START}, 1, owner, LEASE) == []
        await other.commit()
        assert await messages.claim(sender, {mailing_id: messages.START}, 1, owner, LEASE) == []


async def test_replan_that_waits_keeps_no_other_mailing_waiting(engine: AsyncEngine) -> None:
    await replanned_mailing(engine)
    await change_filter(engine)
    await begun_mailing(engine)
    async with engine.connect() as pooled:
        sender = await raw(pooled)
        async with sender.transaction(), asyncio.timeout(PATIENCE):
            await sender.execute(HOLD_LOCK.text)
            await take_audience(engine)
            assert await value(engine, "SELECT count(*) FROM message") == 2
