"""Delete the messages of deleted mailings, and of mailings whose retention period has passed.

The caller owns the transaction. Several workers may run these statements at the same time: each
skips the rows that another worker has locked.
"""

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from mailer.db.schema import RETENTION_START
from mailer.message import counters

# `= ANY (ARRAY(...))` instead of `IN`: a query plan may run a subquery of `IN` once per row, and
# then delete more than a chunk.
PURGE_MESSAGES = text("""
    DELETE FROM message WHERE id = ANY (ARRAY(
        SELECT message.id FROM message JOIN mailing ON mailing.id = message.mailing_id
        WHERE mailing.deleted_at IS NOT NULL AND message.status <> 'sending'
        LIMIT :chunk FOR UPDATE OF message SKIP LOCKED))""")
PURGE_MAILINGS = text("""
    DELETE FROM mailing WHERE deleted_at IS NOT NULL
        AND NOT EXISTS (SELECT FROM message WHERE mailing_id = mailing.id)
    RETURNING id""")


async def purge(connection: AsyncConnection, chunk: int) -> int:
    """Delete up to `chunk` messages of deleted mailings; return how many.

    When no more messages are left, delete the mailings too.
    """
    purged = (await connection.execute(PURGE_MESSAGES, {"chunk": chunk})).rowcount
    if purged < chunk:
        mailing_ids = (await connection.scalars(PURGE_MAILINGS)).all()
        if mailing_ids:
            await counters.delete(connection, list(mailing_ids))
    return purged


NEXT_TO_EXPIRE = text(f"""
    UPDATE mailing SET purge_started_at = coalesce(purge_started_at, now()) WHERE id = (
        SELECT id FROM mailing
        WHERE is_settled AND NOT is_purged AND deleted_at IS NULL
            AND {RETENTION_START} < now() - make_interval(days => :days)
        ORDER BY {RETENTION_START} LIMIT 1 FOR UPDATE SKIP LOCKED)
    RETURNING id""")  # noqa: S608  # no user input
DELETE_MESSAGES = text("""
    DELETE FROM message WHERE id = ANY (ARRAY(
        SELECT id FROM message WHERE mailing_id = :mailing_id ORDER BY client_id LIMIT :chunk))""")
MARK_EMPTIED = text("UPDATE mailing SET is_purged = true WHERE id = :mailing_id")


async def delete_expired_messages(connection: AsyncConnection, days: int, chunk: int) -> int:
    """Delete up to `chunk` messages of a mailing past its retention; return how many.

    Retention lasts `days` from the mailing's end, or from the last change of its counts when that
    is later; for a cancelled mailing, always from that last change. Counts and statistics are kept.
    """
    mailing_id = (await connection.execute(NEXT_TO_EXPIRE, {"days": days})).scalar_one_or_none()
    if mailing_id is None:
        return 0
    deleted = await connection.execute(DELETE_MESSAGES, {"mailing_id": mailing_id, "chunk": chunk})
    if deleted.rowcount < chunk:
        await connection.execute(MARK_EMPTIED, {"mailing_id": mailing_id})
    return deleted.rowcount
