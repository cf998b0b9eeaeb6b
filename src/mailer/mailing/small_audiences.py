"""Enqueue the audiences of several small mailings, by one statement for all."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from sqlalchemy import (
    ARRAY,
    BigInteger,
    DateTime,
    Row,
    String,
    bindparam,
    text,
)
from sqlalchemy.ext.asyncio import AsyncConnection

from mailer.db.sql import add_up
from mailer.mailing.combined_filters import MATCHING_SEGMENTS, PARAMETERS, ZONES, Filters
from mailer.mailing.enqueuing import FIRST_BATCH, HAS_AUDIENCE_TO_ENQUEUE, EnqueuedChunk
from mailer.mailing.mailing_batches import MAILINGS_PER_BATCH, lock_mailings
from mailer.mailing.planning import Plan, plan, window_of
from mailer.mailing.skipped import SkippedMailings
from mailer.mailing.store import notify_mailings_changed
from mailer.statuses import MESSAGE_STATUSES

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
