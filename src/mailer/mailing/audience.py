"""Clients whom a filter matches now: their condition in SQL, their number, and a sample of them."""

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
from mailer.client.segment_counts import ALL_SEGMENT_COUNTS
from mailer.db.tables.client import client
from mailer.mailing.client_filter import ClientFilter, filter_lists, folded_terms


def filter_condition(
    client_filter: ClientFilter, clients: FromClause = client
) -> ColumnElement[bool]:
    """Return a filter as an SQL condition on clients, or on client segments.

    `clients` is a table with the columns `operator_code`, `tag` and `time_zone`.
    """

    def equals_any(name: str, values: list[str]) -> ColumnElement[bool]:
        return clients.c[name] == any_(literal(values, ARRAY(String)))

    if isinstance(client_filter, str):
        terms = folded_terms(client_filter)
        return or_(equals_any("operator_code", terms), equals_any("tag", terms))
    lists = filter_lists(client_filter)  # none if all clients match: then the condition is `true`
    return and_(true(), *(equals_any(name, values) for name, values in lists.items()))


async def count(
    connection: AsyncConnection, client_filter: ClientFilter, *, opted_out: bool | None = None
) -> int:
    """Return how many clients a filter matches now.

    `opted_out` is whether the clients have opted out; None for both.
    """
    is_matching = filter_condition(client_filter, ALL_SEGMENT_COUNTS)
    return await segment_counts.count(connection, is_matching, opted_out=opted_out)


async def count_both(
    connection: AsyncConnection,
    client_filter: ClientFilter,
    other_filter: ClientFilter,
    *,
    opted_out: bool | None = None,
) -> int:
    """Return how many clients two filters match now, both of them; as `count`."""
    return await segment_counts.count(
        connection,
        filter_condition(client_filter, ALL_SEGMENT_COUNTS),
        filter_condition(other_filter, ALL_SEGMENT_COUNTS),
        opted_out=opted_out,
    )


async def count_by_zone(
    connection: AsyncConnection, client_filter: ClientFilter, *, opted_out: bool | None = None
) -> dict[str, int]:
    """Return how many clients a filter matches now, by time zone.

    `opted_out` is whether the clients have opted out; None for both.
    """
    is_matching = filter_condition(client_filter, ALL_SEGMENT_COUNTS)
    return await segment_counts.count_by_zone(connection, is_matching, opted_out=opted_out)


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
    """
    matching_segments = (
        NONEMPTY_SEGMENTS.where(filter_condition(client_filter, ALL_SEGMENT_COUNTS))
        .limit(size)
        .cte("segment")
    )
    # a segment may have several rows of counts
    segment = select(matching_segments).distinct().subquery("segment")
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
    # as users wrote it, not in the form in which tags are compared
    tag = func.coalesce(members.c.tag_written, members.c.tag).label("tag")
    columns = [tag if name == "tag" else members.c[name] for name in Client.__struct_fields__]
    statement = (
        select(*columns)
        .select_from(segment)
        .join(members, true())
        .order_by(position_in_segment)
        .limit(size)
    )
    return [Client(**row) for row in (await connection.execute(statement)).mappings()]
