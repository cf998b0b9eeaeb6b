"""Outcomes over time: counts by the second, added up in buckets of equal length."""

from collections import Counter, defaultdict
from collections.abc import Mapping
from datetime import UTC, datetime
from math import ceil

from mailer.errors import FieldError, InvalidError
from mailer.mailing.downsampling import resolution
from mailer.message.counters import Counters
from mailer.statistics.model import Bucket, Series
from mailer.statuses import OUTCOMES, OutcomeCounts

MAX_BUCKETS = 500
"""Most buckets of a series."""
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


def outcomes_over_time(
    counts_by_second: Mapping[datetime, Counters], requested: int | None, max_buckets: int
) -> Series:
    """Return the outcomes in all buckets from the first to the last outcome.

    `counts_by_second` has counts by the start of their second, or of a longer time if they are
    downsampled. `requested` is the length of a bucket in seconds; None for the shortest suitable
    length. Raises `InvalidError` as `bucket_seconds` does.
    """
    if not counts_by_second:
        return Series(requested or BUCKET_SIZES[0], [])
    by_epoch = {int(start.timestamp()): counts for start, counts in counts_by_second.items()}
    first, last = min(by_epoch), max(by_epoch)
    bucket = bucket_seconds(last - first, requested, max_buckets)
    sums_by_start: dict[int, Counter[str]] = defaultdict(Counter)
    for second, counts in by_epoch.items():
        sums = sums_by_start[second // bucket * bucket]
        for name in OUTCOMES:
            sums[name] += getattr(counts.outcomes, name)
    starts = range(first // bucket * bucket, last + 1, bucket)
    # A retry subtracts the outcome that it undoes. If downsampling has moved the outcome to another
    # bucket since, the sum is negative.
    clamped = ({name: max(0, count) for name, count in sums_by_start[at].items()} for at in starts)
    return Series(
        bucket,
        [
            Bucket(datetime.fromtimestamp(at, UTC), OutcomeCounts.of(**outcomes))
            for at, outcomes in zip(starts, clamped, strict=True)
        ],
    )


def bucket_seconds(span: float, requested: int | None, max_buckets: int = MAX_BUCKETS) -> int:
    """Return the length of a bucket in seconds, for outcomes that span `span` seconds.

    That is `requested` or, if that is None, the shortest of the usual lengths that gives at most
    `max_buckets` buckets. Raises `InvalidError` when `requested` gives more buckets, or is not a
    multiple of the resolution of the counters.
    """
    # outcomes may begin in the middle of a bucket, and then touch one bucket more
    shortest = max(1, ceil(span / (max_buckets - 1)))
    counter_seconds = resolution(span)
    if requested is None:
        suitable = (
            size for size in BUCKET_SIZES if size >= shortest and size % counter_seconds == 0
        )
        return next(suitable, ceil(shortest / DAY_SECONDS) * DAY_SECONDS)
    if requested < shortest or requested % counter_seconds:
        message = f"must be at least {shortest} (at most {max_buckets} buckets)"
        if counter_seconds > 1:
            message += f" and a multiple of {counter_seconds} (the resolution of these counts)"
        raise InvalidError([FieldError("bucket", message)])
    return requested
