"""Folding the counts of messages that statistics read, and reading them.

A tally is the folded row and the moves of it that are not folded yet: whoever reads adds them up.
"""

from collections import defaultdict

import msgspec
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from mailer.db import locks
from mailer.db.schema import OUTCOMES, TALLY
from mailer.message import outcomes
from mailer.message.model import Status

FINE = 120
"""Seconds for which outcomes are told apart by the second."""
LATELY = 1_800
"""Seconds after its end in which a mailing's last outcomes are added up."""
RESOLUTIONS = ((1_800, 1), (18_000, 10), (108_000, 60), (1_080_000, 600))
"""Up to which span in seconds outcomes are told apart by how many seconds; then by the hour."""
HOUR = 3_600


def resolution(span: float) -> int:
    """Return the seconds within which outcomes that span so many seconds are not told apart.

    So there are never many more than 1,800 moments to count for a mailing of twelve weeks.
    """
    return next((fine for longest, fine in RESOLUTIONS if span <= longest), HOUR)


class Tally(msgspec.Struct, frozen=True):
    """How many messages are alike in some respect, and what became of them."""

    messages: int = 0
    delivered: int = 0
    undelivered: int = 0
    unknown: int = 0
    cancelled: int = 0

    @property
    def waiting(self) -> int:
        """Those without an outcome: scheduled, or being sent."""
        ended = self.delivered + self.undelivered + self.unknown + self.cancelled
        return self.messages - ended

    def of(self, status: Status) -> int:
        """Return how many have a status, among messages that have a reason: none is being sent."""
        if status == "sending":
            return 0
        count: int = self.waiting if status == "scheduled" else getattr(self, status)
        return count


SUMS = ", ".join(f'sum("{name}")::bigint AS "{name}"' for name in TALLY)
COLUMNS = ", ".join(f'"{name}"' for name in TALLY)
SHOWN = "'operator_code', 'time_zone', 'reason', 'attempts', 'second'"
OF_MAILING = text(f"""
    SELECT dimension, key, {SUMS} FROM (
        SELECT * FROM tally WHERE mailing_id = :mailing_id AND dimension IN ({SHOWN})
        UNION ALL SELECT * FROM tally_move
        WHERE mailing_id = :mailing_id AND dimension IN ({SHOWN})) AS moved
    GROUP BY dimension, key ORDER BY dimension, key""")  # noqa: S608  # our own columns
OF_ZONES = text(f"""
    SELECT key, {SUMS} FROM (
        SELECT * FROM tally WHERE mailing_id = :mailing_id AND dimension = 'time_zone'
        UNION ALL SELECT * FROM tally_move
        WHERE mailing_id = :mailing_id AND dimension = 'time_zone') AS moved
    GROUP BY key""")  # noqa: S608  # likewise
OF_REASON = text(f"""
    SELECT {SUMS} FROM (
        SELECT * FROM tally
        WHERE mailing_id = :mailing_id AND dimension = 'reason' AND key = :reason
        UNION ALL SELECT * FROM tally_move
        WHERE mailing_id = :mailing_id AND dimension = 'reason' AND key = :reason) AS moved
    HAVING count(*) > 0""")  # noqa: S608  # likewise

OF_REASONS = text(f"""
    SELECT key, {SUMS} FROM (
        SELECT * FROM tally WHERE mailing_id = :mailing_id AND dimension = 'reason'
        UNION ALL SELECT * FROM tally_move
        WHERE mailing_id = :mailing_id AND dimension = 'reason') AS moved
    GROUP BY key HAVING sum(messages) > 0 ORDER BY sum(messages) DESC, key""")  # noqa: S608  # likewise


async def of_mailing(connection: AsyncConnection, mailing_id: int) -> dict[str, dict[str, Tally]]:
    """Return a mailing's tallies by dimension and key, in the order of their keys.

    All that its statistics show: outcomes by time and reason are counted over all mailings alone.
    """
    found: dict[str, dict[str, Tally]] = defaultdict(dict)
    for dimension, key, *counts in await connection.execute(OF_MAILING, {"mailing_id": mailing_id}):
        if any(counts):
            found[dimension][key] = Tally(*counts)
    return found


async def of_zones(connection: AsyncConnection, mailing_id: int) -> dict[str, Tally]:
    """Return a mailing's tallies by time zone alone."""
    found = await connection.execute(OF_ZONES, {"mailing_id": mailing_id})
    return {zone: Tally(*counts) for zone, *counts in found}


async def of_reason(connection: AsyncConnection, mailing_id: int, reason: str) -> Tally:
    """Return the tally of a mailing's messages that have a reason."""
    asked = {"mailing_id": mailing_id, "reason": reason}
    row = (await connection.execute(OF_REASON, asked)).one_or_none()
    return Tally() if row is None else Tally(*row)


async def of_reasons(connection: AsyncConnection, mailing_id: int) -> dict[str, Tally]:
    """Return the tallies of a mailing's messages by reason, those of the most messages first."""
    found = await connection.execute(OF_REASONS, {"mailing_id": mailing_id})
    return {reason: Tally(*counts) for reason, *counts in found}


# One process folds at a time; what others add meanwhile waits for the next fold.
LOCK = {"lock": locks.TALLY}
WAIT = text("SELECT pg_advisory_xact_lock(:lock)")
TRY_LOCK = text("""
    SELECT EXISTS (SELECT FROM tally_move) AND pg_try_advisory_xact_lock(:lock)""")
ADD = ", ".join(f'"{name}" = tally."{name}" + excluded."{name}"' for name in TALLY)
ADD_OUTCOMES = ", ".join(
    f'"{name}" = outcome_count."{name}" + excluded."{name}"' for name in OUTCOMES
)
# What happened when is counted over all mailings, and the rest of each.
MERGE = f"""
    WITH moved AS (
        DELETE FROM tally_move WHERE {{which}} RETURNING *
    ), outcome AS (
        INSERT INTO outcome_count (quarter_start, reason, {outcomes.NAMES})
        SELECT {outcomes.QUARTER}, {outcomes.REASON}, {outcomes.SUMS}
        FROM moved WHERE dimension = 'outcome' GROUP BY 1, 2
        ON CONFLICT (quarter_start, reason) DO UPDATE SET {ADD_OUTCOMES}
    )
    INSERT INTO tally (mailing_id, dimension, key, {COLUMNS})
    SELECT mailing_id, dimension, key, {SUMS} FROM moved WHERE dimension <> 'outcome'
    GROUP BY mailing_id, dimension, key
    ON CONFLICT (mailing_id, dimension, key) DO UPDATE SET {ADD}"""  # noqa: S608  # likewise
FOLD = text(MERGE.format(which="ctid = ANY (ARRAY(SELECT ctid FROM tally_move LIMIT :chunk))"))
FOLD_MAILINGS = text(MERGE.format(which="mailing_id = ANY (:mailing_ids)"))


async def fold(connection: AsyncConnection, chunk: int) -> None:
    """Fold up to `chunk` moves, unless another process does."""
    if (await connection.execute(TRY_LOCK, LOCK)).scalar_one():
        await connection.execute(FOLD, {"chunk": chunk})


# OFFSET has each span read once, and not again for each comparison.
RESOLUTION = " ".join(f"WHEN span <= {span} THEN {fine}" for span, fine in RESOLUTIONS)
COARSEN = text(f"""
    WITH counted AS (
        SELECT id FROM mailing WHERE NOT is_settled AND deleted_at IS NULL
        UNION ALL
        SELECT id FROM mailing WHERE is_settled AND NOT is_emptied AND deleted_at IS NULL
            AND updated_at > now() - interval '{LATELY} seconds'
    ), fine AS MATERIALIZED (
        SELECT id, CASE {RESOLUTION} ELSE {HOUR} END AS resolution
        FROM counted CROSS JOIN LATERAL (
            SELECT (SELECT key FROM tally WHERE mailing_id = id AND dimension = 'second'
                    ORDER BY key DESC LIMIT 1)::bigint
                - (SELECT key FROM tally WHERE mailing_id = id AND dimension = 'second'
                    ORDER BY key LIMIT 1)::bigint AS span OFFSET 0) AS outcomes
    ), gone AS (
        DELETE FROM tally USING fine WHERE mailing_id = id AND resolution > 1
            AND dimension = 'second' AND key < (extract(epoch FROM now())::bigint - {FINE})::text
            AND CASE WHEN dimension = 'second' THEN key::bigint % resolution END <> 0
        RETURNING tally.*, key::bigint - key::bigint % resolution AS start)
    INSERT INTO tally (mailing_id, dimension, key, {COLUMNS})
    SELECT mailing_id, dimension, start::text, {SUMS} FROM gone
    GROUP BY mailing_id, dimension, start
    ON CONFLICT (mailing_id, dimension, key) DO UPDATE SET {ADD}""")  # noqa: S608  # likewise


async def coarsen(connection: AsyncConnection) -> None:
    """Add up what became of messages long ago, of mailings that run or have ended lately."""
    await connection.execute(WAIT, LOCK)
    await connection.execute(COARSEN)


DROP = text("DELETE FROM tally WHERE mailing_id = ANY (:mailing_ids)")


async def drop(connection: AsyncConnection, mailing_ids: list[int]) -> None:
    """Drop all tallies of mailings that have no messages any more; when what happened stays."""
    await connection.execute(WAIT, LOCK)  # what is being folded would come back
    for statement in (FOLD_MAILINGS, DROP):
        await connection.execute(statement, {"mailing_ids": mailing_ids})
