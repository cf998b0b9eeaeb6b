"""SQL that cancels messages, for example of a deleted client. The caller owns the transaction."""

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection


def end_columns(reason: str) -> dict[str, str]:
    """Return SQL values, by column of `message`, that an UPDATE sets to cancel a message.

    `reason` is an SQL expression, such as a quoted word. A message may have been delivered by an
    earlier attempt; then its `unknown_reason` is set. Such a message becomes `unknown` instead of
    `cancelled`, with the reason of that attempt. Its `sent_at` is the start of its last attempt, or
    its last change if that start is not stored.
    """
    return {
        "status": "CASE WHEN message.unknown_reason IS NULL THEN 'cancelled' ELSE 'unknown' END",
        "reason": f"coalesce(message.unknown_reason, {reason})",
        "sent_at": "CASE WHEN message.unknown_reason IS NOT NULL"
        " THEN coalesce(message.claimed_at, message.updated_at) END",
        "updated_at": "now()",
    }


def end_set_clause(reason: str) -> str:
    """Return `end_columns` as the SET clause of an UPDATE of `message`."""
    return ", ".join(f"{column} = {value}" for column, value in end_columns(reason).items())


# The messages to cancel when a client is erased. Before its start a mailing has no messages, and
# after its end `finishing` ends them, with the reason of that end. So only running and paused
# mailings matter here.
#
# A message that is being sent stays: its worker has the phone already, and sends it. If it is
# scheduled again afterwards, its next claim finds no phone, and the worker cancels it. The same
# happens to a message that is enqueued while the client is erased.
SCHEDULED_OF_CLIENT = """
    client_id = :client_id AND status = 'scheduled'
        AND mailing_id IN (SELECT id FROM mailing WHERE status IN ('running', 'paused'))"""
# The triggers of `message` change `mailing_counts` in the same transaction.
CANCEL_OF_CLIENT = text(f"""
    UPDATE message SET {end_set_clause("'client_deleted'")}
    WHERE {SCHEDULED_OF_CLIENT}""")  # noqa: S608  # the condition is a constant above
COUNT_OF_CLIENT = text(f"SELECT count(*) FROM message WHERE {SCHEDULED_OF_CLIENT}")  # noqa: S608  # as above


async def cancel_scheduled_of_client(connection: AsyncConnection, client_id: int) -> None:
    """Cancel the scheduled messages of a client who is being erased.

    A message that is being sent stays; see `SCHEDULED_OF_CLIENT`.
    """
    await connection.execute(CANCEL_OF_CLIENT, {"client_id": client_id})


async def count_scheduled_of_client(connection: AsyncConnection, client_id: int) -> int:
    """Return the number of messages that `cancel_scheduled_of_client` would cancel."""
    return int((await connection.execute(COUNT_OF_CLIENT, {"client_id": client_id})).scalar_one())
