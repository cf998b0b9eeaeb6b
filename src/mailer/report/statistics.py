"""Counts of mailings and messages: all mailings by their ledgers, one in detail by its messages."""

from collections import defaultdict
from collections.abc import Iterable
from datetime import UTC, datetime
from math import ceil
from typing import Any

from sqlalchemy import Row, func, select, text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from mailer.db.schema import MESSAGE_STATUSES
from mailer.errors import FieldError, InvalidError
from mailer.mailing import store as mailings
from mailer.mailing.model import Mailing
from mailer.mailing.store import select_mailings
from mailer.report.model import (
    Bucket,
    GeneralStatistics,
    MailingCounts,
    MailingStatistics,
    MessageCounts,
    OperatorCodeCounts,
    OutcomeCounts,
    ReasonCount,
    Series,
    TimeZoneCounts,
)
from mailer.report.snapshot import snapshot

MOST_BUCKETS = 500
DAY = 86_400
STEPS = (1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 10_800, 21_600, 43_200)
"""Seconds of a bucket that people read easily; longer ones are whole days."""


def sums(shown: Any) -> list[Any]:  # noqa: ANN401  # SQLAlchemy names no type for a subquery's row
    """Return the sum of each count of the mailings in `shown`, under the name of its status."""
    return [
        func.coalesce(func.sum(shown.c[f"{name}_messages"]), 0).label(name)
        for name in MESSAGE_STATUSES
    ]


def message_counts(row: Row[Any]) -> MessageCounts:
    """Return the `sums` in a row."""
    return MessageCounts(**{name: int(getattr(row, name)) for name in MESSAGE_STATUSES})


async def general(connection: AsyncConnection) -> GeneralStatistics:
    """Count all mailings and their messages, from the ledgers alone."""
    shown = select_mailings().subquery()
    statement = select(shown.c.status, func.count().label("mailings"), *sums(shown)).group_by(
        shown.c.status
    )
    rows = list(await connection.execute(statement))
    by_status = [message_counts(row) for row in rows]
    return GeneralStatistics(
        MailingCounts.of(**{row.status: row.mailings for row in rows}),
        MessageCounts(
            **{name: sum(getattr(c, name) for c in by_status) for name in MESSAGE_STATUSES}
        ),
    )


async def of_mailing(
    engine: AsyncEngine, mailing_id: int, bucket: int | None = None
) -> MailingStatistics:
    """Count one mailing in detail, over time in buckets of that many seconds.

    Raises `MailingNotFoundError`, and `InvalidError` when that would be too many buckets.
    """
    async with snapshot(engine) as connection:
        mailing = await mailings.get(connection, mailing_id)
        groups: dict[str, list[Row[Any]]] = defaultdict(list)
        for row in await connection.execute(GROUPS, {"mailing_id": mailing_id}):
            groups[row.grouped_by].append(row)
        (total,) = groups["nothing"]
        series = await _series(connection, mailing_id, total, bucket)
    return MailingStatistics(
        mailing_id=mailing_id,
        clients_count=mailing.clients_count,
        messages=ledger_of(mailing),
        reasons=[ReasonCount(row.status, row.reason, row.messages) for row in groups["reason"]],
        operator_codes=[
            OperatorCodeCounts(code, counts)
            for code, counts in _by("operator_code", groups["operator_code"])
        ],
        time_zones=[
            TimeZoneCounts(zone, counts) for zone, counts in _by("time_zone", groups["time_zone"])
        ],
        over_time=series,
        rate=total.sent_last_minute / 60,
        first_sent_at=total.first_sent_at,
        last_sent_at=total.last_sent_at,
    )


def ledger_of(mailing: Mailing) -> MessageCounts:
    """Return the ledger that a mailing is shown with."""
    return MessageCounts(
        **{name: getattr(mailing, f"{name}_messages") for name in MESSAGE_STATUSES}
    )


def _by(name: str, rows: Iterable[Row[Any]]) -> list[tuple[str, MessageCounts]]:
    """Return the counts by status of each value in the column `name`, by value."""
    counts: dict[str, dict[str, int]] = defaultdict(dict)
    for row in rows:
        counts[getattr(row, name)][row.status] = row.messages
    return [(value, MessageCounts.of(**counts[value])) for value in sorted(counts)]


# The mailing's messages are read once for every way of grouping them. A client's row stays for
# good, so that none should be missing; if one is, its message still counts.
GROUPS = text("""
    WITH counted AS (
        SELECT message.status, message.reason, message.sent_at,
            coalesce(client.operator_code, 'missing') AS operator_code,
            coalesce(client.time_zone, 'missing') AS time_zone,
            CASE WHEN message.status NOT IN ('scheduled', 'sending')
                THEN coalesce(message.sent_at, message.updated_at) END AS ended_at
        FROM message LEFT JOIN client ON client.id = message.client_id
        WHERE message.mailing_id = :mailing_id)
    SELECT CASE grouping(reason, operator_code, time_zone)
            WHEN 3 THEN 'reason' WHEN 5 THEN 'operator_code' WHEN 6 THEN 'time_zone'
            ELSE 'nothing' END AS grouped_by,
        status, reason, operator_code, time_zone, count(*) AS messages,
        min(sent_at) AS first_sent_at, max(sent_at) AS last_sent_at,
        count(*) FILTER (WHERE sent_at > now() - interval '1 minute') AS sent_last_minute,
        min(ended_at) AS first_ended_at, max(ended_at) AS last_ended_at
    FROM counted
    GROUP BY GROUPING SETS ((status, reason), (status, operator_code), (status, time_zone), ())
    ORDER BY messages DESC, status, reason""")

# A message ended when it was sent, or else when it was last written.
ENDED = text("""
    SELECT date_bin(make_interval(secs => :bucket), ended_at, timestamptz '1970-01-01Z') AS start,
        status, count(*) AS messages
    FROM (SELECT status, coalesce(sent_at, updated_at) AS ended_at FROM message
          WHERE mailing_id = :mailing_id
            AND status IN ('delivered', 'undelivered', 'unknown', 'cancelled')) AS ended
    GROUP BY 1, 2""")


async def _series(
    connection: AsyncConnection, mailing_id: int, total: Row[Any], asked: int | None
) -> Series:
    first, last = total.first_ended_at, total.last_ended_at
    if first is None:
        return Series(asked or STEPS[0], [])
    bucket = bucket_seconds((last - first).total_seconds(), asked)
    counts: dict[datetime, dict[str, int]] = defaultdict(dict)
    for row in await connection.execute(ENDED, {"mailing_id": mailing_id, "bucket": bucket}):
        counts[row.start][row.status] = row.messages
    starts = range(int(min(counts).timestamp()), int(max(counts).timestamp()) + 1, bucket)
    moments = (datetime.fromtimestamp(start, UTC) for start in starts)
    return Series(bucket, [Bucket(at, OutcomeCounts.of(**counts[at])) for at in moments])


def bucket_seconds(span: float, asked: int | None) -> int:
    """Return how long a bucket is when outcomes span that many seconds.

    Raises `InvalidError` when what was asked for makes too many of them.
    """
    least = max(1, ceil(span / (MOST_BUCKETS - 1)))  # a span touches one bucket more than it fills
    if asked is None:
        return next((step for step in STEPS if step >= least), ceil(least / DAY) * DAY)
    if asked < least:
        rule = f"must be at least {least}: there are at most {MOST_BUCKETS} buckets"
        raise InvalidError([FieldError("bucket", rule)])
    return asked
