"""SQL that applies receipts to messages, many in one transaction.

The caller owns the transaction. Receipts name a message by mailer's id, or by the gateway's.
"""

from collections.abc import Iterable, Sequence
from datetime import datetime, timedelta
from typing import Any, NamedTuple

import msgspec
from sqlalchemy import Interval, bindparam, text
from sqlalchemy.ext.asyncio import AsyncConnection

from mailer.db.engine import AnyConnection, execute_driver_sql, fetch_driver_sql
from mailer.gateway.callback import Receipt
from mailer.message.model import StoredReceipt
from mailer.receipt.decision import (
    NO_RECEIPT,
    MessageState,
    apply_receipt,
    must_wait,
    note_waiting,
)

EARLY_RECEIPT_AGE = timedelta(minutes=10)
"""How long a receipt without a message is kept: much longer than a gateway's answer takes."""
EARLY_BATCH = 500
"""Early receipts that one transaction tries again."""


class ReceivedReceipt(NamedTuple):
    """A receipt with the gateway that has sent it, and the time at which it was received."""

    gateway: str
    receipt: Receipt
    at: datetime


class AppliedReceipts(msgspec.Struct):
    """Numbers of receipts that were applied, kept for later, and ignored."""

    applied: int = 0
    early: int = 0
    ignored: int = 0
    """Of messages that do not exist: their mailing is deleted, or their retention is over."""


_decode = msgspec.json.Decoder(tuple[StoredReceipt, ...]).decode

FIND_BY_GATEWAY_ID = """
    SELECT asked.gateway, asked.gateway_message_id, message.id
    FROM unnest($1::text[], $2::text[]) AS asked (gateway, gateway_message_id)
        JOIN message ON message.gateway_message_id = asked.gateway_message_id
            AND message.uses_gateway_id AND message.gateway = asked.gateway"""
# Messages are locked in the order of their ids, as other bulk changes do, to avoid deadlocks.
LOCK_MESSAGES = """
    SELECT message.id, mailing_id, message.status, reason, unknown_reason, message.gateway,
        gateway_message_id, parts, receipt_status, receipt_reason, receipts::text
    FROM message JOIN mailing ON mailing.id = mailing_id
    WHERE message.id = ANY ($1::bigint[]) AND mailing.deleted_at IS NULL
        AND mailing.purge_started_at IS NULL
    ORDER BY message.id FOR UPDATE OF message"""
# The counts of settled mailings are in `settled_totals`. So a mailing whose final messages change
# is no longer settled. The lock comes first, in a statement of its own: it waits for a transaction
# that is settling the mailing, and keeps others from doing so before the change is committed.
LOCK_MAILINGS = """
    SELECT id FROM mailing WHERE id = ANY ($1::bigint[]) ORDER BY id FOR NO KEY UPDATE"""
UNSETTLE = """
    UPDATE mailing SET is_settled = false, updated_at = now()
    WHERE id = ANY ($1::bigint[]) AND is_settled"""
# `updated_at` of a message that is being sent is the time of its claim, so it must not change.
# A message that a receipt shows to be accepted was sent at its last attempt.
UPDATE_MESSAGES = """
    UPDATE message SET status = changed.status, reason = changed.reason,
        receipts = changed.receipts::jsonb, receipt_status = changed.receipt_status,
        receipt_reason = changed.receipt_reason,
        unknown_reason = CASE WHEN NOT has_new_status THEN unknown_reason END,
        retry_at = CASE WHEN NOT has_new_status THEN retry_at END,
        sent_at = CASE WHEN has_new_status THEN coalesce(sent_at, claimed_at, now())
                       ELSE sent_at END,
        updated_at = CASE WHEN has_new_status THEN now() ELSE updated_at END
    FROM unnest($1::bigint[], $2::text[], $3::text[], $4::text[], $5::text[], $6::text[],
            $7::boolean[])
        AS changed (id, status, reason, receipts, receipt_status, receipt_reason, has_new_status)
    WHERE message.id = changed.id"""
ADD_EARLY = """
    INSERT INTO early_receipt (gateway, gateway_message_id, message_id, receipt, received_at)
    SELECT gateway, gateway_message_id, message_id, receipt::jsonb, received_at
    FROM unnest($1::text[], $2::text[], $3::bigint[], $4::text[], $5::timestamptz[])
        AS early (gateway, gateway_message_id, message_id, receipt, received_at)"""


async def apply_receipts(
    connection: AnyConnection, received: Sequence[ReceivedReceipt]
) -> AppliedReceipts:
    """Apply receipts to their messages, in order; keep those that come too early."""
    ids = await _find_message_ids(connection, received)
    states = await _lock_messages(connection, {id_ for id_ in ids if id_ is not None})
    changed = dict(states)
    result = AppliedReceipts()
    early: list[ReceivedReceipt] = []
    for each, message_id in zip(received, ids, strict=True):
        state = None if message_id is None else changed.get(message_id)
        if message_id is None:
            early.append(each)
        elif state is not None and must_wait(state, each.receipt):
            early.append(each)
            changed[message_id] = note_waiting(state, each.receipt)
        elif state is None:
            result.ignored += 1
        else:
            changed[message_id] = apply_receipt(state, each.receipt, each.gateway, each.at)
            result.applied += 1
    await _write(connection, [(states[id_], changed[id_]) for id_ in states])
    if early:
        await _add_early(connection, early)
        result.early = len(early)
    return result


async def _find_message_ids(
    connection: AnyConnection, received: Sequence[ReceivedReceipt]
) -> list[int | None]:
    """Return mailer's id of the message of each receipt; None if it is not known yet."""
    wanted = {
        (each.gateway, each.receipt.gateway_message_id)
        for each in received
        if each.receipt.message_id is None
    }
    found: dict[tuple[str, str | None], int] = {}
    if wanted:
        values = ([name for name, _ in wanted], [id_ for _, id_ in wanted])
        rows = await fetch_driver_sql(connection, FIND_BY_GATEWAY_ID, values)
        found = {(gateway, gateway_id): id_ for gateway, gateway_id, id_ in rows}
    return [
        each.receipt.message_id or found.get((each.gateway, each.receipt.gateway_message_id))
        for each in received
    ]


async def _lock_messages(connection: AnyConnection, ids: Iterable[int]) -> dict[int, MessageState]:
    rows = await fetch_driver_sql(connection, LOCK_MESSAGES, (sorted(ids),))
    return {row[0]: _to_state(row) for row in rows}


def _to_state(row: tuple[Any, ...]) -> MessageState:
    fields = [*row[:-1], _decode(row[-1] or b"[]")]
    return MessageState(*fields)


async def _write(
    connection: AnyConnection, messages: Iterable[tuple[MessageState, MessageState]]
) -> None:
    """Write messages, each given as its state before and after, if they have changed."""
    changed = [(old, new) for old, new in messages if new != old]
    if not changed:
        return
    with_new_status = [old for old, new in changed if new.status != old.status]
    if may_be_settled := sorted({old.mailing_id for old in with_new_status if old.is_final}):
        await execute_driver_sql(connection, LOCK_MAILINGS, (may_be_settled,))
    # also of messages that are not final: a receipt may have come just before the mailing settled
    if changed_mailings := sorted({old.mailing_id for old in with_new_status}):
        await execute_driver_sql(connection, UNSETTLE, (changed_mailings,))
    values = (
        [new.id for _, new in changed],
        [new.status for _, new in changed],
        [new.reason for _, new in changed],
        [msgspec.json.encode(new.receipts).decode() for _, new in changed],
        [new.receipt_status for _, new in changed],
        [new.receipt_reason for _, new in changed],
        [new.status != old.status for old, new in changed],
    )
    await execute_driver_sql(connection, UPDATE_MESSAGES, values)


async def _add_early(connection: AnyConnection, received: Sequence[ReceivedReceipt]) -> None:
    values = (
        [each.gateway for each in received],
        [each.receipt.gateway_message_id for each in received],
        [each.receipt.message_id for each in received],
        [msgspec.json.encode(each.receipt).decode() for each in received],
        [each.at for each in received],
    )
    await execute_driver_sql(connection, ADD_EARLY, values)


# ---- receipts that came too early ------------------------------------------------------------

# Receipts for which nothing has changed stay where they are, so that trying again costs little.
# Those that have waited for half a minute are tried once in thirty runs.
TAKE_EARLY = text("""
    DELETE FROM early_receipt WHERE id = ANY (ARRAY(
        SELECT early_receipt.id FROM early_receipt
            LEFT JOIN message ON message.id = early_receipt.message_id
                OR (message.gateway_message_id = early_receipt.gateway_message_id
                    AND message.uses_gateway_id AND message.gateway = early_receipt.gateway)
        WHERE (received_at > now() - interval '30 seconds' OR early_receipt.id % 30 = :rest)
            AND (message.status <> 'sending' OR received_at < now() - :max_age)
        ORDER BY early_receipt.id LIMIT :batch FOR UPDATE OF early_receipt SKIP LOCKED))
    RETURNING id, gateway, receipt, received_at, received_at < now() - :max_age AS is_old
    """).bindparams(bindparam("max_age", type_=Interval))


async def apply_early_receipts(connection: AsyncConnection, run: int) -> AppliedReceipts:
    """Apply the receipts whose messages have a result now; delete those that are too old.

    `run` is the number of the call, which goes up by one each time.
    """
    values = {"batch": EARLY_BATCH, "max_age": EARLY_RECEIPT_AGE, "rest": run % 30}
    rows = sorted(await connection.execute(TAKE_EARLY, values))
    received = [
        ReceivedReceipt(row.gateway, msgspec.convert(row.receipt, Receipt), row.received_at)
        for row in rows
        if not row.is_old
    ]
    result = await apply_receipts(connection, received) if received else AppliedReceipts()
    result.ignored += len(rows) - len(received)
    return result


# ---- receipts that never come ----------------------------------------------------------------

# Mailings with such messages are not settled. The counts find them without reading messages.
GIVE_UP_WAITING = text(f"""
    UPDATE message SET reason = '{NO_RECEIPT}', updated_at = now() WHERE id = ANY (ARRAY(
        SELECT overdue.id
        FROM mailing JOIN mailing_counts ON mailing_counts.mailing_id = mailing.id
            CROSS JOIN LATERAL (
                SELECT id FROM message
                WHERE message.mailing_id = mailing.id AND status = 'sent' AND reason IS NULL
                    AND sent_at < now() - :wait
                ORDER BY sent_at LIMIT :chunk FOR UPDATE SKIP LOCKED
            ) AS overdue
        WHERE NOT mailing.is_settled AND mailing.deleted_at IS NULL AND mailing_counts.sent > 0
            AND mailing_counts.first_sent_at < now() - :wait
        LIMIT :chunk))""").bindparams(bindparam("wait", type_=Interval))  # noqa: S608  # a constant


async def give_up_waiting(connection: AsyncConnection, wait: timedelta, chunk: int) -> int:
    """Mark up to `chunk` messages whose receipt is not awaited any more; return how many.

    `wait` is how long after the sending a receipt is awaited.
    """
    return (await connection.execute(GIVE_UP_WAITING, {"wait": wait, "chunk": chunk})).rowcount
