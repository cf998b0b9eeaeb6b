"""Enqueuing a mailing's audience: one set-based statement a chunk, the cursor in the mailing's row.

A change of the filter while a mailing runs takes the audience anew as of that moment, by the same
statement, when the messages that it has are planned anew: it adds who is missing.
"""

from datetime import datetime
from typing import Any, Literal

import msgspec
from sqlalchemy import (
    ARRAY,
    BigInteger,
    ColumnElement,
    DateTime,
    Executable,
    FromClause,
    Row,
    String,
    TextClause,
    and_,
    any_,
    bindparam,
    cast,
    column,
    func,
    literal,
    or_,
    select,
    text,
    true,
    union_all,
)
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncConnection

from mailer.client import directory
from mailer.client.model import Client
from mailer.db import origin
from mailer.db.schema import LIVE, client, message
from mailer.mailing.model import AudienceLists, ClientFilter, terms_of
from mailer.mailing.passing_over import PassedOver
from mailer.mailing.telling import tell
from mailer.mailing.window import Window
from mailer.text import fold_label

CHUNK = 5_000
"""Clients taken by one transaction: long enough to be quick, short enough to let others in."""
FIRST_CHUNK = 500
"""Clients taken first, so that sending begins at once."""


def matches(client_filter: ClientFilter, clients: FromClause = client) -> ColumnElement[bool]:
    """Return the condition on clients, or on their kinds, that a filter means."""

    def equals_any(name: str, values: list[str]) -> ColumnElement[bool]:
        return clients.c[name] == any_(literal(values, ARRAY(String)))

    if isinstance(client_filter, str):
        terms = folded_terms(client_filter)
        return or_(equals_any("operator_code", terms), equals_any("tag", terms))
    given = lists_of(client_filter)
    return and_(true(), *(equals_any(name, values) for name, values in given.items()))


def folded_terms(client_filter: str) -> list[str]:
    """Return the terms of a filter that is a string, as tags are compared."""
    return [fold_label(term) for term in terms_of(client_filter)]


def lists_of(client_filter: AudienceLists | None) -> dict[str, list[str]]:
    """Return what a filter by lists asks for, by column of clients; nothing for everybody."""
    if client_filter is None:
        return {}
    lists = {
        "operator_code": client_filter.operator_codes,
        "tag": client_filter.tags,
        "time_zone": client_filter.time_zones,
    }
    given = {name: list(v) for name, v in lists.items() if v is not msgspec.UNSET}
    if "tag" in given:
        given["tag"] = [fold_label(tag) for tag in given["tag"]]
    return given


async def count(connection: AsyncConnection, client_filter: ClientFilter) -> int:
    """Return how many clients a filter matches now."""
    return await directory.count(connection, matches(client_filter, directory.CLIENTS))


async def count_by_zone(connection: AsyncConnection, client_filter: ClientFilter) -> dict[str, int]:
    """Return how many clients a filter matches now, by time zone."""
    return await directory.count_by_zone(connection, matches(client_filter, directory.CLIENTS))


KINDS = select(
    directory.CLIENTS.c.operator_code, directory.CLIENTS.c.tag, directory.CLIENTS.c.time_zone
).where(directory.CLIENTS.c.clients > 0)


async def sample(
    connection: AsyncConnection, client_filter: ClientFilter, size: int
) -> list[Client]:
    """Return up to `size` clients whom a filter matches, of as many kinds as there are at hand.

    The directory tells kinds that match, and an index up to `size` clients of each: whatever the
    filter, no client is read who does not match. No more than `size` kinds are looked at: where the
    clients of some were deleted a moment ago, fewer may be returned than there are.
    """
    kinds = KINDS.where(matches(client_filter, directory.CLIENTS)).limit(size).cte("kind")
    kind = select(kinds).distinct().subquery("kind")
    of_kind = and_(
        client.c.deleted_at.is_(None),
        client.c.operator_code == kind.c.operator_code,
        client.c.time_zone == kind.c.time_zone,
    )
    # an index is searched for a null by `IS NULL` alone
    some = union_all(
        *(
            select(client).where(of_kind, same_tag).limit(size).correlate(kind).subquery().select()
            for same_tag in (
                client.c.tag == kind.c.tag,
                and_(client.c.tag.is_(None), kind.c.tag.is_(None)),
            )
        )
    ).lateral("some")
    place = func.row_number().over(partition_by=list(kind.c), order_by=some.c.id)
    as_shown = {"tag": func.coalesce(some.c.tag_written, some.c.tag).label("tag")}
    shown = [as_shown.get(name, some.c[name]) for name in Client.__struct_fields__]
    found = select(*shown).select_from(kind).join(some, true()).order_by(place).limit(size)
    return [Client(**row) for row in (await connection.execute(found)).mappings()]


class Plan(msgspec.Struct, frozen=True):
    """What becomes of the messages for one time zone."""

    time_zone: str | None
    """None for all of them."""
    due_at: datetime
    status: str
    reason: str | None


def plan(
    time_zone: str | None, window: Window | None, start: datetime, end: datetime, at: datetime
) -> Plan:
    """Return when, from `at` on, a message for a zone is due, or why it will not be sent.

    Without a window the zone does not matter, and may be None.
    """
    since = max(start, at)
    if since >= end:
        return Plan(time_zone, since, "cancelled", "expired")
    due_at = start
    if window is not None and time_zone is not None:
        due_at = window.next_opening(time_zone, since)
    if due_at >= end:
        return Plan(time_zone, due_at, "cancelled", "no_window")
    return Plan(time_zone, due_at, "scheduled", None)


# Those furthest behind come first, so that a small mailing does not wait for a large one. Another
# process that is at a mailing holds its row. An index holds them in this order, and no others.
IS_TO_TAKE = f"{LIVE} AND audience_cursor < audience_until AND NOT replanning"
NEXT = """
    SELECT id, datetime_start, datetime_end, send_interval_time_start, send_interval_time_end,
        status, client_filter, audience_cursor, audience_until, audience_snapshot,
        clock_timestamp() AS now
    FROM mailing
    WHERE {condition} AND audience_cursor BETWEEN :least AND :most AND id <> ALL (:passed_over)
    ORDER BY audience_cursor {order}, id {order} LIMIT 1 FOR UPDATE SKIP LOCKED"""
BEHIND, NEWEST = (
    text(NEXT.format(condition=IS_TO_TAKE, order=order)).bindparams(
        bindparam("passed_over", type_=ARRAY(BigInteger))
    )
    for order in ("ASC", "DESC")
)
LAST_ID = 2**63 - 1
Turn = Literal["behind", "newest", "begun"]
"""Which mailing to enqueue next: the lowest cursor, the newest that has not started, or the lowest
cursor among those that have."""
MOVE_CURSOR = text("""
    UPDATE mailing SET audience_cursor = :upper,
        clients_count = CASE WHEN :is_last THEN (
            SELECT scheduled + sending + delivered + undelivered + "unknown" + cancelled
            FROM ledger WHERE mailing_id = :id) ELSE clients_count END
    WHERE id = :id RETURNING clients_count""")


def taken_now() -> dict[str, Any]:
    """Return the columns of a mailing whose audience is to be taken anew as of this moment."""
    newest = func.coalesce(select(func.max(client.c.id)).scalar_subquery(), 0)
    snapshot = cast(func.pg_current_snapshot(), String)
    return {"audience_cursor": 0, "audience_until": newest, "audience_snapshot": snapshot}


class Taken(msgspec.Struct, frozen=True):
    """A chunk of a mailing's audience that was taken."""

    mailing_id: int
    clients_count: int
    is_last: bool
    is_large: bool
    """Whether it took as long as one chunk does."""


async def take_chunk(
    connection: AsyncConnection, turn: Turn = "behind", passed_over: PassedOver | None = None
) -> Taken | None:
    """Enqueue the next chunk of a mailing's audience; None when nothing was enqueued.

    Changed mailings wait until their messages are replanned. A mailing whose data cannot be read is
    skipped from now on.
    """
    passed_over = PassedOver() if passed_over is None else passed_over
    asked = {
        "least": 1 if turn == "begun" else 0,
        "most": 0 if turn == "newest" else LAST_ID,
        "passed_over": list(passed_over),
    }
    statement = NEWEST if turn == "newest" else BEHIND
    mailing = (await connection.execute(statement, asked)).one_or_none()
    taken = None
    if mailing is not None:
        await origin.update(connection)  # before the savepoint: an INSERT after it could not
        with passed_over.on_error(mailing.id):
            async with connection.begin_nested():
                taken = await _take_chunk(connection, mailing)
            await tell(connection)
    return taken


async def _take_chunk(connection: AsyncConnection, mailing: Row[Any]) -> Taken:
    """Take the next chunk of a mailing's audience."""
    bound = (await connection.execute(_bound(mailing))).one()
    upper = mailing.audience_until if bound.upper is None else bound.upper
    if bound.upper is not None:
        await _write_chunk(connection, mailing, upper, bound.time_zones)
    if bound.clients < _chunk_size(mailing):
        upper = mailing.audience_until
    is_last = upper == mailing.audience_until
    moved = {"id": mailing.id, "upper": upper, "is_last": is_last}
    clients_count = (await connection.execute(MOVE_CURSOR, moved)).scalar_one()
    return Taken(mailing.id, clients_count, is_last, bound.clients >= FIRST_CHUNK)


def _chunk_size(mailing: Row[Any]) -> int:
    return CHUNK if mailing.audience_cursor else FIRST_CHUNK


def _bound(mailing: Row[Any]) -> Executable:
    """Return a select of the last client of the next chunk, and the time zones in it.

    A chunk is a number of clients that match, not of ids: so an index finds a small audience in a
    large directory.
    """
    candidates = (
        select(client.c.id, client.c.time_zone)
        .where(
            client.c.id > mailing.audience_cursor,
            client.c.id <= mailing.audience_until,
            _is_in_audience(mailing),
        )
        .order_by(client.c.id)
        .limit(_chunk_size(mailing))
    )
    chunk = candidates.subquery("chunk")
    zones = func.array_agg(chunk.c.time_zone.distinct()).label("time_zones")
    clients = func.count(chunk.c.id).label("clients")
    return select(func.max(chunk.c.id).label("upper"), zones, clients)


# The transaction that created a client is in its row. A snapshot does not show what was created by
# a transaction in progress then, or begun since. A row restored from the dump of another server may
# bear a number that this server gives later: the version of that row (xmin) is older than it.
WAS_THERE = """NOT (
    created_by = ANY (ARRAY(
        SELECT xid::text::bigint FROM pg_snapshot_xip((:snapshot)::text::pg_snapshot) AS xid))
    OR (created_by >= (SELECT pg_snapshot_xmax((:snapshot)::text::pg_snapshot)::text::bigint)
        AND created_by < (SELECT pg_snapshot_xmax(pg_current_snapshot())::text::bigint)
        AND age(client.xmin) <= age((created_by % 4294967296)::text::xid)))"""


def _is_in_audience(mailing: Row[Any]) -> ColumnElement[bool]:
    """Return the condition that a client up to the audience's end belongs to it.

    That is who matches now and was in the directory when the audience was taken: an id may be given
    long before the client that has it is committed.
    """
    conditions: list[ColumnElement[bool] | TextClause] = [
        client.c.deleted_at.is_(None),
        matches(msgspec.convert(mailing.client_filter, ClientFilter)),
    ]
    if mailing.audience_snapshot is not None:  # one that began before there were any
        was_there = text(WAS_THERE).bindparams(snapshot=mailing.audience_snapshot)
        conditions.append(was_there)
    return and_(*conditions)


async def _write_chunk(
    connection: AsyncConnection, mailing: Row[Any], upper: int, time_zones: list[str]
) -> None:
    """Write the messages for the clients after the cursor, up to `upper`."""
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
            # a client who changes zones at this moment is due now; the window is checked again
            func.coalesce(planned.c.due_at, mailing.now),
            func.coalesce(planned.c.status, "scheduled"),
            planned.c.reason,
        )
        .join_from(client, planned, client.c.time_zone == planned.c.time_zone, isouter=True)
        .where(in_chunk, _is_in_audience(mailing))
        .order_by(client.c.id)
    )
    written = insert(message).from_select(
        ["mailing_id", "client_id", "operator_code", "time_zone", "due_at", "status", "reason"],
        rows,
    )
    new = written.excluded
    # a change of the filter may bring back those whom an earlier one took out
    await connection.execute(
        written.on_conflict_do_update(
            index_elements=["mailing_id", "client_id"],
            set_={
                **{name: new[name] for name in ("due_at", "status", "reason")},
                "updated_at": func.now(),
            },
            where=and_(message.c.status == "cancelled", message.c.reason == "filter_changed"),
        )
    )


def _as_table(plans: list[Plan]) -> Any:  # noqa: ANN401  # SQLAlchemy names no type for it
    columns = [
        (name, ARRAY(DateTime(timezone=True) if name == "due_at" else String))
        for name in Plan.__struct_fields__
    ]
    arrays = (literal([getattr(p, name) for p in plans], kind) for name, kind in columns)
    return (
        func.unnest(*arrays)
        .table_valued(*(column(name, kind.item_type) for name, kind in columns))
        .render_derived()
    )


def window_of(mailing: Row[Any]) -> Window | None:
    """Return the window that a row of `mailing` has."""
    if mailing.send_interval_time_start is None:
        return None
    return Window(mailing.send_interval_time_start, mailing.send_interval_time_end)
