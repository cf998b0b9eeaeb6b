"""Read the message counters that statistics use, and merge their deltas.

A counter is a row of the table `message_count` plus its deltas that are not merged yet. The view
`all_message_counts` has both; every reader adds them up.
"""

from collections import defaultdict
from datetime import datetime
from typing import Self

import msgspec
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from mailer.db.engine import COUNTER_MERGE_LOCK
from mailer.db.sql import sums
from mailer.db.tables.mailing import RETENTION_START, UNSETTLED_MAILING
from mailer.db.tables.message import COUNTERS
from mailer.statuses import OUTCOMES, MessageStatus, OutcomeCounts

FULL_RESOLUTION_SECONDS = 120
"""Age in seconds up to which counts over time are kept by the second."""
DOWNSAMPLE_PERIOD = 1_800
"""Seconds after a mailing's last change for which its counts are still downsampled."""
RESOLUTIONS = ((1_800, 1), (18_000, 10), (108_000, 60), (1_080_000, 600))
"""Pairs of a time span and the bucket size for it, both in seconds. Longer spans have buckets of an
hour."""
HOUR_SECONDS = 3_600


def resolution(span: float) -> int:
    """Return the bucket size, in seconds, for counts over a time span in seconds.

    So a mailing of up to twelve weeks never has many more than 1,800 buckets.
    """
    return next((seconds for max_span, seconds in RESOLUTIONS if span <= max_span), HOUR_SECONDS)


class Counters(msgspec.Struct, frozen=True):
    """Counts of the messages in one group, in all and by outcome.

    A group is, for example, the messages of a mailing that go to one time zone.
    """

    messages: int = 0
    outcomes: OutcomeCounts = OutcomeCounts.of()

    @classmethod
    def of_columns(cls, messages: int, *outcomes: int) -> Self:
        """Return the counters in the columns `COUNTERS` of a row."""
        return cls(messages, OutcomeCounts(**dict(zip(OUTCOMES, outcomes, strict=True))))

    @property
    def waiting(self) -> int:
        """Messages without an outcome: scheduled or being sent."""
        return self.messages - self.outcomes.total

    def count_of(self, status: MessageStatus) -> int:
        """Return the number of messages with a status, in a group by reason.

        A message has no reason while it is being sent, so there `waiting` means scheduled.
        """
        count: int = self.waiting if status == "scheduled" else getattr(self.outcomes, status, 0)
        return count


class CountersOfMailing(msgspec.Struct, frozen=True):
    """The counters of a mailing that its statistics show."""

    by_value: dict[str, dict[str, Counters]]
    """By dimension (`operator_code`, `time_zone`, `reason`, `attempts`) and value, in the order of
    the values."""
    by_second: dict[datetime, Counters]
    """Outcomes by the second; old ones by the start of a longer bucket."""


SUMS = sums(COUNTERS)
COUNTER_COLUMNS = ", ".join(COUNTERS)
SELECT_ALL = text(f"""
    SELECT dimension, key, bucket_start, {SUMS} FROM all_message_counts
    WHERE mailing_id = :mailing_id
    GROUP BY dimension, key, bucket_start ORDER BY dimension, key, bucket_start""")  # noqa: S608  # inserts our own column names only
SELECT_BY_ZONE = text(f"""
    SELECT key, {SUMS} FROM all_message_counts
    WHERE mailing_id = :mailing_id AND dimension = 'time_zone' GROUP BY key""")  # noqa: S608  # likewise
SELECT_OF_REASON = text(f"""
    SELECT {SUMS} FROM all_message_counts
    WHERE mailing_id = :mailing_id AND dimension = 'reason' AND key = :reason
    HAVING count(*) > 0""")  # noqa: S608  # likewise
SELECT_BY_REASON = text(f"""
    SELECT key, {SUMS} FROM all_message_counts
    WHERE mailing_id = :mailing_id AND dimension = 'reason'
    GROUP BY key HAVING sum(messages) > 0 ORDER BY sum(messages) DESC, key""")  # noqa: S608  # likewise


async def get_all(connection: AsyncConnection, mailing_id: int) -> CountersOfMailing:
    """Return all counters of a mailing."""
    by_value: dict[str, dict[str, Counters]] = defaultdict(dict)
    by_second: dict[datetime, Counters] = {}
    rows = await connection.execute(SELECT_ALL, {"mailing_id": mailing_id})
    for dimension, key, bucket_start, *counts in rows:
        if not any(counts):
            continue
        if bucket_start is None:
            by_value[dimension][key] = Counters.of_columns(*counts)
        else:
            by_second[bucket_start] = Counters.of_columns(*counts)
    return CountersOfMailing(by_value, by_second)


async def get_by_zone(connection: AsyncConnection, mailing_id: int) -> dict[str, Counters]:
    """Return a mailing's counters by time zone."""
    rows = await connection.execute(SELECT_BY_ZONE, {"mailing_id": mailing_id})
    return {zone: Counters.of_columns(*counts) for zone, *counts in rows}


async def get_of_reason(connection: AsyncConnection, mailing_id: int, reason: str) -> Counters:
    """Return the counters of a mailing's messages with the given reason."""
    values = {"mailing_id": mailing_id, "reason": reason}
    row = (await connection.execute(SELECT_OF_REASON, values)).one_or_none()
    return Counters() if row is None else Counters.of_columns(*row)


async def get_by_reason(connection: AsyncConnection, mailing_id: int) -> dict[str, Counters]:
    """Return the counters of a mailing's messages by reason, the most frequent first."""
    rows = await connection.execute(SELECT_BY_REASON, {"mailing_id": mailing_id})
    return {reason: Counters.of_columns(*counts) for reason, *counts in rows}


# One worker merges at a time. Deltas that others add meanwhile wait for the next merge.
COUNTER_LOCK = {"lock": COUNTER_MERGE_LOCK}
LOCK_COUNTERS = text("SELECT pg_advisory_xact_lock(:lock)")
TRY_LOCK_COUNTERS = text("""
    SELECT EXISTS (SELECT FROM message_count_delta) AND pg_try_advisory_xact_lock(:lock)""")
ADD_COUNTERS = ", ".join(f"{name} = message_count.{name} + excluded.{name}" for name in COUNTERS)
ADD_OUTCOMES = ", ".join(f"{name} = outcome_count.{name} + excluded.{name}" for name in OUTCOMES)
UPSERT = f"""
    ON CONFLICT (mailing_id, dimension, key, bucket_start) DO UPDATE SET {ADD_COUNTERS}"""
# Deltas of the dimension `outcome` are counted over all mailings, the others for each mailing.
MERGE = f"""
    WITH delta AS (
        DELETE FROM message_count_delta WHERE {{condition}} RETURNING *
    ), outcome AS (
        INSERT INTO outcome_count (bucket_start, reason, {", ".join(OUTCOMES)})
        SELECT bucket_start, key, {sums(OUTCOMES)}
        FROM delta WHERE dimension = 'outcome' GROUP BY bucket_start, key
        ON CONFLICT (bucket_start, reason) DO UPDATE SET {ADD_OUTCOMES}
    )
    INSERT INTO message_count (mailing_id, dimension, key, bucket_start, {COUNTER_COLUMNS})
    SELECT mailing_id, dimension, key, bucket_start, {SUMS}
    FROM delta WHERE dimension <> 'outcome'
    GROUP BY mailing_id, dimension, key, bucket_start {UPSERT}"""  # noqa: S608  # likewise
MERGE_COUNTER_DELTAS = text(
    MERGE.format(condition="ctid = ANY (ARRAY(SELECT ctid FROM message_count_delta LIMIT :chunk))")
)
MERGE_DELTAS_OF_MAILINGS = text(MERGE.format(condition="mailing_id = ANY (:mailing_ids)"))


async def merge_deltas(connection: AsyncConnection, chunk: int) -> None:
    """Merge up to `chunk` deltas, unless another worker is merging."""
    if (await connection.execute(TRY_LOCK_COUNTERS, COUNTER_LOCK)).scalar_one():
        await connection.execute(MERGE_COUNTER_DELTAS, {"chunk": chunk})


# OFFSET makes PostgreSQL compute each span once, instead of once for each comparison.
# RETENTION_START is never before `updated_at`. Its condition only lets PostgreSQL use
# mailing_retention_idx.
RESOLUTION = " ".join(f"WHEN span <= {span} THEN {seconds}" for span, seconds in RESOLUTIONS)
OUTER_SECOND = """
    SELECT bucket_start FROM message_count
    WHERE mailing_id = id AND dimension = 'second' AND key = ''
    ORDER BY bucket_start {order} LIMIT 1"""
DOWNSAMPLE = text(f"""
    WITH active AS (
        SELECT id FROM mailing WHERE {UNSETTLED_MAILING}
        UNION ALL
        SELECT id FROM mailing WHERE is_settled AND NOT is_purged AND deleted_at IS NULL
            AND {RETENTION_START} > now() - interval '{DOWNSAMPLE_PERIOD} seconds'
            AND updated_at > now() - interval '{DOWNSAMPLE_PERIOD} seconds'
    ), target AS MATERIALIZED (
        SELECT id, make_interval(secs => CASE {RESOLUTION} ELSE {HOUR_SECONDS} END) AS resolution
        FROM active CROSS JOIN LATERAL (
            SELECT extract(epoch FROM ({OUTER_SECOND.format(order="DESC")})
                - ({OUTER_SECOND.format(order="ASC")})) AS span OFFSET 0) AS seconds
    ), removed AS (
        DELETE FROM message_count USING target
        WHERE mailing_id = id AND resolution > interval '1 second' AND dimension = 'second'
            AND bucket_start < now() - interval '{FULL_RESOLUTION_SECONDS} seconds'
            AND bucket_start <> date_bin(resolution, bucket_start, '1970-01-01 00:00Z')
        RETURNING message_count.*,
            date_bin(resolution, bucket_start, '1970-01-01 00:00Z') AS new_start)
    INSERT INTO message_count (mailing_id, dimension, key, bucket_start, {COUNTER_COLUMNS})
    SELECT mailing_id, dimension, key, new_start, {SUMS} FROM removed
    GROUP BY mailing_id, dimension, key, new_start {UPSERT}""")  # noqa: S608  # likewise


async def downsample(connection: AsyncConnection) -> None:
    """Merge old counts by the second into larger buckets.

    Only mailings whose counts still change, or did so recently, are included.
    """
    await connection.execute(LOCK_COUNTERS, COUNTER_LOCK)
    await connection.execute(DOWNSAMPLE)


DELETE = text("DELETE FROM message_count WHERE mailing_id = ANY (:mailing_ids)")


async def delete(connection: AsyncConnection, mailing_ids: list[int]) -> None:
    """Delete all counters of mailings that have no messages any more.

    The counts in `outcome_count` stay.
    """
    # a merge in progress would insert counters again
    await connection.execute(LOCK_COUNTERS, COUNTER_LOCK)
    for statement in (MERGE_DELTAS_OF_MAILINGS, DELETE):
        await connection.execute(statement, {"mailing_ids": mailing_ids})
