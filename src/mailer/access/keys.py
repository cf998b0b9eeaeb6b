"""SQL of API keys. The caller owns the transaction."""

from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta
from sqlalchemy import ColumnElement, func, insert, select, text, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncConnection

from mailer.access import audit
from mailer.access.credentials import digest, new_secret
from mailer.access.model import Actor, Name, clean_name
from mailer.db.engine import violates
from mailer.db.tables.access import api_key
from mailer.errors import ConflictError, FieldError, NotFoundError
from mailer.roles import Scope
from mailer.validation import Input

KEY_PREFIX = "mailer_"
"""The start of the secret of every API key."""
KeyState = Literal["active", "expired", "revoked"]
MAX_LISTED_REVOKED = 100
"""Revoked keys that `list_recent` returns at most; those that are not revoked are all returned."""


class NewKey(Input, frozen=True, kw_only=True):
    """An API key to create."""

    name: Name
    scope: Annotated[Scope, Meta(extra={"rule": "must be read, write or admin"})]
    expires_at: Annotated[datetime, Meta(tz=True)] | None = None
    """None: never."""

    @classmethod
    def broken_rules(cls, values: Mapping[str, Any], at: datetime) -> Iterable[FieldError]:
        """Reject a key that would expire at once."""
        if (expires_at := values.get("expires_at")) is not None and expires_at <= at:
            yield FieldError("expires_at", "must be in the future")


class Key(msgspec.Struct, frozen=True):
    """An API key, without its secret."""

    id: int
    name: str
    scope: Scope
    created_at: datetime
    expires_at: datetime | None
    last_used_at: datetime | None
    revoked_at: datetime | None

    def state(self, at: datetime) -> KeyState:
        """Return whether the key can be used at a moment, or why not."""
        if self.revoked_at is not None:
            return "revoked"
        is_expired = self.expires_at is not None and self.expires_at <= at
        return "expired" if is_expired else "active"


class KeyNotFoundError(NotFoundError):
    """There is no such key, or it is revoked."""


class KeyNameTakenError(ConflictError):
    """Another key that is not revoked has this name."""


KEY_COLUMNS = [api_key.c[name] for name in Key.__struct_fields__]


async def create(connection: AsyncConnection, new: NewKey, by: Actor) -> tuple[Key, str]:
    """Create a key; return it and its secret.

    The secret cannot be shown again, because only its digest is stored.

    Raises `KeyNameTakenError`.
    """
    secret = new_secret(KEY_PREFIX)
    values = msgspec.structs.asdict(new)
    statement = insert(api_key).values(**values, digest=digest(secret)).returning(*KEY_COLUMNS)
    try:
        key = Key(**(await connection.execute(statement)).mappings().one())
    except IntegrityError as error:
        if violates(error, "api_key_name_key"):
            raise KeyNameTakenError from error
        raise
    await audit.record(connection, by, "key_created", audit.Target("key", key.id), after=values)
    return key, secret


async def revoke(connection: AsyncConnection, key_id: int, by: Actor) -> Key:
    """Revoke a key, at once and permanently; raises `KeyNotFoundError`."""
    statement = (
        update(api_key)
        .where(api_key.c.id == key_id, api_key.c.revoked_at.is_(None))
        .values(revoked_at=func.now())
        .returning(*KEY_COLUMNS)
    )
    row = (await connection.execute(statement)).mappings().one_or_none()
    if row is None:
        raise KeyNotFoundError
    key = Key(**row)
    before = {"name": key.name, "scope": key.scope}
    await audit.record(connection, by, "key_revoked", audit.Target("key", key_id), before=before)
    return key


async def get(connection: AsyncConnection, key_id: int) -> Key:
    """Return a key that is not revoked; raises `KeyNotFoundError`."""
    return await _get_unrevoked(connection, api_key.c.id == key_id)


async def find_by_name(connection: AsyncConnection, name: str) -> Key:
    """Return the key with exactly this name, or else the one with its normalized form.

    Raises `KeyNotFoundError` if there is neither; revoked keys do not count.
    """
    try:
        return await _get_unrevoked(connection, api_key.c.name == name)
    except KeyNotFoundError:
        return await _get_unrevoked(connection, api_key.c.name == clean_name(name))


async def _get_unrevoked(connection: AsyncConnection, condition: ColumnElement[bool]) -> Key:
    statement = select(*KEY_COLUMNS).where(condition, api_key.c.revoked_at.is_(None))
    row = (await connection.execute(statement)).mappings().one_or_none()
    if row is None:
        raise KeyNotFoundError
    return Key(**row)


async def list_all(connection: AsyncConnection) -> list[Key]:
    """Return all keys, newest first."""
    rows = await connection.execute(select(*KEY_COLUMNS).order_by(api_key.c.id.desc()))
    return [Key(**row) for row in rows.mappings()]


async def list_recent(connection: AsyncConnection) -> tuple[list[Key], int]:
    """Return the keys to show, newest first, and the number of revoked keys that are left out.

    Shown are all keys that are not revoked, and the newest `MAX_LISTED_REVOKED` revoked ones.
    """
    is_revoked = api_key.c.revoked_at.is_not(None)
    newest_revoked_ids = (
        select(api_key.c.id)
        .where(is_revoked)
        .order_by(api_key.c.id.desc())
        .limit(MAX_LISTED_REVOKED)
    )
    statement = select(*KEY_COLUMNS).where(~is_revoked | api_key.c.id.in_(newest_revoked_ids))
    rows = await connection.execute(statement.order_by(api_key.c.id.desc()))
    count_revoked = select(func.count()).select_from(api_key).where(is_revoked)
    revoked_count = (await connection.execute(count_revoked)).scalar_one()
    return [Key(**row) for row in rows.mappings()], max(0, revoked_count - MAX_LISTED_REVOKED)


AUTHENTICATE_KEY = text("""
    WITH valid_key AS (
        SELECT id, name, scope, last_used_at FROM api_key
        WHERE digest = :digest AND revoked_at IS NULL
            AND (expires_at IS NULL OR expires_at > now())
    ), record_use AS (
        UPDATE api_key SET last_used_at = now() FROM valid_key
        WHERE api_key.id = valid_key.id
            AND (valid_key.last_used_at IS NULL
                OR valid_key.last_used_at < now() - interval '1 minute')
    )
    SELECT id, name, scope FROM valid_key""")
"""Returns the key with a digest, if it is neither revoked nor expired, and records its use.

`last_used_at` is written at most once a minute, since a key may be used a thousand times a second.
"""

CURRENT_SCOPE_SQL = """
    SELECT scope FROM api_key
    WHERE id = $1 AND revoked_at IS NULL
        AND (expires_at IS NULL OR expires_at > clock_timestamp())"""
"""Returns the scope that a key has at this moment, or no row if it can no longer be used.

`clock_timestamp()`, since `now()` is the start of the transaction, which may be long ago.
"""


async def authenticate(
    connection: AsyncConnection, secret: str, address: str | None
) -> Actor | None:
    """Return the actor of the key with this secret; None if it is unknown, revoked or expired.

    `address` is the IP address of the request.
    """
    row = (await connection.execute(AUTHENTICATE_KEY, {"digest": digest(secret)})).one_or_none()
    if row is None:
        return None
    return Actor("key", row.name, row.id, row.scope, address)
