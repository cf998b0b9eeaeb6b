"""SQL about gateways: pauses, outcomes and deliveries, messages that wait for one alone."""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any, NamedTuple

import msgspec
from sqlalchemy import ARRAY, BigInteger, Row, bindparam, text
from sqlalchemy.ext.asyncio import AsyncConnection

from mailer.db.sql import sums
from mailer.db.tables.mailing import OPEN_MAILING
from mailer.db.tables.message import DELIVERY_COUNTS
from mailer.gateway.channel import Channels
from mailer.gateway.routes import keep_routes
from mailer.gateway_control.delivery import DeliveryCounts
from mailer.gateway_control.model import DeliveryByCode, GatewayError, GatewayOutcomes
from mailer.mailing.rerouting import reroute_messages
from mailer.mailing.store import notify_mailings_changed
from mailer.message.model import EARLIEST_DUE

SELECT_PAUSED = text("SELECT gateway, paused_at FROM gateway_pause")


async def read_pauses(connection: AsyncConnection) -> dict[str, datetime]:
    """Return since when each paused gateway is paused, by its name."""
    return {row.gateway: row.paused_at for row in await connection.execute(SELECT_PAUSED)}


IS_BY_RECEIPT = r"(reason = 'validity_expired' OR reason LIKE 'not\_delivered%')"
"""SQL for whether an undelivered message was accepted, and its receipt says that it failed."""
# Outcomes are counted by quarters of an hour, so the first quarter of a period may begin before the
# period. A correction may be in another quarter than the outcome that it corrects: a sum may be
# negative. Periods: `hour` and `day` together are the last 24 hours, `day` and `before` together
# the 24 hours before the last hour.
COUNT_OUTCOMES = text(f"""
    SELECT gateway, reason,
        CASE WHEN bucket_start > now() - interval '1 hour 15 minutes' THEN 'hour'
            WHEN bucket_start > now() - interval '24 hours 15 minutes' THEN 'day'
            ELSE 'before' END AS period,
        {IS_BY_RECEIPT} AS is_by_receipt,
        {sums(("sent", "delivered", "undelivered", '"unknown"', "parts"))}
    FROM all_outcome_counts WHERE bucket_start > now() - interval '25 hours 15 minutes'
    GROUP BY gateway, reason, period""")  # noqa: S608  # no user input


async def count_last_24_hours(connection: AsyncConnection) -> dict[str, GatewayOutcomes]:
    """Return the outcomes of each gateway's messages in the last 24 hours, by its name."""
    rows = defaultdict(list)
    for row in await connection.execute(COUNT_OUTCOMES):
        rows[row.gateway].append(row)
    return {gateway: _to_outcomes(of_gateway) for gateway, of_gateway in rows.items()}


def _to_outcomes(rows: Sequence[Row[Any]]) -> GatewayOutcomes:
    """Return the outcomes of a gateway from its rows of `COUNT_OUTCOMES`."""
    last_day = [row for row in rows if row.period != "before"]
    failures: dict[str, int] = defaultdict(int)
    for row in last_day:
        failures[row.reason] += row.undelivered + row.unknown
    return GatewayOutcomes(
        delivered=max(0, sum(row.delivered for row in last_day)),
        undelivered=max(0, sum(row.undelivered for row in last_day)),
        unknown=max(0, sum(row.unknown for row in last_day)),
        parts=max(0, sum(row.parts for row in last_day)),
        errors=_by_frequency(GatewayError(reason, count) for reason, count in failures.items()),
        delivery=_to_delivery(last_day),
        last_hour=_to_delivery([row for row in rows if row.period == "hour"]),
        day_before=_to_delivery([row for row in rows if row.period != "hour"]),
    )


def _to_delivery(rows: Sequence[Row[Any]]) -> DeliveryCounts:
    """Return the accepted messages in rows of `COUNT_OUTCOMES`.

    A message that is `sent` has a reason if no receipt came in time.
    """
    return DeliveryCounts(
        awaiting=max(0, sum(row.sent for row in rows if not row.reason)),
        no_receipt=max(0, sum(row.sent for row in rows if row.reason)),
        delivered=max(0, sum(row.delivered for row in rows)),
        undelivered=max(0, sum(row.undelivered for row in rows if row.is_by_receipt)),
    )


# Quarters of an hour as above. The sums are of the last 24 hours, or of the six days before them.
COUNT_BY_CODE = text(f"""
    SELECT operator_code, bucket_start > now() - interval '24 hours 15 minutes' AS is_last_day,
        {sums(DELIVERY_COUNTS)}
    FROM all_delivery_counts
    WHERE gateway = :gateway AND bucket_start > now() - interval '7 days 15 minutes'
    GROUP BY operator_code, is_last_day""")  # noqa: S608  # likewise


class Deliveries(NamedTuple):
    """The messages that a gateway has accepted, by operator code, the largest counts first."""

    last_day: list[DeliveryByCode]
    last_week: list[DeliveryByCode]


async def count_deliveries(connection: AsyncConnection, gateway: str) -> Deliveries:
    """Return the messages that a gateway accepted in the last 24 hours and in the last 7 days.

    They are read from `delivery_count`, which is filled from deltas: nothing is estimated, and no
    message is read. The counts cost sending nothing that can be measured, because they are columns
    of deltas that are written for each operator code anyway. A dimension of their own doubles the
    deltas of a batch with many operator codes. An index on the messages would cost one more entry
    for each change, and the messages of a week are too many to read.
    """
    last_day: dict[str, DeliveryCounts] = {}
    last_week: dict[str, DeliveryCounts] = {}
    for row in await connection.execute(COUNT_BY_CODE, {"gateway": gateway}):
        counts = DeliveryCounts(
            awaiting=max(0, row.sent - row.no_receipt),
            no_receipt=max(0, row.no_receipt),
            delivered=max(0, row.delivered),
            undelivered=max(0, row.undelivered),
        )
        last_week[row.operator_code] = last_week.get(row.operator_code, DeliveryCounts()) + counts
        if row.is_last_day:
            last_day[row.operator_code] = counts
    return Deliveries(_largest_first(last_day), _largest_first(last_week))


def _largest_first(counts: Mapping[str, DeliveryCounts]) -> list[DeliveryByCode]:
    """Return the operator codes with accepted messages, those with most first."""
    accepted = (DeliveryByCode(code, each) for code, each in counts.items() if each.accepted)
    return sorted(accepted, key=lambda each: (-each.counts.accepted, each.operator_code))


async def count_deliveries_by_period(
    connection: AsyncConnection, channels: Channels
) -> dict[tuple[str, str, str], int]:
    """Return the accepted messages of gateways with receipts, by gateway, period and result.

    The periods are `hour`, the last one, and `day_before`, the 24 hours before it.
    """
    outcomes = await count_last_24_hours(connection)
    return {
        (channel.name, period, result): messages
        for channel in channels
        if channel.receipts.is_awaited
        for found in (outcomes.get(channel.name, GatewayOutcomes()),)
        for period, counts in (("hour", found.last_hour), ("day_before", found.day_before))
        for result, messages in msgspec.structs.asdict(counts).items()
    }


def _by_frequency(errors: Iterable[GatewayError]) -> tuple[GatewayError, ...]:
    """Return the errors that occurred, the most frequent first; equal ones by reason."""
    occurred = (error for error in errors if error.messages)
    return tuple(sorted(occurred, key=lambda error: (-error.messages, error.reason)))


SELECT_SINGLE_ROUTES = text("""
    SELECT gateways[1] AS gateway, id FROM route WHERE cardinality(gateways) = 1""")


async def read_single_routes(connection: AsyncConnection) -> dict[str, int]:
    """Return the id of each route with one gateway alone, by the name of the gateway."""
    return {row.gateway: row.id for row in await connection.execute(SELECT_SINGLE_ROUTES)}


class WaitingMessage(NamedTuple):
    """The position of a message in the order in which messages are released."""

    mailing_id: int
    due_at: datetime
    id: int


FIRST = WaitingMessage(0, EARLIEST_DUE, 0)
"""The position before all messages."""

# Each mailing is read in the order of an index, from the position on, so all chunks cost the same.
FIND_WAITING = text(f"""
    SELECT waiting.mailing_id, waiting.due_at, waiting.id
    FROM mailing CROSS JOIN LATERAL (
        SELECT mailing_id, due_at, id FROM message
        WHERE message.mailing_id = mailing.id AND message.route = :route
            AND message.status = 'scheduled' AND unknown_reason IS NOT NULL
            AND (due_at, message.id) > (
                CASE WHEN mailing.id = :mailing_id THEN (:due_at)::timestamptz
                     ELSE '-infinity' END,
                CASE WHEN mailing.id = :mailing_id THEN (:id)::bigint ELSE 0 END)
        ORDER BY due_at, message.id LIMIT :chunk
    ) AS waiting
    WHERE {OPEN_MAILING} AND mailing.id >= :mailing_id
    ORDER BY waiting.mailing_id, waiting.due_at, waiting.id LIMIT :chunk""")  # noqa: S608  # no user input


async def find_waiting(
    connection: AsyncConnection, route: int, chunk: int, after: WaitingMessage = FIRST
) -> list[WaitingMessage]:
    """Return the next messages of a route of which delivery is unknown, at most `chunk`."""
    rows = await connection.execute(
        FIND_WAITING, {"route": route, "chunk": chunk, **after._asdict()}
    )
    return [WaitingMessage(*row) for row in rows]


# Workers claim from a mailing again when its row has changed. The subselect locks rows in the order
# of their ids, and mailings come before messages, as in other changes, to avoid deadlocks.
TOUCH_MAILINGS = text("""
    UPDATE mailing SET route = route
    WHERE id IN (SELECT id FROM mailing WHERE id = ANY (:ids) ORDER BY id FOR UPDATE)
    """).bindparams(bindparam("ids", type_=ARRAY(BigInteger)))
RELEASE = reroute_messages("status = 'scheduled' AND route = :route")


async def release(
    connection: AsyncConnection, route: int, messages: Sequence[WaitingMessage]
) -> int:
    """Give scheduled messages of a route the route of new messages; return how many changed."""
    mailing_ids = {message.mailing_id for message in messages}
    await keep_routes(connection)
    await connection.execute(TOUCH_MAILINGS, {"ids": list(mailing_ids)})
    values = {"route": route, "ids": [message.id for message in messages]}
    released = (await connection.execute(RELEASE, values)).rowcount
    await notify_mailings_changed(connection)
    return released
