"""Enqueuing a mailing's audience: one set-based statement a chunk, the cursor in the mailing's row.

A change of the filter while a mailing runs takes the audience anew as of that moment, by the same
statement, when the messages that it has are planned anew: it adds who is missing.
"""

from datetime import datetime
from typing import Any, Literal

import msgspec
from sqlalchemy import (
    ARRAY,
    ColumnElement,
    DateTime,
    Executable,
    FromClause,
    Row,
    String,
    TextClause,
    and_,
    any_,
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
from mailer.clock import elapsed
from mailer.db.schema import LIVE, client, message
from mailer.mailing.model import ClientFilter, terms_of
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

    if client_filter is None:
        return true()
    if isinstance(client_filter, str):
        terms = [fold_label(term) for term in terms_of(client_filter)]
        return or_(equals_any("operator_code", terms), equals_any("tag", terms))
    lists = {
        "operator_code": client_filter.operator_codes,
        "tag": client_filter.tags,
        "time_zone": client_filter.time_zones,
    }
    given = {name: list(v) for name, v in lists.items() if v is not msgspec.UNSET}
    if "tag" in given:
        given["tag"] = [fold_label(tag) for tag in given["tag"]]
    return and_(true(), *(equals_any(name, values) for name, values in given.items()))


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

    time_zone: str
    due_at: datetime
    status: str
    reason: str | None


def plan(
    time_zone: str, window: Window | None, start: datetime, end: datetime, at: datetime
) -> Plan:
    """Return when, from `at` on, a message for a zone is due, or why it will not be sent."""
    since = max(start, at)
    if since >= end:
        return Plan(time_zone, since, "cancelled", "expired")
    due_at = start if window is None else window.next_opening(time_zone, since)
    if due_at >= end:
        return Plan(time_zone, due_at, "cancelled", "no_window")
    return Plan(time_zone, due_at, "scheduled", None)


BATCH = 50
"""Mailings whose audiences one transaction takes a chunk of."""
LATEST = 5
"""Of these, the newest that have just begun."""
BATCH_SECONDS = 0.05
"""Seconds after which a transaction takes no more audiences than it has."""

# Those furthest behind come first, so that a small mailing does not wait for a large one, and
# before them some of the newest, so that one does not wait for thousands that have begun together.
# Another process that is at a mailing holds its row. An index holds them in this order, and no
# others.
IS_TO_TAKE = f"{LIVE} AND audience_cursor < audience_until AND NOT replanning"
NEXT = text(f"""
    WITH newest AS MATERIALIZED (
        SELECT id FROM mailing
        WHERE {IS_TO_TAKE} AND audience_cursor = 0
        ORDER BY audience_cursor DESC, id DESC LIMIT :newest FOR UPDATE SKIP LOCKED),
    behind AS MATERIALIZED (
        SELECT id FROM mailing
        WHERE {IS_TO_TAKE} AND audience_cursor BETWEEN :least AND :most
        ORDER BY audience_cursor, id LIMIT :count FOR UPDATE SKIP LOCKED)
    SELECT id, datetime_start, datetime_end, send_interval_time_start, send_interval_time_end,
        status, client_filter, audience_cursor, audience_until, audience_snapshot,
        clock_timestamp() AS now
    FROM (SELECT id, 1 AS place FROM newest UNION ALL SELECT id, 2 FROM behind) AS found
        JOIN mailing USING (id)
    ORDER BY place, audience_cursor, id""")  # noqa: S608  # our own words
LAST_ID = 2**63 - 1
Turn = Literal["any", "new", "begun"]
"""Whose audiences are taken: of all mailings, or of those of which nothing, or something, is."""
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


async def take_chunk(connection: AsyncConnection) -> Taken | None:
    """Take the next chunk of some mailing's audience; None when there is none to take."""
    return next(iter(await take_chunks(connection, most=1)), None)


async def take_chunks(
    connection: AsyncConnection, most: int = BATCH, turn: Turn = "any"
) -> list[Taken]:
    """Take the next chunk of up to `most` mailings' audiences, all together about one chunk.

    In the turn of those that are `begun` they come first, and in that of the `new` no others. One
    whose messages are planned anew after a change waits until they are.
    """
    taken: list[Taken] = []
    until = elapsed() + BATCH_SECONDS
    asked = {"count": BATCH, "newest": min(LATEST, most - 1), "least": 0, "most": LAST_ID}
    if turn == "begun":
        asked |= {"newest": 0, "least": 1}
    elif turn == "new":
        asked["most"] = 0
    found = (await connection.execute(NEXT, asked)).all()
    if not found and turn == "begun":
        return await take_chunks(connection, most)
    for mailing in {mailing.id: mailing for mailing in found}.values():
        if taken and mailing.audience_cursor:
            break  # a large one: those that were taken are not to wait for it
        taken.append(await _take_chunk(connection, mailing))
        if len(taken) == most or taken[-1].is_large or elapsed() > until:
            break
    if taken:
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


# The transaction that made a client is in its row. What a snapshot did not show was made by one
# that was in progress then, or has begun since. A row that is as it came from the dump of another
# server may bear the number of one that is still to begin here.
WAS_THERE = """NOT (
    created_by = ANY (ARRAY(
        SELECT xid::text::bigint FROM pg_snapshot_xip((:snapshot)::text::pg_snapshot) AS xid))
    OR (created_by >= (SELECT pg_snapshot_xmax((:snapshot)::text::pg_snapshot)::text::bigint)
        AND created_by < (SELECT pg_snapshot_xmax(pg_current_snapshot())::text::bigint)))"""


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
