"""Sign-in, sign-out and passwords: use cases of users and of admins who manage users."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from mailer.access import audit, credentials, login_throttle, sessions, users
from mailer.access.model import Actor
from mailer.access.users import LocalUser, NewPassword, NewUser, User
from mailer.errors import FieldError, InvalidError, MailerError
from mailer.validation import is_storable


class NotSignedInError(MailerError):
    """The name or the password is wrong."""


async def sign_in(
    engine: AsyncEngine, name: str, password: str, address: str | None, user_agent: str
) -> str:
    """Sign a user in by name and password; return the secret for the session cookie.

    Raises `NotSignedInError` for a wrong name, a wrong password and a disabled user alike,
    `ThrottledError` and `HashingBusyError`.
    """
    name = name.strip()
    async with engine.begin() as connection:
        attempt = await login_throttle.count_attempt(connection, name, address)
    async with engine.connect() as connection:
        local_user = await users.find_local(connection, name) if is_storable(name) else None
    new_hash = None
    async with _uncounted_if_busy(engine, attempt):
        is_right = await _is_right_password(local_user, password)
        if local_user and is_right and credentials.needs_rehash(local_user.password_hash):
            new_hash = await credentials.hash_password(password)
    async with engine.begin() as connection:
        if local_user and is_right:
            user, verified_hash = local_user.user, local_user.password_hash
            if await users.record_sign_in(connection, user.id, verified_hash, new_hash):
                await login_throttle.forget_attempts(connection, attempt)
                return await begin_session(connection, user, address, user_agent)
        user_id = local_user.user.id if local_user else None
        await record_sign_in_failure(connection, user_id, address)
    raise NotSignedInError


async def record_sign_in_failure(
    connection: AsyncConnection, user_id: int | None, address: str | None
) -> None:
    """Record a failed sign-in in the audit log; `user_id` is None for an unknown user."""
    unauthenticated = Actor("anonymous", "anonymous", address=address)
    target = audit.Target("user", user_id)
    await audit.record(connection, unauthenticated, "sign_in_failed", target)


async def begin_session(
    connection: AsyncConnection, user: User, address: str | None, user_agent: str
) -> str:
    """Create a session of an authenticated user; return the secret for its cookie."""
    target = audit.Target("user", user.id)
    await audit.record(connection, user.actor(address), "signed_in", target)
    return await sessions.create(connection, user.id, address, user_agent)


async def sign_out(engine: AsyncEngine, by: Actor) -> None:
    """End the actor's session; do nothing for an actor without a session."""
    if by.session is None or by.id is None:
        return
    async with engine.begin() as connection:
        if await sessions.end(connection, by.id, only_digest=by.session):
            await audit.record(connection, by, "signed_out", audit.Target("user", by.id))


async def change_own_password(
    engine: AsyncEngine, by: Actor, current: str, new: NewPassword
) -> None:
    """Change the actor's own password if `current` is right, and end all other sessions.

    `current` is the password until now. Wrong ones are throttled like sign-ins.

    Raises `InvalidError`, `NoLocalPasswordError`, `ThrottledError` and `HashingBusyError`.
    """
    async with engine.connect() as connection:
        own = await users.get(connection, by.user_id)
    if own.issuer is not None:
        raise users.NoLocalPasswordError
    if errors := credentials.find_weakness(own.name, new.password):
        raise InvalidError(errors)
    async with engine.begin() as connection:
        attempt = await login_throttle.count_attempt(connection, own.name, by.address)
        local_user = await users.find_local(connection, own.name)
    async with _uncounted_if_busy(engine, attempt):
        if not await _is_right_password(local_user, current):
            raise InvalidError([FieldError("current_password", "is not your password")])
        new_hash = await credentials.hash_password(new.password)
    async with engine.begin() as connection:
        await login_throttle.forget_attempts(connection, attempt)
        await users.set_password(connection, own.id, new_hash, by)


async def create_user(engine: AsyncEngine, new: NewUser, by: Actor) -> User:
    """Create a user with a password; raises `UserNameTakenError` and `HashingBusyError`."""
    password_hash = await credentials.hash_password(new.password)
    async with engine.begin() as connection:
        return await users.create(connection, new.name, new.role, password_hash, by)


async def set_password(engine: AsyncEngine, user_id: int, new: NewPassword, by: Actor) -> None:
    """Set the password of another user and end all sessions of that user.

    For one's own password use `change_own_password`, which checks the current one. Raises
    `InvalidError`, `UserNotFoundError`, `OwnUserError`, `NoLocalPasswordError` and
    `HashingBusyError`.
    """
    if by.kind == "user" and by.id == user_id:
        raise users.OwnUserError
    async with engine.connect() as connection:
        user = await users.get(connection, user_id)
    if errors := credentials.find_weakness(user.name, new.password):
        raise InvalidError(errors)
    new_hash = await credentials.hash_password(new.password)
    async with engine.begin() as connection:
        await users.set_password(connection, user_id, new_hash, by)


async def _is_right_password(local_user: LocalUser | None, password: str) -> bool:
    """Return whether a password is the user's; False for an unknown user.

    Raises `HashingBusyError`.
    """
    stored_hash = local_user.password_hash if local_user else None
    return await credentials.verify_password(stored_hash, password)


@asynccontextmanager
async def _uncounted_if_busy(
    engine: AsyncEngine, attempt: login_throttle.LoginAttempt
) -> AsyncIterator[None]:
    """Undo the count of an attempt if the block raises `HashingBusyError`, and pass the error on.

    The block checks the password of the attempt, and may compute a new hash if it is right.
    """
    try:
        yield
    except credentials.HashingBusyError:
        async with engine.begin() as connection:
            await login_throttle.uncount_attempt(connection, attempt)
        raise
