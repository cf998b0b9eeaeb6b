"""A large list of clients and mailings for it, added to the data set of `data.py`."""

import asyncpg

from mailer.sample_data import TEXT

LIST_NAME = "large"
MAX_LISTED = 100_000
"""Clients of the list, unless the directory has fewer."""
SCHEDULED_MAILINGS = 20
"""Mailings for clients on the list, with several filters; all start in the next days."""

CREATE_LIST = """
    INSERT INTO client_list (name, name_key) VALUES ($1, $1)
    ON CONFLICT (name_key) DO NOTHING RETURNING id"""
# Parameters: $1 the id of the list, $2 the number of clients. They are spread over the directory,
# as those of an import with many known phones.
CREATE_MEMBERS = """
    INSERT INTO client_list_member (list_id, client_id)
    SELECT $1, id FROM client WHERE deleted_at IS NULL ORDER BY hashint8(id) LIMIT $2"""
COUNT_MEMBERS = """
    UPDATE client_list SET clients_count =
        (SELECT count(*) FROM client_list_member WHERE list_id = $1)
    WHERE id = $1 RETURNING clients_count"""
# Parameters: $1 the name of the list, $2 its clients, $3 the number of mailings, $4 the text.
CREATE_LIST_MAILINGS = """
    WITH created AS (
        INSERT INTO mailing (datetime_start, datetime_end, text, client_filter, status,
            clients_count, created_at, updated_at)
        SELECT now() + interval '1 day' + interval '1 hour' * n, now() + interval '4 days', $4,
            jsonb_build_object('lists', jsonb_build_array($1::text)) || CASE n % 3
                WHEN 0 THEN '{}'::jsonb WHEN 1 THEN '{"tags": ["tag-00", "tag-01"]}'
                ELSE '{"operator_codes": ["900", "901", "902"]}' END,
            'scheduled', $2, now(), now()
        FROM generate_series(1, $3::int) AS n
        RETURNING id)
    INSERT INTO mailing_counts (mailing_id) SELECT id FROM created"""


SELECT_LIST = "SELECT id FROM client_list WHERE name_key = $1"


async def add_list(url: str) -> None:
    """Add the list and its mailings to a database, unless it has them."""
    database = await asyncpg.connect(url)
    try:
        list_id = await database.fetchval(CREATE_LIST, LIST_NAME)
        if list_id is None:
            return
        await database.execute(CREATE_MEMBERS, list_id, MAX_LISTED)
        clients = await database.fetchval(COUNT_MEMBERS, list_id)
        await database.execute(CREATE_LIST_MAILINGS, LIST_NAME, clients, SCHEDULED_MAILINGS, TEXT)
        await database.execute("VACUUM ANALYZE client_list_member")
    finally:
        await database.close()


async def read_values(database: asyncpg.Connection) -> dict[str, int]:
    """Read the values that replace the names in paths: the id of the `list`."""
    return {"list": await database.fetchval(SELECT_LIST, LIST_NAME)}
