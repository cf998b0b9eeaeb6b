"""SQL that joins the parts of a reply, which come one by one. The caller owns the transaction.

A reply is complete when all its parts are there. After ten minutes it is joined with what has come.
"""

from collections.abc import Sequence
from datetime import datetime
from itertools import groupby
from typing import Any, NamedTuple

from sqlalchemy import ARRAY, DateTime, Integer, Row, String, bindparam, text
from sqlalchemy.ext.asyncio import AsyncConnection

from mailer.gateway.callback import Reply
from mailer.gateway.callback_replies import MAX_PARTS

MISSING_PART = "[…]"
"""Stands for parts that have not come."""

_TEXTS, _NUMBERS = ARRAY(String), ARRAY(Integer)


class ReceivedReply(NamedTuple):
    """A whole reply, the gateway through which it came, and when."""

    gateway: str
    reply: Reply
    received_at: datetime


def is_part(reply: Reply) -> bool:
    """Return whether a reply is only a part of one."""
    return (
        reply.reference is not None
        and 1 <= reply.part <= reply.parts
        and (1 < reply.parts <= MAX_PARTS)
    )


# A part that is stored already, or was joined in the last day, is a repeat.
INSERT_PARTS = text("""
    INSERT INTO reply_part (gateway, phone, reference, parts, part, text_digest, text, recipient,
        gateway_reply_id, received_at)
    SELECT :gateway, phone, reference, parts, part, decode(md5(text), 'hex'), text, recipient,
        gateway_reply_id, :received_at
    FROM unnest(:phones, :references, :parts, :numbers, :texts, :recipients, :ids)
        AS new (phone, reference, parts, part, text, recipient, gateway_reply_id)
    ORDER BY phone, reference, parts, part
    ON CONFLICT DO NOTHING""").bindparams(
    bindparam("gateway", type_=String),
    bindparam("received_at", type_=DateTime(timezone=True)),
    bindparam("phones", type_=_TEXTS),
    bindparam("references", type_=_TEXTS),
    bindparam("parts", type_=_NUMBERS),
    bindparam("numbers", type_=_NUMBERS),
    bindparam("texts", type_=_TEXTS),
    bindparam("recipients", type_=_TEXTS),
    bindparam("ids", type_=_TEXTS),
)


async def add(
    connection: AsyncConnection, gateway: str, parts: Sequence[Reply], received_at: datetime
) -> None:
    """Store parts of replies; a repeat changes nothing."""
    values = {
        "gateway": gateway,
        "received_at": received_at,
        "phones": [part.phone for part in parts],
        "references": [part.reference for part in parts],
        "parts": [part.parts for part in parts],
        "numbers": [part.part for part in parts],
        "texts": [part.text for part in parts],
        "recipients": [part.recipient for part in parts],
        "ids": [part.id for part in parts],
    }
    await connection.execute(INSERT_PARTS, values)


# Locks the parts of replies that are complete or old, of some phones or of all. Another worker may
# have joined some meanwhile; then PostgreSQL leaves these rows out after the wait for their locks.
SELECT_READY = text("""
    SELECT ctid::text AS position, gateway, phone, reference, parts, part, text, recipient,
        gateway_reply_id, received_at, received_at < now() - interval '10 minutes' AS is_old
    FROM reply_part
    WHERE joined_at IS NULL AND (gateway, phone, reference, parts) IN (
        SELECT gateway, phone, reference, parts FROM reply_part
        WHERE joined_at IS NULL AND ((:phones)::varchar[] IS NULL OR phone = ANY (:phones))
        GROUP BY gateway, phone, reference, parts
        HAVING count(DISTINCT part) = parts OR min(received_at) < now() - interval '10 minutes'
        LIMIT :limit)
    ORDER BY gateway, phone, reference, parts, part, received_at
    FOR UPDATE""").bindparams(bindparam("phones", type_=_TEXTS))
# The caller has locked the rows, so their positions in the table do not change.
MARK_JOINED = text("""
    UPDATE reply_part SET joined_at = now(), text = NULL
    WHERE ctid = ANY ((:positions)::text[]::tid[])""").bindparams(
    bindparam("positions", type_=_TEXTS)
)


async def join(
    connection: AsyncConnection, phones: Sequence[str] | None, limit: int
) -> list[ReceivedReply]:
    """Join the replies that are complete or old, at most `limit`; of all phones if it is None."""
    ready = await connection.execute(SELECT_READY, {"phones": phones, "limit": limit})
    joined, positions = [], list[str]()
    for _, rows in groupby(
        ready, key=lambda row: (row.gateway, row.phone, row.reference, row.parts)
    ):
        group = list(rows)
        by_number = {row.part: row for row in reversed(group)}  # the first that has come
        if len(by_number) == group[0].parts or any(row.is_old for row in group):
            joined.append(_join(by_number))
            positions += (row.position for row in by_number.values())
    if positions:
        await connection.execute(MARK_JOINED, {"positions": positions})
    return joined


def _join(by_number: dict[int, Row[Any]]) -> ReceivedReply:
    """Return the reply with these parts, which are by their numbers."""
    numbers = sorted(by_number)
    first = by_number[numbers[0]]
    texts, previous = [], 0
    for number in [*numbers, first.parts + 1]:
        if number > previous + 1:
            texts.append(MISSING_PART)
        if number in by_number:
            texts.append(by_number[number].text)
        previous = number
    reply = Reply(first.phone, "".join(texts), first.recipient, first.gateway_reply_id)
    received_at = max(row.received_at for row in by_number.values())
    return ReceivedReply(first.gateway, reply, received_at)


DELETE_JOINED = text("""
    DELETE FROM reply_part WHERE ctid = ANY (ARRAY(
        SELECT ctid FROM reply_part WHERE joined_at < now() - interval '1 day'
        LIMIT :limit FOR UPDATE SKIP LOCKED))""")
DELETE_OF_PHONE = text("DELETE FROM reply_part WHERE phone = :phone")


async def delete_joined(connection: AsyncConnection, limit: int) -> None:
    """Delete parts that were joined a day ago, at most `limit`: no gateway repeats them now."""
    await connection.execute(DELETE_JOINED, {"limit": limit})


async def delete_of_phone(connection: AsyncConnection, phone: str) -> None:
    """Delete the parts of a client's replies."""
    await connection.execute(DELETE_OF_PHONE, {"phone": phone})
