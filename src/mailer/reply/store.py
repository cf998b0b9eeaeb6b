"""SQL that stores replies, finds what they answer, and opts phones out and in.

The caller owns the transaction: that of the calls of gateways, or that of a periodic job.
"""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Any, NamedTuple

import msgspec
from sqlalchemy import ARRAY, BigInteger, DateTime, String, bindparam, text
from sqlalchemy.ext.asyncio import AsyncConnection

from mailer.db.tables.mailing import RETENTION_START, UNSETTLED_MAILING
from mailer.db.tables.reply import MAX_REPLY_TEXT
from mailer.gateway.callback import Reply
from mailer.opt_out import store as opt_outs
from mailer.opt_out.model import OptOut
from mailer.opt_out.service import opt_in_phone, stop_messages
from mailer.reply import parts
from mailer.reply.model import ReplyAction
from mailer.reply.parts import ReceivedReply, is_part
from mailer.reply.rules import ReplyRules

MAX_CANDIDATES = 100
"""Most mailings that may still send, and most finished ones, among which the mailing that a reply
answers is searched: the newest of each."""
CANDIDATE_DAYS = 30
"""Days after its end or its last change during which a finished mailing is among them."""
UNSTORABLE = dict.fromkeys([0, *range(0xD800, 0xE000)], "\ufffd")
"""Characters that PostgreSQL cannot store, and what replaces them."""

_STRINGS = ARRAY(String)


class AddedReply(NamedTuple):
    """A reply that was stored now, and is no repeat."""

    id: int
    phone: str
    text: str
    gateway: str
    client_id: int | None


# - `sender`: the clients of the phones. The locks keep them from being erased until this
#   transaction has committed, so that erasing a client finds the reply.
# - `candidate`: the mailings that a reply may answer. Their number is bounded, so the cost of a
#   reply does not grow with the numbers of mailings and messages.
# - `answered`: of the messages that the gateway has got for the client before the reply, the newest
#   one. OFFSET 0 makes the planner read each message by the unique index of mailings and clients.
#   A message whose result is not recorded yet counts, too; so do 5 seconds, for clocks that differ.
#   A sender that is the number to which the reply went has priority, then that of the gateway.
ADD = text(f"""
    WITH sender AS MATERIALIZED (
        SELECT id, phone FROM client WHERE phone = ANY (:phones) AND deleted_at IS NULL
        ORDER BY id FOR KEY SHARE
    ), candidate AS MATERIALIZED (
        (SELECT id, sender FROM mailing WHERE {UNSETTLED_MAILING} AND audience_until IS NOT NULL
            ORDER BY id DESC LIMIT :candidates)
        UNION ALL
        (SELECT id, sender FROM mailing
            WHERE is_settled AND NOT is_purged AND deleted_at IS NULL
                AND {RETENTION_START} > now() - make_interval(days => {CANDIDATE_DAYS})
            ORDER BY {RETENTION_START} DESC LIMIT :candidates)
    )
    INSERT INTO reply (gateway, gateway_reply_id, phone, recipient, text, received_at, client_id,
        mailing_id, message_id)
    SELECT new.gateway, new.gateway_reply_id, new.phone, new.recipient, new.text, new.received_at,
        sender.id, answered.mailing_id, answered.id
    FROM unnest(:gateways, :ids, :phones, :recipients, :texts, :times) WITH ORDINALITY
        AS new (gateway, gateway_reply_id, phone, recipient, text, received_at, number)
    LEFT JOIN sender ON sender.phone = new.phone
    LEFT JOIN LATERAL (
        SELECT message.id, message.mailing_id
        FROM candidate CROSS JOIN LATERAL (
            SELECT id, mailing_id, coalesce(sent_at, updated_at) AS sent_at FROM message
            WHERE mailing_id = candidate.id AND client_id = sender.id
                AND message.gateway = new.gateway
                AND (sent_at IS NOT NULL OR status = 'sending' OR unknown_reason IS NOT NULL)
            OFFSET 0) AS message
        WHERE message.sent_at <= new.received_at + interval '5 seconds'
        ORDER BY
            coalesce(ltrim(candidate.sender, '+') = ltrim(new.recipient, '+'), false) DESC,
            (new.recipient IS NULL OR candidate.sender IS NULL) DESC,
            message.sent_at DESC, message.id DESC
        LIMIT 1) AS answered ON true
    ORDER BY new.number
    ON CONFLICT (gateway, gateway_reply_id) DO NOTHING
    RETURNING id, phone, text, gateway, client_id""").bindparams(  # noqa: S608  # no user input
    bindparam("gateways", type_=_STRINGS),
    bindparam("ids", type_=_STRINGS),
    bindparam("phones", type_=_STRINGS),
    bindparam("recipients", type_=_STRINGS),
    bindparam("texts", type_=_STRINGS),
    bindparam("times", type_=ARRAY(DateTime(timezone=True))),
)
MARK = text("UPDATE reply SET action = :action WHERE id = ANY (:ids)").bindparams(
    bindparam("ids", type_=ARRAY(BigInteger))
)
ACKNOWLEDGE = text("""
    INSERT INTO answer (id, reply_id, kind, gateway, phone, text)
    SELECT nextval('message_id_seq'), id, 'acknowledgement', gateway, phone, :text
    FROM reply WHERE id = ANY (:ids) ORDER BY id""").bindparams(
    bindparam("ids", type_=ARRAY(BigInteger))
)


async def add_replies(
    connection: AsyncConnection,
    gateway: str,
    replies: Sequence[Reply],
    received_at: datetime,
    rules: ReplyRules,
) -> None:
    """Store replies that came through a gateway, and do what their stop and start words ask for.

    A reply with an id that the gateway has used before is a repeat, and adds nothing. Parts of a
    reply are kept until the reply is complete.
    """
    cleaned = [_clean(reply) for reply in replies]
    whole = [ReceivedReply(gateway, reply, received_at) for reply in cleaned if not is_part(reply)]
    new_parts = [reply for reply in cleaned if is_part(reply)]
    if new_parts:
        await parts.add(connection, gateway, new_parts, received_at)
        phones = sorted({part.phone for part in new_parts})
        whole += await parts.join(connection, phones, limit=len(new_parts))
    await _add_whole(connection, whole, rules)


async def join_parts(connection: AsyncConnection, rules: ReplyRules, limit: int) -> int:
    """Store the replies whose parts are complete or old, at most `limit`; return how many."""
    joined = await parts.join(connection, None, limit)
    await _add_whole(connection, joined, rules)
    await parts.delete_joined(connection, limit)
    return len(joined)


def _clean(reply: Reply) -> Reply:
    """Return a reply that can be stored."""
    return msgspec.structs.replace(
        reply,
        phone=reply.phone.translate(UNSTORABLE),
        text=reply.text.translate(UNSTORABLE),
        recipient=_clean_optional(reply.recipient),
        id=_clean_optional(reply.id),
        reference=_clean_optional(reply.reference),
    )


def _clean_optional(value: str | None) -> str | None:
    return None if value is None else value.translate(UNSTORABLE)


async def _add_whole(
    connection: AsyncConnection, received: Sequence[ReceivedReply], rules: ReplyRules
) -> None:
    if not received:
        return
    values = {
        "gateways": [each.gateway for each in received],
        "ids": [each.reply.id for each in received],
        "phones": [each.reply.phone for each in received],
        "recipients": [each.reply.recipient for each in received],
        "texts": [each.reply.text[:MAX_REPLY_TEXT] for each in received],
        "times": [each.received_at for each in received],
        "candidates": MAX_CANDIDATES,
    }
    rows = await connection.execute(ADD, values)
    await _apply_rules(connection, (AddedReply(*row) for row in rows), rules)


async def _apply_rules(
    connection: AsyncConnection, added: Iterable[AddedReply], rules: ReplyRules
) -> None:
    """Opt phones out and in, mark the replies that did so, and acknowledge the opt-outs."""
    commands = [
        (reply, action) for reply in added if (action := rules.action_of(reply.text)) is not None
    ]
    by_phone: dict[str, list[tuple[AddedReply, ReplyAction]]] = defaultdict(list)
    for reply, action in sorted(commands, key=lambda command: command[0].id):
        by_phone[reply.phone].append((reply, action))
    to_opt_out, others = list[AddedReply](), list[tuple[AddedReply, ReplyAction]]()
    for _, of_phone in sorted(by_phone.items()):
        reply, action = of_phone[0]
        if len(of_phone) == 1 and action == "opted_out" and reply.client_id is not None:
            to_opt_out.append(reply)
        else:
            others += of_phone
    new_opt_outs = list[OptOut]()
    opted_out = await _opt_clients_out(connection, to_opt_out, new_opt_outs)
    opted_in = list[int]()
    for reply, action in others:
        if await _apply(connection, reply, action, new_opt_outs):
            (opted_out if action == "opted_out" else opted_in).append(reply.id)
    await _mark(connection, "opted_out", opted_out)
    await _mark(connection, "opted_in", opted_in)
    if opted_out and rules.opt_out_text is not None:
        await connection.execute(ACKNOWLEDGE, {"text": rules.opt_out_text, "ids": opted_out})
    await stop_messages(connection, new_opt_outs)


async def _opt_clients_out(
    connection: AsyncConnection, replies: Iterable[AddedReply], new_opt_outs: list[OptOut]
) -> list[int]:
    """Opt the clients of replies out, all of a gateway at once; return the replies that did it.

    The opt-outs are added to `new_opt_outs`.
    """
    by_gateway: dict[str, list[AddedReply]] = defaultdict(list)
    for reply in replies:
        by_gateway[reply.gateway].append(reply)
    changed = list[int]()
    for gateway, of_gateway in sorted(by_gateway.items()):
        phones = [reply.phone for reply in of_gateway]
        new = await opt_outs.add(connection, phones, "reply", gateway)
        new_opt_outs += new
        opted_out = {opt_out.phone for opt_out in new}
        changed += (reply.id for reply in of_gateway if reply.phone in opted_out)
    return changed


async def _apply(
    connection: AsyncConnection,
    reply: AddedReply,
    action: ReplyAction,
    new_opt_outs: list[OptOut],
) -> bool:
    """Opt one phone out or in; return whether that has changed anything."""
    if action == "opted_out":
        new = await opt_outs.add(connection, [reply.phone], "reply", reply.gateway)
        new_opt_outs += new
        return bool(new)
    return await opt_in_phone(connection, reply.phone, "reply") is not None


async def _mark(connection: AsyncConnection, action: ReplyAction, ids: Sequence[int]) -> None:
    if ids:
        await connection.execute(MARK, {"action": action, "ids": ids})


# ---- erasing and retention -------------------------------------------------------------------

# A reply of the client, or from the client's phone. `phone` is null if it is not to be searched.
OF_CLIENT = "(client_id = :client_id OR phone = :phone)"
# An answer that waits is not sent. One that is being sent stays: its worker has its text already.
ERASE_ANSWERS = text(f"""
    UPDATE answer SET phone = NULL, text = NULL, updated_at = now(),
        status = CASE WHEN status = 'waiting' THEN 'failed' ELSE status END,
        reason = CASE WHEN status = 'waiting' THEN 'client_deleted' ELSE reason END
    WHERE text IS NOT NULL AND reply_id IN (SELECT id FROM reply WHERE {OF_CLIENT})""")  # noqa: S608  # no user input
ERASE_REPLIES = text(f"""
    UPDATE reply SET phone = NULL, text = NULL, recipient = NULL,
        read_at = coalesce(read_at, now())
    WHERE text IS NOT NULL AND {OF_CLIENT}""")  # noqa: S608  # no user input
LOCK_CLIENT = text("SELECT phone FROM client WHERE id = :client_id FOR UPDATE")


async def erase_of_client(connection: AsyncConnection, client_id: int) -> None:
    """Erase phone and text of a client's replies and of the answers to them.

    Call it before the client itself is erased: replies are also found by the phone. The lock waits
    for a transaction that is storing a reply of this client.
    """
    phone = (await connection.execute(LOCK_CLIENT, {"client_id": client_id})).scalar_one_or_none()
    values: dict[str, Any] = {"client_id": client_id, "phone": phone}
    await connection.execute(ERASE_ANSWERS, values)
    await connection.execute(ERASE_REPLIES, values)
    if phone is not None:
        await parts.delete_of_phone(connection, phone)


# Deletes the answers, too.
DELETE_EXPIRED = text("""
    DELETE FROM reply WHERE id = ANY (ARRAY(
        SELECT id FROM reply WHERE received_at < now() - make_interval(days => :days)
        ORDER BY received_at LIMIT :limit FOR UPDATE SKIP LOCKED))""")


async def delete_expired(connection: AsyncConnection, days: int, limit: int) -> int:
    """Delete replies that came `days` ago or earlier, at most `limit`; return how many."""
    return (await connection.execute(DELETE_EXPIRED, {"days": days, "limit": limit})).rowcount
