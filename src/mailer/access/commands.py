"""The commands `mailer keys` and `mailer users`, without the parsing of their arguments.

They change the database directly, also while mailer serves; changes take effect at once.
"""

import getpass
from collections.abc import Awaitable, Callable, Iterable, Iterator
from datetime import UTC, datetime, timedelta

import msgspec
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from mailer.access import keys, service, users
from mailer.access.model import COMMAND_LINE, Actor
from mailer.access.users import NewPassword, NewRole, NewUser, NewUserBase, User
from mailer.clock import database_clock
from mailer.errors import ConflictError
from mailer.validation import check

KEY_TABLE_HEADER = ("id", "name", "scope", "created (UTC)", "last used", "expires", "state")
USER_TABLE_HEADER = ("id", "name", "role", "last sign-in (UTC)", "sessions", "state")


class AmbiguousUserError(ConflictError):
    """Several users have this name."""

    def __init__(self, user_ids: Iterable[int] = ()) -> None:
        choices = ", ".join(map(str, user_ids))
        super().__init__(
            choices and f"Several users have this name; give --id with one of {choices}."
        )


def command_line_actor() -> Actor:
    """Return the actor of a command, with the operating system's user name if there is one."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):
        return COMMAND_LINE
    return msgspec.structs.replace(COMMAND_LINE, name=f"{user} at the {COMMAND_LINE.name}")


async def create_key(engine: AsyncEngine, name: str, scope: str, days: int | None) -> str:
    """Create a key that expires after `days`, or never if None; return its secret.

    Raises `InvalidError` and `KeyNameTakenError`.
    """
    now = database_clock.now()
    expires_at = None if days is None else now + timedelta(days=days)
    new = check(keys.NewKey, {"name": name, "scope": scope, "expires_at": expires_at}, now)
    async with engine.begin() as connection:
        _, secret = await keys.create(connection, new, command_line_actor())
    return secret


async def list_keys(engine: AsyncEngine) -> list[str]:
    """Return the lines of a table of all keys, newest first."""
    async with engine.connect() as connection:
        all_keys = await keys.list_all(connection)
    now = database_clock.now()
    rows = [_key_row(key, now) for key in all_keys]
    return list(_table_lines([KEY_TABLE_HEADER, *rows]))


async def revoke_key(engine: AsyncEngine, name: str) -> None:
    """Revoke the key with this name, at once and permanently; raises `KeyNotFoundError`."""
    async with engine.begin() as connection:
        key = await keys.find_by_name(connection, name)
        await keys.revoke(connection, key.id, command_line_actor())


async def ensure_user_can_be_created(engine: AsyncEngine, name: str, role: str) -> None:
    """Check the name and the role of a new user, before the command asks for a password.

    Raises `InvalidError` for an invalid name or role, and `UserNameTakenError`.
    """
    new = check(NewUserBase, {"name": name.strip(), "role": role}, database_clock.now())
    async with engine.connect() as connection:
        if await users.find_local(connection, new.name) is not None:
            raise users.UserNameTakenError


async def create_user(engine: AsyncEngine, name: str, role: str, password: str) -> None:
    """Create a user; raises `InvalidError` and `UserNameTakenError`."""
    values = {"name": name.strip(), "role": role, "password": password}
    new = check(NewUser, values, database_clock.now())
    await service.create_user(engine, new, command_line_actor())


async def ensure_user_exists(engine: AsyncEngine, name: str) -> None:
    """Raise `UserNotFoundError` for an unknown name, before the command asks for a password."""
    async with engine.connect() as connection:
        await _find_users(connection, name)


async def set_user_password(engine: AsyncEngine, name: str, password: str) -> None:
    """Set the password of a user and end all sessions of the user.

    Raises `InvalidError`, `UserNotFoundError` and `NoLocalPasswordError`.
    """
    new = check(NewPassword, {"password": password}, database_clock.now())
    async with engine.connect() as connection:
        user, *_ = await _find_users(connection, name)  # one with a local password is first
    await service.set_password(engine, user.id, new, command_line_actor())


async def set_user_role(engine: AsyncEngine, name: str, role: str) -> None:
    """Change the role of a user.

    Raises `InvalidError`, `UserNotFoundError` and `ExternalRoleError`.
    """
    new = check(NewRole, {"role": role}, database_clock.now())
    async with engine.begin() as connection:
        user, *_ = await _find_users(connection, name)  # one whose role mailer sets is first
        await users.set_role(connection, user.id, new.role, command_line_actor())


async def disable_user(engine: AsyncEngine, name: str, user_id: int | None) -> None:
    """Disable the user with this name, and with this id unless it is None.

    Raises `UserNotFoundError`, and `AmbiguousUserError` if an id is needed.
    """
    await change_user(engine, name, user_id, users.disable)


async def enable_user(engine: AsyncEngine, name: str, user_id: int | None) -> None:
    """Enable the user with this name, and with this id unless it is None.

    Raises `UserNotFoundError`, and `AmbiguousUserError` if an id is needed.
    """
    await change_user(engine, name, user_id, users.enable)


async def sign_out_user(engine: AsyncEngine, name: str, user_id: int | None) -> None:
    """End all sessions of the user with this name, and with this id unless it is None.

    Raises `UserNotFoundError`, and `AmbiguousUserError` if an id is needed.
    """
    await change_user(engine, name, user_id, users.end_sessions)


async def list_users(engine: AsyncEngine) -> list[str]:
    """Return the lines of a table of all users."""
    async with engine.connect() as connection:
        all_users = await users.list_all(connection)
    return list(_table_lines([USER_TABLE_HEADER, *map(_user_row, all_users)]))


async def change_user(
    engine: AsyncEngine,
    name: str,
    user_id: int | None,
    change: Callable[[AsyncConnection, int, Actor], Awaitable[object]],
) -> None:
    """Apply `change` to the only user with this name, and with this id unless it is None.

    Raises `UserNotFoundError`, and `AmbiguousUserError` if an id is needed.
    """
    async with engine.begin() as connection:
        ids = [
            user.id
            for user in await _find_users(connection, name)
            if user_id is None or user.id == user_id
        ]
        if not ids:
            raise users.UserNotFoundError
        if len(ids) > 1:
            raise AmbiguousUserError(ids)
        await change(connection, ids[0], command_line_actor())


async def _find_users(connection: AsyncConnection, name: str) -> list[User]:
    """Return all users with a name, one with a local password first.

    Raises `UserNotFoundError` if there are none.
    """
    namesakes = await users.find_by_name(connection, name)
    if not namesakes:
        raise users.UserNotFoundError
    return namesakes


def _key_row(key: keys.Key, now: datetime) -> tuple[str, ...]:
    """Return the cells of a key, as `KEY_TABLE_HEADER` names them."""
    times = map(_format_utc, (key.created_at, key.last_used_at, key.expires_at))
    return (str(key.id), key.name, key.scope, *times, key.state(now))


def _user_row(user: User) -> tuple[str, ...]:
    """Return the cells of a user, as `USER_TABLE_HEADER` names them."""
    last_sign_in = _format_utc(user.signed_in_at)
    state = " ".join(filter(None, ("disabled" if user.disabled_at else "", user.issuer)))
    return (str(user.id), user.name, user.role, last_sign_in, str(user.sessions), state)


def _format_utc(at: datetime | None) -> str:
    return f"{at.astimezone(UTC):%Y-%m-%d %H:%M}" if at else "never"


def _table_lines(rows: list[tuple[str, ...]]) -> Iterator[str]:
    """Yield a line for each row, with the columns aligned by blanks."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        yield "  ".join(cells).rstrip()
