"""Read the message counters that statistics use, and merge their deltas.

A counter is a row of the table `message_count` plus its deltas that are not merged yet. The view
`all_message_counts` has the rows of both; every reader adds them up. Each row belongs to a mailing
and a dimension, such as `time_zone`, and to a `key`, such as `Europe/Moscow`. Rows of the dimension
`second` have a time in `bucket_start` instead of a key.
"""

from collections import defaultdict
from datetime import datetime
from typing import Self

import msgspec
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from mailer.db.engine import COUNTER_MERGE_LOCK
from mailer.db.sql import sums
from mailer.db.tables.message import COUNTERS, DELIVERY_COUNTS
from mailer.statuses import OUTCOMES, MessageStatus, OutcomeCounts


class Counters(msgspec.Struct, frozen=True):
    """Counts of the messages in one group, in all and by outcome, and their parts.

    A group is, for example, the messages of a mailing that go to one time zone.
    """

    messages: int = 0
    outcomes: OutcomeCounts = OutcomeCounts.of()
    parts: int = 0
    """Number of SMS of the messages that gateways have accepted."""

    @classmethod
    def of_columns(cls, messages: int, *counts: int) -> Self:
        """Return the counters in the columns `COUNTERS` of a row."""
        *outcomes, parts = counts
        by_outcome = dict(zip(OUTCOMES, outcomes, strict=True))
        return cls(messages, OutcomeCounts(**by_outcome), parts)

    @property
    def waiting(self) -> int:
        """Messages without an outcome: scheduled or being sent."""
        return self.messages - self.outcomes.total

    def count_of(self, status: MessageStatus) -> int:
        """Return the number of messages with a status. Only for counters of a reason.

        A message has no reason while it is being sent. So all messages without an outcome are
        scheduled.
        """
        count: int = self.waiting if status == "scheduled" else getattr(self.outcomes, status, 0)
        return count


class CountersOfMailing(msgspec.Struct, frozen=True):
    """The counters of a mailing that its statistics show."""

    by_value: dict[str, dict[str, Counters]]
    """By dimension (`operator_code`, `time_zone`, `reason`, `attempts`, `gateway`, `text_version`)
    and value, in the order of the values."""
    by_second: dict[datetime, Counters]
    """Outcomes by the second; old outcomes by the start of a longer bucket."""


COUNTER_COLUMNS = ", ".join(COUNTERS)
SUMS = sums(COUNTERS)
"""The sum of each of these columns over the rows of a group, under the same name."""
SELECT_ALL = text(f"""
    SELECT dimension, key, bucket_start, {SUMS} FROM all_message_counts
    WHERE mailing_id = :mailing_id
    GROUP BY dimension, key, bucket_start ORDER BY dimension, key, bucket_start""")  # noqa: S608  # inserts our own column names only
SELECT_BY_ZONE = text(f"""
    SELECT key, {SUMS} FROM all_message_counts
    WHERE mailing_id = :mailing_id AND dimension = 'time_zone' GROUP BY key""")  # noqa: S608  # likewise
SELECT_OF_REASON = text(f"""
    SELECT {SUMS} FROM all_message_counts
    WHERE mailing_id = :mailing_id AND dimension = 'reason' AND key = :reason""")  # noqa: S608  # likewise
SELECT_BY_REASON = text(f"""
    SELECT key, {SUMS} FROM all_message_counts
    WHERE mailing_id = :mailing_id AND dimension = 'reason'
    GROUP BY key HAVING sum(messages) > 0 ORDER BY sum(messages) DESC, key""")  # noqa: S608  # likewise


SELECT_BY_TEXT_VERSION = text(f"""
    SELECT key::int, {SUMS} FROM all_message_counts
    WHERE mailing_id = :mailing_id AND dimension = 'text_version' GROUP BY key""")  # noqa: S608  # likewise
SELECT_BY_GATEWAY = text(f"""
    SELECT key, {SUMS} FROM all_message_counts
    WHERE mailing_id = :mailing_id AND dimension = 'gateway'
    GROUP BY key HAVING sum(messages) > 0 ORDER BY key""")  # noqa: S608  # likewise


async def get_all(connection: AsyncConnection, mailing_id: int) -> CountersOfMailing:
    """Return all counters of a mailing that are not zero."""
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
    return Counters.of_columns(*(await connection.execute(SELECT_OF_REASON, values)).one())


async def get_by_reason(connection: AsyncConnection, mailing_id: int) -> dict[str, Counters]:
    """Return the counters of a mailing's messages by reason, the most frequent first."""
    rows = await connection.execute(SELECT_BY_REASON, {"mailing_id": mailing_id})
    return {reason: Counters.of_columns(*counts) for reason, *counts in rows}


async def get_by_gateway(connection: AsyncConnection, mailing_id: int) -> dict[str, Counters]:
    """Return the counters of a mailing's messages that have an outcome, by gateway."""
    rows = await connection.execute(SELECT_BY_GATEWAY, {"mailing_id": mailing_id})
    return {gateway: Counters.of_columns(*counts) for gateway, *counts in rows}


async def get_by_text_version(connection: AsyncConnection, mailing_id: int) -> dict[int, Counters]:
    """Return the counters of a mailing's messages that have an outcome, by version of the text."""
    rows = await connection.execute(SELECT_BY_TEXT_VERSION, {"mailing_id": mailing_id})
    return {version: Counters.of_columns(*counts) for version, *counts in rows}


# Every change of merged counters holds this lock until its transaction ends, so that only one
# worker changes them at a time. New deltas are written without the lock; the next merge adds them.
COUNTER_LOCK = {"lock": COUNTER_MERGE_LOCK}
LOCK_COUNTERS = text("SELECT pg_advisory_xact_lock(:lock)")
# Acquires the lock if there are deltas and it is free; returns whether it is acquired.
HAS_COUNTER_DELTAS_AND_LOCK = text("""
    SELECT EXISTS (SELECT FROM message_count_delta) AND pg_try_advisory_xact_lock(:lock)""")
ADD_TO_COUNTERS = f"""
    ON CONFLICT (mailing_id, dimension, key, bucket_start) DO UPDATE SET
        {", ".join(f"{name} = message_count.{name} + excluded.{name}" for name in COUNTERS)}"""
"""End of an INSERT into `message_count`: values of a row that exists are added to it."""
GLOBAL_COUNTS = (*OUTCOMES, "parts")
"""The counts in a row of `outcome_count`."""
ADD_TO_OUTCOMES = f"""
    ON CONFLICT (bucket_start, reason, gateway) DO UPDATE SET
        {", ".join(f"{name} = outcome_count.{name} + excluded.{name}" for name in GLOBAL_COUNTS)}"""
"""The same for `outcome_count`."""
MAX_DELIVERY_AGE = "interval '8 days'"
"""SQL for the time for which `delivery_count` keeps counts: a little more than it is read for."""
ADDED_DELIVERY = (f"{name} = delivery_count.{name} + excluded.{name}" for name in DELIVERY_COUNTS)
ADD_TO_DELIVERY = f"""
    ON CONFLICT (bucket_start, gateway, operator_code) DO UPDATE SET {", ".join(ADDED_DELIVERY)}"""
"""The same for `delivery_count`."""
# Deletes the deltas that meet `condition`, and adds them to the counters in one statement, so that
# every reader sees a delta or its effect, never both. Deltas of the dimension `outcome` are counted
# over all mailings, in `outcome_count`; the others for each mailing. Deltas by operator code are
# counted in `delivery_count`, too. The two statements after this template insert a condition.
MERGE = f"""
    WITH delta AS (
        DELETE FROM message_count_delta WHERE {{condition}} RETURNING *
    ), outcome AS (
        INSERT INTO outcome_count (bucket_start, reason, gateway, {", ".join(GLOBAL_COUNTS)})
        SELECT bucket_start, key, gateway, {sums(GLOBAL_COUNTS)}
        FROM delta WHERE dimension = 'outcome'
        GROUP BY bucket_start, key, gateway {ADD_TO_OUTCOMES}
    ), delivery AS (
        INSERT INTO delivery_count (bucket_start, gateway, operator_code,
            {", ".join(DELIVERY_COUNTS)})
        SELECT accepted_quarter, gateway, key, {sums(DELIVERY_COUNTS)}
        FROM delta WHERE accepted_quarter > now() - {MAX_DELIVERY_AGE}
        GROUP BY accepted_quarter, gateway, key {ADD_TO_DELIVERY}
    )
    INSERT INTO message_count (mailing_id, dimension, key, bucket_start, {COUNTER_COLUMNS})
    SELECT mailing_id, dimension, key, bucket_start, {SUMS}
    FROM delta WHERE dimension <> 'outcome'
    GROUP BY mailing_id, dimension, key, bucket_start {ADD_TO_COUNTERS}"""  # noqa: S608  # likewise
# DELETE has no LIMIT, so the deltas are chosen by `ctid`, the physical address of a row.
MERGE_SOME_DELTAS = text(
    MERGE.format(condition="ctid = ANY (ARRAY(SELECT ctid FROM message_count_delta LIMIT :chunk))")
)
DELETE_OLD_DELIVERY_COUNTS = text(f"""
    DELETE FROM delivery_count WHERE bucket_start <= now() - {MAX_DELIVERY_AGE}""")  # noqa: S608  # likewise
MERGE_DELTAS_OF_MAILINGS = text(MERGE.format(condition="mailing_id = ANY (:mailing_ids)"))


async def lock_counters(connection: AsyncConnection) -> None:
    """Wait for the lock that merging, downsampling and deleting of counters share."""
    await connection.execute(LOCK_COUNTERS, COUNTER_LOCK)


async def merge_deltas(connection: AsyncConnection, chunk: int) -> None:
    """Merge up to `chunk` deltas, unless another worker is changing counters."""
    if (await connection.execute(HAS_COUNTER_DELTAS_AND_LOCK, COUNTER_LOCK)).scalar_one():
        await connection.execute(MERGE_SOME_DELTAS, {"chunk": chunk})
        await connection.execute(DELETE_OLD_DELIVERY_COUNTS)


DELETE = text("DELETE FROM message_count WHERE mailing_id = ANY (:mailing_ids)")


async def delete(connection: AsyncConnection, mailing_ids: list[int]) -> None:
    """Delete all counters of mailings that have no messages any more.

    The counts in `outcome_count` stay.
    """
    # a merge in progress could insert counters after the DELETE
    await lock_counters(connection)
    for statement in (MERGE_DELTAS_OF_MAILINGS, DELETE):
        await connection.execute(statement, {"mailing_ids": mailing_ids})
