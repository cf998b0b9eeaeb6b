"""Determine the routes of messages again, after gateways or the gateway of a mailing have changed.

This is done in chunks, while sending goes on. In the mailing's row, `reroute_cursor` is the id of
the last message that is done; null when nothing is to be done.
"""

from typing import Any

from sqlalchemy import ARRAY, BigInteger, Row, bindparam, text
from sqlalchemy.ext.asyncio import AsyncConnection

from mailer.db.tables.mailing import OPEN_MAILING
from mailer.gateway.routes import JOIN_OPERATOR_ROUTE, ROUTE
from mailer.mailing.skipped import SkippedMailings
from mailer.mailing.store import notify_mailings_changed

REROUTE_BATCH = 5_000
"""Messages that one transaction considers."""

# A mailing whose row another worker has locked is skipped.
NEXT_MAILING_TO_REROUTE = text(f"""
    SELECT id, route, reroute_cursor FROM mailing
    WHERE {OPEN_MAILING} AND reroute_cursor IS NOT NULL AND id <> ALL (:skipped)
    ORDER BY reroute_cursor, id LIMIT 1 FOR UPDATE SKIP LOCKED""").bindparams(  # noqa: S608  # no user input
    bindparam("skipped", type_=ARRAY(BigInteger))
)
# One index scan per status returns messages in order, so that all chunks cost the same. A message
# that is being sent is included, because it may be scheduled again afterwards.
FIND_UNSENT = text("""
    (SELECT id FROM message WHERE mailing_id = :mailing_id AND status = 'scheduled'
        AND id > :cursor ORDER BY id LIMIT :chunk)
    UNION ALL
    (SELECT id FROM message WHERE mailing_id = :mailing_id AND status = 'sending'
        AND id > :cursor ORDER BY id LIMIT :chunk)
    ORDER BY id LIMIT :chunk""")
# A message with delivery unknown stays with its gateway. The subselect locks the messages in the
# order of their ids, as other bulk changes do, to avoid deadlocks.
REROUTE = text(f"""
    UPDATE message SET route = routed.route
    FROM (
        SELECT existing.id, {ROUTE.format(mailing_route="(:mailing_route)::int")} AS route
        FROM (
            SELECT id, operator_code FROM message
            WHERE id = ANY (:ids) AND status IN ('scheduled', 'sending')
                AND unknown_reason IS NULL
            ORDER BY id FOR UPDATE
        ) AS existing {JOIN_OPERATOR_ROUTE.format(operator_code="existing.operator_code")}
    ) AS routed
    WHERE message.id = routed.id AND message.route <> routed.route""").bindparams(  # noqa: S608  # no user input
    bindparam("ids", type_=ARRAY(BigInteger))
)
MOVE_REROUTE_CURSOR = text("UPDATE mailing SET reroute_cursor = :cursor WHERE id = :id")


def request_columns() -> dict[str, Any]:
    """Return the values of columns that make workers determine routes of a mailing again."""
    return {"reroute_cursor": 0}


async def reroute_chunk(connection: AsyncConnection, skipped: SkippedMailings) -> bool:
    """Determine the routes of the next messages of one mailing; False when no mailing needs it.

    A mailing for which this fails is added to `skipped`.
    """
    rows = await connection.execute(NEXT_MAILING_TO_REROUTE, {"skipped": list(skipped)})
    mailing = rows.one_or_none()
    if mailing is not None:
        with skipped.on_error(mailing.id):
            async with connection.begin_nested():
                await _reroute_chunk_of(connection, mailing)
            return True
    return False


async def _reroute_chunk_of(connection: AsyncConnection, mailing: Row[Any]) -> None:
    """Determine the routes of the next messages of a locked mailing, and move its cursor."""
    parameters = {
        "mailing_id": mailing.id,
        "cursor": mailing.reroute_cursor,
        "chunk": REROUTE_BATCH,
    }
    ids = list(await connection.scalars(FIND_UNSENT, parameters))
    if ids:
        await connection.execute(REROUTE, {"ids": ids, "mailing_route": mailing.route})
    cursor = ids[-1] if len(ids) == REROUTE_BATCH else None
    await connection.execute(MOVE_REROUTE_CURSOR, {"id": mailing.id, "cursor": cursor})
    await notify_mailings_changed(connection)
