"""SQL that puts clients on lists and takes them off. The caller owns the transaction.

Each function locks first the list against deletion, then clients in the order of their ids, then
members, and changes the count of the list last. So two transactions do not wait for each other in a
circle, and the count is locked only for a moment. Erasing a client waits for the lock of the
client, and takes it off all lists then.
"""

from collections.abc import Sequence

import asyncpg
from sqlalchemy import ARRAY, BigInteger, String, bindparam, select, text
from sqlalchemy.ext.asyncio import AsyncConnection

from mailer.client.lists import store
from mailer.client.lists.model import (
    ClientList,
    ImportedList,
    ListMembers,
    ListNotFoundError,
)
from mailer.db.engine import AnyConnection, affected_rows, execute_driver_sql, fetch_driver_sql
from mailer.db.tables.client import client_list, client_list_member
from mailer.errors import FieldError, InvalidError

UNKNOWN_PHONE = "is the phone of no client"
UNKNOWN_ID = "is the id of no client"

ADD_TO_COUNT = "UPDATE client_list SET clients_count = clients_count + $2 WHERE id = $1"
LOCK_LIST = "SELECT id FROM client_list WHERE id = $1 AND deleted_at IS NULL FOR KEY SHARE"


async def _lock_list(connection: AnyConnection, list_id: int) -> None:
    """Keep a list from being deleted until the transaction ends; raises `ListNotFoundError`."""
    if not await fetch_driver_sql(connection, LOCK_LIST, (list_id,)):
        raise ListNotFoundError


# ---- some clients ---------------------------------------------------------------------------

# `position` is that of the phone or the id in the input.
FIND_CLIENTS = text("""
    SELECT 'phones' AS field, position, client.id
    FROM unnest(:phones) WITH ORDINALITY AS given (phone, position)
        LEFT JOIN client ON client.phone = given.phone
    UNION ALL
    SELECT 'ids', position, client.id
    FROM unnest(:ids) WITH ORDINALITY AS given (id, position)
        LEFT JOIN client ON client.id = given.id AND client.deleted_at IS NULL
    ORDER BY field DESC, position""").bindparams(
    bindparam("phones", type_=ARRAY(String)), bindparam("ids", type_=ARRAY(BigInteger))
)
# A client who is being erased is left out.
ADD_CLIENTS = """
    INSERT INTO client_list_member (list_id, client_id)
    SELECT $1, id FROM client WHERE id = ANY ($2::bigint[]) AND deleted_at IS NULL
    ORDER BY id FOR KEY SHARE
    ON CONFLICT DO NOTHING"""
REMOVE_CLIENTS = """
    DELETE FROM client_list_member USING (
        SELECT list_id, client_id FROM client_list_member
        WHERE list_id = $1 AND client_id = ANY ($2::bigint[]) ORDER BY client_id FOR UPDATE
    ) AS locked
    WHERE client_list_member.list_id = locked.list_id
        AND client_list_member.client_id = locked.client_id"""


async def find_clients(connection: AsyncConnection, members: ListMembers) -> list[int]:
    """Return the ids of clients, each once; raises `InvalidError` naming each unknown one.

    The errors name the position in the input, such as `phones[3]`, and no phone.
    """
    values = {"phones": members.phones or [], "ids": members.ids or []}
    rows = (await connection.execute(FIND_CLIENTS, values)).all()
    messages = {"phones": UNKNOWN_PHONE, "ids": UNKNOWN_ID}
    errors = [
        FieldError(f"{row.field}[{row.position - 1}]", messages[row.field])
        for row in rows
        if row.id is None
    ]
    if errors:
        raise InvalidError(errors)
    return sorted({row.id for row in rows})


async def add(connection: AsyncConnection, list_id: int, client_ids: Sequence[int]) -> int:
    """Put clients on a list; return how many were not on it. Raises `ListNotFoundError`."""
    await _lock_list(connection, list_id)
    added = await execute_driver_sql(connection, ADD_CLIENTS, (list_id, list(client_ids)))
    await execute_driver_sql(connection, ADD_TO_COUNT, (list_id, added))
    return added


async def remove(connection: AsyncConnection, list_id: int, client_ids: Sequence[int]) -> int:
    """Take clients off a list; return how many were on it. Raises `ListNotFoundError`."""
    await _lock_list(connection, list_id)
    removed = await execute_driver_sql(connection, REMOVE_CLIENTS, (list_id, list(client_ids)))
    await execute_driver_sql(connection, ADD_TO_COUNT, (list_id, -removed))
    return removed


# ---- the clients of an import ---------------------------------------------------------------

# The staging table has the valid lines, each phone once, and all of them are stored.
ADD_IMPORTED = """
    INSERT INTO client_list_member (list_id, client_id)
    SELECT $1, client.id FROM client_import JOIN client ON client.phone = client_import.phone
    ORDER BY client.id FOR KEY SHARE OF client
    ON CONFLICT DO NOTHING"""


async def add_imported(database: asyncpg.Connection, name: str, time_limit: float) -> ImportedList:
    """Put the clients of all staged lines on a list, which is created if it does not exist.

    `time_limit` is that of a statement over all lines, in seconds.
    """
    list_id, stored_name, is_new = await store.get_or_create(database, name)
    status = await database.execute(ADD_IMPORTED, list_id, timeout=time_limit)
    added = affected_rows(status)
    await execute_driver_sql(database, ADD_TO_COUNT, (list_id, added))
    return ImportedList(id=list_id, name=stored_name, is_new=is_new, added=added)


# ---- one client -----------------------------------------------------------------------------

REMOVE_CLIENT = text("""
    DELETE FROM client_list_member WHERE client_id = :client_id RETURNING list_id""")
# Locks the lists in the order of their ids: two clients may be on the same lists.
SUBTRACT_ONE = text("""
    WITH locked AS MATERIALIZED (
        SELECT id FROM client_list WHERE id = ANY (:ids) ORDER BY id FOR NO KEY UPDATE)
    UPDATE client_list SET clients_count = clients_count - 1
    FROM locked WHERE client_list.id = locked.id""").bindparams(
    bindparam("ids", type_=ARRAY(BigInteger))
)


async def remove_from_all(connection: AsyncConnection, client_id: int) -> None:
    """Take a client off all lists, after the row of the client was changed."""
    list_ids = (await connection.scalars(REMOVE_CLIENT, {"client_id": client_id})).all()
    if list_ids:
        await connection.execute(SUBTRACT_ONE, {"ids": list(list_ids)})


async def lists_of(connection: AsyncConnection, client_id: int) -> list[ClientList]:
    """Return the lists that a client is on, newest first."""
    rows = await connection.execute(
        select(*store.LIST_COLUMNS)
        .join(client_list_member, client_list_member.c.list_id == client_list.c.id)
        .where(client_list_member.c.client_id == client_id, store.NOT_DELETED)
        .order_by(client_list.c.id.desc())
    )
    return [ClientList(**row._asdict()) for row in rows]
