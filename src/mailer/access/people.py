"""What admins do with the accounts of others; each is written into the audit log."""

from datetime import UTC, datetime

from sqlalchemy.ext.asyncio import AsyncEngine

from mailer.access import accounts, passwords
from mailer.access.accounts import Account, NewAccount
from mailer.access.model import Actor
from mailer.errors import InvalidError
from mailer.validation import check


async def add(engine: AsyncEngine, new: NewAccount, by: Actor) -> Account:
    """Make an account; raises `AccountNameTakenError`."""
    kept = await passwords.hashed(new.password)
    async with engine.begin() as connection:
        return await accounts.add(connection, new.name, new.role, kept, by)


async def set_password(engine: AsyncEngine, account_id: int, password: str, by: Actor) -> None:
    """Give somebody else's account another password and end its sessions.

    One's own is changed by who knows the present one. Raises `InvalidError`,
    `AccountNotFoundError`, `OwnAccountError` and `NoPasswordHereError`.
    """
    if by.kind == "account" and by.id == account_id:
        raise accounts.OwnAccountError
    new = check(accounts.NewPassword, {"password": password}, datetime.now(UTC))
    async with engine.connect() as connection:
        known = await accounts.get(connection, account_id)
    if wrong := passwords.too_easy(known.name, new.password):
        raise InvalidError(wrong)
    kept = await passwords.hashed(new.password)
    async with engine.begin() as connection:
        await accounts.set_password(connection, account_id, kept, by)
