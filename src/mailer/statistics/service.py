"""Statistics of all mailings, and detailed statistics of one mailing, from stored counters."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Literal

import msgspec
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from mailer.db import workers
from mailer.db.engine import snapshot
from mailer.forecast import service as forecast
from mailer.forecast.basis import read_basis
from mailer.forecast.cost import cost_of
from mailer.forecast.throughput import usable_gateways
from mailer.gateway.channel import NO_CHANNELS, Channels
from mailer.mailing import store as mailings
from mailer.mailing.activity import with_hold
from mailer.mailing.model import Mailing
from mailer.message import counters
from mailer.message.counters import Counters
from mailer.message.outcomes import count_by_hour
from mailer.statistics import progress, store
from mailer.statistics.model import (
    AttemptsCounts,
    Bucket,
    GatewayCounts,
    GeneralStatistics,
    MailingCounts,
    MailingStatistics,
    OperatorCodeCounts,
    ReasonCount,
    TextVersionCounts,
    TimeZoneCounts,
)
from mailer.statistics.over_time import MAX_BUCKETS, outcomes_over_time
from mailer.statistics.progress import MailingProgress
from mailer.statistics.store import SendingCount
from mailer.statuses import DRAFT, MESSAGE_STATUSES, MessageCounts, OutcomeCounts


async def general(engine: AsyncEngine) -> GeneralStatistics:
    """Return counts of all mailings and their messages, from counters.

    Settled mailings are counted in one row of totals, so that only the counts of unsettled mailings
    are read. When a mailing is deleted, its outcomes still count, and its unsent messages do not.
    A draft counts as a mailing; its clients are no messages, because nothing of it is scheduled.
    """
    # in a snapshot, so that a mailing that settles meanwhile is counted once
    async with snapshot(engine) as connection:
        unsettled = await store.sum_unsettled(connection)
        deleted = await store.sum_deleted(connection)
        settled = await store.get_settled_totals(connection)
    # `update` of a Counter adds the numbers
    mailings_by_status = Counter[str]({totals.status: totals.mailings for totals in unsettled})
    mailings_by_status.update(finished=settled.finished, cancelled=settled.cancelled)
    messages_by_status = Counter[str](msgspec.structs.asdict(settled.outcomes))
    for totals in unsettled:
        if totals.status == DRAFT:
            continue
        messages_by_status.update(msgspec.structs.asdict(totals.messages))
    messages_by_status.update(deleted)
    return GeneralStatistics(
        MailingCounts.of(**mailings_by_status), MessageCounts.of(**messages_by_status)
    )


async def of_mailing(
    engine: AsyncEngine,
    mailing_id: int,
    bucket: int | None = None,
    *,
    channels: Channels = NO_CHANNELS,
) -> MailingStatistics:
    """Return detailed statistics of a mailing, over time in buckets of `bucket` seconds.

    Without a usable gateway there is no expected end. Reads counters, and of the messages only
    those being sent. Raises `MailingNotFoundError`, and `InvalidError` when `bucket` is too short
    or not a multiple of the resolution of the counters.
    """
    async with snapshot(engine) as connection:
        mailing = with_hold(await mailings.get(connection, mailing_id), channels)
        [mailing_progress] = await progress.get_progress(connection, [mailing])
        active = await workers.active_workers(connection)
        gateways = usable_gateways(channels)
        basis = await read_basis(connection, mailing, gateways, len(active) or 1)
        statistics = await count_in_detail(connection, mailing_progress, bucket, channels=channels)
    end = forecast.expected_end(mailing, await forecast.compute(basis))
    return msgspec.structs.replace(statistics, expected_end=end)


async def count_in_detail(
    connection: AsyncConnection,
    mailing_progress: MailingProgress,
    bucket: int | None = None,
    *,
    max_buckets: int = MAX_BUCKETS,
    channels: Channels = NO_CHANNELS,
) -> MailingStatistics:
    """Return statistics of a mailing that was read in the same snapshot.

    The cost is at the prices of `channels`. `expected_end` is left None. The caller computes it
    when it holds no connection any more. Raises `InvalidError` for a wrong `bucket`.
    """
    mailing = mailing_progress.mailing
    counts = await counters.get_all(connection, mailing.id)
    by_value = counts.by_value
    sending = await store.count_sending(connection, mailing.id)
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
        attempts=_count_by_attempts(by_value["attempts"]),
        gateways=[
            GatewayCounts(gateway, gateway_counts.outcomes, gateway_counts.parts)
            for gateway, gateway_counts in by_value["gateway"].items()
        ],
        text_versions=[
            TextVersionCounts(version, version_counts.outcomes)
            for version, version_counts in sorted(
                (int(key), version_counts)
                for key, version_counts in by_value["text_version"].items()
            )
        ],
        over_time=outcomes_over_time(counts.by_second, bucket, max_buckets),
        rate=mailing_progress.rate,
        first_sent_at=mailing_progress.first_sent_at,
        last_sent_at=mailing_progress.last_sent_at,
        expected_end=None,
        cost=cost_of({name: row.parts for name, row in by_value["gateway"].items()}, channels),
    )


def counts_from_mailing(mailing: Mailing) -> MessageCounts:
    """Return the counts of messages by status of a mailing."""
    return MessageCounts(**{name: mailing.count_of(name) for name in MESSAGE_STATUSES})


def _count_by_reason(
    messages: MessageCounts, counts_by_reason: Mapping[str, Counters]
) -> list[ReasonCount]:
    """Return the messages of a mailing by status and reason, most frequent first.

    `messages` are all messages, `counts_by_reason` those that have a reason. The difference are the
    messages without a reason.
    """
    result = []
    for status in MESSAGE_STATUSES:
        by_reason = {reason: counts.count_of(status) for reason, counts in counts_by_reason.items()}
        without_reason = getattr(messages, status) - sum(by_reason.values())
        result += [ReasonCount(status, reason, count) for reason, count in by_reason.items()]
        result.append(ReasonCount(status, None, without_reason))
    return sorted((count for count in result if count.messages), key=_largest_first)


def _largest_first(count: ReasonCount) -> tuple[int, str, bool, str]:
    """Return the sort key by number of messages; equal numbers by status and reason."""
    return -count.messages, count.status, count.reason is None, count.reason or ""


def _count_by_value(
    counts_by_value: Mapping[str, Counters],
    sending_counts: Sequence[SendingCount],
    name: Literal["operator_code", "time_zone"],
) -> Iterator[tuple[str, MessageCounts]]:
    """Yield each value of the column `name`, with the counts by status of its messages.

    Counters do not distinguish scheduled messages from those being sent; `sending_counts` do.
    """
    sending_by_value: Counter[str] = Counter()
    for sending_count in sending_counts:
        sending_by_value[getattr(sending_count, name)] += sending_count.messages
    for value, counts in counts_by_value.items():
        sending = sending_by_value[value]
        outcomes = msgspec.structs.asdict(counts.outcomes)
        yield (
            value,
            MessageCounts(scheduled=counts.waiting - sending, sending=sending, **outcomes),
        )


def _count_by_attempts(counts_by_attempts: Mapping[str, Counters]) -> list[AttemptsCounts]:
    """Return the messages by their number of attempts, in ascending order."""
    counts = {int(attempts): counts for attempts, counts in counts_by_attempts.items()}
    return [AttemptsCounts(attempts, counts[attempts].outcomes) for attempts in sorted(counts)]


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
