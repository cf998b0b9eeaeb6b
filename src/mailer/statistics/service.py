"""Statistics of all mailings, and detailed statistics of one mailing, from stored counters."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from datetime import UTC, datetime, timedelta
from math import ceil
from typing import Any

import msgspec
from sqlalchemy import Row, func, select, text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from mailer.db import workers
from mailer.db.engine import snapshot
from mailer.db.schema import settled_totals
from mailer.db.sql import sums
from mailer.errors import FieldError, InvalidError
from mailer.forecast import service as forecast
from mailer.gateway.channel import Channel
from mailer.mailing import store as mailings
from mailer.mailing.activity import with_hold
from mailer.mailing.downsampling import resolution
from mailer.mailing.model import Mailing
from mailer.mailing.store import UNSETTLED, select_mailings
from mailer.message import counters
from mailer.message.counters import Counters
from mailer.message.outcomes import count_by_hour
from mailer.statistics import progress
from mailer.statistics.model import (
    AttemptsCounts,
    Bucket,
    GeneralStatistics,
    MailingCounts,
    MailingStatistics,
    OperatorCodeCounts,
    ReasonCount,
    Series,
    TimeZoneCounts,
)
from mailer.statistics.progress import MailingProgress
from mailer.statuses import (
    MESSAGE_STATUSES,
    NOT_SCHEDULED,
    OUTCOMES,
    MessageCounts,
    OutcomeCounts,
)

MAX_BUCKETS = 500
DAY_SECONDS = 86_400
BUCKET_SIZES = (
    1,
    2,
    5,
    10,
    15,
    30,
    60,
    120,
    300,
    600,
    900,
    1800,
    3600,
    7200,
    10_800,
    21_600,
    43_200,
)
"""Lengths of a bucket in seconds that are easy to read. Longer buckets are whole days."""


def sum_columns(subquery: Any) -> list[Any]:  # noqa: ANN401  # SQLAlchemy has no type for its columns
    """Return columns with the sums of a subquery's counts of messages, named by status."""
    return [
        func.coalesce(func.sum(subquery.c[f"{name}_messages"]), 0).label(name)
        for name in MESSAGE_STATUSES
    ]


def counts_from_row(row: Row[Any]) -> MessageCounts:
    """Return the counts in a row that has `sum_columns`."""
    return MessageCounts(**{name: int(getattr(row, name)) for name in MESSAGE_STATUSES})


async def general(engine: AsyncEngine) -> GeneralStatistics:
    """Return counts of all mailings and their messages, from counters.

    Settled mailings are counted in one row of totals, so that only the counts of unsettled mailings
    are read. When a mailing is deleted, its outcomes still count, and its unsent messages do not.
    """
    unsettled = select_mailings().where(UNSETTLED).subquery()
    counts_by_status = select(
        unsettled.c.status, func.count().label("mailings"), *sum_columns(unsettled)
    ).group_by(unsettled.c.status)
    # in a snapshot, so that a mailing that settles meanwhile is counted once
    async with snapshot(engine) as connection:
        rows = list(await connection.execute(counts_by_status))
        deleted = (await connection.execute(COUNT_DELETED)).one()
        totals = (await connection.execute(select(settled_totals))).one()
    mailings_by_status = Counter({row.status: row.mailings for row in rows})
    mailings_by_status.update(finished=totals.finished, cancelled=totals.cancelled_mailings)
    messages_by_status = Counter[str]({name: getattr(totals, name) for name in OUTCOMES})
    for row in rows:
        messages_by_status.update(msgspec.structs.asdict(counts_from_row(row)))
    messages_by_status.update(deleted._asdict())
    return GeneralStatistics(
        MailingCounts.of(**mailings_by_status), MessageCounts.of(**messages_by_status)
    )


# Mailings that are marked as deleted. When the row of such a mailing is deleted, after its last
# message, a trigger adds its counts to the totals of settled mailings.
COUNT_DELETED = text(f"""
    SELECT {sums(NOT_SCHEDULED)}
    FROM mailing JOIN mailing_counts ON mailing_id = id
    WHERE deleted_at IS NOT NULL AND NOT is_settled""")  # noqa: S608  # no user input
COUNT_SENDING = text("""
    SELECT operator_code, time_zone, count(*) AS messages FROM message
    WHERE mailing_id = :mailing_id AND status = 'sending' GROUP BY operator_code, time_zone""")


async def of_mailing(
    engine: AsyncEngine,
    mailing_id: int,
    bucket: int | None = None,
    *,
    channel: Channel | None = None,
) -> MailingStatistics:
    """Return detailed statistics of a mailing, over time in buckets of `bucket` seconds.

    Reads counters, and of the messages only those being sent. Raises `MailingNotFoundError`, and
    `InvalidError` when `bucket` is too short or not a multiple of the resolution of the counters.
    """
    async with snapshot(engine) as connection:
        mailing = with_hold(await mailings.get(connection, mailing_id), channel)
        [mailing_progress] = await progress.get_progress(connection, [mailing])
        active = await workers.active_workers(connection)
        throughput = forecast.usable_throughput(channel)
        basis = await forecast.read(connection, mailing, throughput, len(active) or 1)
        counts = await count_in_detail(connection, mailing_progress, bucket)
    end = forecast.expected_end(mailing, await forecast.compute(basis))
    return msgspec.structs.replace(counts, expected_end=end)


async def count_in_detail(
    connection: AsyncConnection,
    mailing_progress: MailingProgress,
    bucket: int | None = None,
    *,
    max_buckets: int = MAX_BUCKETS,
) -> MailingStatistics:
    """Return statistics of a mailing that was read in the same snapshot.

    `expected_end` is left None. The caller computes it when it holds no connection any more. Raises
    `InvalidError` for a wrong `bucket`.
    """
    mailing = mailing_progress.mailing
    counts = await counters.get_all(connection, mailing.id)
    by_value = counts.by_value
    sending = list(await connection.execute(COUNT_SENDING, {"mailing_id": mailing.id}))
    messages = counts_from_mailing(mailing)
    return MailingStatistics(
        mailing_id=mailing.id,
        clients_count=mailing.clients_count,
        messages=messages,
        reasons=_count_by_reason(messages, by_value["reason"]),
        operator_codes=[
            OperatorCodeCounts(code, code_counts)
            for code, code_counts in _count_by_value(
                by_value["operator_code"], sending, "operator_code"
            )
        ],
        time_zones=[
            TimeZoneCounts(zone, zone_counts)
            for zone, zone_counts in _count_by_value(by_value["time_zone"], sending, "time_zone")
        ],
        attempts=[
            AttemptsCounts(int(attempts), attempts_counts.outcomes)
            for attempts, attempts_counts in sorted(
                by_value["attempts"].items(), key=lambda item: int(item[0])
            )
        ],
        over_time=_outcomes_over_time(counts.by_second, bucket, max_buckets),
        rate=mailing_progress.rate,
        first_sent_at=mailing_progress.first_sent_at,
        last_sent_at=mailing_progress.last_sent_at,
        expected_end=None,
    )


def counts_from_mailing(mailing: Mailing) -> MessageCounts:
    """Return the counts of messages by status of a mailing."""
    return MessageCounts(**{name: mailing.count_of(name) for name in MESSAGE_STATUSES})


def _count_by_reason(
    messages: MessageCounts, counts_by_reason: Mapping[str, Counters]
) -> list[ReasonCount]:
    """Return counts by status and reason.

    The messages without a reason are those of `messages` that `counts_by_reason` does not include.
    """
    result = []
    for status in MESSAGE_STATUSES:
        by_reason = {reason: counts.count_of(status) for reason, counts in counts_by_reason.items()}
        without_reason = getattr(messages, status) - sum(by_reason.values())
        result += [ReasonCount(status, reason, count) for reason, count in by_reason.items()]
        result.append(ReasonCount(status, None, without_reason))
    return sorted((count for count in result if count.messages), key=_largest_first)


def _largest_first(count: ReasonCount) -> tuple[int, str, bool, str]:
    return -count.messages, count.status, count.reason is None, count.reason or ""


def _count_by_value(
    counts_by_value: Mapping[str, Counters], sending_rows: Iterable[Row[Any]], name: str
) -> Iterator[tuple[str, MessageCounts]]:
    """Yield the counts by status for each value of the column `name`.

    Counters do not distinguish scheduled messages from those being sent; `sending_rows` do.
    """
    sending_by_value: Counter[str] = Counter()
    for row in sending_rows:
        sending_by_value[getattr(row, name)] += row.messages
    for value, counts in counts_by_value.items():
        sending = sending_by_value[value]
        outcomes = msgspec.structs.asdict(counts.outcomes)
        yield (
            value,
            MessageCounts(scheduled=counts.waiting - sending, sending=sending, **outcomes),
        )


def _outcomes_over_time(
    counts_by_second: Mapping[datetime, Counters], requested: int | None, max_buckets: int
) -> Series:
    """Return outcomes over time; `requested` is the length of a bucket in seconds, if any."""
    if not counts_by_second:
        return Series(requested or BUCKET_SIZES[0], [])
    by_epoch = {int(start.timestamp()): counts for start, counts in counts_by_second.items()}
    first, last = min(by_epoch), max(by_epoch)
    bucket = bucket_seconds(last - first, requested, max_buckets)
    buckets: dict[int, Counter[str]] = defaultdict(Counter)
    for second, counts in by_epoch.items():
        totals = buckets[second // bucket * bucket]
        for name in OUTCOMES:
            totals[name] += getattr(counts.outcomes, name)
    starts = range(first // bucket * bucket, last + 1, bucket)
    # a correction may land in another bucket than the outcome, so clamp at zero
    clamped = ({name: max(0, count) for name, count in buckets[at].items()} for at in starts)
    return Series(
        bucket,
        [
            Bucket(datetime.fromtimestamp(at, UTC), OutcomeCounts.of(**outcomes))
            for at, outcomes in zip(starts, clamped, strict=True)
        ],
    )


def bucket_seconds(span: float, requested: int | None, max_buckets: int = MAX_BUCKETS) -> int:
    """Return the length of a bucket in seconds, for outcomes that span `span` seconds.

    Raises `InvalidError` when `requested` results in more than `max_buckets` buckets, or is not a
    multiple of the resolution of the counters.
    """
    shortest = max(1, ceil(span / (max_buckets - 1)))  # a span may touch one more bucket
    step = resolution(span)
    if requested is None:
        suitable = (size for size in BUCKET_SIZES if size >= shortest and size % step == 0)
        return next(suitable, ceil(shortest / DAY_SECONDS) * DAY_SECONDS)
    if requested < shortest or requested % step:
        message = f"must be at least {shortest} (at most {max_buckets} buckets)"
        if step > 1:
            message += f" and a multiple of {step} (the resolution of these counts)"
        raise InvalidError([FieldError("bucket", message)])
    return requested


HOURS = 24
HOUR = timedelta(hours=1)


async def get_outcomes_last_24_hours(connection: AsyncConnection, now: datetime) -> list[Bucket]:
    """Return the outcomes in each of the last 24 full hours and in the current hour, in UTC."""
    this_hour = now.astimezone(UTC).replace(minute=0, second=0, microsecond=0)
    start = this_hour - HOURS * HOUR
    outcomes_by_hour = await count_by_hour(connection, start, this_hour + HOUR)
    return [
        Bucket(start + index * HOUR, OutcomeCounts.of(**outcomes_by_hour.get(index, {})))
        for index in range(HOURS + 1)
    ]
