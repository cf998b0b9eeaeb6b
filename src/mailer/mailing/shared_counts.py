"""Numbers of clients whom two filters match, both of them, for many pairs of filters in one pass.

Pairs without lists are counted by client segments. For a pair with lists, clients on the lists are
read: of each set of lists once for all pairs, and of large lists a random sample only. So the cost
has a limit, however many pairs there are, and however large the lists.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import chain
from typing import NamedTuple

import msgspec
from sqlalchemy import (
    ARRAY,
    BigInteger,
    ColumnElement,
    FromClause,
    Subquery,
    and_,
    func,
    literal,
    select,
)
from sqlalchemy.ext.asyncio import AsyncConnection

from mailer.client.lists.conditions import clients_on_any, with_list_ids
from mailer.client.lists.sampling import ListSize, read_sizes
from mailer.client.segment_counts import ALL_SEGMENT_COUNTS
from mailer.mailing.audience import field_condition
from mailer.mailing.client_filter import ClientFilter, list_name_keys

FilterPair = tuple[ClientFilter, ClientFilter]

ESTIMATE_DIGITS = 2
"""Significant digits of an estimate."""


class SharedCount(NamedTuple):
    """How many clients two filters match, both of them."""

    clients: int
    is_estimate: bool = False


def round_estimate(number: float) -> int:
    """Round an estimate to `ESTIMATE_DIGITS`, because its other digits mean nothing."""
    return int(float(f"{number:.{ESTIMATE_DIGITS}g}"))


def has_lists(pair: FilterPair) -> bool:
    """Return whether one of two filters has lists."""
    return any(list_name_keys(each) is not None for each in pair)


class FlaggedRows:
    """Rows of clients or of segments, with a column for each filter: whether it matches the row.

    So each filter is compared with a row once, however many pairs it is in.
    """

    def __init__(
        self,
        rows: FromClause,
        clients: ColumnElement[int],
        pairs: Iterable[FilterPair],
        condition: Callable[[ClientFilter, FromClause], ColumnElement[bool]] = field_condition,
    ) -> None:
        """`clients` is the number of clients of a row; `condition` that of a filter on `rows`."""
        conditions = dict[bytes, ColumnElement[bool]]()
        for client_filter in (each for pair in pairs for each in pair):
            key = _key_of(client_filter)
            if key not in conditions:
                conditions[key] = condition(client_filter, rows)
        self._numbers = {key: number for number, key in enumerate(conditions)}
        flags = [each.label(f"matches_{number}") for number, each in enumerate(conditions.values())]
        # the OFFSET keeps PostgreSQL from evaluating a condition again for each pair
        flagged = select(clients.label("clients"), *flags).select_from(rows).offset(0)
        self.table: Subquery = flagged.subquery("flagged")

    def matches(self, client_filter: ClientFilter) -> ColumnElement[bool]:
        """Return the condition that a filter matches a row."""
        return self.table.c[f"matches_{self._numbers[_key_of(client_filter)]}"]

    def sum_where(self, *conditions: ColumnElement[bool]) -> ColumnElement[int]:
        """Return the number of the clients of all rows that meet all conditions."""
        clients = func.sum(self.table.c.clients).filter(and_(*conditions))
        return func.coalesce(clients, 0).cast(BigInteger)

    async def read(
        self, connection: AsyncConnection, sums: Iterable[ColumnElement[int]]
    ) -> Sequence[int]:
        """Return several sums, in one pass over the rows."""
        row = (await connection.execute(select(*sums).select_from(self.table))).one()
        return list(row)

    async def count_pairs(
        self, connection: AsyncConnection, pairs: Iterable[FilterPair]
    ) -> Sequence[int]:
        """Return how many clients each of the pairs shares, in one pass over the rows."""
        sums = [self.sum_where(*map(self.matches, pair)) for pair in pairs]
        return await self.read(connection, sums)


def _key_of(client_filter: ClientFilter) -> bytes:
    return msgspec.json.encode(client_filter)


async def count_by_segments(
    connection: AsyncConnection, pairs: Sequence[FilterPair], *, opted_out: bool | None = None
) -> list[SharedCount]:
    """Count pairs without lists exactly, in one scan of all segments.

    `opted_out` is whether the clients have opted out; None for both.
    """
    if not pairs:
        return []
    counts = ALL_SEGMENT_COUNTS.c
    clients = {
        None: counts.clients,
        True: counts.opted_out,
        False: counts.clients - counts.opted_out,
    }[opted_out]
    flagged = FlaggedRows(ALL_SEGMENT_COUNTS, clients, pairs)
    return [SharedCount(clients) for clients in await flagged.count_pairs(connection, pairs)]


async def count_by_lists(
    connection: AsyncConnection,
    pairs: Sequence[FilterPair],
    *,
    max_read: int,
    opted_out: bool | None = None,
) -> list[SharedCount]:
    """Count or estimate pairs with lists.

    About `max_read` clients on lists are read in all, at most. If the lists have more, the pairs
    with the largest ones are estimated from a sample of their clients. Such an estimate may be 0
    although a few clients are shared. The same sample is drawn each time. `opted_out` is whether
    the clients have opted out; None for both.
    """
    if not pairs:
        return []
    sizes = await read_sizes(connection, {key for pair in pairs for key in _all_name_keys(pair)})
    numbers_by_lists = defaultdict[tuple[str, ...], list[int]](list)
    for number, pair in enumerate(pairs):
        numbers_by_lists[_smallest_lists(pair, sizes)].append(number)
    by_size = sorted(numbers_by_lists, key=lambda name_keys: _size_of(name_keys, sizes))
    counts, left = dict[int, SharedCount](), max_read
    for position, name_keys in enumerate(by_size):
        # what small lists do not need is left for the larger ones
        wanted, size = left // (len(by_size) - position), _size_of(name_keys, sizes)
        left -= min(wanted, size)
        numbers = numbers_by_lists[name_keys]
        of_lists = [pairs[number] for number in numbers]
        share = min(1.0, max(1, wanted) / max(1, size))
        flagged = _flag_on_lists(
            _on_lists(name_keys, share, opted_out=opted_out), name_keys, of_lists, sizes
        )
        found = await flagged.count_pairs(connection, of_lists)
        counts.update(zip(numbers, (_scale(clients, share) for clients in found), strict=True))
    return [counts[number] for number in range(len(pairs))]


def _all_name_keys(pair: FilterPair) -> Iterable[str]:
    return (key for each in pair for key in list_name_keys(each) or ())


def _size_of(name_keys: Iterable[str], sizes: Mapping[str, ListSize]) -> int:
    """Return how many clients are on lists, at most: some may be on several of them."""
    return sum(sizes[key].clients for key in name_keys if key in sizes)


def _smallest_lists(pair: FilterPair, sizes: Mapping[str, ListSize]) -> tuple[str, ...]:
    """Return the lists of one of two filters, on which all shared clients are: those to read."""
    found = [keys for keys in map(list_name_keys, pair) if keys is not None]
    return min(found, key=lambda keys: (_size_of(keys, sizes), keys))


def _scale(clients: int, share: float) -> SharedCount:
    """Return the number of all clients for one in a sample with this share of them."""
    if share == 1:
        return SharedCount(clients)
    return SharedCount(round_estimate(clients / share), is_estimate=True)


def _on_lists(name_keys: Sequence[str], share: float, *, opted_out: bool | None) -> FromClause:
    """Return this share of the clients on any of the lists."""
    listed = clients_on_any(name_keys, share)
    if opted_out is None:
        return listed
    has_opted_out = listed.c.opted_out_at.is_not(None)
    return select(listed).where(has_opted_out == opted_out).subquery("chosen")


def _flag_on_lists(
    listed: FromClause,
    name_keys: Sequence[str],
    pairs: Sequence[FilterPair],
    sizes: Mapping[str, ListSize],
) -> FlaggedRows:
    """Flag clients who are all on one of the lists `name_keys`."""
    ids_by_lists = {
        keys: [sizes[key].id for key in keys if key in sizes]
        for keys in {list_name_keys(each) for pair in pairs for each in pair}
        if keys is not None and keys != name_keys
    }
    if ids_by_lists:
        listed = with_list_ids(listed, [*chain(*ids_by_lists.values())])

    def condition(client_filter: ClientFilter, clients: FromClause) -> ColumnElement[bool]:
        is_match = field_condition(client_filter, clients)
        keys = list_name_keys(client_filter)
        if keys is None or keys == name_keys:
            return is_match
        list_ids = literal(ids_by_lists[keys], ARRAY(BigInteger))
        return and_(is_match, clients.c.list_ids.bool_op("&&")(list_ids))

    return FlaggedRows(listed, literal(1, BigInteger), pairs, condition)
