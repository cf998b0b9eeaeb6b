"""Enqueue a mailing's audience in chunks, each by one set-based statement.

The progress is stored in the mailing's row as `audience_cursor`. When the filter of a started
mailing changes, its audience is enqueued again as of that moment, after its existing messages are
replanned. The same statement then adds only the clients who have no message yet.
"""

from typing import Any, Literal

import msgspec
from sqlalchemy import (
    ARRAY,
    BigInteger,
    ColumnElement,
    DateTime,
    Executable,
    Row,
    String,
    and_,
    bindparam,
    cast,
    column,
    func,
    literal,
    select,
    text,
)
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncConnection

from mailer.db import origin
from mailer.db.paging import MAX_BIGINT
from mailer.db.schema import OPEN_MAILING, client, message
from mailer.db.sql import add_up
from mailer.mailing.audience import filter_condition
from mailer.mailing.client_filter import ClientFilter
from mailer.mailing.planning import Plan, plan, window_of
from mailer.mailing.skipped import SkippedMailings
from mailer.mailing.store import notify_mailings_changed
from mailer.statuses import MESSAGE_STATUSES

ENQUEUE_BATCH = 5_000
"""Clients enqueued by one transaction: many for speed, but few enough not to delay others."""
FIRST_BATCH = 500
"""Clients in the first chunk of a mailing, so that sending starts at once."""

# Mailings with the lowest cursor come first, so that a small mailing does not wait for a large one.
# A mailing whose row another worker has locked is skipped. A partial index has exactly these
# mailings in this order.
HAS_AUDIENCE_TO_ENQUEUE = (
    f"{OPEN_MAILING} AND audience_cursor < audience_until AND NOT is_replanning"
)
NEXT_MAILING_TO_ENQUEUE = """
    SELECT id, datetime_start, datetime_end, send_interval_time_start, send_interval_time_end,
        status, client_filter, audience_cursor, audience_until, audience_snapshot,
        clock_timestamp() AS now
    FROM mailing
    WHERE {condition} AND audience_cursor BETWEEN :min_cursor AND :max_cursor
        AND id <> ALL (:skipped)
    ORDER BY audience_cursor {order}, id {order} LIMIT 1 FOR UPDATE SKIP LOCKED"""
LOWEST_CURSOR, NEWEST_MAILING = (
    text(NEXT_MAILING_TO_ENQUEUE.format(condition=HAS_AUDIENCE_TO_ENQUEUE, order=order)).bindparams(
        bindparam("skipped", type_=ARRAY(BigInteger))
    )
    for order in ("ASC", "DESC")
)
EnqueueOrder = Literal["lowest_cursor", "newest", "partly_enqueued"]
"""The mailing to enqueue next: the one with the lowest cursor, the newest of which nothing is
enqueued yet, or the one with the lowest cursor of those that are partly enqueued."""
MOVE_AUDIENCE_CURSOR = text(f"""
    UPDATE mailing SET audience_cursor = :upper,
        clients_count = CASE WHEN :is_last THEN (
            SELECT {add_up(MESSAGE_STATUSES)}
            FROM mailing_counts WHERE mailing_id = :id) ELSE clients_count END
    WHERE id = :id RETURNING clients_count""")  # noqa: S608  # no user input


def audience_as_of_now() -> dict[str, Any]:
    """Return the column values that make a mailing's audience be enqueued again as of now."""
    newest = func.coalesce(select(func.max(client.c.id)).scalar_subquery(), 0)
    snapshot = cast(func.pg_current_snapshot(), String)
    return {"audience_cursor": 0, "audience_until": newest, "audience_snapshot": snapshot}


class EnqueuedChunk(msgspec.Struct, frozen=True):
    """The result of enqueuing a chunk of a mailing's audience."""

    mailing_id: int
    clients_count: int
    is_last: bool
    is_large: bool
    """Whether the chunk had at least `FIRST_BATCH` clients, so that it took some time."""


async def enqueue_chunk(
    connection: AsyncConnection,
    order: EnqueueOrder = "lowest_cursor",
    skipped: SkippedMailings | None = None,
) -> EnqueuedChunk | None:
    """Enqueue the next chunk of a mailing's audience; None when nothing was enqueued.

    A changed mailing is left out until its messages are replanned. A mailing whose data cannot be
    read is skipped from now on.
    """
    skipped = SkippedMailings() if skipped is None else skipped
    values = {
        "min_cursor": 1 if order == "partly_enqueued" else 0,
        "max_cursor": 0 if order == "newest" else MAX_BIGINT,
        "skipped": list(skipped),
    }
    statement = NEWEST_MAILING if order == "newest" else LOWEST_CURSOR
    mailing = (await connection.execute(statement, values)).one_or_none()
    enqueued = None
    if mailing is not None:
        await origin.update(connection)  # must run before a savepoint is opened
        with skipped.on_error(mailing.id):
            async with connection.begin_nested():
                enqueued = await _enqueue_chunk(connection, mailing)
            await notify_mailings_changed(connection)
    return enqueued


async def _enqueue_chunk(connection: AsyncConnection, mailing: Row[Any]) -> EnqueuedChunk:
    """Enqueue the next chunk of a mailing's audience, and move its cursor."""
    chunk = (await connection.execute(_find_chunk_end(mailing))).one()
    upper = mailing.audience_until if chunk.upper is None else chunk.upper
    if chunk.upper is not None:
        await _write_chunk(connection, mailing, upper, chunk.time_zones)
    if chunk.clients < _batch_size(mailing):
        upper = mailing.audience_until
    is_last = upper == mailing.audience_until
    values = {"id": mailing.id, "upper": upper, "is_last": is_last}
    clients_count = (await connection.execute(MOVE_AUDIENCE_CURSOR, values)).scalar_one()
    return EnqueuedChunk(mailing.id, clients_count, is_last, chunk.clients >= FIRST_BATCH)


def _batch_size(mailing: Row[Any]) -> int:
    return ENQUEUE_BATCH if mailing.audience_cursor else FIRST_BATCH


def _find_chunk_end(mailing: Row[Any]) -> Executable:
    """Return a select of the last client id, the time zones and the size of the next chunk.

    A chunk is a number of matching clients, not a range of ids, so that an index finds a small
    audience in a large directory.
    """
    candidates = (
        select(client.c.id, client.c.time_zone)
        .where(
            client.c.id > mailing.audience_cursor,
            client.c.id <= mailing.audience_until,
            _is_in_audience(mailing),
        )
        .order_by(client.c.id)
        .limit(_batch_size(mailing))
    )
    chunk = candidates.subquery("chunk")
    zones = func.array_agg(chunk.c.time_zone.distinct()).label("time_zones")
    clients = func.count(chunk.c.id).label("clients")
    return select(func.max(chunk.c.id).label("upper"), zones, clients)


# `created_by` is the transaction that created a client. A snapshot excludes rows of transactions
# that were in progress then or have started since. A row restored from another server's dump may
# hold the id of a transaction that has not started on this server yet, or that started after the
# restore; the version of that row (`xmin`) is then older than that transaction.
EXISTED_IN_SNAPSHOT = """NOT (
    created_by = ANY (ARRAY(
        SELECT xid::text::bigint FROM pg_snapshot_xip((:snapshot)::text::pg_snapshot) AS xid))
    OR (created_by >= (SELECT pg_snapshot_xmax((:snapshot)::text::pg_snapshot)::text::bigint)
        AND created_by < (SELECT pg_snapshot_xmax(pg_current_snapshot())::text::bigint)
        AND age(client.xmin) <= age((created_by % 4294967296)::text::xid)))"""


def _is_in_audience(mailing: Row[Any]) -> ColumnElement[bool]:
    """Return the condition that a client belongs to a mailing's audience.

    Such a client matches the filter now and was in the directory at the audience's snapshot. Ids
    alone do not show that: an id may be assigned long before its client is committed.
    """
    return and_(
        client.c.deleted_at.is_(None),
        filter_condition(msgspec.convert(mailing.client_filter, ClientFilter)),
        text(EXISTED_IN_SNAPSHOT).bindparams(snapshot=mailing.audience_snapshot),
    )


async def _write_chunk(
    connection: AsyncConnection, mailing: Row[Any], upper: int, time_zones: list[str]
) -> None:
    """Write the messages for clients with ids above the cursor, up to `upper`."""
    in_chunk = and_(client.c.id > mailing.audience_cursor, client.c.id <= upper)
    window = window_of(mailing)
    plans = [
        Plan(zone, mailing.now, "cancelled", "mailing_cancelled")
        if mailing.status == "cancelled"
        else plan(zone, window, mailing.datetime_start, mailing.datetime_end, mailing.now)
        for zone in time_zones
    ]
    planned = _as_table(plans)
    rows = (
        select(
            literal(mailing.id).label("mailing_id"),
            client.c.id.label("client_id"),
            client.c.operator_code,
            client.c.time_zone,
            # No plan exists for a client who changes time zone at this moment. The message is due
            # now, and the window is checked again before it is sent.
            func.coalesce(planned.c.due_at, mailing.now),
            func.coalesce(planned.c.status, "scheduled"),
            planned.c.reason,
        )
        .join_from(client, planned, client.c.time_zone == planned.c.time_zone, isouter=True)
        .where(in_chunk, _is_in_audience(mailing))
        .order_by(client.c.id)
    )
    statement = insert(message).from_select(
        ["mailing_id", "client_id", "operator_code", "time_zone", "due_at", "status", "reason"],
        rows,
    )
    new = statement.excluded
    # a new filter may match clients again whom an earlier filter excluded
    await connection.execute(
        statement.on_conflict_do_update(
            index_elements=["mailing_id", "client_id"],
            set_={
                **{name: new[name] for name in ("due_at", "status", "reason")},
                "updated_at": func.now(),
            },
            where=and_(message.c.status == "cancelled", message.c.reason == "filter_changed"),
        )
    )


def _as_table(plans: list[Plan]) -> Any:  # noqa: ANN401  # SQLAlchemy names no type for it
    """Return plans as a table that a statement can join."""
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
