"""SQL of users. The caller owns the transaction."""

from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import Annotated, Any

import msgspec
from msgspec import Meta
from sqlalchemy import ColumnElement, Select, exists, func, insert, select, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncConnection

from mailer.access import audit, sessions
from mailer.access.credentials import Password, find_weakness
from mailer.access.model import Actor, Name, clean_name
from mailer.access.reauthorize import AccessRevokedError
from mailer.db.engine import violates
from mailer.db.paging import Cursor, RowPage, fetch_page
from mailer.db.tables.access import app_user, session
from mailer.errors import ConflictError, FieldError, NotFoundError
from mailer.roles import SCOPE_BY_ROLE, Role
from mailer.validation import Input

RoleInput = Annotated[Role, Meta(extra={"rule": "must be viewer, operator or admin"})]


class NewUserBase(Input, frozen=True, kw_only=True):
    """A user to create, without the password."""

    name: Name
    role: RoleInput


class NewUser(NewUserBase, frozen=True, kw_only=True):
    """A user to create, with a password."""

    password: Password

    @classmethod
    def broken_rules(cls, values: Mapping[str, Any], at: datetime) -> Iterable[FieldError]:  # noqa: ARG003  # passwords do not depend on the moment
        """Return the errors of the password, which may not resemble the name."""
        return find_weakness(values.get("name", ""), values.get("password", ""))


class NewRole(Input, frozen=True, kw_only=True):
    """A new role for a user."""

    role: RoleInput


class NewPassword(Input, frozen=True, kw_only=True):
    """A new password for a user."""

    password: Password


class User(msgspec.Struct, frozen=True):
    """A user, without the password hash."""

    id: int
    name: str
    role: Role
    issuer: str | None
    """The OpenID provider that the user signs in with; None for a user with a local password."""
    created_at: datetime
    signed_in_at: datetime | None
    disabled_at: datetime | None
    sessions: int = 0
    """The number of open sessions; only `list_all` and `page` count them."""

    def actor(self, address: str | None) -> Actor:
        """Return the actor for this user, who must have been authenticated."""
        return Actor("user", self.name, self.id, SCOPE_BY_ROLE[self.role], address)


class LocalUser(msgspec.Struct, frozen=True):
    """A user who signs in by password, with the hash of the password."""

    user: User
    password_hash: str


class UserNotFoundError(NotFoundError):
    """There is no such user."""


class UserNameTakenError(ConflictError):
    """Another user has this name."""


class OwnUserError(ConflictError):
    """You cannot do this to yourself; ask another admin."""


class NoLocalPasswordError(ConflictError):
    """The user has no password here and signs in with the OpenID provider."""


class ExternalRoleError(ConflictError):
    """The OpenID provider sets the role of the user at each sign-in."""


USER_COLUMNS = [app_user.c[name] for name in User.__struct_fields__ if name != "sessions"]


async def create(
    connection: AsyncConnection, name: str, role: Role, password_hash: str, by: Actor
) -> User:
    """Create a user with a local password; raises `UserNameTakenError`."""
    values = {"name": name, "role": role}
    statement = insert(app_user).values(**values, password_hash=password_hash)
    statement = statement.returning(*USER_COLUMNS)
    try:
        user = User(**(await connection.execute(statement)).mappings().one())
    except IntegrityError as error:
        if violates(error, "app_user_name_key"):
            raise UserNameTakenError from error
        raise
    await audit.record(connection, by, "user_created", _target(user), after=values)
    return user


async def list_all(connection: AsyncConnection) -> list[User]:
    """Return all users ordered by name, with their numbers of open sessions."""
    rows = await connection.execute(
        _select_with_sessions().order_by(func.lower(app_user.c.name), app_user.c.id)
    )
    return [User(**row) for row in rows.mappings()]


async def page(connection: AsyncConnection, position: Cursor) -> RowPage:
    """Return a page of users, newest first, as rows with the fields of `User`."""
    return await fetch_page(connection, _select_with_sessions(), app_user.c.id, position)


async def get(connection: AsyncConnection, user_id: int, *, lock: bool = False) -> User:
    """Return a user, with its row locked if `lock`; raises `UserNotFoundError`."""
    statement = select(*USER_COLUMNS).where(app_user.c.id == user_id)
    if lock:
        statement = statement.with_for_update()
    row = (await connection.execute(statement)).mappings().one_or_none()
    if row is None:
        raise UserNotFoundError
    return User(**row)


async def find_by_name(connection: AsyncConnection, name: str) -> list[User]:
    """Return all users with a name, the one with a local password first.

    Several users of an OpenID provider may have the same name.
    """
    statement = select(*USER_COLUMNS).where(_has_name(name))
    order = (app_user.c.issuer.is_not(None), app_user.c.id)
    rows = await connection.execute(statement.order_by(*order))
    return [User(**row) for row in rows.mappings()]


async def find_local(connection: AsyncConnection, name: str) -> LocalUser | None:
    """Return the user with a name and a local password; None if there is none."""
    statement = select(*USER_COLUMNS, app_user.c.password_hash)
    statement = statement.where(_has_name(name), app_user.c.issuer.is_(None))
    row = (await connection.execute(statement)).mappings().one_or_none()
    if row is None:
        return None
    user = User(**{column.name: row[column.name] for column in USER_COLUMNS})
    return LocalUser(user, row["password_hash"])


async def has_password_users(connection: AsyncConnection) -> bool:
    """Return whether any enabled user has a local password."""
    exists_one = exists().where(
        app_user.c.password_hash.is_not(None), app_user.c.disabled_at.is_(None)
    )
    return bool((await connection.execute(select(exists_one))).scalar_one())


async def set_role(connection: AsyncConnection, user_id: int, role: Role, by: Actor) -> None:
    """Change the role of a user, effective from the user's next request.

    Raises `UserNotFoundError`, `OwnUserError`, `ExternalRoleError` and `AccessRevokedError`.
    """
    user = await _lock_other_user(connection, user_id, by)
    if user.issuer is not None:
        raise ExternalRoleError
    if user.role == role:
        return
    await _update(connection, user.id, role=role)
    before, after = {"role": user.role}, {"role": role}
    await audit.record(
        connection, by, "user_role_changed", _target(user), before=before, after=after
    )


async def set_password(
    connection: AsyncConnection, user_id: int, password_hash: str, by: Actor
) -> None:
    """Store a new password hash and end the user's sessions, except the one that `by` uses.

    Raises `UserNotFoundError` and `NoLocalPasswordError`.
    """
    user = await get(connection, user_id, lock=True)
    if user.issuer is not None:
        raise NoLocalPasswordError
    await _update(connection, user.id, password_hash=password_hash)
    await sessions.end(connection, user.id, except_digest=by.session)
    await audit.record(connection, by, "user_password_changed", _target(user))


async def disable(connection: AsyncConnection, user_id: int, by: Actor) -> None:
    """Disable a user and end all sessions of the user.

    Raises `UserNotFoundError`, `OwnUserError` and `AccessRevokedError`.
    """
    user = await _lock_other_user(connection, user_id, by)
    if user.disabled_at is not None:
        return
    await _update(connection, user.id, disabled_at=func.now())
    await sessions.end(connection, user.id)
    await audit.record(connection, by, "user_disabled", _target(user))


async def enable(connection: AsyncConnection, user_id: int, by: Actor) -> None:
    """Enable a disabled user; raises `UserNotFoundError`."""
    user = await get(connection, user_id, lock=True)
    if user.disabled_at is None:
        return
    await _update(connection, user.id, disabled_at=None)
    await audit.record(connection, by, "user_enabled", _target(user))


async def end_sessions(
    connection: AsyncConnection, user_id: int, by: Actor, session_digest: bytes | None = None
) -> int:
    """End one session of a user, or all if `session_digest` is None; return how many ended.

    Raises `UserNotFoundError`.
    """
    user = await get(connection, user_id, lock=True)
    ended = await sessions.end(connection, user.id, only_digest=session_digest)
    if ended:
        await audit.record(
            connection, by, "sessions_ended", _target(user), after={"sessions": ended}
        )
    return ended


async def record_sign_in(
    connection: AsyncConnection, user_id: int, verified_hash: str, new_hash: str | None
) -> bool:
    """Record the time of a sign-in by password, and store `new_hash` unless it is None.

    Return False, and record nothing, if the user was disabled or the password was changed since
    `verified_hash` was read.
    """
    statement = (
        update(app_user)
        .where(
            app_user.c.id == user_id,
            app_user.c.password_hash == verified_hash,
            app_user.c.disabled_at.is_(None),
        )
        .values(signed_in_at=func.now(), password_hash=new_hash or verified_hash)
    )
    return (await connection.execute(statement)).rowcount > 0


def _select_with_sessions() -> Select[Any]:
    """Return the statement that selects all users with their numbers of open sessions."""
    is_open_of_user = (session.c.user_id == app_user.c.id) & sessions.is_open()
    open_sessions = select(func.count()).where(is_open_of_user).scalar_subquery()
    return select(*USER_COLUMNS, open_sessions.label("sessions"))


async def _lock_other_user(connection: AsyncConnection, user_id: int, by: Actor) -> User:
    """Lock and return a user; raises `OwnUserError` if it is the actor, who is an admin.

    So one admin always remains, even when two admins disable or demote each other at the same time:
    the actor's row is also locked and checked again, and the second admin gets
    `AccessRevokedError`. Also raises `UserNotFoundError`.
    """
    if by.kind != "user":
        return await get(connection, user_id, lock=True)
    if by.id == user_id:
        raise OwnUserError
    statement = select(*USER_COLUMNS).where(app_user.c.id.in_((user_id, by.id)))
    # rows are always locked in this order, so that no deadlock is possible
    statement = statement.order_by(app_user.c.id).with_for_update()
    rows = (await connection.execute(statement)).mappings()
    users_by_id = {row["id"]: User(**row) for row in rows}
    actor = users_by_id.get(by.id)
    if actor is None or actor.disabled_at is not None or actor.role != "admin":
        raise AccessRevokedError
    if user_id not in users_by_id:
        raise UserNotFoundError
    return users_by_id[user_id]


async def _update(connection: AsyncConnection, user_id: int, **values: object) -> None:
    await connection.execute(update(app_user).where(app_user.c.id == user_id).values(**values))


def _has_name(name: str) -> ColumnElement[bool]:
    """Return the SQL condition that a user has a name, whatever its case.

    Stored names are normalized, so `name` is, too.
    """
    return func.lower(app_user.c.name) == func.lower(clean_name(name))


def _target(user: User) -> audit.Target:
    return audit.Target("user", user.id)
