"""SQL that reads how many messages the mailings still have to send, and through which gateways."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from datetime import datetime

import msgspec
from sqlalchemy import ARRAY, BigInteger, bindparam, select, text
from sqlalchemy.ext.asyncio import AsyncConnection

from mailer.client.segment_counts import ALL_SEGMENT_COUNTS, sum_of
from mailer.db.sql import add_up
from mailer.db.tables.mailing import OPEN_MAILING
from mailer.forecast.tiers import Pace
from mailer.mailing.audience import filter_condition
from mailer.mailing.client_filter import ClientFilter
from mailer.mailing.field_types import PRIORITY_WEIGHTS
from mailer.statuses import MESSAGE_STATUSES, OPEN, OUTCOMES


class GatewayLoad(msgspec.Struct, frozen=True):
    """The messages that all mailings still have to send, at one moment.

    The requested mailings are those whose ids `read_load` got.
    """

    now: datetime
    waiting: Mapping[int, int]
    """Messages that each running mailing still has to send, by its id. Includes the messages to
    clients of its audience that are not enqueued yet."""
    paces: Mapping[int, Pace]
    """The pace of each running mailing, by its id."""
    own_gateways: Mapping[int, str]
    """The gateway of each running mailing that names one for all its messages, by its id."""
    started: frozenset[int]
    """Ids of the requested mailings that are started."""
    enqueuing: frozenset[int]
    """Ids of the requested mailings whose audience is being enqueued."""


# `live` are all mailings that are not closed. Of the running ones, `open_messages` are scheduled or
# being sent, and `not_enqueued` clients have no message yet. After a change of the filter, the
# audience is enqueued again; how many messages that will create is not known, so they count as 0.
# `is_requested` are the mailings with the given ids.
SELECT_LOAD = text(f"""
    WITH live AS (
        SELECT id, status, gateway, priority, rate, {add_up(OPEN)} AS open_messages,
            id = ANY (:ids) AS is_requested,
            CASE WHEN audience_cursor < audience_until AND NOT is_replanning THEN greatest(0,
                clients_count - ({add_up(MESSAGE_STATUSES)})) ELSE 0 END AS not_enqueued,
            audience_until IS NOT NULL AS is_started,
            audience_cursor < audience_until AS is_enqueuing
        FROM mailing JOIN mailing_counts ON mailing_id = id
        WHERE {OPEN_MAILING}
    )
    SELECT clock_timestamp() AS now,
        coalesce(array_agg(id) FILTER (WHERE status = 'running'), '{{}}') AS running,
        coalesce(array_agg(open_messages + not_enqueued) FILTER (WHERE status = 'running'), '{{}}')
            AS waiting,
        coalesce(array_agg(gateway) FILTER (WHERE status = 'running'), '{{}}') AS gateways,
        coalesce(array_agg(priority) FILTER (WHERE status = 'running'), '{{}}') AS priorities,
        coalesce(array_agg(rate) FILTER (WHERE status = 'running'), '{{}}') AS rates,
        coalesce(array_agg(id) FILTER (WHERE is_requested AND is_started), '{{}}') AS started,
        coalesce(array_agg(id) FILTER (WHERE is_requested AND is_enqueuing), '{{}}') AS enqueuing
    FROM live""").bindparams(  # noqa: S608  # no user input
    bindparam("ids", type_=ARRAY(BigInteger))
)


async def read_load(connection: AsyncConnection, mailing_ids: Sequence[int]) -> GatewayLoad:
    """Return the load of all mailings. `mailing_ids` are the ids of the requested ones."""
    row = (await connection.execute(SELECT_LOAD, {"ids": list(mailing_ids)})).one()
    gateways = zip(row.running, row.gateways, strict=True)
    paces = map(Pace, map(PRIORITY_WEIGHTS.__getitem__, row.priorities), row.rates)
    return GatewayLoad(
        row.now,
        dict(zip(row.running, row.waiting, strict=True)),
        dict(zip(row.running, paces, strict=True)),
        {mailing_id: gateway for mailing_id, gateway in gateways if gateway is not None},
        frozenset(row.started),
        frozenset(row.enqueuing),
    )


SELECT_GATEWAYS_BY_CODE = text("""
    SELECT operator_code, gateways FROM operator_route JOIN route ON route.id = operator_route.route
    """)


async def read_operator_routes(connection: AsyncConnection) -> dict[str, frozenset[str]]:
    """Return the names of the gateways for each operator code, and for `routes.OTHER_CODES`."""
    rows = await connection.execute(SELECT_GATEWAYS_BY_CODE)
    return {operator_code: frozenset(names) for operator_code, names in rows}


async def count_by_code_and_zone(
    connection: AsyncConnection, client_filter: ClientFilter, *, opted_out: bool | None = None
) -> dict[tuple[str, str], int]:
    """Return how many clients a filter matches now, by operator code and time zone.

    `opted_out` is whether the clients have opted out; None for both.
    """
    segments = ALL_SEGMENT_COUNTS.c
    clients = sum_of(opted_out=opted_out)
    statement = (
        select(segments.operator_code, segments.time_zone, clients)
        .where(filter_condition(client_filter, ALL_SEGMENT_COUNTS))
        .group_by(segments.operator_code, segments.time_zone)
        .having(clients > 0)
    )
    return {(code, zone): int(size) for code, zone, size in await connection.execute(statement)}


SELECT_WAITING_BY_CODE = text(f"""
    SELECT mailing_id, key, sum(messages - ({add_up(OUTCOMES)}))::bigint AS waiting
    FROM all_message_counts
    WHERE mailing_id = ANY (:ids) AND dimension = 'operator_code'
    GROUP BY mailing_id, key""").bindparams(  # noqa: S608  # no user input
    bindparam("ids", type_=ARRAY(BigInteger))
)


async def count_waiting_by_code(
    connection: AsyncConnection, mailing_ids: Sequence[int]
) -> dict[int, dict[str, int]]:
    """Return the messages of mailings that are scheduled or being sent.

    By the id of the mailing, and then by operator code; without zeros.
    """
    waiting: dict[int, dict[str, int]] = defaultdict(dict)
    rows = await connection.execute(SELECT_WAITING_BY_CODE, {"ids": list(mailing_ids)})
    for mailing_id, code, messages in rows:
        if messages > 0:
            waiting[mailing_id][code] = messages
    return waiting
