"""Outcomes are counted on the day of their event; the sum over all days equals the counters."""

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
    clear,
    do,
    execute,
    resend,
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

ODD_ZONES = (
    "Asia/Kolkata",
    "Asia/Kathmandu",
    "Australia/Eucla",
    "America/St_Johns",
    "Asia/Bangkok",
)


async def get_outcomes(engine: AsyncEngine) -> Counter[str]:
    """Return the outcomes of all mailings in the statistics."""
    messages = msgspec.structs.asdict((await statistics.general(engine)).messages)
    return +Counter[str]({name: messages[name] for name in OUTCOMES})


async def sum_of_reports(engine: AsyncEngine, zone: str, first: date, last: date) -> Counter[str]:
    """Return the sum of outcomes in the daily reports from `first` to `last`."""
    total: Counter[str] = Counter()
    for days in range((last - first).days + 1):
        report = await daily_report(engine, first + timedelta(days=days), zone)
        total.update(msgspec.structs.asdict(report.outcomes))
        failed: Counter[str] = Counter()
        for failure in report.failures:
            failed[failure.status] += failure.messages
        assert failed == +Counter(
            {name: getattr(report.outcomes, name) for name in OUTCOMES if name != "delivered"}
        )
    return +total


async def purge(engine: AsyncEngine) -> None:
    for _ in range(3):
        await do(engine, lambda db: purging.purge(db, 1_000))


@pytest.mark.parametrize("ends_at", [timedelta(), timedelta(seconds=-6), timedelta(seconds=6)])
async def test_messages_that_expire_around_midnight_are_in_the_report_of_their_day(
    engine: AsyncEngine, ends_at: timedelta
) -> None:
    midnight = datetime(2030, 1, 15, tzinfo=ZoneInfo("Asia/Bangkok"))
    clients = await add_clients(engine, 75)
    end = midnight + ends_at
    mailing_id = await add_mailing(engine, clients=75, start=end - HOUR, lasts=HOUR)
    await add_messages(engine, mailing_id, clients[:38], "delivered", at=end - HOUR / 2)
    second = timedelta(seconds=0.4)
    await add_messages(engine, mailing_id, clients[38:], "cancelled", "expired", at=end + second)
    settled = f"{SETTLED}, updated_at = '{end + 2 * second}'"
    await execute(engine, f"UPDATE mailing SET {settled}")  # noqa: S608  # values of the test

    days = [await daily_report(engine, date(2030, 1, day), "Asia/Bangkok") for day in (14, 15)]

    assert sum(day.outcomes.delivered for day in days) == 38
    assert sum(day.outcomes.cancelled for day in days) == 37
    report_of_the_day = days[(end + second).date().day - 14]
    assert report_of_the_day.outcomes.cancelled == 37
    assert [mailing.id for mailing in report_of_the_day.mailings] == [mailing_id]


async def test_deleted_mailings_stay_in_reports_and_statistics(engine: AsyncEngine) -> None:
    clients = await add_clients(engine, 6)
    mailing_id = await add_mailing(engine, clients=6, start=datetime.now(UTC) - HOUR)
    now = datetime.now(UTC)
    await add_messages(engine, mailing_id, clients[:3], "delivered", at=now)
    await add_messages(engine, mailing_id, clients[3:4], "undelivered", "rejected_400", at=now)
    await add_messages(engine, mailing_id, clients[4:], "scheduled", at=now)
    before = await daily_report(engine, now.date(), "UTC")

    await service.delete(engine, mailing_id, COMMAND_LINE)
    for merges in (False, True, True):
        assert await get_outcomes(engine) == {"delivered": 3, "undelivered": 1}
        assert (await statistics.general(engine)).messages.scheduled == 0
        report = await daily_report(engine, now.date(), "UTC")
        assert (report.outcomes, report.failures) == (before.outcomes, before.failures)
        assert report.mailings == []
        hours = await do(engine, lambda db: statistics.get_outcomes_last_24_hours(db, now))
        assert sum(hour.messages.delivered for hour in hours) == 3
        assert await find_differences(engine) == []
        await purge(engine)
        if merges:
            await do(engine, lambda db: counters.merge_deltas(db, 1_000))
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


@pytest.mark.parametrize("zone", ODD_ZONES)
async def test_outcomes_of_a_long_mailing_are_on_their_days_in_zones_with_odd_offsets(
    engine: AsyncEngine, zone: str
) -> None:
    midnight = datetime(2030, 1, 15, tzinfo=ZoneInfo(zone)).astimezone(UTC)
    clients = await add_clients(engine, 4)
    start = midnight - timedelta(days=20)
    mailing_id = await add_mailing(engine, clients=4, start=start, lasts=timedelta(days=40))
    second = timedelta(seconds=1)
    for client, at in zip(
        clients, (start, midnight - second, midnight, midnight + 15 * 24 * HOUR), strict=True
    ):
        await add_messages(engine, mailing_id, [client], "delivered", at=at)
    await do(engine, lambda db: counters.merge_deltas(db, 1_000))
    await do(engine, downsampling.downsample)

    for day in (date(2030, 1, 14), date(2030, 1, 15)):
        assert (await daily_report(engine, day, zone)).outcomes.delivered == 1


async def test_an_unknown_message_counts_on_the_day_of_its_decision(
    engine: AsyncEngine,
) -> None:
    """The report of the day of its last attempt may have been mailed already."""
    mailing_id = await add_due_messages(engine, 1)
    yesterday = await value(engine, "SELECT (now() - interval '1 day') AT TIME ZONE 'UTC'")
    await execute(
        engine,
        "UPDATE message SET unknown_reason = 'timeout', reason = 'timeout', attempts = 1,"
        " claimed_at = now() - interval '1 day'",
    )
    await service.cancel(engine, mailing_id, COMMAND_LINE)
    await clear(engine)

    assert await value(engine, "SELECT sent_at < now() - interval '23 hours' FROM message")
    for merges in (False, True):
        if merges:
            await do(engine, lambda db: counters.merge_deltas(db, 1_000))
        first = (await daily_report(engine, yesterday.date(), "UTC")).outcomes
        assert first.unknown == 0
        last = yesterday.date() + timedelta(days=2)
        assert await sum_of_reports(engine, "UTC", yesterday.date(), last) == {"unknown": 1}
    assert await find_differences(engine) == []


OUTCOMES_AND_WAITING = (
    ("delivered", None),
    ("undelivered", "rejected_400"),
    ("unknown", "timeout"),
    ("cancelled", "no_window"),
    ("scheduled", "http_503"),
    ("scheduled", None),
)


class Operator:
    """Performs random actions on mailings."""

    def __init__(self, engine: AsyncEngine, seed: int) -> None:
        self._engine = engine
        self._random = random.Random(seed)  # noqa: S311  # not for security
        self._mailings: list[int] = []

    async def act(self) -> None:
        """Perform one action."""
        while len(self._mailings) < 2:
            await self._add_mailing()
        with contextlib.suppress(ConflictError):
            await self._random.choice(
                (self._retry, self._delete, self._cancel, self._run_job, self._run_job)
            )()

    async def _add_mailing(self) -> None:
        now, clients = datetime.now(UTC), await add_clients(self._engine, 8)
        lasts = self._random.choice([HOUR, 30 * HOUR, 400 * HOUR])
        start = now - timedelta(minutes=15 * self._random.randrange(4 * 24 * 8))
        mailing_id = await add_mailing(self._engine, clients=8, start=start, lasts=2 * lasts)
        self._mailings.append(mailing_id)
        for client in clients:
            at = min(now, start + lasts * self._random.random())
            status, reason = self._random.choice(OUTCOMES_AND_WAITING)
            await add_messages(self._engine, mailing_id, [client], status, reason, at=at)

    async def _retry(self) -> None:
        mailing_id = self._random.choice(self._mailings)
        open_end = "datetime_end = now() + interval '1 hour'"
        await execute(self._engine, f"UPDATE mailing SET {open_end} WHERE id = {mailing_id}")  # noqa: S608  # values of the test
        await service.retry(self._engine, mailing_id, COMMAND_LINE)
        await resend(self._engine, chunk=3)

    async def _delete(self) -> None:
        mailing_id = self._mailings.pop(self._random.randrange(len(self._mailings)))
        await service.delete(self._engine, mailing_id, COMMAND_LINE)

    async def _cancel(self) -> None:
        await service.cancel(self._engine, self._random.choice(self._mailings), COMMAND_LINE)

    async def _run_job(self) -> None:
        chunk = self._random.randrange(1, 40)
        steps: tuple[Callable[[AsyncConnection], Awaitable[object]], ...] = (
            lambda db: counters.merge_deltas(db, chunk),
            lambda db: purging.purge(db, 3),
            lambda db: purging.delete_expired_messages(db, 1, 3),
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
    zone = ODD_ZONES[seed % len(ODD_ZONES)]
    today = datetime.now(ZoneInfo(zone)).date()
    days = (today - timedelta(days=30), today + timedelta(days=1))

    assert await sum_of_reports(engine, zone, *days) == await get_outcomes(engine)
    assert await find_differences(engine) == []
