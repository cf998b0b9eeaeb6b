"""Counts of accepted messages and their receipts, by gateway and operator code."""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

import httpx
import pytest
from sqlalchemy.ext.asyncio import AsyncEngine
from tests.asgi_client import inside
from tests.factories import (
    DAY,
    HOUR,
    NOON,
    OPEN,
    UnusedGateway,
    add_clients,
    add_mailing,
    add_messages,
    channel_of,
    do,
    execute,
    value,
)

from mailer.app import create_app
from mailer.gateway.channel import Channels
from mailer.gateway.protocol import ReceiptUse
from mailer.gateway_control import store
from mailer.gateway_control.delivery import DeliveryCounts
from mailer.gateway_control.model import DeliveryByCode
from mailer.gateway_control.store import Deliveries
from mailer.message import counters
from mailer.receipt.decision import NO_RECEIPT, NOT_DELIVERED, VALIDITY_EXPIRED
from mailer.settings import Settings
from mailer.statistics.verify import Difference, find_differences

LEASE_COLUMNS = "lease_owner = gen_random_uuid(), lease_expires_at = now()"
ALL_DELIVERED = "SELECT sum(delivered) FROM all_delivery_counts"
Outcome = tuple[str, str | None, int]
"""Status, reason and number of messages."""
EACH: Sequence[Outcome] = (
    ("sent", None, 5),
    ("sent", NO_RECEIPT, 1),
    ("delivered", None, 3),
    ("undelivered", NOT_DELIVERED, 1),
    ("undelivered", f"{NOT_DELIVERED}_30003", 1),
    ("undelivered", VALIDITY_EXPIRED, 2),
    # not accepted
    ("undelivered", "rejected_400", 7),
    ("unknown", "timeout", 7),
    ("scheduled", "http_503", 7),
)


async def add(
    engine: AsyncEngine,
    *outcomes: Outcome,
    code: str = "916",
    gateway: str = "main",
    ago: timedelta = timedelta(),
) -> int:
    """Create a mailing with messages that a gateway has accepted or not; return its id."""
    clients = await add_clients(engine, sum(number for *_, number in outcomes), code)
    mailing_id = await add_mailing(engine, clients=len(clients), start=datetime.now(UTC) - ago)
    for status, reason, number in outcomes:
        some, clients = clients[:number], clients[number:]
        await add_messages(engine, mailing_id, some, status, reason, datetime.now(UTC) - ago)
    await execute(
        engine,
        f"UPDATE message SET gateway = '{gateway}' WHERE mailing_id = {mailing_id}",  # noqa: S608  # values of the test
    )
    return mailing_id


async def merge(engine: AsyncEngine) -> None:
    await do(engine, lambda db: counters.merge_deltas(db, 10_000))


async def count(engine: AsyncEngine, gateway: str = "main") -> Deliveries:
    return await do(engine, lambda db: store.count_deliveries(db, gateway))


@pytest.mark.parametrize("are_merged", [False, True])
async def test_accepted_messages_are_counted_by_operator_code_and_period(
    engine: AsyncEngine, *, are_merged: bool
) -> None:
    await add(engine, *EACH, code="916")
    await add(engine, ("delivered", None, 2), code="916", ago=2 * DAY)
    await add(engine, ("delivered", None, 20), code="903", ago=3 * DAY)
    await add(engine, ("delivered", None, 4), code="916", ago=9 * DAY)
    await add(engine, ("delivered", None, 6), code="916", gateway="spare")
    if are_merged:
        await merge(engine)

    found = await count(engine)

    today = DeliveryCounts(awaiting=5, no_receipt=1, delivered=3, undelivered=4)
    assert found.last_day == [DeliveryByCode("916", today)]
    assert found.last_week == [
        DeliveryByCode("903", DeliveryCounts(delivered=20)),
        DeliveryByCode("916", today + DeliveryCounts(delivered=2)),
    ]
    assert (await count(engine, "spare")).last_day == [
        DeliveryByCode("916", DeliveryCounts(delivered=6))
    ]
    assert await find_differences(engine) == []


async def test_counts_by_gateway_are_the_sums_of_those_by_operator_code(
    engine: AsyncEngine,
) -> None:
    await add(engine, *EACH, code="916")
    await add(engine, *EACH, code="903", ago=3 * HOUR)
    await merge(engine)

    outcomes = (await do(engine, store.count_last_24_hours))["main"]

    [first, second] = (await count(engine)).last_day
    assert outcomes.delivery == first.counts + second.counts
    # those of three hours ago are in the day before the last hour, the others in the last hour
    assert outcomes.last_hour == outcomes.day_before == first.counts


async def test_the_day_before_ends_an_hour_ago_and_lasts_24_hours(engine: AsyncEngine) -> None:
    await add(engine, ("delivered", None, 1))
    await add(engine, ("delivered", None, 2), ago=24.5 * HOUR)
    await add(engine, ("delivered", None, 4), ago=26 * HOUR)

    outcomes = (await do(engine, store.count_last_24_hours))["main"]

    assert outcomes.delivered == 1
    assert outcomes.last_hour.delivered == 1
    assert outcomes.day_before.delivered == 2


async def test_every_change_of_an_accepted_message_changes_the_counts(engine: AsyncEngine) -> None:
    await add(engine, ("scheduled", None, 8))
    no_lease = "lease_owner = NULL, lease_expires_at = NULL"
    for change, expected in (
        (f"status = 'sending', {LEASE_COLUMNS}", None),
        (f"status = 'sent', sent_at = now(), {no_lease}", DeliveryCounts(awaiting=8)),
        (f"reason = '{NO_RECEIPT}'", DeliveryCounts(no_receipt=8)),
        ("status = 'delivered', reason = NULL WHERE id % 2 = 0", DeliveryCounts(0, 4, 4)),
        (
            f"status = 'undelivered', reason = '{NOT_DELIVERED}' WHERE id % 2 = 1",
            DeliveryCounts(delivered=4, undelivered=4),
        ),
        # a retry
        (
            "status = 'scheduled', reason = NULL, sent_at = NULL WHERE status = 'undelivered'",
            DeliveryCounts(delivered=4),
        ),
    ):
        await execute(engine, f"UPDATE message SET {change}")  # noqa: S608  # the changes above
        for _ in ("before the merge", "after it"):
            found = (await count(engine)).last_day
            assert found == ([] if expected is None else [DeliveryByCode("916", expected)]), change
            assert await find_differences(engine) == []
            await merge(engine)


async def test_counts_older_than_eight_days_are_deleted_and_not_written_again(
    engine: AsyncEngine,
) -> None:
    await add(engine, ("delivered", None, 1))
    await merge(engine)
    await execute(
        engine, "UPDATE delivery_count SET bucket_start = bucket_start - interval '8 days'"
    )
    await add(engine, ("delivered", None, 2), ago=9 * DAY)
    assert await value(engine, ALL_DELIVERED) == 3

    await merge(engine)

    assert await value(engine, ALL_DELIVERED) is None


async def test_old_messages_do_not_count_in_any_period(engine: AsyncEngine) -> None:
    clients = await add_clients(engine, 2)
    mailing_id = await add_mailing(engine, clients=2)
    await add_messages(engine, mailing_id, clients, "sent", at=NOON)
    await execute(engine, "UPDATE message SET gateway = 'main'")
    assert await count(engine) == Deliveries([], [])
    assert await do(engine, store.count_last_24_hours) == {}


async def test_verify_finds_a_wrong_count(engine: AsyncEngine) -> None:
    await add(engine, ("delivered", None, 1), ago=3 * HOUR)
    await add(engine, ("delivered", None, 3))
    await merge(engine)
    assert await find_differences(engine) == []

    await execute(
        engine,
        "UPDATE delivery_count SET delivered = 4 WHERE gateway = 'main' AND delivered = 3",
    )

    assert await find_differences(engine) == [
        Difference(None, "sum of delivered messages through main by operator code", 4, 3)
    ]


async def test_metrics_have_the_deliveries_of_gateways_that_send_receipts(
    engine: AsyncEngine,
) -> None:
    await add(engine, *EACH)
    await add(engine, ("delivered", None, 2), ago=3 * HOUR)
    await add(engine, ("delivered", None, 6), gateway="spare")
    main, spare = (channel_of(UnusedGateway(), Settings(), name=name) for name in ("main", "spare"))
    main.receipts = ReceiptUse(is_awaited=True)
    app = create_app(engine, Channels([main, spare]), settings=OPEN)
    async with httpx.AsyncClient(transport=inside(app), base_url="http://mailer") as client:
        exposed = (await client.get("/metrics")).text

    lines = [line for line in exposed.splitlines() if line.startswith("mailer_gateway_deliveries{")]
    labels = 'gateway="main",period="{}",result="{}"'
    assert sorted(lines) == sorted(
        f"mailer_gateway_deliveries{{{labels.format(period, result)}}} {messages}.0"
        for (period, result), messages in {
            ("hour", "awaiting"): 5,
            ("hour", "no_receipt"): 1,
            ("hour", "delivered"): 3,
            ("hour", "undelivered"): 4,
            ("day_before", "awaiting"): 0,
            ("day_before", "no_receipt"): 0,
            ("day_before", "delivered"): 2,
            ("day_before", "undelivered"): 0,
        }.items()
    )
