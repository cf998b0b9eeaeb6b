"""SQL of the keys that programs come in by. The caller owns the transaction."""

from datetime import datetime
from typing import Annotated

import msgspec
from msgspec import Meta
from sqlalchemy import func, insert, select, text, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncConnection

from mailer.access import audit
from mailer.access.model import Actor, Scope
from mailer.access.secret import digest, new_secret
from mailer.db.access import api_key
from mailer.errors import ConflictError, NotFoundError
from mailer.validation import STORABLE, Input

PREFIX = "mailer_"


class NewKey(Input, frozen=True, kw_only=True):
    """A key to be made."""

    name: Annotated[
        str,
        Meta(
            min_length=1,
            max_length=64,
            pattern=STORABLE,
            extra={"rule": "must be 1 to 64 characters without NUL"},
        ),
    ]
    scope: Scope
    expires_at: datetime | None = None


class Key(msgspec.Struct, frozen=True):
    """A key, but for what it shows."""

    id: int
    name: str
    scope: Scope
    created_at: datetime
    expires_at: datetime | None
    last_used_at: datetime | None
    revoked_at: datetime | None


class KeyNotFoundError(NotFoundError):
    """There is no such key, or it is revoked."""


class KeyNameTakenError(ConflictError):
    """Another key has this name."""


SHOWN = [api_key.c[name] for name in Key.__struct_fields__]


async def add(connection: AsyncConnection, new: NewKey, by: Actor) -> tuple[Key, str]:
    """Make a key; return it, and what it shows, which nobody can be told again.

    Raises `KeyNameTakenError`.
    """
    secret = new_secret(PREFIX)
    values = msgspec.structs.asdict(new)
    statement = insert(api_key).values(**values, digest=digest(secret)).returning(*SHOWN)
    try:
        key = Key(**(await connection.execute(statement)).mappings().one())
    except IntegrityError as error:
        raise KeyNameTakenError from error
    await audit.record(connection, by, "key_made", audit.Target("key", key.id), after=values)
    return key, secret


async def revoke(connection: AsyncConnection, key_id: int, by: Actor) -> Key:
    """End a key at once and for good; raises `KeyNotFoundError`."""
    statement = (
        update(api_key)
        .where(api_key.c.id == key_id, api_key.c.revoked_at.is_(None))
        .values(revoked_at=func.now())
        .returning(*SHOWN)
    )
    row = (await connection.execute(statement)).mappings().one_or_none()
    if row is None:
        raise KeyNotFoundError
    key = Key(**row)
    target = audit.Target("key", key_id)
    await audit.record(connection, by, "key_revoked", target, before={"name": key.name})
    return key


async def every(connection: AsyncConnection) -> list[Key]:
    """Return all keys, the newest first."""
    found = await connection.execute(select(*SHOWN).order_by(api_key.c.id.desc()))
    return [Key(**row) for row in found.mappings()]


# When it was last used is written once a minute: a key may be used a thousand times a second.
USE = text("""
    WITH found AS (
        SELECT id, name, scope, last_used_at FROM api_key
        WHERE digest = :digest AND revoked_at IS NULL
            AND (expires_at IS NULL OR expires_at > now())
    ), used AS (
        UPDATE api_key SET last_used_at = now() FROM found
        WHERE api_key.id = found.id
            AND (found.last_used_at IS NULL OR found.last_used_at < now() - interval '1 minute')
    )
    SELECT id, name, scope FROM found""")


async def use(connection: AsyncConnection, secret: str, address: str | None) -> Actor | None:
    """Return who comes in by a key; None when it opens nothing."""
    row = (await connection.execute(USE, {"digest": digest(secret)})).one_or_none()
    if row is None:
        return None
    return Actor("key", row.name, row.id, row.scope, address)
