"""The audiences of many mailings at once: counted, and enqueued where small, by one statement."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import msgspec
from sqlalchemy import (
    ARRAY,
    BigInteger,
    BindParameter,
    DateTime,
    Row,
    String,
    TextClause,
    bindparam,
    text,
)
from sqlalchemy.ext.asyncio import AsyncConnection

from mailer.mailing.audience import (
    FIRST_CHUNK,
    IS_TO_TAKE,
    Plan,
    Taken,
    folded_terms,
    lists_of,
    plan,
    window_of,
)
from mailer.mailing.model import ClientFilter
from mailer.mailing.passing_over import PassedOver
from mailer.mailing.telling import tell

MOST_VALUES = 5_000
"""Values of filters by which one statement looks for clients; a single filter may have more."""


class Filters:
    """The different filters of several mailings, each with a number."""

    def __init__(self) -> None:
        self._numbers: dict[bytes, int] = {}
        self._values: list[tuple[int, str, str]] = []
        self._rest: list[dict[str, Any]] = []

    @property
    def is_full(self) -> bool:
        """Whether no more belong into one statement."""
        return len(self._values) >= MOST_VALUES

    def add(self, stored: Any) -> int:  # noqa: ANN401  # JSON, as it is in the row of a mailing
        """Return the number of a filter; raises `msgspec.ValidationError` when it is none."""
        key = msgspec.json.encode(stored, order="deterministic")
        if key not in self._numbers:
            number = len(self._numbers)
            values, rest = _read(msgspec.convert(stored, ClientFilter))
            self._values += ((number, column, value) for column, value in values)
            self._rest.append({"number": number, **rest})
            self._numbers[key] = number
        return self._numbers[key]

    def parameters(self) -> dict[str, Any]:
        """Return what `MATCHING` is given."""
        numbers, columns, values = zip(*self._values, strict=True) if self._values else ((),) * 3
        return {
            "filters": list(numbers),
            "columns": list(columns),
            "values": list(values),
            "rest": msgspec.json.encode(self._rest).decode(),
        }


def _read(client_filter: ClientFilter) -> tuple[list[tuple[str, str]], Mapping[str, list[str]]]:
    """Return columns with values of which a client has one, and by column what is to match too."""
    if isinstance(client_filter, str):
        terms = set(folded_terms(client_filter))
        return [(column, term) for column in ("operator_code", "tag") for term in terms], {}
    rest = lists_of(client_filter)
    for column in ("tag", "operator_code", "time_zone"):
        if column in rest:
            return [(column, value) for value in set(rest.pop(column))], rest
    return [("", "")], {}


# Kinds of clients are found by each value of a filter, by an index, and the moves not folded yet
# by one pass: the cost grows with what matches, and not with the directory. A kind is found once
# for each of its values that a filter names, and kept once.
MATCHING = """
    wanted AS MATERIALIZED (
        SELECT * FROM unnest(:filters, :columns, :values) AS wanted (number, name, value)),
    rest AS MATERIALIZED (
        SELECT * FROM jsonb_to_recordset((:rest)::jsonb)
            AS rest (number bigint, operator_code text[], time_zone text[])),
    found AS (
        SELECT wanted.*, kind.* FROM wanted CROSS JOIN LATERAL (
            SELECT * FROM directory
                WHERE wanted.name = 'operator_code' AND operator_code = wanted.value
            UNION ALL
            SELECT * FROM directory WHERE wanted.name = 'tag' AND tag = wanted.value
            UNION ALL
            SELECT * FROM directory WHERE wanted.name = 'time_zone' AND time_zone = wanted.value
            UNION ALL
            SELECT * FROM directory WHERE wanted.name = '') AS kind
        UNION ALL
        SELECT wanted.*, kind.* FROM directory_move AS kind
            CROSS JOIN LATERAL (VALUES ('operator_code', kind.operator_code), ('tag', kind.tag),
                ('time_zone', kind.time_zone), ('', '')) AS has (name, value)
            JOIN wanted ON wanted.name = has.name AND wanted.value = has.value),
    matching AS MATERIALIZED (
        SELECT DISTINCT number, operator_code, tag, time_zone, clients FROM (
            SELECT number, found.operator_code, tag, found.time_zone,
                sum(clients)::bigint AS clients
            FROM found JOIN rest USING (number)
            WHERE (rest.operator_code IS NULL OR found.operator_code = ANY (rest.operator_code))
                AND (rest.time_zone IS NULL OR found.time_zone = ANY (rest.time_zone))
            GROUP BY number, name, value, found.operator_code, tag, found.time_zone
            HAVING sum(clients) > 0) AS by_value)"""
PARAMETERS: tuple[BindParameter[Any], ...] = (
    bindparam("filters", type_=ARRAY(BigInteger)),
    bindparam("columns", type_=ARRAY(String)),
    bindparam("values", type_=ARRAY(String)),
)
COUNT = text(f"""
    WITH {MATCHING}
    SELECT number, sum(clients)::bigint AS clients
    FROM matching GROUP BY number""").bindparams(*PARAMETERS)  # noqa: S608  # our own words
ZONES = text(f"""
    WITH {MATCHING}
    SELECT number, array_agg(DISTINCT time_zone) AS time_zones
    FROM matching GROUP BY number""").bindparams(*PARAMETERS)  # noqa: S608  # likewise


async def count(connection: AsyncConnection, filters: Filters) -> dict[int, int]:
    """Return how many clients each filter matches now, by number; none of one that matches none."""
    found = await connection.execute(COUNT, filters.parameters())
    return {row.number: row.clients for row in found}


SLICE = 25
"""Mailings that one transaction begins, enqueues or ends: one that begins now waits for one slice
of each, however many others there are."""
NEWEST = 5
"""Of these the ones that come first because they are the newest."""


async def lock_slice(
    connection: AsyncConnection,
    statements: Sequence[TextClause],
    most: int,
    passed_over: PassedOver,
) -> list[Row[Any]]:
    """Lock up to `most` mailings, the newest before those that wait longest; return their rows.

    The two `statements` give them in either order: `most` of them, without those `passed_over`.
    """
    rows: list[Row[Any]] = []
    for statement, number in zip(statements, (NEWEST, most), strict=True):
        given = [*passed_over, *(row.id for row in rows)]
        left = min(number, most - len(rows))
        found = await connection.execute(statement, {"most": left, "passed_over": given})
        rows += found
        if len(rows) < NEWEST:
            break
    return rows


SMALL = FIRST_CHUNK
"""Clients of an audience that is enqueued with others."""
TOGETHER = 1_000
"""Clients to whom one transaction enqueues messages of small audiences."""
NEXT = """
    SELECT id, datetime_start, datetime_end, send_interval_time_start, send_interval_time_end,
        status, client_filter, clients_count, audience_until, audience_snapshot,
        clock_timestamp() AS now
    FROM mailing
    WHERE {condition} AND audience_cursor = 0 AND clients_count <= {small}
        AND id <> ALL (:passed_over)
    ORDER BY audience_cursor {order}, id {order} LIMIT :most FOR UPDATE SKIP LOCKED"""
TO_TAKE = [
    text(NEXT.format(condition=IS_TO_TAKE, small=SMALL, order=order)).bindparams(
        bindparam("passed_over", type_=ARRAY(BigInteger))
    )
    for order in ("DESC", "ASC")
]
# Audiences that are no longer small are left out, and returned with their size.
# As in `audience`: who is alive, matches now and was there when the audience was taken. Clients are
# found by their kinds, each by an index (of a null by `IS NULL` alone): whatever the filter, none
# is read who does not match. OFFSET keeps it so, however few clients there seem to be. Without a
# window one plan holds for every time zone.
WRITE = text(f"""
    WITH {MATCHING},
    large AS MATERIALIZED (
        SELECT number, sum(clients)::bigint AS clients
        FROM matching GROUP BY number HAVING sum(clients) > {SMALL}),
    taken AS MATERIALIZED (
        SELECT taken.*,
            ARRAY(SELECT xid::text::bigint FROM pg_snapshot_xip(snapshot::pg_snapshot) AS xid)
                AS in_progress,
            pg_snapshot_xmax(snapshot::pg_snapshot)::text::bigint AS next_then
        FROM unnest(:ids, :of_filters, :untils, :snapshots)
            AS taken (id, number, until, snapshot)
        WHERE number NOT IN (SELECT number FROM large)),
    planned AS MATERIALIZED (
        SELECT * FROM unnest(:planned_ids, :time_zones, :due_ats, :statuses, :reasons)
            AS planned (id, time_zone, due_at, status, reason)),
    here AS (SELECT pg_snapshot_xmax(pg_current_snapshot())::text::bigint AS next_now),
    written AS (INSERT INTO message
        (mailing_id, client_id, operator_code, time_zone, due_at, status, reason)
    SELECT taken.id, one.id, matching.operator_code, matching.time_zone,
        coalesce(planned.due_at, clock_timestamp()), coalesce(planned.status, 'scheduled'),
        planned.reason
    FROM taken JOIN matching USING (number)
        CROSS JOIN LATERAL (
            SELECT id, created_by, xmin AS written_by FROM client
            WHERE deleted_at IS NULL AND operator_code = matching.operator_code
                AND time_zone = matching.time_zone AND tag = matching.tag
            UNION ALL
            SELECT id, created_by, xmin FROM client
            WHERE deleted_at IS NULL AND operator_code = matching.operator_code
                AND time_zone = matching.time_zone AND tag IS NULL AND matching.tag IS NULL
            OFFSET 0) AS one
        LEFT JOIN planned ON planned.id = taken.id
            AND (planned.time_zone IS NULL OR planned.time_zone = matching.time_zone)
    WHERE one.id <= taken.until AND (taken.snapshot IS NULL OR NOT (
        one.created_by = ANY (taken.in_progress)
        OR (one.created_by >= taken.next_then
            AND one.created_by < (SELECT next_now FROM here)
            AND age(one.written_by) <= age((one.created_by % 4294967296)::text::xid))))
    ORDER BY taken.id, one.id
    ON CONFLICT (mailing_id, client_id) DO UPDATE SET due_at = excluded.due_at,
        status = excluded.status, reason = excluded.reason, updated_at = now()
        WHERE message.status = 'cancelled' AND message.reason = 'filter_changed')
    SELECT number, clients FROM large""").bindparams(  # noqa: S608  # likewise
    *PARAMETERS,
    *(
        bindparam(name, type_=ARRAY(BigInteger))
        for name in ("ids", "of_filters", "untils", "planned_ids")
    ),
    *(
        bindparam(name, type_=ARRAY(String))
        for name in ("snapshots", "time_zones", "statuses", "reasons")
    ),
    bindparam("due_ats", type_=ARRAY(DateTime(timezone=True))),
)
SET_COUNTS = text("""
    UPDATE mailing SET clients_count = counted.clients
    FROM unnest(:ids, :counts) AS counted (id, clients)
    WHERE mailing.id = counted.id""").bindparams(
    bindparam("ids", type_=ARRAY(BigInteger)), bindparam("counts", type_=ARRAY(BigInteger))
)
MOVE_CURSORS = text("""
    UPDATE mailing SET audience_cursor = audience_until,
        clients_count = scheduled + sending + delivered + undelivered + "unknown" + cancelled
    FROM ledger WHERE mailing.id = ANY (:ids) AND ledger.mailing_id = mailing.id
    RETURNING mailing.id, clients_count""").bindparams(bindparam("ids", type_=ARRAY(BigInteger)))


async def take_small(
    connection: AsyncConnection, passed_over: PassedOver, most: int = SLICE
) -> list[Taken]:
    """Enqueue the audiences of up to `most` mailings that are small, each of them whole.

    The newest first, then those that wait longest. Audiences are counted again: the filter may have
    been changed since, and clients.
    """
    found = await lock_slice(connection, TO_TAKE, most, passed_over)
    filters, numbers = Filters(), dict[int, int]()
    rows, clients = [], 0
    for mailing in found:
        with passed_over.on_error(mailing.id):
            numbers[mailing.id] = filters.add(mailing.client_filter)
            rows.append(mailing)
            clients += mailing.clients_count
        if filters.is_full or clients >= TOGETHER:
            break
    zones: dict[int, list[str]] = {}
    if any(map(window_of, rows)):
        of_each = await connection.execute(ZONES, filters.parameters())
        zones = {row.number: row.time_zones for row in of_each}
    plans: dict[int, list[Plan]] = {}
    for mailing in rows:
        with passed_over.on_error(mailing.id):
            plans[mailing.id] = _plans(mailing, zones.get(numbers[mailing.id], ()))
    if not plans:
        return []
    rows = [mailing for mailing in rows if mailing.id in plans]
    given = filters.parameters() | _written(rows, numbers, plans)
    large = {row.number: row.clients for row in await connection.execute(WRITE, given)}
    counts = {one: large[numbers[one]] for one in plans if numbers[one] in large}
    if counts:  # `take_chunk` enqueues these
        counted = {"ids": list(counts), "counts": list(counts.values())}
        await connection.execute(SET_COUNTS, counted)
    moved = await connection.execute(MOVE_CURSORS, {"ids": list(plans.keys() - counts.keys())})
    await tell(connection)
    return [Taken(row.id, row.clients_count, is_last=True, is_large=False) for row in moved]


def _plans(mailing: Row[Any], zones: Iterable[str]) -> list[Plan]:
    """Return the plan for each time zone, or the one for all where there is no window."""
    if mailing.status == "cancelled":
        return [Plan(None, mailing.now, "cancelled", "mailing_cancelled")]
    window, start, end = window_of(mailing), mailing.datetime_start, mailing.datetime_end
    return [
        plan(zone, window, start, end, mailing.now)
        for zone in ((None,) if window is None else zones)
    ]


def _written(
    rows: Sequence[Row[Any]], numbers: Mapping[int, int], plans: Mapping[int, list[Plan]]
) -> dict[str, Any]:
    each = [(mailing_id, one) for mailing_id, planned in plans.items() for one in planned]
    return {
        "ids": [mailing.id for mailing in rows],
        "of_filters": [numbers[mailing.id] for mailing in rows],
        "untils": [mailing.audience_until for mailing in rows],
        "snapshots": [mailing.audience_snapshot for mailing in rows],
        "planned_ids": [mailing_id for mailing_id, _ in each],
        "time_zones": [one.time_zone for _, one in each],
        "due_ats": [one.due_at for _, one in each],
        "statuses": [one.status for _, one in each],
        "reasons": [one.reason for _, one in each],
    }
