"""The names of fields that clients have, with numbers of clients.

They are known without reading the clients: triggers on the clients write each change as a delta,
which the periodic job `merge_counters` merges, as those of `segment_counts`.
"""

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from mailer.db.engine import FIELD_MERGE_LOCK

MAX_KNOWN_NAMES = 90
"""Names that are known at most: the most used ones. A file has a column for each of them."""

# Names of deltas are looked up by the primary key; the others are read from the index in its order.
# So the time does not grow with the number of names.
SELECT_KNOWN_NAMES = text("""
    WITH changed AS (
        SELECT name, sum(clients) AS clients FROM client_field_count_delta GROUP BY name
    ), most_used AS (
        SELECT name FROM client_field_count ORDER BY clients DESC
        LIMIT :limit + (SELECT count(*) FROM changed)
    )
    SELECT name, coalesce(stored.clients, 0) + coalesce(changed.clients, 0) AS clients
    FROM (SELECT name FROM most_used UNION SELECT name FROM changed) AS known
    LEFT JOIN client_field_count AS stored USING (name)
    LEFT JOIN changed USING (name)
    WHERE coalesce(stored.clients, 0) + coalesce(changed.clients, 0) > 0
    ORDER BY clients DESC, name LIMIT :limit""")


async def count_by_field(connection: AsyncConnection) -> dict[str, int]:
    """Return how many clients have each field, by name: the most used one first.

    Deleted clients have no fields. There are at most `MAX_KNOWN_NAMES`.
    """
    counts = await connection.execute(SELECT_KNOWN_NAMES, {"limit": MAX_KNOWN_NAMES})
    return {name: int(clients) for name, clients in counts}


async def known_field_names(connection: AsyncConnection) -> list[str]:
    """Return the names of the fields that clients have, the most used one first."""
    return list(await count_by_field(connection))


FIELD_LOCK = {"lock": FIELD_MERGE_LOCK}
# As the statements of `segment_counts`.
HAS_FIELD_DELTAS_AND_LOCK = text("""
    SELECT EXISTS (SELECT FROM client_field_count_delta) AND pg_try_advisory_xact_lock(:lock)""")
MERGE_FIELD_DELTAS = text("""
    WITH deltas AS (
        DELETE FROM client_field_count_delta
        WHERE ctid = ANY (ARRAY(SELECT ctid FROM client_field_count_delta LIMIT :limit))
        RETURNING *)
    INSERT INTO client_field_count (name, clients)
    SELECT name, sum(clients) FROM deltas GROUP BY name
    ON CONFLICT (name) DO UPDATE SET clients = client_field_count.clients + excluded.clients
    RETURNING clients""")
DELETE_UNUSED_NAMES = text("DELETE FROM client_field_count WHERE clients = 0")


async def merge_deltas(connection: AsyncConnection, limit: int) -> None:
    """Merge up to `limit` deltas into the counts, unless another worker is merging."""
    if not (await connection.execute(HAS_FIELD_DELTAS_AND_LOCK, FIELD_LOCK)).scalar_one():
        return
    new_counts = (await connection.scalars(MERGE_FIELD_DELTAS, {"limit": limit})).all()
    if 0 in new_counts:
        await connection.execute(DELETE_UNUSED_NAMES)
