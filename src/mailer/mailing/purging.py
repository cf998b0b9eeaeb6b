"""Delete messages in chunks: of deleted mailings, and of mailings past their retention period.

The caller owns the transaction. Several workers may run these statements at the same time: each
skips the rows that another worker has locked.
"""

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from mailer.db.tables.mailing import RETENTION_START
from mailer.message import counters

# ---- deleted mailings -----------------------------------------------------------------------

# A message in flight stays until its result is recorded.
#
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

    When fewer were left, also delete the rows and counters of deleted mailings without messages.
    """
    purged = (await connection.execute(PURGE_MESSAGES, {"chunk": chunk})).rowcount
    if purged < chunk:
        mailing_ids = (await connection.scalars(PURGE_MAILINGS)).all()
        if mailing_ids:
            await counters.delete(connection, list(mailing_ids))
    return purged


# ---- mailings past their retention period ---------------------------------------------------

# Locks and returns the mailing whose retention period ended first, and marks that its messages are
# being deleted.
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
MARK_PURGED = text("UPDATE mailing SET is_purged = true WHERE id = :mailing_id")


async def delete_expired_messages(connection: AsyncConnection, days: int, chunk: int) -> int:
    """Delete up to `chunk` messages of one mailing past its retention period; return how many.

    The period is `days` long. It starts at the mailing's end, or at the last change of its counts
    when that is later; for a cancelled mailing, always at that last change. Counts and statistics
    are kept.
    """
    mailing_id = (await connection.execute(NEXT_TO_EXPIRE, {"days": days})).scalar_one_or_none()
    if mailing_id is None:
        return 0
    deleted = await connection.execute(DELETE_MESSAGES, {"mailing_id": mailing_id, "chunk": chunk})
    if deleted.rowcount < chunk:
        await connection.execute(MARK_PURGED, {"mailing_id": mailing_id})
    return deleted.rowcount
