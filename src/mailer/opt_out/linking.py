"""Link opt-outs to clients who were created at the same moment.

The transaction that stores an opt-out does not see a client whose transaction has not committed
yet, nor the other way round. So a phone that has opted out without a client is kept in the queue
`opt_out_to_link`, until all transactions that were in progress at that time have ended. Then its
client is looked for again, and the phone is deleted from the queue.
"""

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from mailer.db.engine import fetch_driver_sql
from mailer.opt_out.store import DIGEST, stop_messages

LINK_BATCH = 1_000
"""Phones that one transaction looks for."""

HAS_PHONES = text("SELECT EXISTS (SELECT FROM opt_out_to_link)")
# An id that no transaction of this server has had yet is of the server of a restored dump.
TAKE_PHONES = text("""
    DELETE FROM opt_out_to_link WHERE ctid = ANY (ARRAY(
        SELECT ctid FROM opt_out_to_link
        WHERE created_by < (SELECT pg_snapshot_xmin(pg_current_snapshot())::text::bigint)
            OR created_by >= (SELECT pg_snapshot_xmax(pg_current_snapshot())::text::bigint)
        LIMIT :limit FOR UPDATE SKIP LOCKED))
    RETURNING phone""")
LINK_CLIENTS = f"""
    WITH given AS MATERIALIZED (
        SELECT DISTINCT phone, {DIGEST} AS digest
        FROM unnest($1::text[]) AS phone CROSS JOIN opt_out_key),
    locked AS MATERIALIZED (
        SELECT client.id, digest FROM client JOIN given ON given.phone = client.phone
        ORDER BY client.id FOR NO KEY UPDATE OF client),
    linked AS (
        UPDATE opt_out SET client_id = locked.id FROM locked
        WHERE phone_digest = digest AND client_id IS NULL
        RETURNING opt_out.client_id, opt_out.opted_out_at),
    changed AS (
        UPDATE client SET opted_out_at = linked.opted_out_at, updated_at = now()
        FROM linked WHERE client.id = linked.client_id)
    SELECT client_id FROM linked"""  # noqa: S608  # no user input


async def link(connection: AsyncConnection, limit: int = LINK_BATCH) -> int:
    """Link up to `limit` opt-outs of the queue to their clients; return how many were looked for.

    The clients' marketing messages are cancelled.
    """
    if not (await connection.execute(HAS_PHONES)).scalar_one():
        return 0
    phones = list(await connection.scalars(TAKE_PHONES, {"limit": limit}))
    rows = await fetch_driver_sql(connection, LINK_CLIENTS, (phones,))
    await stop_messages(connection, [client_id for (client_id,) in rows])
    return len(phones)


async def link_all(engine: AsyncEngine) -> None:
    """Link all opt-outs of the queue that can be linked now, in chunks."""
    has_more = True
    while has_more:
        async with engine.begin() as connection:
            has_more = await link(connection) == LINK_BATCH
