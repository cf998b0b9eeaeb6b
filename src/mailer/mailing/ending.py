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


# Does not find a message that a worker is claiming at this moment. That worker finds no phone for
# it, and cancels it.
OPEN_OF_CLIENT = """
    client_id = :client_id AND status = 'scheduled'
        AND mailing_id IN (SELECT id FROM mailing WHERE status IN ('running', 'paused'))"""
CANCEL_OF_CLIENT = text(f"""
    UPDATE message SET {end_set_clause("'client_deleted'")}
    WHERE {OPEN_OF_CLIENT}""")  # noqa: S608  # the condition is a constant above
COUNT_OF_CLIENT = text(f"SELECT count(*) FROM message WHERE {OPEN_OF_CLIENT}")  # noqa: S608  # as above


async def cancel_of_client(connection: AsyncConnection, client_id: int) -> None:
    """Cancel the scheduled messages of a client who is being erased."""
    await connection.execute(CANCEL_OF_CLIENT, {"client_id": client_id})


async def count_open_of_client(connection: AsyncConnection, client_id: int) -> int:
    """Return the number of messages that erasing the client would cancel."""
    return int((await connection.execute(COUNT_OF_CLIENT, {"client_id": client_id})).scalar_one())
