"""Daily reports count each message once, on the day on which it got its final status.

So the sum of all daily reports equals the counts in the statistics. Here, the outcomes are the
numbers of delivered, undelivered, unknown and cancelled messages.
"""

import contextlib
import random
from collections import Counter
from collections.abc import Awaitable, Callable
from datetime import UTC, date, datetime, timedelta
from zoneinfo import ZoneInfo

import msgspec
import pytest
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine
from tests.factories import (
    HOUR,
    SETTLED,
    add_clients,
    add_due_messages,
    add_mailing,
    add_messages,
    do,
    end_messages,
    execute,
    schedule_retried,
    value,
)

from mailer.access.model import COMMAND_LINE
from mailer.daily_report.report import daily_report
from mailer.errors import ConflictError
from mailer.mailing import downsampling, finishing, purging, service
from mailer.message import counters
from mailer.statistics import service as statistics
from mailer.statistics.verify import find_differences
from mailer.statuses import OUTCOMES

ZONES_WITH_ODD_OFFSETS = (
    "Asia/Kolkata",
    "Asia/Kathmandu",
    "Australia/Eucla",
    "America/St_Johns",
    "Asia/Bangkok",
)


def without_zeros(counts: dict[str, int]) -> Counter[str]:
    return +Counter(counts)


async def get_outcomes(engine: AsyncEngine) -> Counter[str]:
    """Return the outcomes of all mailings in the statistics, without zeros."""
    messages = msgspec.structs.asdict((await statistics.general(engine)).messages)
    return without_zeros({name: messages[name] for name in OUTCOMES})


async def sum_of_reports(engine: AsyncEngine, zone: str, first: date, last: date) -> Counter[str]:
    """Return the sum of outcomes in the daily reports from `first` to `last`, without zeros.

    In each report, the numbers of failures by reason must add up to the outcomes.
    """
    total: Counter[str] = Counter()
    for days in range((last - first).days + 1):
        report = await daily_report(engine, first + timedelta(days=days), zone)
        outcomes = msgspec.structs.asdict(report.outcomes)
        total.update(outcomes)
        failed: Counter[str] = Counter()
        for failure in report.failures:
            failed[failure.status] += failure.messages
        assert failed == without_zeros({**outcomes, "delivered": 0})
    return without_zeros(total)


async def purge(engine: AsyncEngine) -> None:
    """Purge all deleted mailings, which takes several steps."""
    for _ in range(3):
        await do(engine, lambda db: purging.purge(db, 1_000))


async def merge_deltas(engine: AsyncEngine) -> None:
    """Add the changes of counters, which are stored as deltas first, to the counters."""
    await do(engine, lambda db: counters.merge_deltas(db, 1_000))


@pytest.mark.parametrize(
    ("seconds_after_midnight", "day"), [(-6, 14), (0, 15), (6, 15)], ids=["before", "at", "after"]
)
async def test_messages_that_expire_around_midnight_are_in_the_report_of_their_day(
    engine: AsyncEngine, seconds_after_midnight: int, day: int
) -> None:
    """The mailing ends around midnight, and its messages expire right after its end."""
    midnight = datetime(2030, 1, 15, tzinfo=ZoneInfo("Asia/Bangkok"))
    end = midnight + timedelta(seconds=seconds_after_midnight)
    expired_at, settled_at = end + timedelta(seconds=0.4), end + timedelta(seconds=0.8)
    clients = await add_clients(engine, 75)
    mailing_id = await add_mailing(engine, clients=75, start=end - HOUR, lasts=HOUR)
    await add_messages(engine, mailing_id, clients[:38], "delivered", at=end - HOUR / 2)
    await add_messages(engine, mailing_id, clients[38:], "cancelled", "expired", at=expired_at)
    await execute(engine, f"UPDATE mailing SET {SETTLED}, updated_at = '{settled_at}'")  # noqa: S608  # values of the test

    reports = {
        day: await daily_report(engine, date(2030, 1, day), "Asia/Bangkok") for day in (14, 15)
    }

    assert sum(report.outcomes.delivered for report in reports.values()) == 38
    assert sum(report.outcomes.cancelled for report in reports.values()) == 37
    assert reports[day].outcomes.cancelled == 37
    assert [mailing.id for mailing in reports[day].mailings] == [mailing_id]


async def test_deleted_mailings_stay_in_reports_and_statistics(engine: AsyncEngine) -> None:
    clients = await add_clients(engine, 6)
    mailing_id = await add_mailing(engine, clients=6, start=datetime.now(UTC) - HOUR)
    now = datetime.now(UTC)
    await add_messages(engine, mailing_id, clients[:3], "delivered", at=now)
    await add_messages(engine, mailing_id, clients[3:4], "undelivered", "rejected_400", at=now)
    await add_messages(engine, mailing_id, clients[4:], "scheduled", at=now)
    report_before = await daily_report(engine, now.date(), "UTC")

    async def assert_outcomes_stay() -> None:
        assert await get_outcomes(engine) == {"delivered": 3, "undelivered": 1}
        assert (await statistics.general(engine)).messages.scheduled == 0
        report = await daily_report(engine, now.date(), "UTC")
        assert report.outcomes == report_before.outcomes
        assert report.failures == report_before.failures
        assert report.mailings == []
        hours = await do(engine, lambda db: statistics.get_outcomes_last_24_hours(db, now))
        assert sum(hour.messages.delivered for hour in hours) == 3
        assert await find_differences(engine) == []

    await service.delete(engine, mailing_id, COMMAND_LINE)
    await assert_outcomes_stay()
    await purge(engine)
    await assert_outcomes_stay()
    await merge_deltas(engine)
    await assert_outcomes_stay()
    await purge(engine)
    assert await value(engine, "SELECT count(*) FROM mailing") == 0


async def test_a_mailing_cancelled_before_its_start_is_in_the_report_of_that_day(
    engine: AsyncEngine,
) -> None:
    mailing_id = await add_mailing(
        engine, clients=5, start=datetime.now(UTC) + HOUR, status="scheduled"
    )
    await service.cancel(engine, mailing_id, COMMAND_LINE)
    today = await value(engine, "SELECT (now() AT TIME ZONE 'UTC')::date")

    assert await get_outcomes(engine) == {"cancelled": 5}
    assert await sum_of_reports(engine, "UTC", today - timedelta(days=1), today) == {"cancelled": 5}
    await service.delete(engine, mailing_id, COMMAND_LINE)
    await purge(engine)
    assert await get_outcomes(engine) == {"cancelled": 5}
    assert await find_differences(engine) == []


@pytest.mark.parametrize("zone", ZONES_WITH_ODD_OFFSETS)
async def test_outcomes_of_a_long_mailing_are_on_their_days_in_zones_with_odd_offsets(
    engine: AsyncEngine, zone: str
) -> None:
    midnight = datetime(2030, 1, 15, tzinfo=ZoneInfo(zone)).astimezone(UTC)
    start = midnight - timedelta(days=20)
    delivered_at = (
        start,
        midnight - timedelta(seconds=1),
        midnight,
        midnight + timedelta(days=15),
    )
    clients = await add_clients(engine, 4)
    mailing_id = await add_mailing(engine, clients=4, start=start, lasts=timedelta(days=40))
    for client, at in zip(clients, delivered_at, strict=True):
        await add_messages(engine, mailing_id, [client], "delivered", at=at)
    await merge_deltas(engine)
    await do(engine, downsampling.downsample)

    for day in (date(2030, 1, 14), date(2030, 1, 15)):
        assert (await daily_report(engine, day, zone)).outcomes.delivered == 1


async def test_a_message_counts_as_unknown_on_the_day_on_which_it_ends(
    engine: AsyncEngine,
) -> None:
    """Not on the day of its last attempt, whose report may have been mailed already."""
    mailing_id = await add_due_messages(engine, 1)
    now = await value(engine, "SELECT now() AT TIME ZONE 'UTC'")
    yesterday, tomorrow = (now + timedelta(days=days) for days in (-1, 1))
    await execute(
        engine,
        "UPDATE message SET unknown_reason = 'timeout', reason = 'timeout', attempts = 1,"
        " claimed_at = now() - interval '1 day'",
    )
    await service.cancel(engine, mailing_id, COMMAND_LINE)
    await end_messages(engine)

    assert await value(engine, "SELECT sent_at < now() - interval '23 hours' FROM message")
    for are_merged in (False, True):
        if are_merged:
            await merge_deltas(engine)
        report_of_yesterday = await daily_report(engine, yesterday.date(), "UTC")
        assert report_of_yesterday.outcomes.unknown == 0
        total = await sum_of_reports(engine, "UTC", yesterday.date(), tomorrow.date())
        assert total == {"unknown": 1}
    assert await find_differences(engine) == []


STATUSES_AND_REASONS = (
    ("delivered", None),
    ("undelivered", "rejected_400"),
    ("unknown", "timeout"),
    ("cancelled", "no_window"),
    ("scheduled", "http_503"),
    ("scheduled", None),
)


class Operator:
    """Performs random actions on mailings, as users, the dispatcher and periodic jobs do."""

    def __init__(self, engine: AsyncEngine, seed: int) -> None:
        self._engine = engine
        self._random = random.Random(seed)  # noqa: S311  # not for security
        self._mailings: list[int] = []

    async def act(self) -> None:
        """Perform one action, unless the mailing's status does not allow it."""
        while len(self._mailings) < 2:
            await self._add_mailing()
        with contextlib.suppress(ConflictError):
            await self._random.choice(
                (self._retry, self._delete, self._cancel, self._run_job, self._run_job)
            )()

    async def _add_mailing(self) -> None:
        """Add a mailing that started within the last 8 days, with messages of all statuses."""
        now, clients = datetime.now(UTC), await add_clients(self._engine, 8)
        quarter_hour = timedelta(minutes=15)
        start = now - quarter_hour * self._random.randrange(4 * 24 * 8)
        sending_time = self._random.choice([HOUR, 30 * HOUR, 400 * HOUR])
        mailing_id = await add_mailing(self._engine, clients=8, start=start, lasts=2 * sending_time)
        self._mailings.append(mailing_id)
        for client in clients:
            at = min(now, start + sending_time * self._random.random())
            status, reason = self._random.choice(STATUSES_AND_REASONS)
            await add_messages(self._engine, mailing_id, [client], status, reason, at=at)

    async def _retry(self) -> None:
        """Retry the undelivered messages of a mailing, after moving its end to the future."""
        mailing_id = self._random.choice(self._mailings)
        later_end = "datetime_end = now() + interval '1 hour'"
        await execute(self._engine, f"UPDATE mailing SET {later_end} WHERE id = {mailing_id}")  # noqa: S608  # values of the test
        await service.retry(self._engine, mailing_id, COMMAND_LINE)
        await schedule_retried(self._engine, chunk=3)

    async def _delete(self) -> None:
        mailing_id = self._mailings.pop(self._random.randrange(len(self._mailings)))
        await service.delete(self._engine, mailing_id, COMMAND_LINE)

    async def _cancel(self) -> None:
        await service.cancel(self._engine, self._random.choice(self._mailings), COMMAND_LINE)

    async def _run_job(self) -> None:
        """Do a chunk of any work that the dispatcher and the periodic jobs do."""
        chunk = self._random.randrange(1, 40)
        steps: tuple[Callable[[AsyncConnection], Awaitable[object]], ...] = (
            lambda db: counters.merge_deltas(db, chunk),
            lambda db: purging.purge(db, 3),
            lambda db: purging.delete_expired_messages(db, days=1, chunk=3),
            lambda db: finishing.end_scheduled_messages(db, 5),
            finishing.finish,
            downsampling.downsample,
        )
        await do(self._engine, self._random.choice(steps))


@pytest.mark.parametrize("seed", range(6))
async def test_the_sum_over_all_days_equals_the_counters_after_random_actions(
    engine: AsyncEngine, seed: int
) -> None:
    operator = Operator(engine, seed)
    for _ in range(30):
        await operator.act()
    zone = ZONES_WITH_ODD_OFFSETS[seed % len(ZONES_WITH_ODD_OFFSETS)]
    today = datetime.now(ZoneInfo(zone)).date()
    first, last = today - timedelta(days=30), today + timedelta(days=1)

    assert await sum_of_reports(engine, zone, first, last) == await get_outcomes(engine)
    assert await find_differences(engine) == []
