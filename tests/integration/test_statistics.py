"""Statistics of all mailings and of one mailing."""

import asyncio
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy.ext.asyncio import AsyncEngine
from tests.factories import (
    NOON,
    SETTLED,
    add_clients,
    add_mailing,
    add_messages,
    create_channel,
    create_channels,
    execute,
)

from mailer.access.model import COMMAND_LINE
from mailer.errors import InvalidError
from mailer.forecast import service as forecast
from mailer.forecast.tiers import GatewayThroughput, by_name
from mailer.gateway.channel import NO_CHANNELS, Channels
from mailer.gateway.protocol import TemporaryFailure
from mailer.mailing import service, store
from mailer.mailing.errors import MailingNotFoundError
from mailer.statistics import service as statistics
from mailer.statistics.model import (
    AttemptsCounts,
    Bucket,
    GatewayCounts,
    GeneralStatistics,
    MailingCounts,
    MailingStatistics,
    ReasonCount,
    Series,
)
from mailer.statistics.over_time import MAX_BUCKETS, bucket_seconds
from mailer.statistics.verify import find_differences
from mailer.statuses import MAILING_STATUSES, MessageCounts, OutcomeCounts

MINUTE = timedelta(minutes=1)


def test_counts_have_every_status_of_mailings() -> None:
    assert MailingCounts.__struct_fields__ == MAILING_STATUSES


async def test_statistics_of_an_empty_database_are_zero(engine: AsyncEngine) -> None:
    assert await statistics.general(engine) == GeneralStatistics(
        MailingCounts.of(), MessageCounts.of()
    )


async def test_clients_of_a_scheduled_mailing_count_as_scheduled_messages(
    engine: AsyncEngine,
) -> None:
    await add_mailing(engine, status="scheduled", clients=7)
    running = await add_mailing(engine, status="running", clients=3)
    await add_messages(engine, running, await add_clients(engine, 2), "delivered")

    assert await statistics.general(engine) == GeneralStatistics(
        MailingCounts.of(scheduled=1, running=1), MessageCounts.of(scheduled=7, delivered=2)
    )


async def test_deleted_mailings_do_not_count_but_their_sent_messages_do(
    engine: AsyncEngine,
) -> None:
    mailing_id = await add_mailing(engine, clients=5)
    clients = await add_clients(engine, 5)
    await add_messages(engine, mailing_id, clients[:2], "delivered")
    await add_messages(engine, mailing_id, clients[2:], "scheduled")
    await service.delete(engine, mailing_id, COMMAND_LINE)

    assert await statistics.general(engine) == GeneralStatistics(
        MailingCounts.of(), MessageCounts.of(delivered=2)
    )


async def test_general_statistics_read_no_message(engine: AsyncEngine) -> None:
    await add_mailing(engine)
    async with engine.begin() as connection:
        await connection.exec_driver_sql("LOCK TABLE message IN ACCESS EXCLUSIVE MODE")
        assert (await statistics.general(engine)).mailings.running == 1


async def test_messages_of_a_closed_mailing_may_change_until_it_is_settled(
    engine: AsyncEngine,
) -> None:
    clients = await add_clients(engine, 2)
    mailing_id = await add_mailing(engine, clients=2)
    await add_messages(engine, mailing_id, clients, "unknown")
    await execute(engine, "UPDATE mailing SET status = 'finished', is_closed = true")
    await execute(engine, "UPDATE message SET status = 'delivered'")
    changed = GeneralStatistics(MailingCounts.of(finished=1), MessageCounts.of(delivered=2))
    assert await statistics.general(engine) == changed

    await execute(engine, f"UPDATE mailing SET {SETTLED}")  # noqa: S608  # a constant

    assert await statistics.general(engine) == changed
    assert await find_differences(engine) == []


async def test_a_mailing_that_ends_during_the_query_counts_once(engine: AsyncEngine) -> None:
    clients = await add_clients(engine, 3)
    ids = [await add_mailing(engine, clients=3) for _ in range(40)]
    for mailing_id in ids:
        await add_messages(engine, mailing_id, clients, "delivered")

    async def settle_all() -> None:
        for mailing_id in ids:
            await execute(engine, f"UPDATE mailing SET {SETTLED} WHERE id = {mailing_id}")  # noqa: S608  # a number

    settling = asyncio.create_task(settle_all())
    while not settling.done():
        result = await statistics.general(engine)
        assert result.messages.delivered == 40 * 3
        assert result.mailings.running + result.mailings.finished == 40
    await settling


async def test_every_breakdown_adds_up_to_the_counters(engine: AsyncEngine) -> None:
    moscow = await add_clients(engine, 3, "916", "Europe/Moscow")
    tokyo = await add_clients(engine, 4, "912", "Asia/Tokyo")
    mailing_id = await add_mailing(engine, clients=7)
    await add_messages(engine, mailing_id, [*moscow[:2], tokyo[0]], "delivered")
    await add_messages(engine, mailing_id, [moscow[2]], "undelivered", "rejected_400")
    await add_messages(engine, mailing_id, [tokyo[1]], "cancelled", "no_window")
    await add_messages(engine, mailing_id, [tokyo[2]], "scheduled", "timeout")
    await add_messages(engine, mailing_id, [tokyo[3]], "scheduled")

    result = await statistics.of_mailing(engine, mailing_id)

    assert result.clients_count == 7
    assert result.messages == MessageCounts.of(scheduled=2, delivered=3, undelivered=1, cancelled=1)
    assert result.reasons == [
        ReasonCount("delivered", None, 3),
        ReasonCount("cancelled", "no_window", 1),
        ReasonCount("scheduled", "timeout", 1),
        ReasonCount("scheduled", None, 1),
        ReasonCount("undelivered", "rejected_400", 1),
    ]
    assert {code.operator_code: code.messages for code in result.operator_codes} == {
        "912": MessageCounts.of(scheduled=2, delivered=1, cancelled=1),
        "916": MessageCounts.of(delivered=2, undelivered=1),
    }
    assert {zone.time_zone: zone.messages for zone in result.time_zones} == {
        "Asia/Tokyo": MessageCounts.of(scheduled=2, delivered=1, cancelled=1),
        "Europe/Moscow": MessageCounts.of(delivered=2, undelivered=1),
    }


async def test_outcomes_are_in_buckets_without_gaps(engine: AsyncEngine) -> None:
    clients = await add_clients(engine, 5)
    mailing_id = await add_mailing(engine)
    await add_messages(engine, mailing_id, clients[:2], "delivered", at=NOON + MINUTE * 1.5)
    await add_messages(engine, mailing_id, [clients[2]], "cancelled", "expired", at=NOON + MINUTE)
    await add_messages(engine, mailing_id, [clients[3]], "delivered", at=NOON + 4 * MINUTE)
    await add_messages(engine, mailing_id, [clients[4]], "scheduled", at=NOON - MINUTE)

    result = await statistics.of_mailing(engine, mailing_id, bucket=60)

    assert result.over_time == Series(
        bucket=60,
        buckets=[
            Bucket(NOON + MINUTE, OutcomeCounts.of(delivered=2, cancelled=1)),
            Bucket(NOON + 2 * MINUTE, OutcomeCounts.of()),
            Bucket(NOON + 3 * MINUTE, OutcomeCounts.of()),
            Bucket(NOON + 4 * MINUTE, OutcomeCounts.of(delivered=1)),
        ],
    )
    assert result.first_sent_at == NOON + MINUTE * 1.5
    assert result.last_sent_at == NOON + 4 * MINUTE


async def add_mailing_of_1000_minutes(engine: AsyncEngine) -> int:
    """Add a mailing with two outcomes, 1,000 minutes apart."""
    clients = await add_clients(engine, 2)
    mailing_id = await add_mailing(engine)
    await add_messages(engine, mailing_id, [clients[0]], "delivered", at=NOON)
    await add_messages(engine, mailing_id, [clients[1]], "delivered", at=NOON + 1000 * MINUTE)
    return mailing_id


async def test_the_default_bucket_size_results_in_at_most_500_buckets(engine: AsyncEngine) -> None:
    mailing_id = await add_mailing_of_1000_minutes(engine)

    over_time = (await statistics.of_mailing(engine, mailing_id)).over_time

    # 2 minutes would result in 501 buckets
    assert over_time.bucket == 5 * 60
    assert len(over_time.buckets) == 1000 // 5 + 1


async def test_a_bucket_that_is_too_short_or_no_multiple_of_the_resolution_is_refused(
    engine: AsyncEngine,
) -> None:
    mailing_id = await add_mailing_of_1000_minutes(engine)

    with pytest.raises(InvalidError, match="bucket: must be at least 121"):
        await statistics.of_mailing(engine, mailing_id, bucket=120)
    with pytest.raises(InvalidError, match="and a multiple of 60"):
        await statistics.of_mailing(engine, mailing_id, bucket=130)


async def test_the_rate_is_that_of_the_last_minute(engine: AsyncEngine) -> None:
    clients = await add_clients(engine, 7)
    mailing_id = await add_mailing(engine)
    now = datetime.now(UTC)
    await add_messages(engine, mailing_id, clients[:3], "delivered", at=now - MINUTE / 2)
    await add_messages(engine, mailing_id, clients[3:6], "delivered", at=now - 2 * MINUTE)
    await add_messages(engine, mailing_id, clients[6:], "cancelled", "expired", at=now)  # not sent

    assert (await statistics.of_mailing(engine, mailing_id)).rate == 3 / 60


async def add_sending_mailing(engine: AsyncEngine, *, lasts: timedelta = 60 * MINUTE) -> int:
    """Add a mailing that sent one message a second for half a minute, with 60 messages left."""
    now = datetime.now(UTC)
    clients = await add_clients(engine, 91)
    reached, waiting = clients[:31], clients[31:]
    mailing_id = await add_mailing(engine, clients=91, start=now - MINUTE, lasts=lasts)
    for seconds, client in enumerate(reached):
        at = now - timedelta(seconds=seconds)
        await add_messages(engine, mailing_id, [client], "delivered", at=at)
    await add_messages(engine, mailing_id, waiting, "scheduled", at=now)
    return mailing_id


async def get_statistics(
    engine: AsyncEngine, mailing_id: int, rate: float = 1
) -> MailingStatistics:
    """Return the statistics, given a working gateway and a limit of `rate` messages a second."""
    return await statistics.of_mailing(
        engine, mailing_id, channels=create_channels(gateway_rate=rate)
    )


def seconds_until(moment: datetime | None) -> float:
    """Return the seconds from now until a moment."""
    assert moment is not None
    return (moment - datetime.now(UTC)).total_seconds()


async def test_a_recently_started_mailing_has_a_rate_and_an_expected_end(
    engine: AsyncEngine,
) -> None:
    result = await get_statistics(engine, await add_sending_mailing(engine))
    assert result.rate == pytest.approx(1, rel=0.1)
    assert seconds_until(result.expected_end) == pytest.approx(60, rel=0.1)


async def test_the_expected_end_includes_clients_that_are_not_enqueued_yet(
    engine: AsyncEngine,
) -> None:
    mailing_id = await add_sending_mailing(engine)
    await add_clients(engine, 60, "999")  # they get the ids 92 to 151
    await execute(
        engine,
        "UPDATE mailing SET clients_count = 151, audience_cursor = 91, audience_until = 151",
    )
    result = await get_statistics(engine, mailing_id)
    assert seconds_until(result.expected_end) == pytest.approx(60 + 60, rel=0.1)


async def test_the_expected_end_equals_the_forecast(engine: AsyncEngine) -> None:
    mailing_id = await add_sending_mailing(engine)
    result = await get_statistics(engine, mailing_id, rate=4)
    gateways = by_name(GatewayThroughput("default", 4, is_limited=True))
    expected = await forecast.of_mailing(engine, mailing_id, gateways)
    assert expected is not None
    assert expected.done_at is not None
    assert result.expected_end is not None
    assert abs(result.expected_end - expected.done_at) < timedelta(seconds=10)


async def test_without_a_working_gateway_there_is_no_expected_end(
    engine: AsyncEngine,
) -> None:
    mailing_id = await add_sending_mailing(engine)
    in_outage = create_channel(gateway_rate=1, breaker_failures=1)
    permit = in_outage.breaker.acquire(0.0)
    assert permit is not None
    in_outage.breaker.record(permit, TemporaryFailure("http_503"), 0.0, datetime.now(UTC))
    assert in_outage.breaker.outage is not None
    for channels in (Channels([in_outage]), NO_CHANNELS):
        result = await statistics.of_mailing(engine, mailing_id, channels=channels)
        assert result.expected_end is None


async def test_the_expected_end_is_not_after_the_mailings_end(engine: AsyncEngine) -> None:
    # it started a minute ago, so half a minute is left for 60 messages
    mailing_id = await add_sending_mailing(engine, lasts=1.5 * MINUTE)
    async with engine.connect() as connection:
        end = (await store.get(connection, mailing_id)).datetime_end
    assert (await get_statistics(engine, mailing_id)).expected_end == end


@pytest.mark.parametrize(
    "change",
    [
        "UPDATE mailing SET status = 'paused'",
        "UPDATE message SET status = 'delivered', sent_at = now()",
    ],
)
async def test_a_mailing_that_does_not_send_has_no_expected_end(
    engine: AsyncEngine, change: str
) -> None:
    mailing_id = await add_sending_mailing(engine)
    await execute(engine, change)
    assert (await get_statistics(engine, mailing_id)).expected_end is None


async def test_attempts_count_only_messages_with_an_outcome(engine: AsyncEngine) -> None:
    clients = await add_clients(engine, 6)
    mailing_id = await add_mailing(engine, clients=6)
    await add_messages(engine, mailing_id, clients[:3], "delivered")
    await add_messages(engine, mailing_id, clients[3:5], "undelivered", "attempts_exhausted")
    await add_messages(engine, mailing_id, clients[5:], "scheduled", "timeout")
    await execute(
        engine,
        "UPDATE message SET attempts = CASE status WHEN 'delivered' THEN 1 ELSE 8 END",
        "UPDATE message SET attempts = 2 WHERE id = (SELECT min(id) FROM message)",
    )

    result = await statistics.of_mailing(engine, mailing_id)

    assert result.attempts == [
        AttemptsCounts(1, OutcomeCounts.of(delivered=2)),
        AttemptsCounts(2, OutcomeCounts.of(delivered=1)),
        AttemptsCounts(8, OutcomeCounts.of(undelivered=2)),
    ]


async def test_gateways_count_outcomes_of_tried_messages_and_parts_of_accepted_ones(
    engine: AsyncEngine,
) -> None:
    clients = await add_clients(engine, 6)
    mailing_id = await add_mailing(engine, clients=6)
    await add_messages(engine, mailing_id, clients[:3], "delivered")
    await add_messages(engine, mailing_id, clients[3:4], "undelivered", "rejected_400")
    await add_messages(engine, mailing_id, clients[4:5], "cancelled", "expired")
    await add_messages(engine, mailing_id, clients[5:], "scheduled", "timeout")
    await execute(
        engine,
        "UPDATE message SET gateway = 'second' WHERE status <> 'cancelled'",
        "UPDATE message SET parts = 3 WHERE status = 'delivered'",
        "UPDATE message SET gateway = 'first', parts = 2 WHERE id = (SELECT min(id) FROM message)",
    )

    result = await statistics.of_mailing(engine, mailing_id)

    assert result.gateways == [
        GatewayCounts("first", OutcomeCounts.of(delivered=1), parts=2),
        GatewayCounts("second", OutcomeCounts.of(delivered=2, undelivered=1), parts=6),
    ]


async def test_a_scheduled_mailing_has_only_scheduled_messages(engine: AsyncEngine) -> None:
    mailing_id = await add_mailing(engine, status="scheduled", clients=7)

    result = await statistics.of_mailing(engine, mailing_id)

    assert result.messages == MessageCounts.of(scheduled=7)
    assert result.over_time == Series(bucket=1, buckets=[])
    assert result.reasons == [ReasonCount("scheduled", None, 7)]
    assert result.operator_codes == []
    assert result.time_zones == []
    assert result.attempts == []
    assert result.gateways == []
    assert result.rate == 0
    assert result.first_sent_at is None
    assert result.last_sent_at is None


async def test_an_unknown_mailing_has_no_statistics(engine: AsyncEngine) -> None:
    with pytest.raises(MailingNotFoundError):
        await statistics.of_mailing(engine, 1)


@given(
    first=st.floats(0, 4e9, allow_nan=False),
    span=st.floats(0, 1e9, allow_nan=False),
)
def test_no_time_span_has_more_than_500_buckets(first: float, span: float) -> None:
    bucket = bucket_seconds(span, requested=None)
    first_bucket, last_bucket = first // bucket, (first + span) // bucket
    assert last_bucket - first_bucket + 1 <= MAX_BUCKETS
