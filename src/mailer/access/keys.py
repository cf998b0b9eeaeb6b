"""SQL of the keys that programs come in by. The caller owns the transaction."""

from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta
from sqlalchemy import ColumnElement, func, insert, select, text, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncConnection

from mailer.access import audit
from mailer.access.model import Actor, Name, clean_name
from mailer.access.secret import digest, new_secret
from mailer.db.access import api_key
from mailer.db.engine import violates
from mailer.errors import ConflictError, FieldError, NotFoundError
from mailer.settings import Scope
from mailer.validation import Input

PREFIX = "mailer_"
State = Literal["good", "expired", "revoked"]
REVOKED = 100
"""Keys that are revoked and shown all the same."""


class NewKey(Input, frozen=True, kw_only=True):
    """A key to be made."""

    name: Name
    scope: Annotated[Scope, Meta(extra={"rule": "must be read, write or admin"})]
    expires_at: Annotated[datetime, Meta(tz=True)] | None = None
    """From then on it opens nothing; None: never."""

    @classmethod
    def broken_rules(cls, values: Mapping[str, Any], at: datetime) -> Iterable[FieldError]:
        """Refuse a key that would be good for nothing from the beginning."""
        if (expires_at := values.get("expires_at")) is not None and expires_at <= at:
            yield FieldError("expires_at", "must be in the future")


class Key(msgspec.Struct, frozen=True):
    """A key, but for what it shows."""

    id: int
    name: str
    scope: Scope
    created_at: datetime
    expires_at: datetime | None
    last_used_at: datetime | None
    revoked_at: datetime | None

    def state(self, at: datetime) -> State:
        """Return whether it opens anything at a moment, and why not."""
        if self.revoked_at is not None:
            return "revoked"
        is_over = self.expires_at is not None and self.expires_at <= at
        return "expired" if is_over else "good"


class KeyNotFoundError(NotFoundError):
    """There is no such key, or it is revoked."""


class KeyNameTakenError(ConflictError):
    """Another key that is not revoked has this name."""


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
        if violates(error, "api_key_name_key"):
            raise KeyNameTakenError from error
        raise
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
    was = {"name": key.name, "scope": key.scope}
    await audit.record(connection, by, "key_revoked", audit.Target("key", key_id), before=was)
    return key


async def get(connection: AsyncConnection, key_id: int) -> Key:
    """Return a key that is not revoked; raises `KeyNotFoundError`."""
    return await _living(connection, api_key.c.id == key_id)


async def of_name(connection: AsyncConnection, name: str) -> Key:
    """Return the key of this name that is not revoked; raises `KeyNotFoundError`."""
    try:
        return await _living(connection, api_key.c.name == name)
    except KeyNotFoundError:
        return await _living(connection, api_key.c.name == clean_name(name))


async def _living(connection: AsyncConnection, condition: ColumnElement[bool]) -> Key:
    statement = select(*SHOWN).where(condition, api_key.c.revoked_at.is_(None))
    row = (await connection.execute(statement)).mappings().one_or_none()
    if row is None:
        raise KeyNotFoundError
    return Key(**row)


async def every(connection: AsyncConnection) -> list[Key]:
    """Return all keys, the newest first."""
    found = await connection.execute(select(*SHOWN).order_by(api_key.c.id.desc()))
    return [Key(**row) for row in found.mappings()]


async def recent(connection: AsyncConnection) -> tuple[list[Key], int]:
    """Return the keys that are not revoked and the newest `REVOKED` others, the newest first.

    And how many are left out.
    """
    is_revoked = api_key.c.revoked_at.is_not(None)
    last = select(api_key.c.id).where(is_revoked).order_by(api_key.c.id.desc()).limit(REVOKED)
    statement = select(*SHOWN).where(~is_revoked | api_key.c.id.in_(last))
    found = await connection.execute(statement.order_by(api_key.c.id.desc()))
    count = select(func.count()).select_from(api_key).where(is_revoked)
    revoked = (await connection.execute(count)).scalar_one()
    return [Key(**row) for row in found.mappings()], max(0, revoked - REVOKED)


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


STILL = """
    SELECT scope FROM api_key
    WHERE id = $1 AND revoked_at IS NULL
        AND (expires_at IS NULL OR expires_at > clock_timestamp())"""
"""What a key opens at this moment, whatever it opened when its request began."""


async def use(connection: AsyncConnection, secret: str, address: str | None) -> Actor | None:
    """Return who comes in by a key; None when it opens nothing."""
    row = (await connection.execute(USE, {"digest": digest(secret)})).one_or_none()
    if row is None:
        return None
    return Actor("key", row.name, row.id, row.scope, address)
