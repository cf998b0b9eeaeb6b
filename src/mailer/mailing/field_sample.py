"""SQL that reads the fields of the clients of an audience: of all if it is small, else of a sample.

So the cost of a preview has a limit, however many clients there are.
"""

from collections.abc import Sequence
from typing import NamedTuple

from sqlalchemy import Row, Text, and_, cast, func, literal, select, true, union_all
from sqlalchemy.ext.asyncio import AsyncConnection

from mailer.client.lists.conditions import clients_on_any
from mailer.client.lists.sampling import read_share
from mailer.client.segment_counts import ALL_SEGMENT_COUNTS
from mailer.db.tables.client import client
from mailer.mailing import audience
from mailer.mailing.audience import field_condition
from mailer.mailing.client_filter import ClientFilter, list_name_keys

MAX_ALL_CLIENTS = 10_000
"""Clients of the largest audience that is read completely."""
WANTED_CLIENTS = 5_000
"""Clients of a sample, on average."""
MAX_SCANNED_CLIENTS = 50_000
"""Clients that are read for a sample, on average, to find those of the audience."""
MIN_SAMPLE = 200
"""Clients of the smallest random sample. If fewer are found, the audience is a small part of a
large directory; then clients of some of its segments are read."""
MAX_SAMPLED_SEGMENTS, MAX_CLIENTS_OF_SEGMENT = 100, 100
"""Segments that are read then, and clients of each."""


class FieldSample(NamedTuple):
    """Clients of an audience with their fields."""

    audience_size: int
    rows: Sequence[Row[int, str]]
    """Id of each client, and the fields as JSON."""

    @property
    def is_complete(self) -> bool:
        """Whether these are all clients of the audience."""
        return self.audience_size == len(self.rows)


async def read_fields(
    connection: AsyncConnection, client_filter: ClientFilter, *, opted_out: bool | None = None
) -> FieldSample:
    """Return the fields of the clients whom a filter matches now, or of a sample of them.

    `opted_out` is whether the clients have opted out; None for both. The same sample is drawn again
    as long as the clients stay as they are.
    """
    size = await audience.count(connection, client_filter, opted_out=opted_out)
    if (name_keys := list_name_keys(client_filter)) is not None:
        share = 1.0
        if size > MAX_ALL_CLIENTS:
            share = await read_share(
                connection, name_keys, wanted=WANTED_CLIENTS / size, max_read=MAX_SCANNED_CLIENTS
            )
        rows = await _read_lists(connection, client_filter, name_keys, share, opted_out=opted_out)
        return FieldSample(max(size, len(rows)), rows)
    if size <= MAX_ALL_CLIENTS:
        rows = await _read_segments(
            connection, client_filter, MAX_ALL_CLIENTS, MAX_ALL_CLIENTS, opted_out=opted_out
        )
        return FieldSample(len(rows), rows)
    rows = await _read_random(connection, client_filter, size, opted_out=opted_out)
    if len(rows) < MIN_SAMPLE:
        rows = await _read_segments(
            connection,
            client_filter,
            MAX_SAMPLED_SEGMENTS,
            MAX_CLIENTS_OF_SEGMENT,
            opted_out=opted_out,
        )
    return FieldSample(max(size, len(rows)), rows)


async def _read_lists(
    connection: AsyncConnection,
    client_filter: ClientFilter,
    name_keys: Sequence[str],
    share: float,
    *,
    opted_out: bool | None,
) -> Sequence[Row[int, str]]:
    """Return those of this share of the clients on lists, up to 1, who match."""
    listed = clients_on_any(name_keys, share)
    conditions = [field_condition(client_filter, listed)]
    if opted_out is not None:
        conditions.append(listed.c.opted_out_at.is_not(None) == opted_out)
    statement = select(listed.c.id, cast(listed.c.fields, Text)).where(*conditions)
    return (await connection.execute(statement.limit(MAX_ALL_CLIENTS))).all()


async def _read_random(
    connection: AsyncConnection, client_filter: ClientFilter, size: int, *, opted_out: bool | None
) -> Sequence[Row[int, str]]:
    """Return clients of random pages of the table, so many that about `WANTED_CLIENTS` match.

    `size` is the number of all clients who match.
    """
    directory_size = max(size, await audience.count(connection, None))
    scanned = min(MAX_SCANNED_CLIENTS, directory_size * WANTED_CLIENTS / size)
    percent = min(100.0, 100 * scanned / directory_size)
    sampled = client.tablesample(func.system(percent), seed=literal(1), name="sampled")
    conditions = [sampled.c.deleted_at.is_(None), field_condition(client_filter, sampled)]
    if opted_out is not None:
        conditions.append(sampled.c.opted_out_at.is_not(None) == opted_out)
    statement = select(sampled.c.id, cast(sampled.c.fields, Text)).where(*conditions)
    return (await connection.execute(statement.limit(2 * WANTED_CLIENTS))).all()


async def _read_segments(
    connection: AsyncConnection,
    client_filter: ClientFilter,
    max_segments: int,
    max_clients: int,
    *,
    opted_out: bool | None,
) -> Sequence[Row[int, str]]:
    """Return up to `max_clients` clients of each of up to `max_segments` segments that match.

    As in `audience.sample`, an index finds the clients of a segment.
    """
    counts = ALL_SEGMENT_COUNTS.c
    segment = (
        select(counts.operator_code, counts.tag, counts.time_zone)
        .where(field_condition(client_filter, ALL_SEGMENT_COUNTS), counts.clients > 0)
        .distinct()
        .limit(max_segments)
        .subquery("segment")
    )
    conditions = [
        client.c.deleted_at.is_(None),
        client.c.operator_code == segment.c.operator_code,
        client.c.time_zone == segment.c.time_zone,
    ]
    if opted_out is not None:
        conditions.append(client.c.opted_out_at.is_not(None) == opted_out)
    # two selects, because only `IS NULL` finds nulls by an index
    members = union_all(
        *(
            select(client.c.id, cast(client.c.fields, Text).label("fields"))
            .where(*conditions, has_same_tag)
            .limit(max_clients)
            .correlate(segment)
            .subquery()
            .select()
            for has_same_tag in (
                client.c.tag == segment.c.tag,
                and_(client.c.tag.is_(None), segment.c.tag.is_(None)),
            )
        )
    ).lateral("member")
    statement = select(members.c.id, members.c.fields).select_from(segment).join(members, true())
    return (await connection.execute(statement.limit(MAX_ALL_CLIENTS))).all()
