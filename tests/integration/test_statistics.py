import asyncio
from datetime import UTC, datetime, timedelta

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy.ext.asyncio import AsyncEngine
from tests.sample import NOON, add_clients, add_mailing, add_messages, execute

from mailer.access.model import COMMAND_LINE
from mailer.db.schema import MAILING_STATUSES, MESSAGE_STATUSES
from mailer.errors import InvalidError
from mailer.gateway.breaker import Breaker
from mailer.gateway.pace import Pace
from mailer.gateway.port import Unavailable
from mailer.mailing import service, store
from mailer.mailing.model import MailingNotFoundError
from mailer.report import forecast, statistics
from mailer.report.model import (
    AttemptsCounts,
    GeneralStatistics,
    MailingCounts,
    MailingStatistics,
    MessageCounts,
    OutcomeCounts,
    ReasonCount,
)

MINUTE = timedelta(minutes=1)
NOTHING = GeneralStatistics(MailingCounts.of(), MessageCounts.of())


def test_counts_know_every_status() -> None:
    assert MailingCounts.__struct_fields__ == MAILING_STATUSES
    assert MessageCounts.__struct_fields__ == MESSAGE_STATUSES


async def test_nothing_is_counted_as_zero_of_everything(engine: AsyncEngine) -> None:
    assert await statistics.general(engine) == GeneralStatistics(
        MailingCounts.of(), MessageCounts.of()
    )


async def test_clients_of_a_mailing_that_has_not_begun_count_as_scheduled(
    engine: AsyncEngine,
) -> None:
    await add_mailing(engine, status="scheduled", clients=7)
    running = await add_mailing(engine, status="running", clients=3)
    await add_messages(engine, running, await add_clients(engine, 2), "delivered")

    assert await statistics.general(engine) == GeneralStatistics(
        MailingCounts.of(scheduled=1, running=1), MessageCounts.of(scheduled=7, delivered=2)
    )


async def test_deleted_mailings_do_not_count_but_what_was_sent_of_them_does(
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


async def test_a_mailing_that_ends_meanwhile_counts_once(engine: AsyncEngine) -> None:
    clients = await add_clients(engine, 3)
    ids = [await add_mailing(engine, clients=3) for _ in range(40)]
    for mailing_id in ids:
        await add_messages(engine, mailing_id, clients, "delivered")

    async def end_all() -> None:
        for mailing_id in ids:
            ends = "status = 'finished', is_settled = true"
            await execute(engine, f"UPDATE mailing SET {ends} WHERE id = {mailing_id}")  # noqa: S608  # of a test

    ending = asyncio.create_task(end_all())
    while not ending.done():
        found = await statistics.general(engine)
        assert found.messages.delivered == 120
        assert found.mailings.running + found.mailings.finished == 40
    await ending


async def test_every_way_of_counting_adds_up_to_the_ledger(engine: AsyncEngine) -> None:
    moscow = await add_clients(engine, 3, "916", "Europe/Moscow")
    tokyo = await add_clients(engine, 4, "912", "Asia/Tokyo")
    mailing_id = await add_mailing(engine, clients=7)
    await add_messages(engine, mailing_id, [*moscow[:2], tokyo[0]], "delivered")
    await add_messages(engine, mailing_id, [moscow[2]], "undelivered", "rejected_400")
    await add_messages(engine, mailing_id, [tokyo[1]], "cancelled", "no_window")
    await add_messages(engine, mailing_id, [tokyo[2]], "scheduled", "timeout")
    await add_messages(engine, mailing_id, [tokyo[3]], "scheduled")

    found = await statistics.of_mailing(engine, mailing_id)

    assert found.clients_count == 7
    assert found.messages == MessageCounts.of(scheduled=2, delivered=3, undelivered=1, cancelled=1)
    assert found.reasons == [
        ReasonCount("delivered", None, 3),
        ReasonCount("cancelled", "no_window", 1),
        ReasonCount("scheduled", "timeout", 1),
        ReasonCount("scheduled", None, 1),
        ReasonCount("undelivered", "rejected_400", 1),
    ]
    assert {code.operator_code: code.messages for code in found.operator_codes} == {
        "912": MessageCounts.of(scheduled=2, delivered=1, cancelled=1),
        "916": MessageCounts.of(delivered=2, undelivered=1),
    }
    assert {zone.time_zone: zone.messages for zone in found.time_zones} == {
        "Asia/Tokyo": MessageCounts.of(scheduled=2, delivered=1, cancelled=1),
        "Europe/Moscow": MessageCounts.of(delivered=2, undelivered=1),
    }


async def test_outcomes_lie_in_buckets_without_a_gap(engine: AsyncEngine) -> None:
    clients = await add_clients(engine, 5)
    mailing_id = await add_mailing(engine)
    await add_messages(engine, mailing_id, clients[:2], "delivered", at=NOON + MINUTE * 1.5)
    await add_messages(engine, mailing_id, [clients[2]], "cancelled", "expired", NOON + MINUTE)
    await add_messages(engine, mailing_id, [clients[3]], "delivered", at=NOON + 4 * MINUTE)
    await add_messages(engine, mailing_id, [clients[4]], "scheduled", at=NOON - MINUTE)

    found = await statistics.of_mailing(engine, mailing_id, 60)

    assert found.over_time.bucket == 60
    assert [
        ((bucket.start - NOON) // MINUTE, bucket.messages.delivered, bucket.messages.cancelled)
        for bucket in found.over_time.buckets
    ] == [(1, 2, 1), (2, 0, 0), (3, 0, 0), (4, 1, 0)]
    assert found.first_sent_at == NOON + MINUTE * 1.5
    assert found.last_sent_at == NOON + 4 * MINUTE


async def test_bucket_is_chosen_so_that_there_are_at_most_500(engine: AsyncEngine) -> None:
    clients = await add_clients(engine, 2)
    mailing_id = await add_mailing(engine)
    await add_messages(engine, mailing_id, [clients[0]], "delivered")
    await add_messages(engine, mailing_id, [clients[1]], "delivered", at=NOON + 1000 * MINUTE)

    over_time = (await statistics.of_mailing(engine, mailing_id)).over_time
    assert over_time.bucket == 300
    assert len(over_time.buckets) == 201

    with pytest.raises(InvalidError, match="bucket: must be at least 121"):
        await statistics.of_mailing(engine, mailing_id, 120)
    with pytest.raises(InvalidError, match="and a multiple of 60"):
        await statistics.of_mailing(engine, mailing_id, 130)


async def test_rate_is_what_was_sent_in_the_last_minute(engine: AsyncEngine) -> None:
    clients = await add_clients(engine, 7)
    mailing_id = await add_mailing(engine)
    now = datetime.now(UTC)
    await add_messages(engine, mailing_id, clients[:3], "delivered", at=now - MINUTE / 2)
    await add_messages(engine, mailing_id, clients[3:6], "delivered", at=now - 2 * MINUTE)
    await add_messages(engine, mailing_id, clients[6:], "cancelled", "expired", at=now)

    assert (await statistics.of_mailing(engine, mailing_id)).rate == 3 / 60


async def sending(
    engine: AsyncEngine, *, last_due: timedelta = timedelta(), lasts: timedelta = 60 * MINUTE
) -> int:
    """A mailing that has sent one message a second for half a minute, with 60 messages left."""
    now = datetime.now(UTC)
    clients = await add_clients(engine, 91)
    mailing_id = await add_mailing(engine, clients=91, start=now - MINUTE, lasts=lasts)
    for seconds, client in enumerate(clients[:31]):
        at = now - timedelta(seconds=seconds)
        await add_messages(engine, mailing_id, [client], "delivered", at=at)
    await add_messages(engine, mailing_id, clients[31:-1], "scheduled", at=now)
    await add_messages(engine, mailing_id, clients[-1:], "scheduled", at=now + last_due)
    return mailing_id


async def measured(engine: AsyncEngine, mailing_id: int, rate: float = 1) -> MailingStatistics:
    """The statistics at a process that sends so many messages a second, to a gateway that is up."""
    return await statistics.of_mailing(
        engine, mailing_id, breaker=Breaker(10, 15), pace=Pace(50, rate)
    )


async def test_rate_and_expected_end_of_a_mailing_that_has_just_begun(engine: AsyncEngine) -> None:
    found = await measured(engine, await sending(engine))
    assert found.rate == pytest.approx(1, rel=0.1)
    assert found.expected_end is not None
    left = found.expected_end - datetime.now(UTC)
    assert left.total_seconds() == pytest.approx(60, rel=0.1)


async def test_clients_who_are_still_to_be_taken_are_expected_too(engine: AsyncEngine) -> None:
    mailing_id = await sending(engine)
    await add_clients(engine, 60, "999")
    await execute(
        engine,
        "UPDATE mailing SET clients_count = 151, audience_cursor = 91, audience_until = 151",
    )
    found = await measured(engine, mailing_id)
    assert found.expected_end is not None
    left = found.expected_end - datetime.now(UTC)
    assert left.total_seconds() == pytest.approx(120, rel=0.1)


async def test_expected_end_is_that_of_the_forecast(engine: AsyncEngine) -> None:
    mailing_id = await sending(engine)
    found = await measured(engine, mailing_id, 4)
    expected = await forecast.of_mailing(engine, mailing_id, Pace(50, 4))
    assert expected is not None
    assert expected.done_at is not None
    assert found.expected_end is not None
    assert abs(found.expected_end - expected.done_at) < timedelta(seconds=10)


async def test_no_end_is_expected_while_the_gateway_takes_nothing_or_none_is_configured(
    engine: AsyncEngine,
) -> None:
    mailing_id = await sending(engine)
    down = Breaker(1, 15)
    permit = down.begin(0.0)
    assert permit is not None
    down.record(permit, Unavailable("http_503"), 0.0, datetime.now(UTC))
    assert down.hold is not None
    for breaker in (down, None):
        found = await statistics.of_mailing(engine, mailing_id, breaker=breaker, pace=Pace(50, 1))
        assert found.expected_end is None


async def test_nothing_is_expected_after_the_end(engine: AsyncEngine) -> None:
    mailing_id = await sending(engine, lasts=1.5 * MINUTE)
    async with engine.connect() as connection:
        end = (await store.get(connection, mailing_id)).datetime_end
    assert (await measured(engine, mailing_id)).expected_end == end


@pytest.mark.parametrize(
    "change",
    [
        "UPDATE mailing SET status = 'paused'",
        "UPDATE message SET status = 'delivered', sent_at = now()",
    ],
)
async def test_no_end_is_expected_of_what_does_not_go_on(engine: AsyncEngine, change: str) -> None:
    mailing_id = await sending(engine)
    await execute(engine, change)
    assert (await measured(engine, mailing_id)).expected_end is None


async def test_attempts_are_those_of_messages_with_an_outcome(engine: AsyncEngine) -> None:
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

    found = await statistics.of_mailing(engine, mailing_id)

    assert found.attempts == [
        AttemptsCounts(1, OutcomeCounts.of(delivered=2)),
        AttemptsCounts(2, OutcomeCounts.of(delivered=1)),
        AttemptsCounts(8, OutcomeCounts.of(undelivered=2)),
    ]


async def test_mailing_that_has_not_begun_has_only_its_ledger(engine: AsyncEngine) -> None:
    mailing_id = await add_mailing(engine, status="scheduled", clients=7)

    found = await statistics.of_mailing(engine, mailing_id)

    assert found.messages == MessageCounts.of(scheduled=7)
    assert msgspec.to_builtins(found.over_time) == {"bucket": 1, "buckets": []}
    assert found.reasons == [ReasonCount("scheduled", None, 7)]
    assert (found.operator_codes, found.time_zones, found.attempts) == ([], [], [])
    assert (found.rate, found.first_sent_at, found.last_sent_at) == (0, None, None)


async def test_unknown_mailing_has_no_statistics(engine: AsyncEngine) -> None:
    with pytest.raises(MailingNotFoundError):
        await statistics.of_mailing(engine, 1)


@given(
    first=st.floats(0, 4e9, allow_nan=False),
    span=st.floats(0, 1e9, allow_nan=False),
)
def test_no_span_touches_more_than_500_buckets(first: float, span: float) -> None:
    bucket = statistics.bucket_seconds(span, None)
    assert (first + span) // bucket - first // bucket + 1 <= statistics.MOST_BUCKETS
