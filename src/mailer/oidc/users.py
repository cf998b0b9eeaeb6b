"""SQL of the users of an OpenID provider. The caller owns the transaction."""

from typing import Any

import msgspec
from sqlalchemy import Select, func, select, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncConnection

from mailer.access import audit
from mailer.access.users import USER_COLUMNS, User
from mailer.db.tables.access import app_user
from mailer.oidc.model import Identity, SignInError


async def find_by_subject(connection: AsyncConnection, issuer: str, subject: str) -> User | None:
    """Return the user with this subject, the provider's id of a user; None if there is none."""
    rows = await connection.execute(_select_by_subject(issuer, subject))
    row = rows.mappings().one_or_none()
    return None if row is None else User(**row)


async def upsert(connection: AsyncConnection, identity: Identity, address: str | None) -> User:
    """Create the user of an OpenID identity at the first sign-in, or update it; return the user.

    Name and role become those that the provider has sent. Raises `SignInError` for a disabled user.
    """
    values = {"name": identity.name, "role": identity.role, "signed_in_at": func.now()}
    statement = insert(app_user).values(**values, issuer=identity.issuer, subject=identity.subject)
    statement = statement.on_conflict_do_nothing()
    row = (await connection.execute(statement.returning(*USER_COLUMNS))).mappings().one_or_none()
    if row is not None:  # else the user exists already
        created = User(**row)
        by, target = created.actor(address), audit.Target("user", created.id)
        fields = {"name": created.name, "role": created.role}
        await audit.record(connection, by, "user_created", target, after=fields)
        return created
    existing = _select_by_subject(identity.issuer, identity.subject).with_for_update()
    rows = await connection.execute(existing)
    old = User(**rows.mappings().one())
    if old.disabled_at is not None:
        raise SignInError("disabled", (identity.issuer, identity.subject))
    await connection.execute(update(app_user).where(app_user.c.id == old.id).values(**values))
    user = msgspec.structs.replace(old, name=identity.name, role=identity.role)
    by, target = user.actor(address), audit.Target("user", user.id)
    for field in ("role", "name"):
        if getattr(old, field) != getattr(user, field):
            before, after = {field: getattr(old, field)}, {field: getattr(user, field)}
            action = f"user_{field}_changed"
            await audit.record(connection, by, action, target, before=before, after=after)
    return user


def _select_by_subject(issuer: str, subject: str) -> Select[Any]:
    return select(*USER_COLUMNS).where(app_user.c.issuer == issuer, app_user.c.subject == subject)
