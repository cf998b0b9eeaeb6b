"""SQL about gateways: pauses, outcomes in the last 24 hours, messages that wait for one alone."""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import NamedTuple

from sqlalchemy import ARRAY, BigInteger, bindparam, text
from sqlalchemy.ext.asyncio import AsyncConnection

from mailer.db.tables.mailing import OPEN_MAILING
from mailer.gateway.routes import JOIN_OPERATOR_ROUTE, ROUTE, keep_routes
from mailer.gateway_control.model import GatewayError, GatewayOutcomes
from mailer.mailing.store import notify_mailings_changed
from mailer.message.model import EARLIEST_DUE

SELECT_PAUSED = text("SELECT gateway, paused_at FROM gateway_pause")


async def read_pauses(connection: AsyncConnection) -> dict[str, datetime]:
    """Return since when each paused gateway is paused, by its name."""
    return {row.gateway: row.paused_at for row in await connection.execute(SELECT_PAUSED)}


# Outcomes are counted by quarters of an hour, so the first quarter may begin before the 24 hours.
# A correction may be in another quarter than the outcome that it corrects: a sum may be negative.
COUNT_OUTCOMES = text("""
    SELECT gateway, reason, greatest(0, sum(delivered))::bigint AS delivered,
        greatest(0, sum(undelivered))::bigint AS undelivered,
        greatest(0, sum("unknown"))::bigint AS "unknown", greatest(0, sum(parts))::bigint AS parts
    FROM all_outcome_counts WHERE bucket_start > now() - interval '24 hours 15 minutes'
    GROUP BY gateway, reason""")


async def count_last_24_hours(connection: AsyncConnection) -> dict[str, GatewayOutcomes]:
    """Return the outcomes of each gateway's messages in the last 24 hours, by its name."""
    rows = defaultdict(list)
    for row in await connection.execute(COUNT_OUTCOMES):
        rows[row.gateway].append(row)
    return {
        gateway: GatewayOutcomes(
            delivered=sum(row.delivered for row in of_gateway),
            undelivered=sum(row.undelivered for row in of_gateway),
            unknown=sum(row.unknown for row in of_gateway),
            parts=sum(row.parts for row in of_gateway),
            errors=_by_frequency(
                GatewayError(row.reason, row.undelivered + row.unknown) for row in of_gateway
            ),
        )
        for gateway, of_gateway in rows.items()
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


# Workers claim from a mailing again when its row has changed. The subselects lock rows in the order
# of their ids, and mailings before messages, as other changes do, to avoid deadlocks.
TOUCH_MAILINGS = text("""
    UPDATE mailing SET route = route
    WHERE id IN (SELECT id FROM mailing WHERE id = ANY (:ids) ORDER BY id FOR UPDATE)
    """).bindparams(bindparam("ids", type_=ARRAY(BigInteger)))
RELEASE = text(f"""
    UPDATE message SET route = routed.route
    FROM (
        SELECT existing.id, {ROUTE.format(mailing_route="mailing.route")} AS route
        FROM (
            SELECT id, mailing_id, operator_code FROM message
            WHERE id = ANY (:ids) AND status = 'scheduled' AND route = :route
            ORDER BY id FOR UPDATE
        ) AS existing
        JOIN mailing ON mailing.id = existing.mailing_id
        {JOIN_OPERATOR_ROUTE.format(operator_code="existing.operator_code")}
    ) AS routed
    WHERE message.id = routed.id AND message.route <> routed.route""").bindparams(  # noqa: S608  # likewise
    bindparam("ids", type_=ARRAY(BigInteger))
)


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
