"""`find_differences` compares stored counts with the rows that they count."""

from collections.abc import Sequence
from uuid import uuid4

from sqlalchemy.ext.asyncio import AsyncEngine
from tests.factories import add_clients, add_mailing, add_messages, execute

from mailer.access.model import COMMAND_LINE
from mailer.mailing import service
from mailer.statistics.verify import Difference, find_differences


async def add_consistent_mailing(engine: AsyncEngine, clients: Sequence[int]) -> int:
    """Add a mailing to `clients`: half of its messages are delivered, half are scheduled."""
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
    first, *_, last = [await add_consistent_mailing(engine, clients) for _ in range(5)]
    await execute(
        engine,
        f"UPDATE mailing_counts SET delivered = 3, scheduled = 0 WHERE mailing_id = {first}",  # noqa: S608  # a number
        f"UPDATE mailing_counts SET cancelled = 9 WHERE mailing_id = {last}",  # noqa: S608  # a number
    )

    result = await find_differences(engine, chunk=2)

    assert result == [
        Difference(first, "count of scheduled messages", found=0, expected=2),
        Difference(first, "count of delivered messages", found=3, expected=2),
        Difference(last, "count of cancelled messages", found=9, expected=0),
        # the counts by day are right, and differ from the sums of the wrong ones
        Difference(None, "sum of delivered messages over all days", found=10, expected=11),
        Difference(None, "sum of cancelled messages over all days", found=0, expected=9),
    ]
    assert str(result[1]) == f"mailing {first}: count of delivered messages: 3, expected 2"


async def test_clients_count_of_an_enqueued_audience_must_equal_its_messages(
    engine: AsyncEngine,
) -> None:
    mailing_id = await add_consistent_mailing(engine, await add_clients(engine, 4))
    await execute(engine, "UPDATE mailing SET clients_count = 5")
    assert await find_differences(engine) == [
        Difference(mailing_id, "clients_count", found=5, expected=4)
    ]

    await execute(engine, "UPDATE mailing SET audience_cursor = 0")  # not completely enqueued
    assert await find_differences(engine) == []


async def test_a_scheduled_mailing_must_have_no_messages(engine: AsyncEngine) -> None:
    mailing_id = await add_mailing(engine, status="scheduled")
    await add_messages(engine, mailing_id, await add_clients(engine, 2), "scheduled")

    assert await find_differences(engine) == [
        Difference(mailing_id, "messages before the start", found=2, expected=0)
    ]


async def test_a_deleted_mailing_may_be_partly_purged(engine: AsyncEngine) -> None:
    mailing_id = await add_consistent_mailing(engine, await add_clients(engine, 4))
    await service.delete(engine, mailing_id, COMMAND_LINE)
    await execute(engine, "DELETE FROM message WHERE id IN (SELECT id FROM message LIMIT 2)")
    assert await find_differences(engine) == []


async def test_a_mailing_must_have_a_row_of_counts(engine: AsyncEngine) -> None:
    mailing_id = await add_consistent_mailing(engine, await add_clients(engine, 4))
    await execute(engine, "DELETE FROM mailing_counts")

    assert await find_differences(engine) == [
        Difference(mailing_id, "rows of counts", found=0, expected=1),
        Difference(None, "sum of delivered messages over all days", found=2, expected=0),
    ]


async def test_messages_must_have_a_client(engine: AsyncEngine) -> None:
    mailing_id = await add_mailing(engine, clients=2)
    await add_messages(engine, mailing_id, [998, 999], "delivered")

    assert await find_differences(engine) == [
        Difference(mailing_id, "messages without their client", found=2, expected=0)
    ]


async def test_messages_must_have_a_mailing(engine: AsyncEngine) -> None:
    await add_messages(engine, 77, await add_clients(engine, 4), "delivered")

    assert await find_differences(engine) == [
        Difference(77, "messages without their mailing", found=4, expected=0),
        Difference(None, "sum of delivered messages over all days", found=4, expected=0),
    ]
