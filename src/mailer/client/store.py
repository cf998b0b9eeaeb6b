"""SQL of the directory. The caller owns the transaction."""

from collections.abc import Mapping, Sequence
from typing import Any

import asyncpg
from sqlalchemy import (
    ARRAY,
    BigInteger,
    any_,
    case,
    func,
    insert,
    literal,
    select,
    text,
    update,
)
from sqlalchemy.exc import DBAPIError, IntegrityError
from sqlalchemy.ext.asyncio import AsyncConnection

from mailer.client import directory
from mailer.client.model import UNKNOWN_ZONE, Client, ClientChange, NewClient, operator_code
from mailer.db.ending import set_ended
from mailer.db.engine import cause_of, violates
from mailer.db.paging import Position, Slice, fetch_slice
from mailer.db.schema import client
from mailer.errors import ConflictError, FieldError, InvalidError, NotFoundError
from mailer.text import fold_label

AS_SHOWN = {"tag": func.coalesce(client.c.tag_written, client.c.tag).label("tag")}
SHOWN = [AS_SHOWN.get(name, client.c[name]) for name in Client.__struct_fields__]
ALIVE = client.c.deleted_at.is_(None)


class ClientNotFoundError(NotFoundError):
    """There is no such client."""


class PhoneTakenError(ConflictError):
    """Another client has this phone."""


async def add(connection: AsyncConnection, new: NewClient) -> Client:
    """Add a client; raises `PhoneTakenError`."""
    statement = insert(client).values(new.values()).returning(*SHOWN)
    return Client(**await _written(connection, statement))


async def change(connection: AsyncConnection, client_id: int, changes: ClientChange) -> Client:
    """Change a client; raises `ClientNotFoundError` and `PhoneTakenError`.

    A new phone brings its own operator code, unless one is given with it.
    """
    values = changes.values()
    if "phone" in values and "operator_code" not in values:
        is_same = client.c.phone == values["phone"]
        code = operator_code(values["phone"])
        values["operator_code"] = case((is_same, client.c.operator_code), else_=code)
    statement = (
        update(client)
        .where(client.c.id == client_id, ALIVE)
        .values(**values, updated_at=func.now())
        .returning(*SHOWN)
    )
    return Client(**await _written(connection, statement))


async def _written(connection: AsyncConnection, statement: Any) -> dict[str, Any]:  # noqa: ANN401  # an insert or an update, which share no type
    try:
        row = (await connection.execute(statement)).mappings().one_or_none()
    except IntegrityError as error:
        if violates(error, "client_phone_key"):
            raise PhoneTakenError from error
        raise
    except DBAPIError as error:
        if isinstance(cause_of(error), asyncpg.InvalidParameterValueError):
            raise InvalidError([FieldError("time_zone", UNKNOWN_ZONE)]) from error
        raise
    if row is None:
        raise ClientNotFoundError
    return dict(row)


async def get(connection: AsyncConnection, client_id: int, *, lock: bool = False) -> Client:
    """Return a client; raises `ClientNotFoundError`. `lock` keeps it so until the commit."""
    statement = select(*SHOWN).where(client.c.id == client_id, ALIVE)
    if lock:
        statement = statement.with_for_update()
    row = (await connection.execute(statement)).mappings().one_or_none()
    if row is None:
        raise ClientNotFoundError
    return Client(**row)


async def id_of_phone(connection: AsyncConnection, phone: str) -> int | None:
    """Return the id of the client who has this phone; None when nobody has."""
    statement = select(client.c.id).where(client.c.phone == phone, ALIVE)
    return (await connection.execute(statement)).scalar_one_or_none()


async def phones(connection: AsyncConnection, client_ids: Sequence[int]) -> dict[int, str | None]:
    """Return the phones of clients by their ids; None of a client who is erased."""
    is_asked = client.c.id == any_(literal(list(client_ids), ARRAY(BigInteger)))
    found = await connection.execute(select(client.c.id, client.c.phone).where(is_asked))
    return {row.id: row.phone for row in found}


def as_stored(equal: Mapping[str, str]) -> dict[str, str]:
    """Return what columns hold of the clients whose fields equal what is given."""
    return {name: fold_label(v) if name == "tag" else v for name, v in equal.items()}


async def page(connection: AsyncConnection, position: Position, **equal: str) -> Slice:
    """Return a page of the clients whose fields equal what is given."""
    equal = as_stored(equal)
    count = None
    if "phone" not in equal:
        alike = (directory.CLIENTS.c[name] == value for name, value in equal.items())
        count = await directory.count(connection, *alike)
    # of two things that many have, few may have both: their index alone is gone through for those
    is_narrow = len(equal) > 1
    rows = select(*([client.c.id] if is_narrow else SHOWN)).where(
        ALIVE, *(client.c[name] == value for name, value in equal.items())
    )
    shown = SHOWN if is_narrow else ()
    return await fetch_slice(connection, rows, client.c.id, position, count=count, shown=shown)


# The row stays, without personal data, as what sent messages count for. A message that is being
# claimed at this moment is not seen here: its claim finds no phone, and cancels it then.
ERASE = text("""
    UPDATE client SET phone = NULL, tag = NULL, tag_written = NULL,
        deleted_at = now(), updated_at = now()
    WHERE id = :client_id AND deleted_at IS NULL""")
# The first answer to the request that made the client is kept for who repeats it, and tells all.
# So does the digest of its body, by trying every phone: random bytes take its place.
FORGET = text("""
    UPDATE idempotency SET status = 409, media_type = NULL, body = NULL,
        digest = uuid_send(gen_random_uuid())
    WHERE client_id = :client_id""")
TO_BE_SENT = """
    client_id = :client_id AND status = 'scheduled'
        AND mailing_id IN (SELECT id FROM mailing WHERE status IN ('running', 'paused'))"""
CANCEL = text(f"""
    UPDATE message SET {set_ended("'client_deleted'")}
    WHERE {TO_BE_SENT}""")  # noqa: S608  # our own condition
COUNT_TO_BE_SENT = text(f"SELECT count(*) FROM message WHERE {TO_BE_SENT}")  # noqa: S608  # likewise


async def erase(connection: AsyncConnection, client_id: int) -> None:
    """Erase a client and cancel what was to be sent; raises `ClientNotFoundError`."""
    erased = await connection.execute(ERASE, {"client_id": client_id})
    if erased.rowcount == 0:
        raise ClientNotFoundError
    await connection.execute(FORGET, {"client_id": client_id})
    await connection.execute(CANCEL, {"client_id": client_id})


async def still_to_send(connection: AsyncConnection, client_id: int) -> int:
    """Return how many messages an erasure of the client would cancel."""
    return int((await connection.execute(COUNT_TO_BE_SENT, {"client_id": client_id})).scalar_one())
