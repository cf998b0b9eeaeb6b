"""Counts of mailings and messages: all mailings by their ledgers, one in detail by its tallies."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from datetime import UTC, datetime
from math import ceil
from typing import Any, get_args

import msgspec
from sqlalchemy import Row, func, select, text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from mailer.db import processes
from mailer.db.schema import MESSAGE_STATUSES, OUTCOMES, settled
from mailer.errors import FieldError, InvalidError
from mailer.gateway.breaker import Breaker
from mailer.gateway.pace import Pace
from mailer.mailing import store as mailings
from mailer.mailing.hold import with_hold
from mailer.mailing.model import Mailing
from mailer.mailing.store import LIVE, select_mailings
from mailer.message import tally
from mailer.message.model import Status
from mailer.message.tally import Tally
from mailer.report import forecast, progress
from mailer.report.model import (
    AttemptsCounts,
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
from mailer.report.progress import Progress
from mailer.report.snapshot import snapshot

STATUSES: tuple[Status, ...] = get_args(Status)
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


async def general(engine: AsyncEngine) -> GeneralStatistics:
    """Count all mailings and their messages, from the ledgers alone.

    What is settled is counted in one row: only the ledgers of live mailings are read. What was sent
    of a mailing stays when it is deleted; what it had still to send goes with it.
    """
    shown = select_mailings().where(LIVE).subquery()
    live = select(shown.c.status, func.count().label("mailings"), *sums(shown)).group_by(
        shown.c.status
    )
    async with snapshot(engine) as connection:  # what settles meanwhile is in one of them alone
        rows = list(await connection.execute(live))
        deleted = (await connection.execute(DELETED)).one()
        done = (await connection.execute(select(settled))).one()
    mailings_by = Counter({row.status: row.mailings for row in rows})
    mailings_by.update(finished=done.finished, cancelled=done.cancelled_mailings)
    messages_by = Counter({name: getattr(done, name) for name in OUTCOMES})
    for row in rows:
        messages_by.update(msgspec.structs.asdict(message_counts(row)))
    messages_by.update(deleted._asdict())
    return GeneralStatistics(MailingCounts.of(**mailings_by), MessageCounts.of(**messages_by))


# Of those whose messages are not deleted yet: with the last of them they count as settled.
DELETED = text(f"""
    SELECT {", ".join(f'coalesce(sum("{n}"), 0)::bigint AS "{n}"' for n in ("sending", *OUTCOMES))}
    FROM mailing JOIN ledger ON mailing_id = id
    WHERE deleted_at IS NOT NULL AND NOT is_settled""")  # noqa: S608  # our own columns
SENDING = text("""
    SELECT operator_code, time_zone, count(*) AS messages FROM message
    WHERE mailing_id = :mailing_id AND status = 'sending' GROUP BY operator_code, time_zone""")


async def of_mailing(
    engine: AsyncEngine,
    mailing_id: int,
    bucket: int | None = None,
    *,
    breaker: Breaker | None = None,
    pace: Pace | None = None,
) -> MailingStatistics:
    """Count one mailing in detail, over time in buckets of that many seconds.

    It reads counts, and no message but those that are being sent. Raises `MailingNotFoundError`,
    and `InvalidError` when that bucket is too short, or not one that the outcomes divide into.
    """
    async with snapshot(engine) as connection:
        mailing = with_hold(await mailings.get(connection, mailing_id), breaker)
        [made] = await progress.of_mailings(connection, [mailing])
        at_work = await processes.at_work(connection)
        usable = forecast.usable_pace(pace, breaker)
        basis = await forecast.read(connection, mailing, usable, len(at_work) or 1)
        counts = await in_detail(connection, made, bucket)
    end = forecast.expected_end(mailing, await forecast.compute(basis))
    return msgspec.structs.replace(counts, expected_end=end)


async def in_detail(
    connection: AsyncConnection,
    made: Progress,
    bucket: int | None = None,
    *,
    most_buckets: int = MOST_BUCKETS,
) -> MailingStatistics:
    """Count a mailing that was read in the same snapshot; raises `InvalidError` likewise.

    When its end is expected is left out, for whoever computes that once no connection is held.
    """
    mailing = made.mailing
    tallies = await tally.of_mailing(connection, mailing.id)
    sending = list(await connection.execute(SENDING, {"mailing_id": mailing.id}))
    messages = ledger_of(mailing)
    return MailingStatistics(
        mailing_id=mailing.id,
        clients_count=mailing.clients_count,
        messages=messages,
        reasons=_reasons(messages, tallies["reason"]),
        operator_codes=[
            OperatorCodeCounts(code, counts)
            for code, counts in _by(tallies["operator_code"], sending, "operator_code")
        ],
        time_zones=[
            TimeZoneCounts(zone, counts)
            for zone, counts in _by(tallies["time_zone"], sending, "time_zone")
        ],
        attempts=[
            AttemptsCounts(int(attempts), outcomes_of(found))
            for attempts, found in sorted(
                tallies["attempts"].items(), key=lambda item: int(item[0])
            )
        ],
        over_time=_series(tallies["second"], bucket, most_buckets),
        rate=made.rate,
        first_sent_at=made.first_sent_at,
        last_sent_at=made.last_sent_at,
        expected_end=None,
    )


def ledger_of(mailing: Mailing) -> MessageCounts:
    """Return the ledger that a mailing is shown with."""
    return MessageCounts(
        **{name: getattr(mailing, f"{name}_messages") for name in MESSAGE_STATUSES}
    )


def outcomes_of(found: Tally) -> OutcomeCounts:
    """Return what became of the messages of a tally."""
    return OutcomeCounts(**{name: getattr(found, name) for name in OUTCOMES})


def _reasons(messages: MessageCounts, tallies: Mapping[str, Tally]) -> list[ReasonCount]:
    """Return the ledger's counts by reason; what has none is what the reasons leave of it."""
    counts = []
    for status in STATUSES:
        by_reason = {reason: found.of(status) for reason, found in tallies.items()}
        without = getattr(messages, status) - sum(by_reason.values())
        counts += [ReasonCount(status, reason, count) for reason, count in by_reason.items()]
        counts.append(ReasonCount(status, None, without))
    return sorted((count for count in counts if count.messages), key=_most_first)


def _most_first(count: ReasonCount) -> tuple[int, str, bool, str]:
    return -count.messages, count.status, count.reason is None, count.reason or ""


def _by(
    tallies: Mapping[str, Tally], sending: Iterable[Row[Any]], name: str
) -> Iterator[tuple[str, MessageCounts]]:
    """Yield the counts by status of each value of a column; what is being sent waits in tallies."""
    being_sent: Counter[str] = Counter()
    for row in sending:
        being_sent[getattr(row, name)] += row.messages
    for value, found in tallies.items():
        now = being_sent[value]
        outcomes = msgspec.structs.asdict(outcomes_of(found))
        yield value, MessageCounts(scheduled=found.waiting - now, sending=now, **outcomes)


def _series(seconds: Mapping[str, Tally], asked: int | None, most: int) -> Series:
    """Return what became of messages over time, each second added to the bucket it lies in."""
    if not seconds:
        return Series(asked or STEPS[0], [])
    first, last = int(min(seconds)), int(max(seconds))
    bucket = bucket_seconds(last - first, asked, most)
    buckets: dict[int, Counter[str]] = defaultdict(Counter)
    for second, found in seconds.items():
        counts = buckets[int(second) // bucket * bucket]
        for name in OUTCOMES:
            counts[name] += getattr(found, name)
    starts = range(first // bucket * bucket, last + 1, bucket)
    # a correction may land in another bucket than the outcome, so clamp at zero
    shown = ({name: max(0, count) for name, count in buckets[at].items()} for at in starts)
    return Series(
        bucket,
        [
            Bucket(datetime.fromtimestamp(at, UTC), OutcomeCounts.of(**counts))
            for at, counts in zip(starts, shown, strict=True)
        ],
    )


def bucket_seconds(span: float, asked: int | None, most: int = MOST_BUCKETS) -> int:
    """Return how long a bucket is when outcomes span that many seconds, in at most so many.

    Raises `InvalidError` when what was asked for makes too many of them, or cuts through what is
    counted together.
    """
    least = max(1, ceil(span / (most - 1)))  # a span touches one bucket more than it fills
    step = tally.resolution(span)
    if asked is None:
        fits = (s for s in STEPS if s >= least and s % step == 0)
        return next(fits, ceil(least / DAY) * DAY)
    if asked < least or asked % step:
        many = f"at least {least}: there are at most {most} buckets"
        whole = f"; and a multiple of {step}: outcomes over so long are counted by {step} s"
        raise InvalidError([FieldError("bucket", f"must be {many}{whole if step > 1 else ''}")])
    return asked
