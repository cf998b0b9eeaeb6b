"""Clients whom two mailings share: which pairs of mailings last at the same time, and how many.

The cost is bounded, whatever the directory: a pair with a small audience is counted exactly by the
segments of that audience, every pair if the directory has few segments, and the others from a
sample of the segments. A segment is all clients with the same operator code, tag and time zone. For
pairs with lists, up to `MAX_CLIENTS_READ` clients on the lists are read; of larger lists a sample.
"""

from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime
from itertools import islice
from typing import Any, NamedTuple

import msgspec
from sqlalchemy import (
    BigInteger,
    ColumnClause,
    and_,
    column,
    func,
    select,
    tablesample,
    text,
)
from sqlalchemy.ext.asyncio import AsyncConnection

from mailer.db.tables.client import segment_count
from mailer.mailing.audience import field_condition
from mailer.mailing.combined_filters import (
    MATCHING_PARAMETERS,
    MATCHING_SEGMENTS,
    CombinedFilters,
)
from mailer.mailing.model import Mailing
from mailer.mailing.shared_counts import (
    FilterPair,
    FlaggedRows,
    count_by_lists,
    count_by_segments,
    has_lists,
    round_estimate,
)

MAX_PAIRS = 50
"""Most pairs that are counted at once."""
MAX_EXACT_AUDIENCE = 10_000
"""Clients of an audience whose pairs are always counted exactly."""
MAX_SEGMENTS = 20_000
"""Segments of the directory up to which every pair is counted exactly; and about as many are in a
sample."""
MAX_CLIENTS_READ = 50_000
"""Clients on lists that are read for all pairs together, about and at most."""


class Pair(NamedTuple):
    """Two mailings that last at the same time for a while."""

    first: Mailing
    second: Mailing

    @property
    def smaller(self) -> Mailing:
        """The mailing with the smaller audience, in which all shared clients are."""
        return min(self, key=lambda mailing: (mailing.clients_count, mailing.id))

    @property
    def larger(self) -> Mailing:
        """The other mailing."""
        return self.second if self.smaller is self.first else self.first

    @property
    def filters(self) -> FilterPair:
        """The filters of both."""
        return self.first.client_filter, self.second.client_filter

    @property
    def begins(self) -> datetime:
        """Since when both last."""
        return max(self.first.datetime_start, self.second.datetime_start)

    @property
    def ends(self) -> datetime:
        """Until when both last."""
        return min(self.first.datetime_end, self.second.datetime_end)


class Overlap(NamedTuple):
    """How many clients two mailings share."""

    pair: Pair
    clients: int
    is_estimate: bool = False


def count_pairs(mailings: Iterable[Mailing]) -> int:
    """Return how many pairs of mailings with clients last at the same time."""
    periods = [
        (mailing.datetime_start, mailing.datetime_end)
        for mailing in mailings
        if mailing.clients_count
    ]
    ends = sorted(end for _, end in periods)
    starts = sorted(start for start, _ in periods)
    # of the mailings that start before this one, those are no pairs with it that end before
    return sum(number - bisect_right(ends, start) for number, start in enumerate(starts))


def find_pairs(mailings: Iterable[Mailing], limit: int = MAX_PAIRS) -> list[Pair]:
    """Return the pairs of mailings that last at the same time, those that may share most first.

    At most `limit` pairs are returned. Two mailings share at most the smaller of their audiences.
    """
    largest_first = sorted(
        (mailing for mailing in mailings if mailing.clients_count),
        key=lambda mailing: (-mailing.clients_count, mailing.id),
    )
    return sorted(
        islice(_pairs_in_time(largest_first), limit),
        key=lambda pair: (-pair.smaller.clients_count, pair.first.id, pair.second.id),
    )


def _pairs_in_time(largest_first: Sequence[Mailing]) -> Iterator[Pair]:
    """Yield the pairs that last at the same time, by the smaller mailing of each."""
    for number, smaller in enumerate(largest_first):
        for larger in largest_first[:number]:
            first, second = (
                (larger, smaller) if _starts_first(larger, smaller) else (smaller, larger)
            )
            if second.datetime_start < first.datetime_end:
                yield Pair(first, second)


def _starts_first(mailing: Mailing, other: Mailing) -> bool:
    starts, other_starts = mailing.datetime_start, other.datetime_start
    return starts < other_starts or (starts == other_starts and mailing.id < other.id)


async def count_overlaps(
    connection: AsyncConnection, pairs: Sequence[Pair], *, max_read: int = MAX_CLIENTS_READ
) -> list[Overlap]:
    """Return how many clients the pairs share now, by their filters; without those that share none.

    There may be `MAX_PAIRS` pairs at most. About `max_read` clients on lists are read, at most.
    """
    with_lists = [pair for pair in pairs if has_lists(pair.filters)]
    filters = [pair.filters for pair in with_lists]
    counts = await count_by_lists(connection, filters, max_read=max_read)
    without_lists = [pair for pair in pairs if not has_lists(pair.filters)]
    overlaps = [
        *(Overlap(pair, *count) for pair, count in zip(with_lists, counts, strict=True)),
        *(await _count_by_segments(connection, without_lists)),
    ]
    found = (overlap for overlap in overlaps if overlap.clients > 0)
    return sorted(
        found, key=lambda overlap: (-overlap.clients, overlap.pair.first.id, overlap.pair.second.id)
    )


async def _count_by_segments(connection: AsyncConnection, pairs: Sequence[Pair]) -> list[Overlap]:
    """Count or estimate pairs without lists."""
    if not pairs:
        return []
    has_few_segments = await _has_few_segments(connection)
    small = [pair for pair in pairs if pair.smaller.clients_count <= MAX_EXACT_AUDIENCE]
    large = [pair for pair in pairs if pair.smaller.clients_count > MAX_EXACT_AUDIENCE]
    if has_few_segments:
        counts = await count_by_segments(connection, [pair.filters for pair in pairs])
        return [Overlap(pair, *count) for pair, count in zip(pairs, counts, strict=True)]
    return [
        *(await _count_by_small_audience(connection, small)),
        *(await _estimate(connection, large)),
    ]


HAS_FEW_SEGMENTS = text(f"""
    SELECT count(*) <= {MAX_SEGMENTS}
    FROM (SELECT FROM segment_count LIMIT {MAX_SEGMENTS} + 1) AS counted""")  # noqa: S608  # a number


async def _has_few_segments(connection: AsyncConnection) -> bool:
    return bool((await connection.execute(HAS_FEW_SEGMENTS)).scalar_one())


MATCHING = text(f"""
    WITH {MATCHING_SEGMENTS}
    SELECT number, operator_code, tag, time_zone, clients FROM matching""")  # noqa: S608  # no user input
MATCHING_COLUMNS: list[ColumnClause[Any]] = [
    column(name) for name in ("number", "operator_code", "tag", "time_zone", "clients")
]


async def _count_by_small_audience(
    connection: AsyncConnection, pairs: Sequence[Pair]
) -> list[Overlap]:
    """Count pairs exactly: an index finds the segments of the smaller audience of each."""
    if not pairs:
        return []
    filters = CombinedFilters()
    numbers = [filters.add(msgspec.to_builtins(pair.smaller.client_filter)) for pair in pairs]
    matching = (
        MATCHING.bindparams(*MATCHING_PARAMETERS)
        .bindparams(**filters.parameters())
        .columns(*MATCHING_COLUMNS)
        .subquery("small")
    )
    sums = [
        func.coalesce(
            func.sum(matching.c.clients).filter(
                and_(
                    matching.c.number == number,
                    field_condition(pair.larger.client_filter, matching),
                )
            ),
            0,
        ).cast(BigInteger)
        for number, pair in zip(numbers, pairs, strict=True)
    ]
    row = (await connection.execute(select(*sums).select_from(matching))).one()
    return [Overlap(pair, clients) for pair, clients in zip(pairs, row, strict=True)]


ESTIMATED_SEGMENTS = text("""
    SELECT greatest(reltuples, 1)::float8 FROM pg_class WHERE oid = 'segment_count'::regclass""")


async def _estimate(connection: AsyncConnection, pairs: Sequence[Pair]) -> list[Overlap]:
    """Estimate pairs: the share of the smaller audience that is also in the larger, in a sample."""
    if not pairs:
        return []
    segments = (await connection.execute(ESTIMATED_SEGMENTS)).scalar_one()
    percent = min(100.0, 100.0 * MAX_SEGMENTS / segments)
    sample = tablesample(segment_count, func.system(percent), name="segment")
    filters = [pair.filters for pair in pairs]
    flagged = FlaggedRows(sample, sample.c.clients, filters)
    shared = [flagged.sum_where(*map(flagged.matches, pair)) for pair in filters]
    sampled = [flagged.sum_where(flagged.matches(pair.smaller.client_filter)) for pair in pairs]
    sums = await flagged.read(connection, [*shared, *sampled])
    return [
        Overlap(
            pair,
            round_estimate(pair.smaller.clients_count * both / max(1, one)),
            is_estimate=True,
        )
        for pair, both, one in zip(pairs, sums[: len(pairs)], sums[len(pairs) :], strict=True)
    ]
