"""Enqueue a mailing's audience: write a message for each of its clients, in chunks by client id.

The progress is stored in the mailing's row: `audience_cursor` is the id of the last client whose
message is written, and `audience_until` the highest id to reach. A worker that crashes loses no
more than its current chunk.

After a change of the filter, the existing messages are replanned first, and then the audience is
enqueued again. The same statement then adds only the clients who have no message yet.
"""

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import msgspec
from sqlalchemy import (
    ARRAY,
    BigInteger,
    ColumnElement,
    DateTime,
    Executable,
    FromClause,
    Integer,
    Row,
    String,
    and_,
    bindparam,
    case,
    cast,
    column,
    func,
    literal,
    select,
    text,
)
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncConnection

from mailer.client.lists.conditions import members_between, next_memberships, with_clients
from mailer.client.lists.store import find_existing_ids
from mailer.db import origin
from mailer.db.paging import MAX_BIGINT
from mailer.db.sql import add_up
from mailer.db.tables.client import client
from mailer.db.tables.gateway import operator_route
from mailer.db.tables.mailing import OPEN_MAILING
from mailer.db.tables.message import message
from mailer.gateway.routes import OTHER_CODES, keep_routes
from mailer.mailing.audience import field_condition
from mailer.mailing.client_filter import ClientFilter, list_name_keys
from mailer.mailing.planning import Plan, plan_by_zone, plan_cancelled
from mailer.mailing.skipped import SkippedMailings
from mailer.mailing.store import notify_mailings_changed
from mailer.statuses import MESSAGE_STATUSES

ENQUEUE_BATCH = 5_000
"""Clients enqueued by one transaction: many for speed, but few enough not to delay others."""
FIRST_BATCH = 500
"""Clients in the first chunk of a mailing: fewer, so that sending starts at once."""

EnqueueOrder = Literal["lowest_cursor", "newest", "partly_enqueued"]
"""The mailing to enqueue next:

- `lowest_cursor`: the one with the lowest cursor, so that a small one does not wait for large ones;
- `newest`: the newest of which nothing is enqueued yet;
- `partly_enqueued`: the one with the lowest cursor of those of which something is enqueued.
"""

# The condition of a partial index on `audience_cursor` and `id`.
HAS_AUDIENCE_TO_ENQUEUE = (
    f"{OPEN_MAILING} AND audience_cursor < audience_until AND NOT is_replanning"
)
# A mailing whose row another worker has locked is skipped. The newest mailing is searched for among
# those with the cursor 0, so that the order by cursor and id is there an order by id.
NEXT_MAILING_TO_ENQUEUE = """
    SELECT id, datetime_start, datetime_end, send_interval_time_start, send_interval_time_end,
        status, client_filter, audience_cursor, audience_until, audience_snapshot, route,
        purpose = 'marketing' AS respects_opt_outs, clock_timestamp() AS now
    FROM mailing
    WHERE {condition} AND audience_cursor BETWEEN :min_cursor AND :max_cursor
        AND id <> ALL (:skipped)
    ORDER BY audience_cursor {order}, id {order} LIMIT 1 FOR UPDATE SKIP LOCKED"""
LOWEST_CURSOR_FIRST, NEWEST_FIRST = (
    text(NEXT_MAILING_TO_ENQUEUE.format(condition=HAS_AUDIENCE_TO_ENQUEUE, order=order)).bindparams(
        bindparam("skipped", type_=ARRAY(BigInteger))
    )
    for order in ("ASC", "DESC")
)
# Returns the size of the audience. From the last chunk on, that is the number of its messages.
MOVE_AUDIENCE_CURSOR = text(f"""
    UPDATE mailing SET audience_cursor = :cursor,
        clients_count = CASE WHEN :is_last THEN (
            SELECT {add_up(MESSAGE_STATUSES)}
            FROM mailing_counts WHERE mailing_id = :id) ELSE clients_count END
    WHERE id = :id RETURNING clients_count""")  # noqa: S608  # no user input


def audience_as_of_now() -> dict[str, Any]:
    """Return the values of columns that make workers enqueue a mailing's audience again.

    The audience is then all matching clients who are in the directory now.
    """
    newest_client = func.coalesce(select(func.max(client.c.id)).scalar_subquery(), 0)
    snapshot = cast(func.pg_current_snapshot(), String)
    return {"audience_cursor": 0, "audience_until": newest_client, "audience_snapshot": snapshot}


# Both are evaluated once for all rows, because they do not depend on the row. A join with the table
# would take longer: PostgreSQL expects few clients, and would read the table for each of them.
IS_OF_OTHER_CODES = operator_route.c.operator_code == OTHER_CODES
ROUTE_OF_OTHER_CODES = select(operator_route.c.route).where(IS_OF_OTHER_CODES).scalar_subquery()
ROUTES_BY_CODE = select(
    func.jsonb_object_agg(operator_route.c.operator_code, operator_route.c.route)
).scalar_subquery()


class EnqueuedChunk(msgspec.Struct, frozen=True):
    """What was enqueued for a mailing by one transaction."""

    mailing_id: int
    clients_count: int
    """Size of the whole audience, as far as it is known."""
    is_last: bool
    """Whether the whole audience is enqueued now."""
    is_large: bool
    """Whether the chunk had at least `FIRST_BATCH` clients, so that it took some time."""


async def enqueue_chunk(
    connection: AsyncConnection,
    order: EnqueueOrder = "lowest_cursor",
    skipped: SkippedMailings | None = None,
) -> EnqueuedChunk | None:
    """Enqueue the next chunk of the audience of one mailing; None when nothing was enqueued.

    A changed mailing is left out until its messages are replanned. A mailing whose data cannot be
    read is added to `skipped`.
    """
    skipped = SkippedMailings() if skipped is None else skipped
    parameters = {
        "min_cursor": 1 if order == "partly_enqueued" else 0,
        "max_cursor": 0 if order == "newest" else MAX_BIGINT,
        "skipped": list(skipped),
    }
    statement = NEWEST_FIRST if order == "newest" else LOWEST_CURSOR_FIRST
    await keep_routes(connection)
    mailing = (await connection.execute(statement, parameters)).one_or_none()
    enqueued = None
    if mailing is not None:
        await origin.update(connection)  # it cannot run later, inside the savepoint
        with skipped.on_error(mailing.id):
            async with connection.begin_nested():
                enqueued = await _enqueue_chunk_of(connection, mailing)
            await notify_mailings_changed(connection)
    return enqueued


async def _enqueue_chunk_of(connection: AsyncConnection, mailing: Row[Any]) -> EnqueuedChunk:
    """Enqueue the next chunk of a locked mailing's audience, and move its cursor."""
    list_ids = await _list_ids(connection, mailing)
    chunk = (await connection.execute(_select_next_chunk(mailing, list_ids))).one()
    if chunk.time_zones:
        clients = _clients_of_chunk(mailing, chunk.last_client_id, list_ids)
        await _write_messages(connection, mailing, clients, chunk.time_zones)
    is_last = chunk.clients < _batch_size(mailing) or chunk.last_client_id == mailing.audience_until
    cursor = mailing.audience_until if is_last else chunk.last_client_id
    parameters = {"id": mailing.id, "cursor": cursor, "is_last": is_last}
    clients_count = (await connection.execute(MOVE_AUDIENCE_CURSOR, parameters)).scalar_one()
    is_large = chunk.clients >= FIRST_BATCH
    return EnqueuedChunk(mailing.id, clients_count, is_last=is_last, is_large=is_large)


def _batch_size(mailing: Row[Any]) -> int:
    return ENQUEUE_BATCH if mailing.audience_cursor else FIRST_BATCH


async def _list_ids(connection: AsyncConnection, mailing: Row[Any]) -> list[int] | None:
    """Return the ids of the lists of clients in a mailing's filter; None if it has none."""
    name_keys = list_name_keys(msgspec.convert(mailing.client_filter, ClientFilter))
    return None if name_keys is None else await find_existing_ids(connection, name_keys)


def _select_next_chunk(mailing: Row[Any], list_ids: list[int] | None) -> Executable:
    """Return a select of the last client id, the time zones and the size of the next chunk.

    A chunk is a number of matching clients, not a range of ids, so that an index finds a small
    audience in a large directory. With lists of clients, it is a number of memberships, also of
    clients who do not match: then the lists are read once, and clients on no list never.
    """
    size = _batch_size(mailing)
    if list_ids is None:
        clients = _clients_of_chunk(mailing, mailing.audience_until)
        candidates = select(client.c.id.label("client_id"), client.c.time_zone)
        candidates = candidates.where(*clients.conditions).order_by(client.c.id).limit(size)
        chunk: FromClause = candidates.subquery("chunk")
    else:
        ids = next_memberships(list_ids, mailing.audience_cursor, mailing.audience_until, size)
        chunk = with_clients(ids, _is_in_audience(mailing), keeps_others=True)
    time_zones = func.array_agg(chunk.c.time_zone.distinct())
    return select(
        func.max(chunk.c.client_id).label("last_client_id"),
        time_zones.filter(chunk.c.time_zone.is_not(None)).label("time_zones"),
        func.count(chunk.c.client_id).label("clients"),
    )


class ChunkClients(NamedTuple):
    """The clients of a chunk: a table with the columns of `client`, and conditions on it."""

    table: FromClause
    conditions: Sequence[ColumnElement[bool]]


def _clients_of_chunk(
    mailing: Row[Any], last_client_id: int, list_ids: list[int] | None = None
) -> ChunkClients:
    """Return the clients of the audience with ids above the cursor, up to `last_client_id`."""
    if list_ids is not None:
        ids = members_between(list_ids, mailing.audience_cursor, last_client_id)
        return ChunkClients(with_clients(ids, _is_in_audience(mailing)), ())
    is_in_chunk = and_(client.c.id > mailing.audience_cursor, client.c.id <= last_client_id)
    return ChunkClients(client, (is_in_chunk, _is_in_audience(mailing)))


# Whether a client was in the directory when the mailing's audience snapshot was taken. `created_by`
# is the id of the transaction that created the client. The client is younger than the snapshot if
# that transaction
# - was in progress at the snapshot (`pg_snapshot_xip`), or
# - has started since: its id is at least the `xmax` of the snapshot.
#
# A client restored from a dump of another server has an id of that server in `created_by`, which
# says nothing here. The last two conditions recognize such an id, so that the client counts as
# older than the snapshot:
# - no transaction of this server has had that id yet, or
# - the row was written (by `xmin`) before the transaction of this server that has had it. `age` is
#   the number of transactions since one, and takes the lower 32 bits of its id.
EXISTED_IN_SNAPSHOT = """NOT (
    created_by = ANY (ARRAY(
        SELECT xid::text::bigint FROM pg_snapshot_xip((:snapshot)::text::pg_snapshot) AS xid))
    OR (created_by >= (SELECT pg_snapshot_xmax((:snapshot)::text::pg_snapshot)::text::bigint)
        AND created_by < (SELECT pg_snapshot_xmax(pg_current_snapshot())::text::bigint)
        AND age(client.xmin) <= age((created_by % 4294967296)::text::xid)))"""


def _is_in_audience(mailing: Row[Any]) -> ColumnElement[bool]:
    """Return the condition that a client belongs to a mailing's audience.

    Such a client matches the filter now and was in the directory at the audience snapshot. The
    latter does not follow from the id, which may be assigned long before the client is committed.
    Lists of clients in the filter are not among the conditions: the chunk is read from them.
    """
    return and_(
        client.c.deleted_at.is_(None),
        field_condition(msgspec.convert(mailing.client_filter, ClientFilter)),
        text(EXISTED_IN_SNAPSHOT).bindparams(snapshot=mailing.audience_snapshot),
    )


async def _write_messages(
    connection: AsyncConnection, mailing: Row[Any], chunk: ChunkClients, time_zones: list[str]
) -> None:
    """Write the messages for the clients of a chunk.

    The messages to clients who have opted out are cancelled, unless the mailing ignores that. A new
    filter may match clients again whom an earlier filter excluded. Their cancelled messages are
    scheduled again; other existing messages are not changed.
    """
    plans = _as_table(_plans(mailing, time_zones))
    clients = chunk.table.c
    has_opted_out = and_(mailing.respects_opt_outs, clients.opted_out_at.is_not(None))
    rows = (
        select(
            literal(mailing.id).label("mailing_id"),
            clients.id.label("client_id"),
            clients.operator_code,
            clients.time_zone,
            # No plan exists for a client who changes time zone at this moment. The message is due
            # now, and the window is checked again before it is sent.
            func.coalesce(plans.c.due_at, mailing.now),
            case((has_opted_out, "cancelled"), else_=func.coalesce(plans.c.status, "scheduled")),
            case((has_opted_out, "opted_out"), else_=plans.c.reason),
            func.coalesce(
                literal(mailing.route, Integer),
                cast(ROUTES_BY_CODE.op("->>")(clients.operator_code), Integer),
                ROUTE_OF_OTHER_CODES,
            ),
        )
        .join_from(chunk.table, plans, clients.time_zone == plans.c.time_zone, isouter=True)
        .where(*chunk.conditions)
        .order_by(clients.id)
    )
    statement = insert(message).from_select(
        [
            *("mailing_id", "client_id", "operator_code", "time_zone"),
            *("due_at", "status", "reason", "route"),
        ],
        rows,
    )
    was_excluded = and_(message.c.status == "cancelled", message.c.reason == "filter_changed")
    replaced = ("due_at", "status", "reason", "route")
    new_values = {name: statement.excluded[name] for name in replaced}
    await connection.execute(
        statement.on_conflict_do_update(
            index_elements=["mailing_id", "client_id"],
            set_={**new_values, "updated_at": func.now()},
            where=was_excluded,
        )
    )


def _plans(mailing: Row[Any], time_zones: list[str]) -> list[Plan]:
    """Return the plan for each time zone. A cancelled mailing gets cancelled messages."""
    if mailing.status == "cancelled":
        return [plan_cancelled(zone, mailing.now) for zone in time_zones]
    return list(plan_by_zone(mailing, time_zones).values())


def _as_table(plans: list[Plan]) -> Any:  # noqa: ANN401  # SQLAlchemy names no type for it
    """Return plans as a table that a statement can join: one column for each field of `Plan`."""
    columns = [
        (name, ARRAY(DateTime(timezone=True) if name == "due_at" else String))
        for name in Plan.__struct_fields__
    ]
    arrays = (literal([getattr(plan, name) for plan in plans], array) for name, array in columns)
    return (
        func.unnest(*arrays)
        .table_valued(*(column(name, array.item_type) for name, array in columns))
        .render_derived()
    )
