"""What of people's ways in, and of answers kept for repeats, has had its day."""

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from mailer.access import sessions, throttle
from mailer.access.idempotency import store as claims

SESSIONS = text("""
    DELETE FROM session WHERE digest IN (
        SELECT digest FROM session
        WHERE seen_at <= now() - CAST(:idle AS interval)
            OR created_at <= now() - CAST(:longest AS interval)
        LIMIT :most FOR UPDATE SKIP LOCKED)""")
# who has not come back from the OpenID provider by now will not
SIGN_INS = text("""
    DELETE FROM sign_in WHERE digest IN (
        SELECT digest FROM sign_in WHERE created_at <= now() - interval '10 minutes'
        LIMIT :most FOR UPDATE SKIP LOCKED)""")
FAILURES = text("""
    DELETE FROM throttle WHERE digest IN (
        SELECT digest FROM throttle WHERE updated_at <= now() - interval '1 day'
        LIMIT :most FOR UPDATE SKIP LOCKED)""")
HOMES = text("""
    DELETE FROM home WHERE digest IN (
        SELECT digest FROM home WHERE seen_at <= now() - CAST(:longest AS interval)
        LIMIT :most FOR UPDATE SKIP LOCKED)""")


async def clear(connection: AsyncConnection, most: int) -> None:
    """Delete sessions that have run out, sign-ins not ended, failures and answers of a day ago.

    And where nobody has signed in for long. Of each at most so many rows.
    """
    given = {"idle": sessions.IDLE, "longest": sessions.LONGEST, "most": most}
    await connection.execute(SESSIONS, given)
    for statement in (SIGN_INS, FAILURES):
        await connection.execute(statement, {"most": most})
    await connection.execute(HOMES, {"longest": throttle.HOME, "most": most})
    await claims.purge(connection, most)
