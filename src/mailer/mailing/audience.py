"""Count and sample the clients whom the filter of a mailing matches now."""

from sqlalchemy import (
    ARRAY,
    ColumnElement,
    FromClause,
    String,
    and_,
    any_,
    func,
    literal,
    or_,
    select,
    true,
    union_all,
)
from sqlalchemy.ext.asyncio import AsyncConnection

from mailer.client import segment_counts
from mailer.client.model import Client
from mailer.db.schema import client
from mailer.mailing.client_filter import ClientFilter, filter_lists, folded_terms


def filter_condition(
    client_filter: ClientFilter, clients: FromClause = client
) -> ColumnElement[bool]:
    """Return a filter as an SQL condition on clients, or on client segments."""

    def equals_any(name: str, values: list[str]) -> ColumnElement[bool]:
        return clients.c[name] == any_(literal(values, ARRAY(String)))

    if isinstance(client_filter, str):
        terms = folded_terms(client_filter)
        return or_(equals_any("operator_code", terms), equals_any("tag", terms))
    lists = filter_lists(client_filter)
    return and_(true(), *(equals_any(name, values) for name, values in lists.items()))


async def count(connection: AsyncConnection, client_filter: ClientFilter) -> int:
    """Return how many clients a filter matches now."""
    return await segment_counts.count(
        connection, filter_condition(client_filter, segment_counts.ALL_SEGMENT_COUNTS)
    )


async def count_by_zone(connection: AsyncConnection, client_filter: ClientFilter) -> dict[str, int]:
    """Return how many clients a filter matches now, by time zone."""
    return await segment_counts.count_by_zone(
        connection, filter_condition(client_filter, segment_counts.ALL_SEGMENT_COUNTS)
    )


NONEMPTY_SEGMENTS = select(
    segment_counts.ALL_SEGMENT_COUNTS.c.operator_code,
    segment_counts.ALL_SEGMENT_COUNTS.c.tag,
    segment_counts.ALL_SEGMENT_COUNTS.c.time_zone,
).where(segment_counts.ALL_SEGMENT_COUNTS.c.clients > 0)


async def sample(
    connection: AsyncConnection, client_filter: ClientFilter, size: int
) -> list[Client]:
    """Return up to `size` clients whom a filter matches, from as many segments as possible.

    Matching segments come from the segment counts, and up to `size` clients of each segment from an
    index. Clients who do not match are never read, whatever the filter. At most `size` segments are
    read. Therefore fewer clients may be returned than match, when the clients of some segments were
    deleted a moment ago.
    """
    segments = (
        NONEMPTY_SEGMENTS.where(filter_condition(client_filter, segment_counts.ALL_SEGMENT_COUNTS))
        .limit(size)
        .cte("segment")
    )
    segment = select(segments).distinct().subquery("segment")
    in_segment = and_(
        client.c.deleted_at.is_(None),
        client.c.operator_code == segment.c.operator_code,
        client.c.time_zone == segment.c.time_zone,
    )
    # only `IS NULL` finds nulls by an index
    members = union_all(
        *(
            select(client)
            .where(in_segment, same_tag)
            .limit(size)
            .correlate(segment)
            .subquery()
            .select()
            for same_tag in (
                client.c.tag == segment.c.tag,
                and_(client.c.tag.is_(None), segment.c.tag.is_(None)),
            )
        )
    ).lateral("member")
    rank = func.row_number().over(partition_by=list(segment.c), order_by=members.c.id)
    replaced = {"tag": func.coalesce(members.c.tag_written, members.c.tag).label("tag")}
    columns = [replaced.get(name, members.c[name]) for name in Client.__struct_fields__]
    query = select(*columns).select_from(segment).join(members, true()).order_by(rank).limit(size)
    return [Client(**row) for row in (await connection.execute(query)).mappings()]
