"""Clients whom two mailings share: which pairs of mailings last at the same time, and how many.

The cost is bounded, whatever the directory: a pair with a small audience is counted exactly by the
segments of that audience, every pair if the directory has few segments, and the others from a
sample of the segments. A segment is all clients with the same operator code, tag and time zone. Of
a pair with lists, the clients of the lists are read.
"""

from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime
from typing import Any, NamedTuple

import msgspec
from sqlalchemy import (
    BigInteger,
    ColumnClause,
    ColumnElement,
    FromClause,
    Subquery,
    and_,
    column,
    func,
    select,
    tablesample,
    text,
)
from sqlalchemy.ext.asyncio import AsyncConnection

from mailer.client.segment_counts import ALL_SEGMENT_COUNTS
from mailer.db.tables.client import segment_count
from mailer.mailing import audience
from mailer.mailing.audience import field_condition
from mailer.mailing.client_filter import ClientFilter, list_name_keys
from mailer.mailing.combined_filters import (
    MATCHING_PARAMETERS,
    MATCHING_SEGMENTS,
    CombinedFilters,
)
from mailer.mailing.model import Mailing

MAX_PAIRS = 50
"""Most pairs that are counted at once."""
MAX_EXACT_AUDIENCE = 10_000
"""Clients of an audience whose pairs are always counted exactly."""
MAX_SEGMENTS = 20_000
"""Segments of the directory up to which every pair is counted exactly; and about as many are in a
sample."""
ESTIMATE_DIGITS = 2
"""Significant digits of an estimate."""


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


def find_pairs(mailings: Iterable[Mailing]) -> list[Pair]:
    """Return the pairs of mailings that last at the same time, those that may share most first.

    Two mailings share at most the smaller of their audiences.
    """
    by_start = sorted(
        (mailing for mailing in mailings if mailing.clients_count),
        key=lambda mailing: (mailing.datetime_start, mailing.id),
    )
    pairs = list(_pairs_in_time(by_start))
    return sorted(
        pairs, key=lambda pair: (-pair.smaller.clients_count, pair.first.id, pair.second.id)
    )


def _pairs_in_time(by_start: Sequence[Mailing]) -> Iterator[Pair]:
    for number, first in enumerate(by_start):
        for second in by_start[number + 1 :]:
            if second.datetime_start >= first.datetime_end:
                break
            yield Pair(first, second)


async def count_overlaps(connection: AsyncConnection, pairs: Sequence[Pair]) -> list[Overlap]:
    """Return how many clients the pairs share now, by their filters; without those that share none.

    There may be `MAX_PAIRS` pairs at most.
    """
    with_lists = [pair for pair in pairs if _has_lists(pair)]
    overlaps = [
        *(await _count_by_lists(connection, with_lists)),
        *(await _count_by_segments(connection, [pair for pair in pairs if not _has_lists(pair)])),
    ]
    found = (overlap for overlap in overlaps if overlap.clients > 0)
    return sorted(
        found, key=lambda overlap: (-overlap.clients, overlap.pair.first.id, overlap.pair.second.id)
    )


def _has_lists(pair: Pair) -> bool:
    return any(list_name_keys(mailing.client_filter) is not None for mailing in pair)


async def _count_by_lists(connection: AsyncConnection, pairs: Iterable[Pair]) -> list[Overlap]:
    """Count pairs with lists exactly: the clients of the lists of one of the two are read."""
    return [
        Overlap(pair, await audience.count_both(connection, *(each.client_filter for each in pair)))
        for pair in pairs
    ]


async def _count_by_segments(connection: AsyncConnection, pairs: Sequence[Pair]) -> list[Overlap]:
    """Count or estimate pairs without lists."""
    if not pairs:
        return []
    has_few_segments = await _has_few_segments(connection)
    small = [pair for pair in pairs if pair.smaller.clients_count <= MAX_EXACT_AUDIENCE]
    large = [pair for pair in pairs if pair.smaller.clients_count > MAX_EXACT_AUDIENCE]
    if has_few_segments:
        return await _count_by_all_segments(connection, pairs)
    return [
        *(await _count_by_small_audience(connection, small)),
        *(await _estimate(connection, large)),
    ]


HAS_FEW_SEGMENTS = text(f"""
    SELECT count(*) <= {MAX_SEGMENTS}
    FROM (SELECT FROM segment_count LIMIT {MAX_SEGMENTS} + 1) AS counted""")  # noqa: S608  # a number


async def _has_few_segments(connection: AsyncConnection) -> bool:
    return bool((await connection.execute(HAS_FEW_SEGMENTS)).scalar_one())


class FlaggedSegments:
    """Segments with a column for each of several filters: whether the filter matches the segment.

    So each filter is compared with a segment once, however many pairs it is in.
    """

    def __init__(self, segments: FromClause, pairs: Sequence[Pair]) -> None:
        self._numbers: dict[bytes, int] = {}
        conditions = list[ColumnElement[bool]]()
        for mailing in (mailing for pair in pairs for mailing in pair):
            key = _key_of(mailing.client_filter)
            if key not in self._numbers:
                self._numbers[key] = len(conditions)
                conditions.append(field_condition(mailing.client_filter, segments))
        flags = [
            condition.label(f"matches_{number}") for number, condition in enumerate(conditions)
        ]
        self.table: Subquery = select(segments.c.clients, *flags).offset(0).subquery("flagged")

    def matches(self, mailing: Mailing) -> ColumnElement[bool]:
        """Return the condition that a mailing's filter matches a segment."""
        number = self._numbers[_key_of(mailing.client_filter)]
        return self.table.c[f"matches_{number}"]

    def sum_where(self, condition: ColumnElement[bool]) -> ColumnElement[int]:
        """Return the number of the clients of all segments that meet a condition."""
        clients = func.sum(self.table.c.clients).filter(condition)
        return func.coalesce(clients, 0).cast(BigInteger)


def _key_of(client_filter: ClientFilter) -> bytes:
    return msgspec.json.encode(client_filter)


async def _count_by_all_segments(
    connection: AsyncConnection, pairs: Sequence[Pair]
) -> list[Overlap]:
    """Count all pairs exactly, in one scan of the segments."""
    flagged = FlaggedSegments(ALL_SEGMENT_COUNTS, pairs)
    sums = [flagged.sum_where(and_(*map(flagged.matches, pair))) for pair in pairs]
    row = (await connection.execute(select(*sums).select_from(flagged.table))).one()
    return [Overlap(pair, clients) for pair, clients in zip(pairs, row, strict=True)]


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
    flagged = FlaggedSegments(
        tablesample(segment_count, func.system(percent), name="segment"), pairs
    )
    sums = [
        flagged.sum_where(condition)
        for pair in pairs
        for condition in (and_(*map(flagged.matches, pair)), flagged.matches(pair.smaller))
    ]
    row = (await connection.execute(select(*sums).select_from(flagged.table))).one()
    shared, sampled = row[::2], row[1::2]
    return [
        Overlap(pair, _round(pair.smaller.clients_count * both / max(1, one)), is_estimate=True)
        for pair, both, one in zip(pairs, shared, sampled, strict=True)
    ]


def _round(number: float) -> int:
    """Round an estimate to `ESTIMATE_DIGITS`, because its other digits mean nothing."""
    return int(float(f"{number:.{ESTIMATE_DIGITS}g}"))
