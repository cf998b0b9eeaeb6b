"""SQL of the rates of mailings: reserve slots in time for their messages, over all workers."""

from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import NamedTuple

import asyncpg

SLOTS_AHEAD = 0.25
"""Seconds from now in which the slots that a worker reserves start: enough that it claims messages
in batches, and few enough that a new rate acts soon and that workers share the slots."""
SLOT_SLACK = 0.05
"""Seconds for which a slot that nobody has reserved can still be used. Older ones are lost, so that
a mailing that had nothing to send does not send faster than its rate later."""

# $1 are the ids of mailings with a rate, and $2 how many slots of each are wanted. The slots start
# at the next free one, at most $4 ago. Granted are those that start less than $3 from now, perhaps
# none. A next slot that is more than one slot after that was computed for a lower rate, or by
# another clock: then the next one is now. The rows are locked in one order, so that workers wait
# for each other without a deadlock; each statement is a transaction of its own.
RESERVE_SLOTS = """
    WITH locked AS MATERIALIZED (
        SELECT mailing_id, asked.slots, mailing.rate, next_slot_at
        FROM unnest($1::bigint[], $2::int[]) AS asked (mailing_id, slots)
        JOIN mailing_pace USING (mailing_id) JOIN mailing ON mailing.id = mailing_id
        WHERE mailing.rate IS NOT NULL
        ORDER BY mailing_id FOR NO KEY UPDATE OF mailing_pace
    ), timed AS MATERIALIZED (
        SELECT locked.*, interval '1 second' / rate AS spacing, clock_timestamp() AS now FROM locked
    ), granted AS MATERIALIZED (
        SELECT mailing_id, rate, first_at, least(timed.slots,
            greatest(0, ceil(extract(epoch FROM now + $3 - first_at) * rate)))::int AS slots
        FROM timed CROSS JOIN LATERAL (
            SELECT CASE WHEN next_slot_at > now + $3::interval + spacing THEN now
                        ELSE greatest(next_slot_at, now - $4::interval) END AS first_at) AS slot
    ), moved AS (
        UPDATE mailing_pace SET next_slot_at = first_at + interval '1 second' / rate * granted.slots
        FROM granted WHERE mailing_pace.mailing_id = granted.mailing_id AND granted.slots > 0
    )
    SELECT mailing_id, rate, first_at, slots, first_at + interval '1 second' / rate * slots
    FROM granted"""


class ReservedSlots(NamedTuple):
    """Slots of a mailing that were reserved, perhaps none."""

    mailing_id: int
    rate: float
    """Slots a second."""
    first_at: datetime
    """The moment of the first slot."""
    slots: int
    next_at: datetime
    """The moment of the next slot that is free."""


async def reserve_slots(
    connection: asyncpg.Connection, wanted: Mapping[int, int]
) -> list[ReservedSlots]:
    """Reserve slots of mailings with a rate. `wanted` has the number of slots by mailing."""
    rows = await connection.fetch(
        RESERVE_SLOTS,
        list(wanted),
        list(wanted.values()),
        timedelta(seconds=SLOTS_AHEAD),
        timedelta(seconds=SLOT_SLACK),
    )
    return [ReservedSlots(*row) for row in rows]
