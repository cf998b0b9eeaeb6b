"""Count the audiences of many mailings, and enqueue small ones, by one statement for all."""

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

from mailer.db.sql import add_up
from mailer.mailing.audience import (
    FIRST_BATCH,
    HAS_AUDIENCE_TO_ENQUEUE,
    EnqueuedChunk,
    Plan,
    plan,
    window_of,
)
from mailer.mailing.client_filter import ClientFilter, filter_lists, folded_terms
from mailer.mailing.skipped import SkippedMailings
from mailer.mailing.store import notify_mailings_changed
from mailer.statuses import MESSAGE_STATUSES

MAX_FILTER_VALUES = 5_000
"""Filter values that one statement searches by. A single filter may exceed this limit."""


class Filters:
    """The distinct filters of several mailings, each with a number."""

    def __init__(self) -> None:
        self._numbers: dict[bytes, int] = {}
        self._search_values: list[tuple[int, str, str]] = []
        self._other_conditions: list[dict[str, Any]] = []

    @property
    def is_full(self) -> bool:
        """Return whether one statement takes no more filters."""
        return len(self._search_values) >= MAX_FILTER_VALUES

    def add(self, stored: Any) -> int:  # noqa: ANN401  # JSON from a row of `mailing`
        """Add a stored filter; return its number, the same one for equal filters.

        Raises `msgspec.ValidationError` when it is not a valid filter.
        """
        key = msgspec.json.encode(stored, order="deterministic")
        if key not in self._numbers:
            number = len(self._numbers)
            values, conditions = _split_filter(msgspec.convert(stored, ClientFilter))
            self._search_values += ((number, column, value) for column, value in values)
            self._other_conditions.append({"number": number, **conditions})
            self._numbers[key] = number
        return self._numbers[key]

    def parameters(self) -> dict[str, Any]:
        """Return the SQL parameters of `MATCHING_SEGMENTS`."""
        numbers, columns, values = (
            zip(*self._search_values, strict=True) if self._search_values else ((),) * 3
        )
        return {
            "filters": list(numbers),
            "columns": list(columns),
            "values": list(values),
            "other_conditions": msgspec.json.encode(self._other_conditions).decode(),
        }


def _split_filter(
    client_filter: ClientFilter,
) -> tuple[list[tuple[str, str]], Mapping[str, list[str]]]:
    """Return (column, value) pairs to search segments by, and the other conditions by column.

    A client matches when it has one of the pairs and meets all other conditions. The pair
    `("", "")` matches all clients.
    """
    if isinstance(client_filter, str):
        terms = set(folded_terms(client_filter))
        return [(column, term) for column in ("operator_code", "tag") for term in terms], {}
    conditions = filter_lists(client_filter)
    for column in ("tag", "operator_code", "time_zone"):
        if column in conditions:
            return [(column, value) for value in set(conditions.pop(column))], conditions
    return [("", "")], {}


# Merged segment counts are found by an index, for each value of a filter. Deltas that are not
# merged yet are scanned once. The cost therefore grows with the number of matches and not with the
# size of the directory. A segment that several values of one filter match is kept once.
MATCHING_SEGMENTS = """
    wanted AS MATERIALIZED (
        SELECT * FROM unnest(:filters, :columns, :values) AS wanted (number, name, value)),
    other_conditions AS MATERIALIZED (
        SELECT * FROM jsonb_to_recordset((:other_conditions)::jsonb)
            AS other_conditions (number bigint, operator_code text[], time_zone text[])),
    found AS (
        SELECT wanted.*, segment.* FROM wanted CROSS JOIN LATERAL (
            SELECT * FROM segment_count
                WHERE wanted.name = 'operator_code' AND operator_code = wanted.value
            UNION ALL
            SELECT * FROM segment_count WHERE wanted.name = 'tag' AND tag = wanted.value
            UNION ALL
            SELECT * FROM segment_count WHERE wanted.name = 'time_zone' AND time_zone = wanted.value
            UNION ALL
            SELECT * FROM segment_count WHERE wanted.name = '') AS segment
        UNION ALL
        SELECT wanted.*, segment.* FROM segment_count_delta AS segment
            CROSS JOIN LATERAL (VALUES ('operator_code', segment.operator_code),
                ('tag', segment.tag), ('time_zone', segment.time_zone), ('', ''))
                AS has (name, value)
            JOIN wanted ON wanted.name = has.name AND wanted.value = has.value),
    matching AS MATERIALIZED (
        SELECT DISTINCT number, operator_code, tag, time_zone, clients FROM (
            SELECT number, found.operator_code, tag, found.time_zone,
                sum(clients)::bigint AS clients
            FROM found JOIN other_conditions AS other USING (number)
            WHERE (other.operator_code IS NULL OR found.operator_code = ANY (other.operator_code))
                AND (other.time_zone IS NULL OR found.time_zone = ANY (other.time_zone))
            GROUP BY number, name, value, found.operator_code, tag, found.time_zone
            HAVING sum(clients) > 0) AS by_value)"""
PARAMETERS: tuple[BindParameter[Any], ...] = (
    bindparam("filters", type_=ARRAY(BigInteger)),
    bindparam("columns", type_=ARRAY(String)),
    bindparam("values", type_=ARRAY(String)),
)
COUNT = text(f"""
    WITH {MATCHING_SEGMENTS}
    SELECT number, sum(clients)::bigint AS clients
    FROM matching GROUP BY number""").bindparams(*PARAMETERS)  # noqa: S608  # no user input
ZONES = text(f"""
    WITH {MATCHING_SEGMENTS}
    SELECT number, array_agg(DISTINCT time_zone) AS time_zones
    FROM matching GROUP BY number""").bindparams(*PARAMETERS)  # noqa: S608  # no user input


async def count(connection: AsyncConnection, filters: Filters) -> dict[int, int]:
    """Return how many clients each filter matches now, by its number; without those of 0."""
    rows = await connection.execute(COUNT, filters.parameters())
    return {row.number: row.clients for row in rows}


MAILINGS_PER_BATCH = 25
"""Mailings that one transaction starts, enqueues or finishes.

A mailing that is due now waits for at most one such batch of each kind, however many others there
are."""
NEWEST_PER_BATCH = 5
"""Newest mailings of a batch, which come first; the others are those that wait longest."""


async def lock_mailings(
    connection: AsyncConnection,
    statements: Sequence[TextClause],
    limit: int,
    skipped: SkippedMailings,
) -> list[Row[Any]]:
    """Lock up to `limit` mailings; return their rows.

    The two `statements` select mailings by newest first and by longest waiting first. The first one
    selects `NEWEST_PER_BATCH` mailings, the second one the rest. Each has the parameters `limit`
    and `skipped`, the ids to leave out.
    """
    rows: list[Row[Any]] = []
    for statement, number in zip(statements, (NEWEST_PER_BATCH, limit), strict=True):
        parameters = {
            "limit": min(number, limit - len(rows)),
            "skipped": [*skipped, *(row.id for row in rows)],
        }
        rows += await connection.execute(statement, parameters)
        if len(rows) < NEWEST_PER_BATCH:
            break
    return rows


MAX_SMALL_AUDIENCE = FIRST_BATCH
"""Clients of an audience that is enqueued together with others, at most."""
MAX_CLIENTS_PER_BATCH = 1_000
"""Clients of small audiences after which one transaction takes no further mailing."""
SELECT_SMALL = """
    SELECT id, datetime_start, datetime_end, send_interval_time_start, send_interval_time_end,
        status, client_filter, clients_count, audience_until, audience_snapshot,
        clock_timestamp() AS now
    FROM mailing
    WHERE {condition} AND audience_cursor = 0 AND clients_count <= {small}
        AND id <> ALL (:skipped)
    ORDER BY audience_cursor {order}, id {order} LIMIT :limit FOR UPDATE SKIP LOCKED"""
SELECT_SMALL_BY_ORDER = [
    text(
        SELECT_SMALL.format(
            condition=HAS_AUDIENCE_TO_ENQUEUE, small=MAX_SMALL_AUDIENCE, order=order
        )
    ).bindparams(bindparam("skipped", type_=ARRAY(BigInteger)))
    for order in ("DESC", "ASC")
]
# Audiences that are no longer small are left out, and returned with their size. As in `audience`, a
# client belongs to an audience when it is not deleted, matches now, and was in the directory at the
# audience's snapshot. Clients are found by their segments, each by an index (nulls by `IS NULL`
# only): clients who do not match are never read, whatever the filter. OFFSET forces the planner to
# do so even when it expects few clients. Without a window, one plan applies to all time zones.
INSERT_MESSAGES = text(f"""
    WITH {MATCHING_SEGMENTS},
    large AS MATERIALIZED (
        SELECT number, sum(clients)::bigint AS clients
        FROM matching GROUP BY number HAVING sum(clients) > {MAX_SMALL_AUDIENCE}),
    audience AS MATERIALIZED (
        SELECT audience.*,
            ARRAY(SELECT xid::text::bigint FROM pg_snapshot_xip(snapshot::pg_snapshot) AS xid)
                AS in_progress,
            pg_snapshot_xmax(snapshot::pg_snapshot)::text::bigint AS next_then
        FROM unnest(:ids, :filter_numbers, :untils, :snapshots)
            AS audience (id, number, until, snapshot)
        WHERE number NOT IN (SELECT number FROM large)),
    planned AS MATERIALIZED (
        SELECT * FROM unnest(:planned_ids, :time_zones, :due_ats, :statuses, :reasons)
            AS planned (id, time_zone, due_at, status, reason)),
    present AS (SELECT pg_snapshot_xmax(pg_current_snapshot())::text::bigint AS next_now),
    written AS (INSERT INTO message
        (mailing_id, client_id, operator_code, time_zone, due_at, status, reason)
    SELECT audience.id, member.id, matching.operator_code, matching.time_zone,
        coalesce(planned.due_at, clock_timestamp()), coalesce(planned.status, 'scheduled'),
        planned.reason
    FROM audience JOIN matching USING (number)
        CROSS JOIN LATERAL (
            SELECT id, created_by, xmin AS written_by FROM client
            WHERE deleted_at IS NULL AND operator_code = matching.operator_code
                AND time_zone = matching.time_zone AND tag = matching.tag
            UNION ALL
            SELECT id, created_by, xmin FROM client
            WHERE deleted_at IS NULL AND operator_code = matching.operator_code
                AND time_zone = matching.time_zone AND tag IS NULL AND matching.tag IS NULL
            OFFSET 0) AS member
        LEFT JOIN planned ON planned.id = audience.id
            AND (planned.time_zone IS NULL OR planned.time_zone = matching.time_zone)
    WHERE member.id <= audience.until AND NOT (
        member.created_by = ANY (audience.in_progress)
        OR (member.created_by >= audience.next_then
            AND member.created_by < (SELECT next_now FROM present)
            AND age(member.written_by) <= age((member.created_by % 4294967296)::text::xid)))
    ORDER BY audience.id, member.id
    ON CONFLICT (mailing_id, client_id) DO UPDATE SET due_at = excluded.due_at,
        status = excluded.status, reason = excluded.reason, updated_at = now()
        WHERE message.status = 'cancelled' AND message.reason = 'filter_changed')
    SELECT number, clients FROM large""").bindparams(  # noqa: S608  # no user input
    *PARAMETERS,
    *(
        bindparam(name, type_=ARRAY(BigInteger))
        for name in ("ids", "filter_numbers", "untils", "planned_ids")
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
MOVE_CURSORS = text(f"""
    UPDATE mailing SET audience_cursor = audience_until,
        clients_count = {add_up(MESSAGE_STATUSES)}
    FROM mailing_counts WHERE mailing.id = ANY (:ids) AND mailing_counts.mailing_id = mailing.id
    RETURNING mailing.id, clients_count""").bindparams(  # noqa: S608  # no user input
    bindparam("ids", type_=ARRAY(BigInteger))
)


async def enqueue_small(
    connection: AsyncConnection, skipped: SkippedMailings, limit: int = MAILINGS_PER_BATCH
) -> list[EnqueuedChunk]:
    """Enqueue the whole audiences of up to `limit` mailings with small audiences.

    A few of the newest mailings come first, then those that wait longest. Audiences are counted
    again, because filters and clients may have changed since the last count.
    """
    mailings = await lock_mailings(connection, SELECT_SMALL_BY_ORDER, limit, skipped)
    filters, numbers = Filters(), dict[int, int]()
    rows, clients = [], 0
    for mailing in mailings:
        with skipped.on_error(mailing.id):
            numbers[mailing.id] = filters.add(mailing.client_filter)
            rows.append(mailing)
            clients += mailing.clients_count
        if filters.is_full or clients >= MAX_CLIENTS_PER_BATCH:
            break
    zones: dict[int, list[str]] = {}
    if any(map(window_of, rows)):
        zone_rows = await connection.execute(ZONES, filters.parameters())
        zones = {row.number: row.time_zones for row in zone_rows}
    plans: dict[int, list[Plan]] = {}
    for mailing in rows:
        with skipped.on_error(mailing.id):
            plans[mailing.id] = _plans(mailing, zones.get(numbers[mailing.id], ()))
    if not plans:
        return []
    rows = [mailing for mailing in rows if mailing.id in plans]
    parameters = filters.parameters() | _message_parameters(rows, numbers, plans)
    large = {
        row.number: row.clients for row in await connection.execute(INSERT_MESSAGES, parameters)
    }
    counts = {
        mailing_id: large[numbers[mailing_id]]
        for mailing_id in plans
        if numbers[mailing_id] in large
    }
    if counts:  # `enqueue_chunk` enqueues these
        await connection.execute(SET_COUNTS, {"ids": list(counts), "counts": list(counts.values())})
    enqueued = await connection.execute(MOVE_CURSORS, {"ids": list(plans.keys() - counts.keys())})
    await notify_mailings_changed(connection)
    return [
        EnqueuedChunk(row.id, row.clients_count, is_last=True, is_large=False) for row in enqueued
    ]


def _plans(mailing: Row[Any], zones: Iterable[str]) -> list[Plan]:
    """Return the plan for each time zone, or one for all time zones when there is no window."""
    if mailing.status == "cancelled":
        return [Plan(None, mailing.now, "cancelled", "mailing_cancelled")]
    window, start, end = window_of(mailing), mailing.datetime_start, mailing.datetime_end
    return [
        plan(zone, window, start, end, mailing.now)
        for zone in ((None,) if window is None else zones)
    ]


def _message_parameters(
    rows: Sequence[Row[Any]], numbers: Mapping[int, int], plans: Mapping[int, list[Plan]]
) -> dict[str, Any]:
    """Return the SQL parameters of `INSERT_MESSAGES`, without those of the filters."""
    planned = [
        (mailing_id, mailing_plan)
        for mailing_id, mailing_plans in plans.items()
        for mailing_plan in mailing_plans
    ]
    return {
        "ids": [mailing.id for mailing in rows],
        "filter_numbers": [numbers[mailing.id] for mailing in rows],
        "untils": [mailing.audience_until for mailing in rows],
        "snapshots": [mailing.audience_snapshot for mailing in rows],
        "planned_ids": [mailing_id for mailing_id, _ in planned],
        "time_zones": [plan.time_zone for _, plan in planned],
        "due_ats": [plan.due_at for _, plan in planned],
        "statuses": [plan.status for _, plan in planned],
        "reasons": [plan.reason for _, plan in planned],
    }
