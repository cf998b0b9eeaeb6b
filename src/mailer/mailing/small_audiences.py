"""Enqueue the whole audiences of several small mailings, by one statement for all of them.

`enqueuing.py` enqueues a large audience in chunks. For thousands of small mailings, one transaction
for each would take too long.
"""

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from sqlalchemy import ARRAY, BigInteger, Boolean, DateTime, Row, String, bindparam, text
from sqlalchemy.ext.asyncio import AsyncConnection

from mailer.db.sql import add_up
from mailer.gateway.routes import JOIN_OPERATOR_ROUTE, ROUTE, keep_routes
from mailer.mailing.combined_filters import (
    MATCHING_PARAMETERS,
    MATCHING_SEGMENTS,
    CombinedFilters,
    find_time_zones,
)
from mailer.mailing.enqueuing import FIRST_BATCH, HAS_AUDIENCE_TO_ENQUEUE, EnqueuedChunk
from mailer.mailing.mailing_batches import MAILINGS_PER_BATCH, lock_mailings
from mailer.mailing.planning import Plan, plan_by_zone, plan_cancelled, window_of
from mailer.mailing.skipped import SkippedMailings
from mailer.mailing.store import notify_mailings_changed
from mailer.statuses import MESSAGE_STATUSES

MAX_SMALL_AUDIENCE = FIRST_BATCH
"""Clients of an audience that is enqueued together with others, at most."""
MAX_CLIENTS_PER_BATCH = 1_000
"""Clients of small audiences after which one transaction takes no further mailing."""

# `clients_count` is the size of the audience when it was last counted. The cursor, which is
# always 0 here, is in ORDER BY only to match an index.
SELECT_SMALL = """
    SELECT id, datetime_start, datetime_end, send_interval_time_start, send_interval_time_end,
        status, client_filter, clients_count, audience_until, audience_snapshot, route,
        purpose = 'marketing' AS respects_opt_outs, clock_timestamp() AS now
    FROM mailing
    WHERE {condition} AND audience_cursor = 0 AND clients_count <= {max_clients}
        AND id <> ALL (:skipped)
    ORDER BY audience_cursor {order}, id {order} LIMIT :limit FOR UPDATE SKIP LOCKED"""
NEWEST_SMALL, OLDEST_SMALL = (
    text(
        SELECT_SMALL.format(
            condition=HAS_AUDIENCE_TO_ENQUEUE, max_clients=MAX_SMALL_AUDIENCE, order=order
        )
    ).bindparams(bindparam("skipped", type_=ARRAY(BigInteger)))
    for order in ("DESC", "ASC")
)

# Writes the messages of several mailings. Returns the filters that match more than
# `MAX_SMALL_AUDIENCE` clients by now, with that number of clients; their mailings get no messages.
# - `matching`, of `MATCHING_SEGMENTS`: the segments that match each filter.
# - `audience`: the mailings with smaller audiences, each with the parts of its audience snapshot.
# - `planned`: the plans of a mailing by time zone; null stands for all time zones.
# - `present`: the lowest transaction id that is not used yet.
# - `member`: the clients of a matching segment. Each part of the UNION finds them by an index; only
#   `IS NULL` finds nulls by an index. The last part is for filters with lists of clients. Clients
#   who do not match are never read, whatever the filter. OFFSET 0 forces the planner to do so even
#   when it expects few clients.
#
# A client belongs to an audience when it is not deleted, matches now, and existed at the audience
# snapshot; see `enqueuing.EXISTED_IN_SNAPSHOT` for that condition.
#
# No plan exists for a client who changes time zone at this moment. The message is due now, and the
# window is checked again before it is sent. The message to a client who has opted out is cancelled,
# unless the mailing ignores that. A new filter may match clients again whom an earlier
# filter excluded: their cancelled messages are scheduled again.
INSERT_MESSAGES = text(f"""
    WITH {MATCHING_SEGMENTS},
    large AS MATERIALIZED (
        SELECT number, sum(clients)::bigint AS clients
        FROM matching GROUP BY number HAVING sum(clients) > {MAX_SMALL_AUDIENCE}),
    audience AS MATERIALIZED (
        SELECT audience.*,
            ARRAY(SELECT xid::text::bigint FROM pg_snapshot_xip(snapshot::pg_snapshot) AS xid)
                AS in_progress,
            pg_snapshot_xmax(snapshot::pg_snapshot)::text::bigint AS snapshot_xmax
        FROM unnest(:ids, :filter_numbers, :untils, :snapshots, :routes, :respect_opt_outs)
            AS audience (id, number, until, snapshot, route, respects_opt_outs)
        WHERE number NOT IN (SELECT number FROM large)),
    planned AS MATERIALIZED (
        SELECT * FROM unnest(:planned_ids, :time_zones, :due_ats, :statuses, :reasons)
            AS planned (id, time_zone, due_at, status, reason)),
    present AS (SELECT pg_snapshot_xmax(pg_current_snapshot())::text::bigint AS current_xmax),
    written AS (INSERT INTO message
        (mailing_id, client_id, operator_code, time_zone, due_at, status, reason, route)
    SELECT audience.id, member.id, matching.operator_code, matching.time_zone,
        coalesce(planned.due_at, clock_timestamp()),
        CASE WHEN audience.respects_opt_outs AND member.opted_out_at IS NOT NULL
            THEN 'cancelled' ELSE coalesce(planned.status, 'scheduled') END,
        CASE WHEN audience.respects_opt_outs AND member.opted_out_at IS NOT NULL
            THEN 'opted_out' ELSE planned.reason END,
        {ROUTE.format(mailing_route="audience.route")}
    FROM audience JOIN matching USING (number)
        CROSS JOIN LATERAL (
            SELECT id, created_by, xmin AS written_by, opted_out_at FROM client
            WHERE deleted_at IS NULL AND operator_code = matching.operator_code
                AND time_zone = matching.time_zone AND tag = matching.tag
                AND matching.client_ids IS NULL
            UNION ALL
            SELECT id, created_by, xmin, opted_out_at FROM client
            WHERE deleted_at IS NULL AND operator_code = matching.operator_code
                AND time_zone = matching.time_zone AND tag IS NULL AND matching.tag IS NULL
                AND matching.client_ids IS NULL
            UNION ALL
            SELECT id, created_by, xmin, opted_out_at FROM client
            WHERE deleted_at IS NULL AND id = ANY (matching.client_ids)
            OFFSET 0) AS member
        LEFT JOIN planned ON planned.id = audience.id
            AND (planned.time_zone IS NULL OR planned.time_zone = matching.time_zone)
        {JOIN_OPERATOR_ROUTE.format(operator_code="matching.operator_code")}
    WHERE member.id <= audience.until AND NOT (
        member.created_by = ANY (audience.in_progress)
        OR (member.created_by >= audience.snapshot_xmax
            AND member.created_by < (SELECT current_xmax FROM present)
            AND age(member.written_by) <= age((member.created_by % 4294967296)::text::xid)))
    ORDER BY audience.id, member.id
    ON CONFLICT (mailing_id, client_id) DO UPDATE SET due_at = excluded.due_at,
        status = excluded.status, reason = excluded.reason, route = excluded.route,
        updated_at = now()
        WHERE message.status = 'cancelled' AND message.reason = 'filter_changed')
    SELECT number, clients FROM large""").bindparams(  # noqa: S608  # no user input
    *MATCHING_PARAMETERS,
    *(
        bindparam(name, type_=ARRAY(BigInteger))
        for name in ("ids", "filter_numbers", "untils", "planned_ids", "routes")
    ),
    *(
        bindparam(name, type_=ARRAY(String))
        for name in ("snapshots", "time_zones", "statuses", "reasons")
    ),
    bindparam("due_ats", type_=ARRAY(DateTime(timezone=True))),
    bindparam("respect_opt_outs", type_=ARRAY(Boolean)),
)
SET_CLIENTS_COUNTS = text("""
    UPDATE mailing SET clients_count = counted.clients
    FROM unnest(:ids, :counts) AS counted (id, clients)
    WHERE mailing.id = counted.id""").bindparams(
    bindparam("ids", type_=ARRAY(BigInteger)), bindparam("counts", type_=ARRAY(BigInteger))
)
# The size of an audience that is completely enqueued is the number of its messages.
MARK_ENQUEUED = text(f"""
    UPDATE mailing SET audience_cursor = audience_until,
        clients_count = {add_up(MESSAGE_STATUSES)}
    FROM mailing_counts WHERE mailing.id = ANY (:ids) AND mailing_counts.mailing_id = mailing.id
    RETURNING mailing.id, clients_count""").bindparams(  # noqa: S608  # no user input
    bindparam("ids", type_=ARRAY(BigInteger))
)


class SmallMailing(NamedTuple):
    """A mailing to enqueue: its row, the number of its filter, and its plans by time zone."""

    row: Row[Any]
    filter_number: int
    plans: list[Plan]


async def enqueue_small(
    connection: AsyncConnection, skipped: SkippedMailings, limit: int = MAILINGS_PER_BATCH
) -> list[EnqueuedChunk]:
    """Enqueue the whole audiences of up to `limit` mailings with small audiences.

    A few of the newest mailings come first, then those that wait longest. Audiences are counted
    again, because filters and clients may have changed since the last count. A mailing whose
    audience is not small any more is left to `enqueuing.enqueue_chunk`.
    """
    await keep_routes(connection)
    rows = await lock_mailings(
        connection, newest=NEWEST_SMALL, oldest=OLDEST_SMALL, limit=limit, skipped=skipped
    )
    filters = CombinedFilters()
    filter_numbers = _add_filters(filters, rows, skipped)
    rows = [row for row in rows if row.id in filter_numbers]
    mailings = await _plan_mailings(connection, filters, rows, filter_numbers, skipped)
    if not mailings:
        return []
    parameters = filters.parameters() | _message_parameters(mailings)
    large_filters = await connection.execute(INSERT_MESSAGES, parameters)
    large_sizes = {large.number: large.clients for large in large_filters}
    large = [mailing for mailing in mailings if mailing.filter_number in large_sizes]
    small = [mailing for mailing in mailings if mailing.filter_number not in large_sizes]
    if large:
        counts = [large_sizes[mailing.filter_number] for mailing in large]
        ids = [mailing.row.id for mailing in large]
        await connection.execute(SET_CLIENTS_COUNTS, {"ids": ids, "counts": counts})
    ids = [mailing.row.id for mailing in small]
    enqueued = await connection.execute(MARK_ENQUEUED, {"ids": ids})
    await notify_mailings_changed(connection)
    return [
        EnqueuedChunk(row.id, row.clients_count, is_last=True, is_large=False) for row in enqueued
    ]


def _add_filters(
    filters: CombinedFilters, rows: Iterable[Row[Any]], skipped: SkippedMailings
) -> dict[int, int]:
    """Add the filters of mailings until the batch is full; return their numbers by mailing id."""
    filter_numbers: dict[int, int] = {}
    clients = 0
    for row in rows:
        with skipped.on_error(row.id):
            filter_numbers[row.id] = filters.add(row.client_filter)
            clients += row.clients_count
        if filters.is_full or clients >= MAX_CLIENTS_PER_BATCH:
            break
    return filter_numbers


async def _plan_mailings(
    connection: AsyncConnection,
    filters: CombinedFilters,
    rows: Sequence[Row[Any]],
    filter_numbers: dict[int, int],
    skipped: SkippedMailings,
) -> list[SmallMailing]:
    """Plan the messages of mailings; leave out and skip those whose data cannot be read."""
    time_zones: dict[int, list[str]] = {}  # by number of the filter
    if any(map(window_of, rows)):
        time_zones = await find_time_zones(connection, filters)
    mailings = []
    for row in rows:
        number = filter_numbers[row.id]
        with skipped.on_error(row.id):
            mailings.append(SmallMailing(row, number, _plans(row, time_zones.get(number, ()))))
    return mailings


def _plans(mailing: Row[Any], time_zones: Iterable[str]) -> list[Plan]:
    """Return the plan for each time zone, or one for all time zones when there is no window."""
    if mailing.status == "cancelled":
        return [plan_cancelled(None, mailing.now)]
    zones_to_plan = (None,) if window_of(mailing) is None else time_zones
    return list(plan_by_zone(mailing, zones_to_plan).values())


def _message_parameters(mailings: Sequence[SmallMailing]) -> dict[str, Any]:
    """Return the SQL parameters of `INSERT_MESSAGES`, without those of the filters."""
    planned = [(mailing.row.id, plan) for mailing in mailings for plan in mailing.plans]
    return {
        "ids": [mailing.row.id for mailing in mailings],
        "filter_numbers": [mailing.filter_number for mailing in mailings],
        "untils": [mailing.row.audience_until for mailing in mailings],
        "snapshots": [mailing.row.audience_snapshot for mailing in mailings],
        "routes": [mailing.row.route for mailing in mailings],
        "respect_opt_outs": [mailing.row.respects_opt_outs for mailing in mailings],
        "planned_ids": [mailing_id for mailing_id, _ in planned],
        "time_zones": [plan.time_zone for _, plan in planned],
        "due_ats": [plan.due_at for _, plan in planned],
        "statuses": [plan.status for _, plan in planned],
        "reasons": [plan.reason for _, plan in planned],
    }
