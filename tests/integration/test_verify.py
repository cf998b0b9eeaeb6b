"""`find_differences` compares stored counts with the rows that they count."""

from collections.abc import Sequence
from uuid import uuid4

import pytest
from sqlalchemy.ext.asyncio import AsyncEngine
from tests.factories import add_clients, add_mailing, add_messages, do, execute

from mailer.access.model import COMMAND_LINE
from mailer.db.tables.message import COUNTERS
from mailer.mailing import purging, service
from mailer.message import counters
from mailer.message.counters import GLOBAL_COUNTS
from mailer.statistics.verify import Difference, find_differences
from mailer.statuses import OUTCOMES


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


async def add_mailing_of_gateways(engine: AsyncEngine) -> int:
    """Add a mailing: one message through `two`, one of each outcome through `one`, one untried.

    All its counters are merged.
    """
    clients = await add_clients(engine, len(OUTCOMES) + 2)
    mailing_id = await add_mailing(engine, clients=len(clients))
    for client, status in zip(clients, ("delivered", *OUTCOMES, "cancelled"), strict=True):
        await add_messages(engine, mailing_id, [client], status)
    await execute(
        engine,
        f"UPDATE message SET parts = 2, gateway = CASE client_id WHEN {clients[0]} THEN 'two'"  # noqa: S608  # numbers
        f" ELSE 'one' END WHERE client_id <> {clients[-1]} AND mailing_id = {mailing_id}",
    )
    await do(engine, lambda db: counters.merge_deltas(db, 10_000))
    return mailing_id


@pytest.mark.parametrize("column", COUNTERS)
@pytest.mark.parametrize(
    "dimension", ["operator_code", "time_zone", "attempts", "gateway", "second"]
)
async def test_every_wrong_counter_of_a_mailing_is_found(
    engine: AsyncEngine, dimension: str, column: str
) -> None:
    mailing_id = await add_mailing_of_gateways(engine)
    assert await find_differences(engine) == []
    await execute(
        engine,
        f"UPDATE message_count SET {column} = {column} + 1 WHERE (mailing_id, dimension, key) ="  # noqa: S608  # values of the test
        " (SELECT mailing_id, dimension, min(key) FROM message_count"
        f" WHERE dimension = '{dimension}' GROUP BY 1, 2)",
    )

    of_mailing = [each for each in await find_differences(engine) if each.mailing_id is not None]

    [difference] = of_mailing
    quantity = {"messages": "all", "parts": "parts of"}.get(column, column)
    assert difference.mailing_id == mailing_id
    assert difference.quantity.startswith(f"count of {quantity} messages with {dimension} ")
    assert difference.found == difference.expected + 1


@pytest.mark.parametrize("column", GLOBAL_COUNTS)
async def test_a_count_of_all_days_at_the_wrong_gateway_is_found(
    engine: AsyncEngine, column: str
) -> None:
    await add_mailing_of_gateways(engine)
    change = f"UPDATE outcome_count SET {column} = {column}"  # noqa: S608  # a column's name
    await execute(
        engine, f"{change} + 1 WHERE gateway = 'two'", f"{change} - 1 WHERE gateway = 'one'"
    )

    differences = await find_differences(engine)

    quantity = "parts of" if column == "parts" else column
    assert [(each.quantity, each.found - each.expected) for each in differences] == [
        (f"sum of {quantity} messages through one over all days", -1),
        (f"sum of {quantity} messages through two over all days", 1),
    ]


async def test_counts_of_all_days_by_gateway_outlive_a_deleted_mailing(engine: AsyncEngine) -> None:
    await add_mailing_of_gateways(engine)
    deleted = await add_mailing_of_gateways(engine)
    await service.delete(engine, deleted, COMMAND_LINE)
    for _ in range(3):
        await do(engine, lambda db: purging.purge(db, 1_000))
    assert await find_differences(engine) == []

    await execute(engine, "UPDATE outcome_count SET parts = 1 WHERE gateway = 'two'")
    assert await find_differences(engine) == [
        Difference(None, "sum of parts of messages through two over all days", 1, 2)
    ]
