"""What `mailer keys` and `mailer users` do, on the database that a running mailer uses."""

import getpass
from collections.abc import Awaitable, Callable, Iterable, Iterator
from datetime import UTC, datetime, timedelta

import msgspec
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from mailer.access import accounts, keys, service
from mailer.access.accounts import Account, NewAccount, NewPassword, NewPerson, NewRole
from mailer.access.model import COMMAND_LINE, Actor
from mailer.clock import database_clock
from mailer.errors import ConflictError
from mailer.validation import check

KEY_HEADS = ("id", "name", "scope", "made (UTC)", "last used", "expires", "state")
USER_HEADS = ("id", "name", "role", "last sign-in (UTC)", "sessions", "state")


class SeveralAccountsError(ConflictError):
    """Several accounts have this name."""

    def __init__(self, ids: Iterable[int] = ()) -> None:
        which = ", ".join(map(str, ids))
        super().__init__(which and f"Several accounts have this name; say --id and one of {which}.")


def at_the_command_line() -> Actor:
    """Return who runs a command, by the name that the system has for them if it has one."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):
        return COMMAND_LINE
    return msgspec.structs.replace(COMMAND_LINE, name=f"{user} at the {COMMAND_LINE.name}")


async def make_key(engine: AsyncEngine, name: str, scope: str, days: int | None) -> str:
    """Make a key that is good for so many days, or for ever; return what it shows.

    Raises `InvalidError` and `KeyNameTakenError`.
    """
    now = database_clock.now()
    expires_at = None if days is None else now + timedelta(days=days)
    new = check(keys.NewKey, {"name": name, "scope": scope, "expires_at": expires_at}, now)
    async with engine.begin() as connection:
        _, secret = await keys.add(connection, new, at_the_command_line())
    return secret


async def list_keys(engine: AsyncEngine) -> list[str]:
    """Return a table of all keys, the newest first, line by line."""
    async with engine.connect() as connection:
        found = await keys.every(connection)
    now = database_clock.now()
    return list(_table([KEY_HEADS, *(_row(key, now) for key in found)]))


async def revoke_key(engine: AsyncEngine, name: str) -> None:
    """End the key of this name at once and for good; raises `KeyNotFoundError`."""
    async with engine.begin() as connection:
        key = await keys.of_name(connection, name)
        await keys.revoke(connection, key.id, at_the_command_line())


async def expect_new_user(engine: AsyncEngine, name: str, role: str) -> None:
    """Refuse early, before anybody types a password for it, an account that cannot be made.

    Raises `InvalidError` and `AccountNameTakenError`.
    """
    new = check(NewPerson, {"name": name.strip(), "role": role}, database_clock.now())
    async with engine.connect() as connection:
        if await accounts.kept_password(connection, new.name) is not None:
            raise accounts.AccountNameTakenError


async def add_user(engine: AsyncEngine, name: str, role: str, password: str) -> None:
    """Make an account; raises `InvalidError` and `AccountNameTakenError`."""
    given = {"name": name.strip(), "role": role, "password": password}
    new = check(NewAccount, given, database_clock.now())
    await service.add_account(engine, new, at_the_command_line())


async def expect_user(engine: AsyncEngine, name: str) -> None:
    """Raise `AccountNotFoundError` early, before anybody types a password for it."""
    async with engine.connect() as connection:
        await _called(connection, name)


async def set_user_password(engine: AsyncEngine, name: str, password: str) -> None:
    """Give an account another password.

    Raises `InvalidError`, `AccountNotFoundError` and `NoPasswordHereError`.
    """
    new = check(NewPassword, {"password": password}, database_clock.now())
    async with engine.connect() as connection:
        known, *_ = await _called(connection, name)  # only the first can have a password
    await service.set_password(engine, known.id, new, at_the_command_line())


async def set_user_role(engine: AsyncEngine, name: str, role: str) -> None:
    """Give an account another role.

    Raises `InvalidError`, `AccountNotFoundError` and `RoleElsewhereError`.
    """
    new = check(NewRole, {"role": role}, database_clock.now())
    async with engine.begin() as connection:
        known, *_ = await _called(connection, name)  # only of the first is a role kept here
        await accounts.set_role(connection, known.id, new.role, at_the_command_line())


async def disable_user(engine: AsyncEngine, name: str, account_id: int | None) -> None:
    """Keep somebody out; raises `AccountNotFoundError` and `SeveralAccountsError`."""
    await _change(engine, name, account_id, accounts.disable)


async def enable_user(engine: AsyncEngine, name: str, account_id: int | None) -> None:
    """Let somebody in again; raises `AccountNotFoundError` and `SeveralAccountsError`."""
    await _change(engine, name, account_id, accounts.enable)


async def sign_out_user(engine: AsyncEngine, name: str, account_id: int | None) -> None:
    """End all sessions; raises `AccountNotFoundError` and `SeveralAccountsError`."""
    await _change(engine, name, account_id, accounts.end_sessions)


async def list_users(engine: AsyncEngine) -> list[str]:
    """Return a table of all accounts, line by line."""
    async with engine.connect() as connection:
        found = await accounts.every(connection)
    rows = [
        (
            str(each.id),
            each.name,
            each.role,
            _moment(each.signed_in_at),
            str(each.sessions),
            " ".join(filter(None, ("disabled" if each.disabled_at else "", each.issuer))),
        )
        for each in found
    ]
    return list(_table([USER_HEADS, *rows]))


async def _change(
    engine: AsyncEngine,
    name: str,
    account_id: int | None,
    step: Callable[[AsyncConnection, int, Actor], Awaitable[object]],
) -> None:
    async with engine.begin() as connection:
        found = [
            each.id
            for each in await _called(connection, name)
            if account_id is None or each.id == account_id
        ]
        if not found:
            raise accounts.AccountNotFoundError
        if len(found) > 1:
            raise SeveralAccountsError(found)
        await step(connection, found[0], at_the_command_line())


async def _called(connection: AsyncConnection, name: str) -> list[Account]:
    """Return the accounts of a name, one at least; raises `AccountNotFoundError`."""
    found = await accounts.called(connection, name)
    if not found:
        raise accounts.AccountNotFoundError
    return found


def _row(key: keys.Key, now: datetime) -> tuple[str, ...]:
    moments = (_moment(each) for each in (key.created_at, key.last_used_at, key.expires_at))
    return (str(key.id), key.name, key.scope, *moments, key.state(now))


def _moment(at: datetime | None) -> str:
    return f"{at.astimezone(UTC):%Y-%m-%d %H:%M}" if at else "never"


def _table(rows: list[tuple[str, ...]]) -> Iterator[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        yield "  ".join(cells).rstrip()
