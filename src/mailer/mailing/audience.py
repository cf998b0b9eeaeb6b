"""Clients whom a filter matches now: their condition in SQL, their number, and a sample of them."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import msgspec
from msgspec import UNSET, UnsetType
from sqlalchemy import (
    ARRAY,
    BigInteger,
    ColumnElement,
    FromClause,
    Row,
    String,
    and_,
    any_,
    column,
    func,
    literal,
    or_,
    select,
    true,
    union_all,
)
from sqlalchemy.ext.asyncio import AsyncConnection

from mailer.client import segment_counts
from mailer.client.lists.conditions import (
    clients_of_large_lists,
    clients_on_any,
    is_on_any,
    next_memberships,
    with_clients,
)
from mailer.client.lists.sampling import read_sizes
from mailer.client.lists.store import find_existing_ids, find_ids
from mailer.client.model import Client
from mailer.client.segment_counts import ALL_SEGMENT_COUNTS
from mailer.client.store import NOT_DELETED
from mailer.db.paging import MAX_BIGINT
from mailer.db.tables.client import client
from mailer.mailing.client_filter import (
    AudienceLists,
    ClientFilter,
    filter_fields,
    folded_terms,
    list_name_keys,
)


def filter_condition(
    client_filter: ClientFilter, clients: FromClause = client
) -> ColumnElement[bool]:
    """Return a filter as an SQL condition on clients.

    `clients` is a table with the columns `id`, `operator_code`, `tag` and `time_zone`.
    """
    condition = field_condition(client_filter, clients)
    if (name_keys := list_name_keys(client_filter)) is not None:
        condition = and_(condition, is_on_any(clients.c.id, name_keys))
    return condition


def field_condition(
    client_filter: ClientFilter, clients: FromClause = client
) -> ColumnElement[bool]:
    """Return the part of a filter on fields as an SQL condition on clients, or on client segments.

    `clients` is a table with the columns `operator_code`, `tag` and `time_zone`.
    """

    def equals_any(name: str, values: list[str]) -> ColumnElement[bool]:
        return clients.c[name] == any_(literal(values, ARRAY(String)))

    if isinstance(client_filter, str):
        terms = folded_terms(client_filter)
        return or_(equals_any("operator_code", terms), equals_any("tag", terms))
    fields = filter_fields(client_filter)  # none if all clients match: then the condition is `true`
    return and_(true(), *(equals_any(name, values) for name, values in fields.items()))


LARGE_LISTS = 200_000
"""Clients on lists from which on PostgreSQL chooses how to read them."""


async def matching_segments(connection: AsyncConnection, *filters: ClientFilter) -> FromClause:
    """Return the segments of the clients whom all filters match now, with their numbers.

    The table has the columns of `ALL_SEGMENT_COUNTS`. It is read from the counts, unless a filter
    has lists: then the clients of its lists are read and counted.
    """
    with_lists = [each for each in filters if list_name_keys(each) is not None]
    if not with_lists:
        conditions = (field_condition(each, ALL_SEGMENT_COUNTS) for each in filters)
        return select(ALL_SEGMENT_COUNTS).where(*conditions).subquery("segment")
    read_lists = list_name_keys(with_lists[0])
    assert read_lists is not None  # noqa: S101  # for mypy
    sizes = (await read_sizes(connection, read_lists)).values()
    is_large = sum(found.clients for found in sizes) >= LARGE_LISTS
    clients = (
        clients_of_large_lists([found.id for found in sizes])
        if is_large
        else clients_on_any(read_lists)
    )
    matches = [
        field_condition(each, clients)
        if list_name_keys(each) in {read_lists, None}
        else filter_condition(each, clients)
        for each in filters
    ]
    fields = (clients.c.operator_code, clients.c.tag, clients.c.time_zone)
    numbers = (
        func.count().label("clients"),
        func.count(clients.c.opted_out_at).label("opted_out"),
    )
    return select(*fields, *numbers).where(*matches).group_by(*fields).subquery("segment")


_segments_read: ContextVar[dict[bytes, FromClause] | None] = ContextVar("segments", default=None)
"""The segments of filters with lists, by the filters as JSON, inside `segments_read_once`."""


@contextmanager
def segments_read_once() -> Iterator[None]:
    """Read the clients of each filter with lists only once in the block, for all numbers.

    For a list of a million clients that takes seconds.
    """
    if _segments_read.get() is not None:  # an outer block does it
        yield
        return
    token = _segments_read.set({})
    try:
        yield
    finally:
        _segments_read.reset(token)


async def read_segments(connection: AsyncConnection, *filters: ClientFilter) -> FromClause:
    """Return `matching_segments`; inside `segments_read_once`, those that were read before."""
    known = _segments_read.get()
    has_lists = any(list_name_keys(each) is not None for each in filters)
    if known is None or not has_lists:
        return await matching_segments(connection, *filters)
    key = msgspec.json.encode(filters)
    if key not in known:
        segments = await matching_segments(connection, *filters)
        rows = (await connection.execute(select(segments))).all()
        known[key] = _as_segments(rows)
    return known[key]


def _as_segments(rows: Sequence[Row[Any]]) -> FromClause:
    """Return rows as a table with the columns of `ALL_SEGMENT_COUNTS`."""
    columns = [
        column(name, BigInteger if name in {"clients", "opted_out"} else String)
        for name in ALL_SEGMENT_COUNTS.c.keys()  # noqa: SIM118  # no mapping
    ]
    arrays = (
        literal([getattr(row, each.name) for row in rows], ARRAY(each.type)) for each in columns
    )
    return func.unnest(*arrays).table_valued(*columns, name="segment").render_derived()


async def ensure_lists_exist(
    connection: AsyncConnection, client_filter: ClientFilter | UnsetType
) -> None:
    """Raise `InvalidError` naming the lists in a filter that do not exist.

    The others cannot be deleted until the transaction ends.
    """
    if isinstance(client_filter, AudienceLists) and client_filter.lists is not UNSET:
        await find_ids(connection, client_filter.lists, "client_filter.lists", lock=True)


async def count(
    connection: AsyncConnection, client_filter: ClientFilter, *, opted_out: bool | None = None
) -> int:
    """Return how many clients a filter matches now.

    `opted_out` is whether the clients have opted out; None for both.
    """
    segments = await read_segments(connection, client_filter)
    return await segment_counts.count(connection, opted_out=opted_out, segments=segments)


async def count_both(
    connection: AsyncConnection,
    client_filter: ClientFilter,
    other_filter: ClientFilter,
    *,
    opted_out: bool | None = None,
) -> int:
    """Return how many clients two filters match now, both of them; as `count`."""
    segments = await read_segments(connection, client_filter, other_filter)
    return await segment_counts.count(connection, opted_out=opted_out, segments=segments)


async def count_by_zone(
    connection: AsyncConnection, client_filter: ClientFilter, *, opted_out: bool | None = None
) -> dict[str, int]:
    """Return how many clients a filter matches now, by time zone.

    `opted_out` is whether the clients have opted out; None for both.
    """
    segments = await read_segments(connection, client_filter)
    return await segment_counts.count_by_zone(connection, opted_out=opted_out, segments=segments)


NONEMPTY_SEGMENTS = select(
    ALL_SEGMENT_COUNTS.c.operator_code, ALL_SEGMENT_COUNTS.c.tag, ALL_SEGMENT_COUNTS.c.time_zone
).where(ALL_SEGMENT_COUNTS.c.clients > 0)


async def sample(
    connection: AsyncConnection, client_filter: ClientFilter, size: int
) -> list[Client]:
    """Return up to `size` clients whom a filter matches, from as many segments as possible.

    A segment is all clients with the same operator code, tag and time zone. At most `size` matching
    segments are read, and up to `size` clients of each by an index. Clients who do not match are
    never read, whatever the filter. The first clients of all segments are returned before the
    second ones, and so on. Fewer clients than match may be returned, when the clients of some
    segments were deleted a moment ago.

    If the filter has lists, the first clients on them are returned instead.
    """
    if (name_keys := list_name_keys(client_filter)) is not None:
        return await _sample_of_lists(connection, client_filter, name_keys, size)
    segments = (
        NONEMPTY_SEGMENTS.where(field_condition(client_filter, ALL_SEGMENT_COUNTS))
        .limit(size)
        .cte("segment")
    )
    # a segment may have several rows of counts
    segment = select(segments).distinct().subquery("segment")
    is_member = and_(
        client.c.deleted_at.is_(None),
        client.c.operator_code == segment.c.operator_code,
        client.c.time_zone == segment.c.time_zone,
    )
    # two selects, because only `IS NULL` finds nulls by an index
    has_same_tag = (
        client.c.tag == segment.c.tag,
        and_(client.c.tag.is_(None), segment.c.tag.is_(None)),
    )
    # in subqueries, so that each select has a LIMIT of its own
    members = union_all(
        *(
            select(client)
            .where(is_member, condition)
            .limit(size)
            .correlate(segment)
            .subquery()
            .select()
            for condition in has_same_tag
        )
    ).lateral("member")
    position_in_segment = func.row_number().over(
        partition_by=list(segment.c), order_by=members.c.id
    )
    statement = (
        select(*_client_columns(members))
        .select_from(segment)
        .join(members, true())
        .order_by(position_in_segment)
        .limit(size)
    )
    return [Client(**row) for row in (await connection.execute(statement)).mappings()]


SAMPLED_MEMBERS = 1_000
"""Clients on lists who are read first for a sample."""


async def _sample_of_lists(
    connection: AsyncConnection, client_filter: ClientFilter, name_keys: Sequence[str], size: int
) -> list[Client]:
    """Return the first `size` clients on any of the lists whom a filter matches.

    All clients on the lists are read only if too few of the first ones match.
    """
    list_ids = await find_existing_ids(connection, name_keys)
    first = next_memberships(list_ids, 0, MAX_BIGINT, SAMPLED_MEMBERS)
    first_ids = select(first.c.client_id).distinct().subquery("listed")
    for clients in (with_clients(first_ids, NOT_DELETED), clients_on_any(name_keys)):
        statement = (
            select(*_client_columns(clients))
            .where(field_condition(client_filter, clients))
            .order_by(clients.c.id)
            .limit(size)
        )
        found = [Client(**row) for row in (await connection.execute(statement)).mappings()]
        if len(found) == size:
            break
    return found


def _client_columns(clients: FromClause) -> list[ColumnElement[Any]]:
    """Return the columns of a `Client` from a table with those of `client`."""
    # as users wrote it, not in the form in which tags are compared
    tag = func.coalesce(clients.c.tag_written, clients.c.tag).label("tag")
    return [tag if name == "tag" else clients.c[name] for name in Client.__struct_fields__]
