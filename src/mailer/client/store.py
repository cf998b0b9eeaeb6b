"""SQL for clients. The caller owns the transaction."""

from collections.abc import Mapping, Sequence
from typing import Any

import asyncpg
from sqlalchemy import (
    case,
    func,
    insert,
    not_,
    select,
    text,
    update,
)
from sqlalchemy.exc import DBAPIError, IntegrityError
from sqlalchemy.ext.asyncio import AsyncConnection

from mailer.client import segment_counts
from mailer.client.lists import store as lists
from mailer.client.model import UNKNOWN_ZONE_MESSAGE, Client, ClientChange, NewClient, operator_code
from mailer.client.phone_search import phone_matches
from mailer.db.engine import cause_of, violates
from mailer.db.paging import Cursor, RowPage, fetch_page
from mailer.db.sql import has_id
from mailer.db.tables.client import client, client_list_member
from mailer.errors import ConflictError, FieldError, InvalidError, NotFoundError
from mailer.text import fold_label

COMPUTED_COLUMNS = {"tag": func.coalesce(client.c.tag_written, client.c.tag).label("tag")}
"""The tag as the user wrote it; `tag_written` is null when that is the same as `tag`."""
CLIENT_COLUMNS = [COMPUTED_COLUMNS.get(name, client.c[name]) for name in Client.__struct_fields__]
"""The columns of a `Client`."""
NOT_DELETED = client.c.deleted_at.is_(None)
MAX_FOUND_BY_PHONE = 10_000
"""Clients that a search by last digits finds at most. Four digits are those of one phone in 10,000,
so that only a directory of 100 million clients has more."""


class ClientNotFoundError(NotFoundError):
    """There is no such client."""


class PhoneTakenError(ConflictError):
    """Another client has this phone."""


async def create(connection: AsyncConnection, new: NewClient) -> Client:
    """Create a client; raises `PhoneTakenError`."""
    statement = insert(client).values(new.values()).returning(*CLIENT_COLUMNS)
    return Client(**await _execute_write(connection, statement))


async def change(connection: AsyncConnection, client_id: int, changes: ClientChange) -> None:
    """Change a client; raises `ClientNotFoundError` and `PhoneTakenError`.

    A new phone also sets the operator code to that of the phone, unless `changes` have one.
    """
    values = changes.values()
    if "phone" in values and "operator_code" not in values:
        is_same_phone = client.c.phone == values["phone"]
        code = operator_code(values["phone"])
        values["operator_code"] = case((is_same_phone, client.c.operator_code), else_=code)
    statement = (
        update(client)
        .where(client.c.id == client_id, NOT_DELETED)
        .values(**values, updated_at=func.now())
        .returning(*CLIENT_COLUMNS)
    )
    await _execute_write(connection, statement)


async def _execute_write(connection: AsyncConnection, statement: Any) -> dict[str, Any]:  # noqa: ANN401  # an insert or an update, which have no common type
    """Execute an INSERT or UPDATE of one client and return its row.

    Raises `PhoneTakenError`, `ClientNotFoundError`, and `InvalidError` for a time zone that
    PostgreSQL does not know.
    """
    try:
        row = (await connection.execute(statement)).mappings().one_or_none()
    except IntegrityError as error:
        if violates(error, "client_phone_key"):
            raise PhoneTakenError from error
        raise
    except DBAPIError as error:
        if isinstance(cause_of(error), asyncpg.InvalidParameterValueError):
            raise InvalidError([FieldError("time_zone", UNKNOWN_ZONE_MESSAGE)]) from error
        raise
    if row is None:
        raise ClientNotFoundError
    return dict(row)


async def get(connection: AsyncConnection, client_id: int, *, lock: bool = False) -> Client:
    """Return a client; raises `ClientNotFoundError`.

    `lock` keeps other transactions from changing the client until this one ends.
    """
    statement = select(*CLIENT_COLUMNS).where(client.c.id == client_id, NOT_DELETED)
    if lock:
        statement = statement.with_for_update()
    row = (await connection.execute(statement)).mappings().one_or_none()
    if row is None:
        raise ClientNotFoundError
    return Client(**row)


async def find_ids_by_phone(connection: AsyncConnection, searched: str) -> list[int]:
    """Return the ids of the clients with this phone, or whose phones end with these digits.

    They are at most `MAX_FOUND_BY_PHONE`. Lists filter by these ids: with a condition on the phone
    the planner might read a list in its order until enough phones match.
    """
    statement = select(client.c.id).where(phone_matches(client.c.phone, searched), NOT_DELETED)
    return list((await connection.scalars(statement.limit(MAX_FOUND_BY_PHONE))).all())


async def get_phones(
    connection: AsyncConnection, client_ids: Sequence[int]
) -> dict[int, str | None]:
    """Return the phones of clients by their ids; None for an erased client."""
    phones = select(client.c.id, client.c.phone).where(has_id(client.c.id, client_ids))
    rows = await connection.execute(phones)
    return {row.id: row.phone for row in rows}


def normalize_filter(filters: Mapping[str, str]) -> dict[str, str]:
    """Return the values for which a filter searches: as given, but a tag in its folded form."""
    return {name: fold_label(value) if name == "tag" else value for name, value in filters.items()}


async def page(
    connection: AsyncConnection, cursor: Cursor, *, opted_out: bool | None = None, **filters: str
) -> RowPage:
    """Return a page of the clients whose fields equal `filters`.

    The filter `phone` is a `PhoneSearch`, and `list` the name of a list that the clients are on.
    `opted_out` is whether they have opted out; None for both.

    Raises `InvalidError` when there is no such list.
    """
    filters = normalize_filter(filters)
    searched = filters.pop("phone", None)
    list_name = filters.pop("list", None)
    count = None  # counted by `fetch_page`: a phone is in no segment, and few clients match it
    if searched is None and list_name is None:
        in_segment = (
            segment_counts.ALL_SEGMENT_COUNTS.c[name] == value for name, value in filters.items()
        )
        count = await segment_counts.count(connection, *in_segment, opted_out=opted_out)
    conditions = [client.c[name] == value for name, value in filters.items()]
    if searched is not None:
        conditions.append(has_id(client.c.id, await find_ids_by_phone(connection, searched)))
    if list_name is not None:
        (list_id,) = await lists.find_ids(connection, [list_name], "list")
        if not conditions and opted_out is None:
            count = (await lists.get(connection, list_id)).clients_count
        conditions += [
            client_list_member.c.client_id == client.c.id,
            client_list_member.c.list_id == list_id,
        ]
    if opted_out is not None:
        has_opted_out = client.c.opted_out_at.is_not(None)
        conditions.append(has_opted_out if opted_out else not_(has_opted_out))
    # Each of two filters may match many clients, and both together only a few. So the ids of the
    # page are found in the indexes alone, and the other columns are read for these ids only.
    has_several_filters = len(conditions) > 1
    rows = select(*([client.c.id] if has_several_filters else CLIENT_COLUMNS)).where(
        NOT_DELETED, *conditions
    )
    page_columns = CLIENT_COLUMNS if has_several_filters else ()
    return await fetch_page(
        connection, rows, client.c.id, cursor, count=count, page_columns=page_columns
    )


# The row stays, without personal data, because messages refer to it. A trigger keeps the opt-out of
# the phone, without the client.
ERASE = text("""
    UPDATE client SET phone = NULL, tag = NULL, tag_written = NULL, fields = '{}',
        opted_out_at = NULL, deleted_at = now(), updated_at = now()
    WHERE id = :client_id AND deleted_at IS NULL""")


async def erase(connection: AsyncConnection, client_id: int) -> None:
    """Erase a client's personal data; raises `ClientNotFoundError`."""
    erased = await connection.execute(ERASE, {"client_id": client_id})
    if erased.rowcount == 0:
        raise ClientNotFoundError
