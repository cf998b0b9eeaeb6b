"""SQL of lists of clients. The caller owns the transaction."""

from collections.abc import Iterable

from sqlalchemy import ARRAY, String, bindparam, insert, select, text
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncConnection

from mailer.client.lists.model import (
    NO_SUCH_LIST,
    ClientList,
    ListNameTakenError,
    ListNotFoundError,
)
from mailer.db.engine import AnyConnection, fetch_driver_sql, violates
from mailer.db.paging import Cursor, RowPage, fetch_page
from mailer.db.tables.client import client_list
from mailer.errors import FieldError, InvalidError
from mailer.text import fold_label

LIST_COLUMNS = [client_list.c[name] for name in ClientList.__struct_fields__]
NOT_DELETED = client_list.c.deleted_at.is_(None)


async def create(connection: AsyncConnection, name: str) -> ClientList:
    """Create a list; raises `ListNameTakenError`."""
    values = {"name": name, "name_key": fold_label(name)}
    statement = insert(client_list).values(values).returning(*LIST_COLUMNS)
    try:
        row = (await connection.execute(statement)).one()
    except IntegrityError as error:
        if violates(error, "client_list_name_key_key"):
            raise ListNameTakenError from error
        raise
    return ClientList(**row._asdict())


async def get(connection: AsyncConnection, list_id: int) -> ClientList:
    """Return a list; raises `ListNotFoundError`."""
    statement = select(*LIST_COLUMNS).where(client_list.c.id == list_id, NOT_DELETED)
    row = (await connection.execute(statement)).one_or_none()
    if row is None:
        raise ListNotFoundError
    return ClientList(**row._asdict())


async def page(
    connection: AsyncConnection, cursor: Cursor, *, search: str | None = None
) -> RowPage:
    """Return a page of the lists, newest first: all, or those with a text in their name."""
    rows = select(*LIST_COLUMNS).where(NOT_DELETED)
    if search is not None:
        rows = rows.where(client_list.c.name_key.contains(fold_label(search), autoescape=True))
    return await fetch_page(connection, rows, client_list.c.id, cursor)


MAX_SUGGESTED_LISTS = 200
"""Lists whose names a field suggests: the newest."""


async def find_newest_names(connection: AsyncConnection) -> list[str]:
    """Return the names of the newest lists, for a field that suggests them."""
    newest = select(client_list.c.name).where(NOT_DELETED).order_by(client_list.c.id.desc())
    return list((await connection.scalars(newest.limit(MAX_SUGGESTED_LISTS))).all())


# ---- by name --------------------------------------------------------------------------------

SELECT_IDS = "SELECT name_key, id FROM client_list WHERE name_key = ANY (:keys) ORDER BY id"
# With the lock a list cannot be deleted until the transaction ends; its members may change.
IDS_BY_NAME, LOCK_BY_NAME = (
    text(sql).bindparams(bindparam("keys", type_=ARRAY(String)))
    for sql in (SELECT_IDS, f"{SELECT_IDS} FOR KEY SHARE")
)


async def find_ids(
    connection: AsyncConnection, names: Iterable[str], field: str, *, lock: bool = False
) -> list[int]:
    """Return the ids of lists by their names; raises `InvalidError` naming all unknown ones.

    `field` is the field of the input that has the names. With `lock` the lists stay until the
    transaction ends.
    """
    names_by_key = {fold_label(name): name for name in names}
    statement = LOCK_BY_NAME if lock else IDS_BY_NAME
    rows = await connection.execute(statement, {"keys": list(names_by_key)})
    ids = {row.name_key: row.id for row in rows}
    if unknown := [name for key, name in names_by_key.items() if key not in ids]:
        raise InvalidError([FieldError(field, f"{NO_SUCH_LIST}{', '.join(unknown)}")])
    return list(ids.values())


async def find_existing_ids(connection: AsyncConnection, name_keys: Iterable[str]) -> list[int]:
    """Return the ids of those lists that exist, by their folded names."""
    return [row.id for row in await connection.execute(IDS_BY_NAME, {"keys": list(name_keys)})]


CREATE_UNLESS_EXISTS = """
    INSERT INTO client_list (name, name_key) VALUES ($1, $2)
    ON CONFLICT (name_key) DO NOTHING RETURNING id"""
LOCK_ONE_BY_NAME = "SELECT id, name FROM client_list WHERE name_key = $1 FOR KEY SHARE"


async def get_or_create(connection: AnyConnection, name: str) -> tuple[int, str, bool]:
    """Return the id and the name of the list with this name, and whether it was created now.

    It cannot be deleted until the transaction ends. Raises `ListNotFoundError` if it was deleted at
    this moment.
    """
    key = fold_label(name)
    created = await fetch_driver_sql(connection, CREATE_UNLESS_EXISTS, (name, key))
    rows = await fetch_driver_sql(connection, LOCK_ONE_BY_NAME, (key,))
    if not rows:
        raise ListNotFoundError
    list_id, stored_name = rows[0]
    return list_id, stored_name, bool(created)


# ---- deletion -------------------------------------------------------------------------------

# Waits for transactions that keep the list; see `find_ids` and `get_or_create`.
LOCK_FOR_DELETION = text("""
    SELECT id FROM client_list WHERE id = :list_id AND deleted_at IS NULL FOR UPDATE""")
# The names of lists in the filters of mailings that may still evaluate them: those that have not
# ended. A finished mailing can run again before its end.
LISTS_OF_UNENDED_MAILINGS = text("""
    SELECT id, client_filter -> 'lists' AS names FROM mailing
    WHERE deleted_at IS NULL AND jsonb_typeof(client_filter) = 'object' AND client_filter ? 'lists'
        AND status IN ('draft', 'scheduled', 'running', 'paused')
    UNION ALL
    SELECT id, client_filter -> 'lists' FROM mailing
    WHERE deleted_at IS NULL AND jsonb_typeof(client_filter) = 'object' AND client_filter ? 'lists'
        AND status = 'finished' AND datetime_end > clock_timestamp()
    ORDER BY id""")
MARK_DELETED = text("""
    UPDATE client_list SET name_key = NULL, deleted_at = now() WHERE id = :list_id""")


async def lock_for_deletion(connection: AsyncConnection, list_id: int) -> ClientList:
    """Lock and return a list, so that no mailing can refer to it; raises `ListNotFoundError`."""
    await connection.execute(LOCK_FOR_DELETION, {"list_id": list_id})
    return await get(connection, list_id)


async def find_unended_mailings(connection: AsyncConnection, name: str) -> list[int]:
    """Return the ids of the mailings that have not ended and whose filters name a list."""
    key = fold_label(name)
    rows = await connection.execute(LISTS_OF_UNENDED_MAILINGS)
    return [row.id for row in rows if key in map(fold_label, row.names)]


async def mark_deleted(connection: AsyncConnection, list_id: int) -> None:
    """Mark a list as deleted; `purge` deletes its members later."""
    await connection.execute(MARK_DELETED, {"list_id": list_id})


# `= ANY (ARRAY(...))` instead of `IN`: a query plan may run a subquery of `IN` once per row, and
# then delete more than a chunk.
PURGE_MEMBERS = text("""
    DELETE FROM client_list_member WHERE ctid = ANY (ARRAY(
        SELECT member.ctid FROM client_list JOIN client_list_member AS member ON list_id = id
        WHERE deleted_at IS NOT NULL LIMIT :chunk FOR UPDATE OF member SKIP LOCKED))""")
PURGE_LISTS = text("""
    DELETE FROM client_list WHERE deleted_at IS NOT NULL
        AND NOT EXISTS (SELECT FROM client_list_member WHERE list_id = client_list.id)""")


async def purge(connection: AsyncConnection, chunk: int) -> int:
    """Delete up to `chunk` members of deleted lists; return how many.

    When fewer were left, also delete the rows of the deleted lists without members.
    """
    purged = (await connection.execute(PURGE_MEMBERS, {"chunk": chunk})).rowcount
    if purged < chunk:
        await connection.execute(PURGE_LISTS)
    return purged
