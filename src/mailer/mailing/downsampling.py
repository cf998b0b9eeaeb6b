"""Downsample the counters of old seconds, so that a long mailing does not have too many.

The outcomes of a mailing are counted by the second. Once the mailing's outcomes span more than half
an hour, its old counters are merged into buckets of 10 seconds, later of a minute, and so on.
"""

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from mailer.db.tables.mailing import RETENTION_START, UNSETTLED_MAILING
from mailer.message.counters import ADD_TO_COUNTERS, COUNTER_COLUMNS, SUMS, lock_counters
from mailer.message.outcomes import HOUR_SECONDS

RECENT_SECONDS = 120
"""Age in seconds up to which counters are not downsampled."""
ACTIVE_SECONDS = 1_800
"""Seconds after the last change of a settled mailing for which its counters are downsampled."""
RESOLUTIONS = {1_800: 1, 18_000: 10, 108_000: 60, 1_080_000: 600}
"""Length of the buckets of a mailing, by the longest span of outcomes for which it is used; both in
seconds. Longer spans have buckets of an hour."""


def resolution(span: float) -> int:
    """Return the length of the buckets, in seconds, of outcomes that span `span` seconds.

    With these lengths, even a mailing of twelve weeks has about 2,000 buckets at most.
    """
    lengths = (length for max_span, length in RESOLUTIONS.items() if span <= max_span)
    return next(lengths, HOUR_SECONDS)


# The cases of `resolution` in SQL, without the last one.
RESOLUTION_CASES = " ".join(
    f"WHEN span <= {max_span} THEN {length}" for max_span, length in RESOLUTIONS.items()
)
# The first or last second in which outcomes of a mailing are counted.
OUTER_SECOND = """
    SELECT bucket_start FROM message_count
    WHERE mailing_id = id AND dimension = 'second' AND key = ''
    ORDER BY bucket_start {order} LIMIT 1"""
FIRST_SECOND, LAST_SECOND = (OUTER_SECOND.format(order=order) for order in ("ASC", "DESC"))
# `active` are the mailings whose counters still change or did so lately. `target` adds the length
# of their buckets. `removed` are their old counters that do not start a bucket of that length; the
# INSERT adds them to the counter at the start of the bucket, `new_start`.
# OFFSET 0 makes PostgreSQL compute each span once, instead of once for each comparison.
# RETENTION_START is never before `updated_at`. Its condition only lets PostgreSQL use
# mailing_retention_idx.
DOWNSAMPLE = text(f"""
    WITH active AS (
        SELECT id FROM mailing WHERE {UNSETTLED_MAILING}
        UNION ALL
        SELECT id FROM mailing WHERE is_settled AND NOT is_purged AND deleted_at IS NULL
            AND {RETENTION_START} > now() - interval '{ACTIVE_SECONDS} seconds'
            AND updated_at > now() - interval '{ACTIVE_SECONDS} seconds'
    ), target AS MATERIALIZED (
        SELECT id, make_interval(secs => CASE {RESOLUTION_CASES} ELSE {HOUR_SECONDS} END)
            AS resolution
        FROM active CROSS JOIN LATERAL (
            SELECT extract(epoch FROM ({LAST_SECOND})
                - ({FIRST_SECOND})) AS span OFFSET 0) AS seconds
    ), removed AS (
        DELETE FROM message_count USING target
        WHERE mailing_id = id AND resolution > interval '1 second' AND dimension = 'second'
            AND bucket_start < now() - interval '{RECENT_SECONDS} seconds'
            AND bucket_start <> date_bin(resolution, bucket_start, '1970-01-01 00:00Z')
        RETURNING message_count.*,
            date_bin(resolution, bucket_start, '1970-01-01 00:00Z') AS new_start)
    INSERT INTO message_count (mailing_id, dimension, key, bucket_start, {COUNTER_COLUMNS})
    SELECT mailing_id, dimension, key, new_start, {SUMS} FROM removed
    GROUP BY mailing_id, dimension, key, new_start {ADD_TO_COUNTERS}""")  # noqa: S608  # no user input


async def downsample(connection: AsyncConnection) -> None:
    """Merge old counters of single seconds into longer buckets, for mailings that have changed.

    Waits while a worker merges deltas, and delays the next merge until the transaction ends.
    """
    await lock_counters(connection)
    await connection.execute(DOWNSAMPLE)
