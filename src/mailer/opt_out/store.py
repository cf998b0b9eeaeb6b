"""SQL of opt-outs. The caller owns the transaction.

Most functions take a connection of SQLAlchemy or of asyncpg. Each of them locks the row of a client
before that of its opt-out, so that two of them do not wait for each other in a circle.
"""

from collections.abc import Collection, Sequence

from msgspec.structs import replace
from sqlalchemy import func, select, text
from sqlalchemy.ext.asyncio import AsyncConnection

from mailer.db.engine import AnyConnection, execute_driver_sql, fetch_driver_sql
from mailer.db.paging import Cursor, RowPage, fetch_page
from mailer.db.tables.client import client
from mailer.db.tables.opt_out import opt_out, opt_out_count, opt_out_key
from mailer.mailing.ending import end_set_clause
from mailer.opt_out.model import OptOut, OptOutNotFoundError, OptOutSource

CLIENTS_OPTED_OUT = "clients_opted_out"
"""Name of the PostgreSQL notification that clients have opted out. The database function
`move_opt_out` sends it too."""

# ---- opt out --------------------------------------------------------------------------------

DIGEST = "hmac_sha256(inner_key, outer_key, phone)"
"""SQL for the keyed hash of `phone`, for a statement that joins the table `opt_out_key`."""
# `given` are distinct phones with their hashes. `added` are the opt-outs that are new, and those
# that have got a client: a client may be created at the same moment as the opt-out of its phone.
# Because of such clients `queued` remembers phones without a client; see `mailer.opt_out.linking`.
ADD_OPT_OUTS = """
    WITH given AS MATERIALIZED (
        SELECT phone, {DIGEST} AS digest, coalesce(since, now()) AS since
        FROM ({phones}) AS given (phone, since) CROSS JOIN opt_out_key),
    locked AS MATERIALIZED (
        SELECT client.id, client.phone FROM client JOIN given ON given.phone = client.phone
        ORDER BY client.id FOR NO KEY UPDATE OF client),
    added AS (
        INSERT INTO opt_out (phone_digest, client_id, opted_out_at, source, gateway)
        SELECT digest, locked.id, since, {source}
        FROM given LEFT JOIN locked ON locked.phone = given.phone
        ON CONFLICT (phone_digest) DO UPDATE SET client_id = excluded.client_id
            WHERE opt_out.client_id IS NULL AND excluded.client_id IS NOT NULL
        RETURNING *),
    changed AS (
        UPDATE client SET opted_out_at = added.opted_out_at, updated_at = now()
        FROM added WHERE client.id = added.client_id),
    queued AS (
        INSERT INTO opt_out_to_link (phone)
        SELECT phone FROM given JOIN added ON phone_digest = digest WHERE client_id IS NULL)
    {returned}"""
# $1 are phones, $2 and $3 the source and the gateway.
OPT_OUT_PHONES = ADD_OPT_OUTS.format(
    DIGEST=DIGEST,
    phones="SELECT DISTINCT phone, NULL::timestamptz FROM unnest($1::text[]) AS phone",
    source="$2::text, $3::text",
    returned="""
        SELECT added.id, client_id, locked.phone, opted_out_at, source, gateway
        FROM added LEFT JOIN locked ON locked.id = client_id""",
)


async def add(
    connection: AnyConnection, phones: Sequence[str], source: OptOutSource, gateway: str | None
) -> list[OptOut]:
    """Store the opt-outs of phones, and return the new ones.

    The caller must then call `stop_messages` for their clients.
    """
    rows = await fetch_driver_sql(connection, OPT_OUT_PHONES, (list(phones), source, gateway))
    return [OptOut(*row) for row in rows]


# The triggers of `message` change `mailing_counts` in the same transaction. The messages are locked
# in the order of their ids, as in other bulk changes, to avoid deadlocks.
CANCEL_MESSAGES = f"""
    WITH waiting AS MATERIALIZED (
        SELECT id FROM message
        WHERE client_id = ANY ($1::bigint[]) AND status = 'scheduled' AND mailing_id IN (
            SELECT id FROM mailing
            WHERE status IN ('running', 'paused') AND purpose = 'marketing')
        ORDER BY id FOR UPDATE)
    UPDATE message SET {end_set_clause("'opted_out'")}
    FROM waiting WHERE message.id = waiting.id AND status = 'scheduled'"""  # noqa: S608  # no user input
NOTIFY_OPT_OUTS = f"SELECT pg_notify('{CLIENTS_OPTED_OUT}', '')"


async def stop_messages(connection: AnyConnection, client_ids: Sequence[int]) -> None:
    """Cancel the scheduled marketing messages of clients who have opted out.

    Workers are notified after the commit: they stop messages that they have claimed and not written
    yet. A message that is enqueued or scheduled at the same moment is cancelled by its claim.

    Call it last in a transaction: it locks the counts of mailings, and a worker that is suspended
    then would keep others from recording results.
    """
    if client_ids:
        await execute_driver_sql(connection, NOTIFY_OPT_OUTS, ())
        await execute_driver_sql(connection, CANCEL_MESSAGES, (list(client_ids),))


FIND_OPTED_OUT = """
    SELECT message.id FROM unnest($1::bigint[]) AS claimed (id)
        JOIN message ON message.id = claimed.id
        JOIN client ON client.id = message.client_id
        JOIN mailing ON mailing.id = message.mailing_id
    WHERE client.opted_out_at IS NOT NULL AND mailing.purpose = 'marketing'"""


async def find_opted_out(connection: AnyConnection, message_ids: Collection[int]) -> frozenset[int]:
    """Return the marketing messages of `message_ids` whose clients have opted out."""
    if not message_ids:
        return frozenset()
    rows = await fetch_driver_sql(connection, FIND_OPTED_OUT, (list(message_ids),))
    return frozenset(message_id for (message_id,) in rows)


# ---- opt in ---------------------------------------------------------------------------------

# `count(*)` makes the DELETE wait until the client is locked.
REMOVE_OPT_OUT = """
    WITH locked AS MATERIALIZED (
        SELECT id FROM client WHERE {client} FOR NO KEY UPDATE)
    DELETE FROM opt_out WHERE {opt_out} AND (SELECT count(*) FROM locked) >= 0
    RETURNING id, client_id, NULL, opted_out_at, source, gateway"""
REMOVE_OF_PHONE = REMOVE_OPT_OUT.format(
    client="phone = $1::text",
    opt_out="phone_digest = (SELECT hmac_sha256(inner_key, outer_key, $1::text) FROM opt_out_key)",
)
REMOVE_BY_ID = REMOVE_OPT_OUT.format(
    client="id = (SELECT client_id FROM opt_out WHERE id = $1::bigint)", opt_out="id = $1::bigint"
)
# A statement of its own: it sees a client who was created while the first one waited for a lock.
OPT_CLIENT_IN = """
    UPDATE client SET opted_out_at = NULL, updated_at = now()
    WHERE id = $1 AND deleted_at IS NULL RETURNING phone"""


async def remove(connection: AnyConnection, phone: str) -> OptOut | None:
    """Delete the opt-out of a phone and return it; None if there is none."""
    rows = await fetch_driver_sql(connection, REMOVE_OF_PHONE, (phone,))
    return await _opt_client_in(connection, OptOut(*rows[0])) if rows else None


async def remove_by_id(connection: AnyConnection, opt_out_id: int) -> OptOut | None:
    """Delete an opt-out and return it; None if there is none."""
    rows = await fetch_driver_sql(connection, REMOVE_BY_ID, (opt_out_id,))
    return await _opt_client_in(connection, OptOut(*rows[0])) if rows else None


async def _opt_client_in(connection: AnyConnection, removed: OptOut) -> OptOut:
    """Opt the client of a deleted opt-out in; return the opt-out with the client's phone."""
    if removed.client_id is None:
        return removed
    rows = await fetch_driver_sql(connection, OPT_CLIENT_IN, (removed.client_id,))
    return replace(removed, phone=rows[0][0]) if rows else removed


# ---- read -----------------------------------------------------------------------------------

SELECT_OPT_OUTS = select(
    opt_out.c.id,
    opt_out.c.client_id,
    client.c.phone,
    opt_out.c.opted_out_at,
    opt_out.c.source,
    opt_out.c.gateway,
).select_from(opt_out.outerjoin(client, client.c.id == opt_out.c.client_id))


async def get(connection: AsyncConnection, opt_out_id: int) -> OptOut:
    """Return an opt-out; raises `OptOutNotFoundError`."""
    rows = await connection.execute(SELECT_OPT_OUTS.where(opt_out.c.id == opt_out_id))
    if (row := rows.one_or_none()) is None:
        raise OptOutNotFoundError
    return OptOut(*row)


async def find(connection: AsyncConnection, phone: str) -> OptOut | None:
    """Return the opt-out of a phone; None if there is none."""
    digest = select(
        func.hmac_sha256(opt_out_key.c.inner_key, opt_out_key.c.outer_key, phone)
    ).scalar_subquery()
    rows = await connection.execute(SELECT_OPT_OUTS.where(opt_out.c.phone_digest == digest))
    return None if (row := rows.one_or_none()) is None else OptOut(*row)


async def page(
    connection: AsyncConnection,
    cursor: Cursor,
    *,
    phone: str | None = None,
    client_id: int | None = None,
) -> RowPage:
    """Return a page of the opt-outs, newest first: all, that of a phone, or that of a client."""
    if phone is not None:
        found = await find(connection, phone)
        rows = SELECT_OPT_OUTS.where(opt_out.c.id == (0 if found is None else found.id))
    else:
        rows = SELECT_OPT_OUTS
    if client_id is not None:
        rows = rows.where(opt_out.c.client_id == client_id)
    total = await count(connection) if phone is None and client_id is None else None
    return await fetch_page(connection, rows, opt_out.c.id, cursor, count=total)


async def count(connection: AsyncConnection) -> int:
    """Return the number of all opt-outs."""
    total = select(func.coalesce(func.sum(opt_out_count.c.opt_outs), 0))
    return int((await connection.execute(total)).scalar_one())


HAS_COUNTS_TO_MERGE = text("""
    SELECT count(*) > 1 FROM (SELECT FROM opt_out_count LIMIT 2) AS counts""")
# Two workers that merge at once delete different rows: the later one skips deleted ones.
MERGE_COUNTS = text("""
    WITH old AS (DELETE FROM opt_out_count RETURNING opt_outs)
    INSERT INTO opt_out_count (opt_outs) SELECT sum(opt_outs) FROM old HAVING count(*) > 0""")


async def merge_counts(connection: AsyncConnection) -> None:
    """Replace the stored changes of the number of opt-outs by their sum."""
    if (await connection.execute(HAS_COUNTS_TO_MERGE)).scalar_one():
        await connection.execute(MERGE_COUNTS)
