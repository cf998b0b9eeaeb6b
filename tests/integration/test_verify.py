"""`differences` compares counters with the rows that they count."""

from collections.abc import Sequence
from uuid import uuid4

from sqlalchemy.ext.asyncio import AsyncEngine
from tests.factories import add_clients, add_mailing, add_messages, execute

from mailer.access.model import COMMAND_LINE
from mailer.mailing import service
from mailer.statistics.verify import Difference, find_differences


async def add_consistent_mailing(engine: AsyncEngine, clients: Sequence[int]) -> int:
    """Add a mailing with an enqueued audience, half of it delivered."""
    mailing_id = await add_mailing(engine, clients=len(clients))
    half = len(clients) // 2
    await add_messages(engine, mailing_id, clients[:half], "delivered")
    await add_messages(engine, mailing_id, clients[half:], "scheduled")
    return mailing_id


async def test_a_consistent_database_has_no_differences(engine: AsyncEngine) -> None:
    clients = await add_clients(engine, 6)
    await add_consistent_mailing(engine, clients)
    await add_mailing(engine, status="scheduled", clients=6)

    assert await find_differences(engine) == []


async def test_counters_follow_every_change_of_messages(engine: AsyncEngine) -> None:
    clients = await add_clients(engine, 6)
    await add_consistent_mailing(engine, clients)
    lease = f"lease_owner = '{uuid4()}', lease_expires_at = now()"
    await execute(
        engine,
        f"UPDATE message SET status = 'sending', {lease} WHERE status = 'scheduled'",  # noqa: S608  # a UUID
        "UPDATE message SET status = 'unknown', lease_owner = NULL, lease_expires_at = NULL"
        " WHERE status = 'sending' AND id % 2 = 0",
    )

    assert await find_differences(engine) == []


async def test_wrong_counters_are_found_in_every_chunk(engine: AsyncEngine) -> None:
    clients = await add_clients(engine, 4)
    ids = [await add_consistent_mailing(engine, clients) for _ in range(5)]
    await execute(
        engine,
        f"UPDATE mailing_counts SET delivered = 3, scheduled = 0 WHERE mailing_id = {ids[0]}",  # noqa: S608  # a number
        f"UPDATE mailing_counts SET cancelled = 9 WHERE mailing_id = {ids[4]}",  # noqa: S608  # a number
    )

    result = await find_differences(engine, chunk=2)

    assert result == [
        Difference(ids[0], "count of scheduled messages", 0, 2),
        Difference(ids[0], "count of delivered messages", 3, 2),
        Difference(ids[4], "count of cancelled messages", 9, 0),
        Difference(None, "sum of delivered messages over all days", 10, 11),
        Difference(None, "sum of cancelled messages over all days", 0, 9),
    ]
    assert str(result[1]) == f"mailing {ids[0]}: count of delivered messages: 3, expected 2"


async def test_clients_count_of_an_enqueued_audience_must_equal_its_messages(
    engine: AsyncEngine,
) -> None:
    mailing_id = await add_consistent_mailing(engine, await add_clients(engine, 4))
    await execute(engine, "UPDATE mailing SET clients_count = 5")
    assert await find_differences(engine) == [Difference(mailing_id, "clients_count", 5, 4)]

    await execute(engine, "UPDATE mailing SET audience_cursor = 0")  # not completely enqueued
    assert await find_differences(engine) == []


async def test_a_scheduled_mailing_must_have_no_messages(engine: AsyncEngine) -> None:
    mailing_id = await add_mailing(engine, status="scheduled")
    await add_messages(engine, mailing_id, await add_clients(engine, 2), "scheduled")

    assert await find_differences(engine) == [
        Difference(mailing_id, "messages before the start", 2, 0)
    ]


async def test_a_deleted_mailing_may_be_partly_purged(engine: AsyncEngine) -> None:
    mailing_id = await add_consistent_mailing(engine, await add_clients(engine, 4))
    await service.delete(engine, mailing_id, COMMAND_LINE)
    await execute(engine, "DELETE FROM message WHERE id IN (SELECT id FROM message LIMIT 2)")
    assert await find_differences(engine) == []


async def test_messages_must_have_counters_a_mailing_and_a_client(engine: AsyncEngine) -> None:
    clients = await add_clients(engine, 4)
    without_counts = await add_consistent_mailing(engine, clients)
    without_clients = await add_mailing(engine, clients=2)
    await add_messages(engine, without_clients, [998, 999], "delivered")
    await add_messages(engine, 77, clients, "delivered")
    await execute(engine, f"DELETE FROM mailing_counts WHERE mailing_id = {without_counts}")  # noqa: S608  # a number

    assert await find_differences(engine) == [
        Difference(without_counts, "rows of counts", 0, 1),
        Difference(without_clients, "messages without their client", 2, 0),
        Difference(77, "messages without their mailing", 4, 0),
        Difference(None, "sum of delivered messages over all days", 8, 2),
    ]
