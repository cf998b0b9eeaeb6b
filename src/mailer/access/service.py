"""How people come in and leave, and what admins do with the accounts of others."""

from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from mailer.access import accounts, audit, passwords, sessions, throttle
from mailer.access.accounts import Account, NewAccount, NewPassword
from mailer.access.model import Actor
from mailer.access.oidc.model import Identity, SignInError
from mailer.errors import FieldError, InvalidError, MailerError
from mailer.validation import is_storable


class NotSignedInError(MailerError):
    """The name or the password is wrong."""


async def sign_in(
    engine: AsyncEngine, name: str, password: str, address: str | None, browser: str
) -> str:
    """Begin a session of who shows a name and its password; return what its cookie shows.

    Raises `NotSignedInError`, whatever is wrong, `ThrottledError` and `HashingBusyError`.
    """
    name = name.strip()
    async with engine.begin() as connection:
        attempt = await throttle.count(connection, name, address)
    async with engine.connect() as connection:
        found = await accounts.kept_password(connection, name) if is_storable(name) else None
    known, kept = found or (None, None)
    is_right = await _matches(engine, attempt, kept, password)
    rehashed = None
    if is_right and kept is not None and passwords.is_outdated(kept):
        rehashed = await passwords.hashed(password)
    async with engine.begin() as connection:
        if (
            is_right
            and known is not None
            and kept is not None
            and await accounts.signed_in(connection, known.id, kept, rehashed)
        ):
            await throttle.clear(connection, attempt)
            return await begin(connection, known, address, browser)
        await _refused(connection, known.id if known else None, address)
    raise NotSignedInError


async def sign_in_oidc(
    engine: AsyncEngine, who: Identity, address: str | None, browser: str
) -> str:
    """Begin a session of whom the OpenID provider names; return what its cookie shows.

    Raises `SignInError` when the account is disabled.
    """
    async with engine.begin() as connection:
        known = await accounts.of_identity(connection, who, address)
        return await begin(connection, known, address, browser)


async def refused_oidc(engine: AsyncEngine, error: SignInError, address: str | None) -> None:
    """Write down that somebody came back from the OpenID provider and was not let in.

    Who has no role there any more is signed out everywhere.
    """
    async with engine.begin() as connection:
        known = await accounts.of_person(connection, *error.person) if error.person else None
        if known is not None and error.reason == "no_role":
            await accounts.end_sessions(connection, known.id, known.actor(address))
        await _refused(connection, known.id if known else None, address)


async def _refused(
    connection: AsyncConnection, account_id: int | None, address: str | None
) -> None:
    nobody = Actor("anybody", "anybody", address=address)
    target = audit.Target("account", account_id)
    await audit.record(connection, nobody, "sign_in_failed", target)


async def begin(
    connection: AsyncConnection, who: Account, address: str | None, browser: str
) -> str:
    """Begin a session of an account, however it was proved; return what its cookie shows."""
    target = audit.Target("account", who.id)
    await audit.record(connection, who.actor(address), "signed_in", target)
    return await sessions.begin(connection, who.id, address, browser)


async def sign_out(engine: AsyncEngine, by: Actor) -> None:
    """End the session that somebody is signed in by."""
    if by.session is None or by.id is None:
        return
    async with engine.begin() as connection:
        if await sessions.end(connection, by.id, by.session):
            await audit.record(connection, by, "signed_out", audit.Target("account", by.id))


async def change_own_password(
    engine: AsyncEngine, by: Actor, present: str, new: NewPassword
) -> None:
    """Give who is signed in another password, once they have shown the present one.

    All their other sessions end. Raises `InvalidError`, `NoPasswordHereError`, `ThrottledError`
    and `HashingBusyError`.
    """
    async with engine.connect() as connection:
        own = await accounts.get(connection, by.account_id)
    if own.issuer is not None:
        raise accounts.NoPasswordHereError
    if wrong := passwords.too_easy(own.name, new.password):
        raise InvalidError(wrong)
    async with engine.begin() as connection:
        attempt = await throttle.count(connection, own.name, by.address)
        found = await accounts.kept_password(connection, own.name)
    if not await _matches(engine, attempt, found and found[1], present):
        raise InvalidError([FieldError("present", "is not your password")])
    kept = await passwords.hashed(new.password)
    async with engine.begin() as connection:
        await throttle.clear(connection, attempt)
        await accounts.set_password(connection, own.id, kept, by)


async def add_account(engine: AsyncEngine, new: NewAccount, by: Actor) -> Account:
    """Make an account; raises `AccountNameTakenError`."""
    kept = await passwords.hashed(new.password)
    async with engine.begin() as connection:
        return await accounts.add(connection, new.name, new.role, kept, by)


async def set_password(engine: AsyncEngine, account_id: int, new: NewPassword, by: Actor) -> None:
    """Give somebody else's account another password and end its sessions.

    One's own is changed by who knows the present one. Raises `InvalidError`,
    `AccountNotFoundError`, `OwnAccountError` and `NoPasswordHereError`.
    """
    if by.kind == "account" and by.id == account_id:
        raise accounts.OwnAccountError
    async with engine.connect() as connection:
        known = await accounts.get(connection, account_id)
    if wrong := passwords.too_easy(known.name, new.password):
        raise InvalidError(wrong)
    kept = await passwords.hashed(new.password)
    async with engine.begin() as connection:
        await accounts.set_password(connection, account_id, kept, by)


async def _matches(
    engine: AsyncEngine, attempt: throttle.Attempt, kept: str | None, password: str
) -> bool:
    """Look at a password that was counted; what nobody has had time to look at is no failure."""
    try:
        return await passwords.matches(kept, password)
    except passwords.HashingBusyError:
        async with engine.begin() as connection:
            await throttle.take_back(connection, attempt)
        raise
