"""Taking a mailing's audience: one set-based statement a chunk, the cursor in the mailing's row.

A change of filter, window or end while a mailing runs goes over the same clients once more, by the
same statement: it adds who is missing, plans anew who waits, and takes back who is to get it again.
"""

from datetime import datetime
from typing import Any

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
    and_,
    any_,
    bindparam,
    case,
    column,
    func,
    literal,
    literal_column,
    not_,
    or_,
    select,
    text,
    true,
    union_all,
    update,
)
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncConnection

from mailer.client import directory
from mailer.client.model import Client
from mailer.db.ending import ended
from mailer.db.schema import client, message
from mailer.mailing import stopping
from mailer.mailing.model import ClientFilter, terms_of
from mailer.mailing.telling import tell
from mailer.mailing.window import Window
from mailer.text import fold_label

CHUNK = 5_000
"""Clients taken by one transaction: long enough to be quick, short enough to let others in."""
FIRST_CHUNK = 500
"""Clients taken first, so that sending begins at once."""

TAKEN_BACK = ("expired", "no_window", "filter_changed")
"""Why a message was cancelled that a change of its mailing may schedule again."""


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


# The one furthest behind comes first, so that a small mailing does not wait for a large one.
# Another process that is at a mailing holds its row.
NEXT = text("""
    SELECT id, datetime_start, datetime_end, send_interval_time_start, send_interval_time_end,
        status, client_filter, audience_cursor, audience_until, replanning, replan_stop,
        clock_timestamp() AS now
    FROM mailing
    WHERE NOT is_settled AND deleted_at IS NULL AND audience_cursor < audience_until
        AND NOT (replanning AND EXISTS (
            SELECT FROM ledger WHERE mailing_id = mailing.id AND sending > 0))
        AND id <> ALL(:passed_over)
    ORDER BY audience_cursor LIMIT 1
    FOR UPDATE SKIP LOCKED""").bindparams(bindparam("passed_over", type_=ARRAY(BigInteger)))
SET_STOP = text("UPDATE mailing SET replan_stop = :number WHERE id = :id")
IS_SENDING = text("SELECT sending > 0 FROM ledger WHERE mailing_id = :id")
MOVE_CURSOR = text("""
    UPDATE mailing SET audience_cursor = :upper, replanning = replanning AND NOT :is_last,
        clients_count = CASE WHEN :is_last THEN (
            SELECT scheduled + sending + delivered + undelivered + "unknown" + cancelled
            FROM ledger WHERE mailing_id = :id) ELSE clients_count END
    WHERE id = :id RETURNING clients_count""")


class Taken(msgspec.Struct, frozen=True):
    """A chunk of a mailing's audience that was taken."""

    mailing_id: int
    clients_count: int
    is_last: bool


async def take_chunk(connection: AsyncConnection) -> Taken | None:
    """Take the next chunk of some mailing's audience; None when there is none to take.

    A mailing is planned anew only when no worker may claim from it and all that was claimed is
    back: then no message that the change takes out can be sent after it.
    """
    mailing = await _next(connection)
    if mailing is None:
        return None
    bound = (await connection.execute(_bound(mailing))).one()
    upper = mailing.audience_until if bound.upper is None else bound.upper
    if bound.upper is not None:
        await _write_chunk(connection, mailing, upper, bound.time_zones)
    is_last = upper == mailing.audience_until
    if is_last:
        await tell(connection)  # it may be claimed from again
    moved = {"id": mailing.id, "upper": upper, "is_last": is_last}
    clients_count = (await connection.execute(MOVE_CURSOR, moved)).scalar_one()
    return Taken(mailing.id, clients_count, is_last)


async def _next(connection: AsyncConnection) -> Row[Any] | None:
    """Return the mailing whose turn it is; one that is not at rest keeps no other waiting."""
    passed_over: list[int] = []
    while True:
        found = await connection.execute(NEXT, {"passed_over": passed_over})
        mailing = found.one_or_none()
        if mailing is None or not mailing.replanning:
            return mailing
        if await _is_at_rest(connection, mailing):
            return mailing
        passed_over.append(mailing.id)


async def _is_at_rest(connection: AsyncConnection, mailing: Row[Any]) -> bool:
    """Whether no worker sends for a mailing, nor can until it is planned anew.

    The change is committed, so that the number of its stop may be drawn; it stays in the row until
    the next change.
    """
    number = mailing.replan_stop
    if number is None:
        number = await stopping.draw(connection)
        await connection.execute(SET_STOP, {"id": mailing.id, "number": number})
    if not await stopping.is_applied(connection, number):
        return False
    # asked after every worker has stopped: a claim before that is seen
    return not (await connection.execute(IS_SENDING, {"id": mailing.id})).scalar_one()


def _bound(mailing: Row[Any]) -> Executable:
    """Return a select of the last client of the next chunk, and the time zones in it.

    A chunk is a number of clients that match, not of ids: so an index finds a small audience in a
    large directory. To plan anew is to look at the others too, who may have a message by now.
    """
    candidates = (
        select(client.c.id, client.c.time_zone)
        .where(client.c.id > mailing.audience_cursor, client.c.id <= mailing.audience_until)
        .order_by(client.c.id)
        .limit(CHUNK if mailing.audience_cursor else FIRST_CHUNK)
    )
    if not mailing.replanning:
        candidates = candidates.where(
            client.c.deleted_at.is_(None),
            matches(msgspec.convert(mailing.client_filter, ClientFilter)),
        )
    chunk = candidates.subquery("chunk")
    zones = func.array_agg(chunk.c.time_zone.distinct()).label("time_zones")
    return select(func.max(chunk.c.id).label("upper"), zones)


async def _write_chunk(
    connection: AsyncConnection, mailing: Row[Any], upper: int, time_zones: list[str]
) -> None:
    """Write the messages for the clients after the cursor, up to `upper`."""
    in_chunk = and_(client.c.id > mailing.audience_cursor, client.c.id <= upper)
    client_filter = msgspec.convert(mailing.client_filter, ClientFilter)
    is_match = and_(client.c.deleted_at.is_(None), matches(client_filter))
    if mailing.replanning:
        # Messages are locked before their ledger, as by every other statement that moves it.
        await connection.execute(
            select(message.c.id)
            .where(
                message.c.mailing_id == mailing.id,
                message.c.client_id > mailing.audience_cursor,
                message.c.client_id <= upper,
            )
            .order_by(message.c.id)
            .with_for_update()
        )
        await connection.execute(
            update(message)
            .where(
                message.c.mailing_id == mailing.id,
                message.c.client_id == client.c.id,
                message.c.status == "scheduled",
                in_chunk,
                is_match.is_not(true()),
            )
            .values({name: literal_column(sql) for name, sql in ended("'filter_changed'").items()})
        )
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
        .where(in_chunk, is_match)
        .order_by(client.c.id)
    )
    written = insert(message).from_select(
        ["mailing_id", "client_id", "operator_code", "time_zone", "due_at", "status", "reason"],
        rows,
    )
    new = written.excluded
    # One that was tried waits until the end at least, for only the end itself expires it; a pause
    # after a failed attempt is not cut short.
    is_tried = or_(message.c.reason.is_not(None), message.c.unknown_reason.is_not(None))
    is_kept = and_(
        message.c.status == "scheduled",
        is_tried,
        new.reason.is_distinct_from("mailing_cancelled"),
    )
    end: dict[str, ColumnElement[Any]] = {
        name: literal_column(sql) for name, sql in ended("excluded.reason").items()
    }
    is_ended = new.status == "cancelled"
    await connection.execute(
        written.on_conflict_do_update(
            index_elements=["mailing_id", "client_id"],
            set_={
                "due_at": case(
                    (is_kept, func.greatest(message.c.retry_at, new.due_at)), else_=new.due_at
                ),
                "status": case((is_kept, "scheduled"), (is_ended, end["status"]), else_=new.status),
                "reason": case((is_kept, message.c.reason), (is_ended, end["reason"])),
                "sent_at": case((and_(is_ended, not_(is_kept)), end["sent_at"])),
                "updated_at": func.now(),
            },
            where=or_(
                message.c.status == "scheduled",
                and_(message.c.status == "cancelled", message.c.reason.in_(TAKEN_BACK)),
            ),
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
