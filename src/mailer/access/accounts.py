"""SQL of the accounts that people sign in to. The caller owns the transaction."""

from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import Annotated, Any

import msgspec
from msgspec import Meta
from sqlalchemy import ColumnElement, Select, exists, func, insert, select, update
from sqlalchemy.dialects.postgresql import insert as upsert
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncConnection

from mailer.access import audit, sessions
from mailer.access.model import SCOPE_OF, Actor, Name, clean_name
from mailer.access.oidc.model import Identity, SignInError
from mailer.access.passwords import Password, too_easy
from mailer.access.still import TakenAwayError
from mailer.db.access import account, session
from mailer.db.engine import violates
from mailer.db.paging import Position, Slice, fetch_slice
from mailer.errors import ConflictError, FieldError, NotFoundError
from mailer.settings import Role
from mailer.validation import Input

GivenRole = Annotated[Role, Meta(extra={"rule": "must be viewer, operator or admin"})]


class NewPerson(Input, frozen=True, kw_only=True):
    """Somebody who is to have an account."""

    name: Name
    role: GivenRole


class NewAccount(NewPerson, frozen=True, kw_only=True):
    """An account with a password to be made."""

    password: Password

    @classmethod
    def broken_rules(cls, values: Mapping[str, Any], at: datetime) -> Iterable[FieldError]:  # noqa: ARG003  # passwords do not depend on the moment
        """Name what is wrong with the password of this name."""
        return too_easy(values.get("name", ""), values.get("password", ""))


class NewRole(Input, frozen=True, kw_only=True):
    """A role to be given to an account."""

    role: GivenRole


class NewPassword(Input, frozen=True, kw_only=True):
    """A password to be given to an account."""

    password: Password


class Account(msgspec.Struct, frozen=True):
    """Somebody who may sign in, but for the password."""

    id: int
    name: str
    role: Role
    issuer: str | None
    """The OpenID provider that knows this person; None of who has a password here."""
    created_at: datetime
    signed_in_at: datetime | None
    disabled_at: datetime | None
    sessions: int = 0
    """How many are open; counted by `every` and `page` alone."""

    def actor(self, address: str | None) -> Actor:
        """Return who does something once they have shown that the account is theirs."""
        return Actor("account", self.name, self.id, SCOPE_OF[self.role], address)


class AccountNotFoundError(NotFoundError):
    """There is no such account."""


class AccountNameTakenError(ConflictError):
    """Another account has this name."""


class OwnAccountError(ConflictError):
    """Your own account cannot be changed in this way; ask another admin."""


class NoPasswordHereError(ConflictError):
    """The account has no password here: its person signs in at the OpenID provider."""


class RoleElsewhereError(ConflictError):
    """The role of this account is what its OpenID provider says at each sign-in."""


SHOWN = [account.c[name] for name in Account.__struct_fields__ if name != "sessions"]


async def add(
    connection: AsyncConnection, name: str, role: Role, password: str, by: Actor
) -> Account:
    """Make an account of which `password` is kept, hashed; raises `AccountNameTakenError`."""
    values = {"name": name, "role": role}
    statement = insert(account).values(**values, password=password).returning(*SHOWN)
    try:
        made = Account(**(await connection.execute(statement)).mappings().one())
    except IntegrityError as error:
        if violates(error, "account_name_key"):
            raise AccountNameTakenError from error
        raise
    await audit.record(connection, by, "account_made", _target(made), after=values)
    return made


async def every(connection: AsyncConnection) -> list[Account]:
    """Return all accounts by name, with how many sessions each has."""
    found = await connection.execute(_counted().order_by(func.lower(account.c.name), account.c.id))
    return [Account(**row) for row in found.mappings()]


async def page(connection: AsyncConnection, position: Position) -> Slice:
    """Return a page of accounts, the newest first, as rows for `Account`."""
    return await fetch_slice(connection, _counted(), account.c.id, position)


async def get(connection: AsyncConnection, account_id: int, *, lock: bool = False) -> Account:
    """Return an account; raises `AccountNotFoundError`."""
    return await _one(connection, account.c.id == account_id, lock=lock)


async def called(connection: AsyncConnection, name: str) -> list[Account]:
    """Return all accounts of a name, the one with a password here first.

    Of those that an OpenID provider knows several may have it.
    """
    statement = select(*SHOWN).where(_has_name(name))
    order = (account.c.issuer.is_not(None), _is_another_form(name), account.c.id)
    found = await connection.execute(statement.order_by(*order))
    return [Account(**row) for row in found.mappings()]


async def of_person(connection: AsyncConnection, issuer: str, subject: str) -> Account | None:
    """Return the account of whom an OpenID provider knows; None if there is none."""
    statement = select(*SHOWN).where(_is_known_as(issuer, subject))
    row = (await connection.execute(statement)).mappings().one_or_none()
    return None if row is None else Account(**row)


async def kept_password(connection: AsyncConnection, name: str) -> tuple[Account, str] | None:
    """Return the account of a name and what is kept of its password; None if there is none."""
    statement = select(*SHOWN, account.c.password).where(_is_called(name))
    statement = statement.order_by(_is_another_form(name)).limit(1)
    row = (await connection.execute(statement)).mappings().one_or_none()
    if row is None:
        return None
    return Account(**{column.name: row[column.name] for column in SHOWN}), row["password"]


async def is_anybody_known(connection: AsyncConnection) -> bool:
    """Whether anybody can sign in with a password."""
    people = exists().where(account.c.password.is_not(None), account.c.disabled_at.is_(None))
    return bool((await connection.execute(select(people))).scalar_one())


async def set_role(connection: AsyncConnection, account_id: int, role: Role, by: Actor) -> None:
    """Give an account another role, which holds from its next request on.

    Raises `AccountNotFoundError`, `OwnAccountError`, `RoleElsewhereError` and `TakenAwayError`.
    """
    was = await _others(connection, account_id, by)
    if was.issuer is not None:
        raise RoleElsewhereError
    if was.role == role:
        return
    await _write(connection, was.id, role=role)
    before, after = {"role": was.role}, {"role": role}
    await audit.record(
        connection, by, "account_role_changed", _target(was), before=before, after=after
    )


async def set_password(
    connection: AsyncConnection, account_id: int, password: str, by: Actor
) -> None:
    """Keep another password, hashed, and end all sessions but the one that asks for it.

    Raises `AccountNotFoundError` and `NoPasswordHereError`.
    """
    was = await get(connection, account_id, lock=True)
    if was.issuer is not None:
        raise NoPasswordHereError
    await _write(connection, was.id, password=password)
    await sessions.end(connection, was.id, but=by.session)
    await audit.record(connection, by, "account_password_changed", _target(was))


async def disable(connection: AsyncConnection, account_id: int, by: Actor) -> None:
    """Keep somebody out until the account is enabled again, and end all sessions.

    Raises `AccountNotFoundError`, `OwnAccountError` and `TakenAwayError`.
    """
    was = await _others(connection, account_id, by)
    if was.disabled_at is not None:
        return
    await _write(connection, was.id, disabled_at=func.now())
    await sessions.end(connection, was.id)
    await audit.record(connection, by, "account_disabled", _target(was))


async def enable(connection: AsyncConnection, account_id: int, by: Actor) -> None:
    """Let somebody in again; raises `AccountNotFoundError`."""
    was = await get(connection, account_id, lock=True)
    if was.disabled_at is None:
        return
    await _write(connection, was.id, disabled_at=None)
    await audit.record(connection, by, "account_enabled", _target(was))


async def end_sessions(
    connection: AsyncConnection, account_id: int, by: Actor, known: bytes | None = None
) -> int:
    """End one session of an account, or all of them; return how many they were.

    Raises `AccountNotFoundError`.
    """
    was = await get(connection, account_id, lock=True)
    ended = await sessions.end(connection, was.id, known)
    if ended:
        await audit.record(
            connection, by, "sessions_ended", _target(was), after={"sessions": ended}
        )
    return ended


async def signed_in(
    connection: AsyncConnection, account_id: int, checked: str, rehashed: str | None
) -> bool:
    """Note that somebody signs in; False if the account has changed since `checked` was read."""
    statement = (
        update(account)
        .where(
            account.c.id == account_id,
            account.c.password == checked,
            account.c.disabled_at.is_(None),
        )
        .values(signed_in_at=func.now(), password=rehashed or checked)
    )
    return (await connection.execute(statement)).rowcount > 0


async def of_identity(connection: AsyncConnection, who: Identity, address: str | None) -> Account:
    """Return the account of whom an OpenID provider names, made or brought up to date by that.

    A role is what the provider says at each sign-in. Raises `SignInError` for one that is disabled.
    """
    values = {"name": who.name, "role": who.role, "signed_in_at": func.now()}
    made = upsert(account).values(**values, issuer=who.issuer, subject=who.subject)
    added = made.on_conflict_do_nothing().returning(*SHOWN)
    row = (await connection.execute(added)).mappings().one_or_none()
    if row is not None:
        new = Account(**row)
        facts = {"name": new.name, "role": new.role}
        by = new.actor(address)
        await audit.record(connection, by, "account_made", _target(new), after=facts)
        return new
    was = await _one(connection, _is_known_as(who.issuer, who.subject), lock=True)
    if was.disabled_at is not None:
        raise SignInError("disabled", (who.issuer, who.subject))
    await _write(connection, was.id, **values)
    now = msgspec.structs.replace(was, name=who.name, role=who.role)
    for fact in ("role", "name"):
        before, after = getattr(was, fact), getattr(now, fact)
        if before != after:
            await audit.record(
                connection,
                now.actor(address),
                f"account_{fact}_changed",
                _target(now),
                before={fact: before},
                after={fact: after},
            )
    return now


def _counted() -> Select[Any]:
    """Select accounts, each with how many sessions of it are open."""
    is_theirs = (session.c.account_id == account.c.id) & sessions.is_open()
    open_sessions = select(func.count()).where(is_theirs).scalar_subquery()
    return select(*SHOWN, open_sessions.label("sessions"))


async def _one(connection: AsyncConnection, which: ColumnElement[bool], *, lock: bool) -> Account:
    statement = select(*SHOWN).where(which)
    if lock:
        statement = statement.with_for_update()
    row = (await connection.execute(statement)).mappings().one_or_none()
    if row is None:
        raise AccountNotFoundError
    return Account(**row)


async def _others(connection: AsyncConnection, account_id: int, by: Actor) -> Account:
    """Return an account that is not the one of who asks, so that an admin is always left.

    Of two admins who shut each other out at once the second is refused with `TakenAwayError`.
    """
    if by.kind != "account":
        return await get(connection, account_id, lock=True)
    if by.id == account_id:
        raise OwnAccountError
    both = select(*SHOWN).where(account.c.id.in_((account_id, by.id)))
    in_order = both.order_by(account.c.id).with_for_update()  # nobody waits in a circle
    found = {row["id"]: Account(**row) for row in (await connection.execute(in_order)).mappings()}
    own = found.get(by.id)
    if own is None or own.disabled_at is not None or own.role != "admin":
        raise TakenAwayError
    if account_id not in found:
        raise AccountNotFoundError
    return found[account_id]


async def _write(connection: AsyncConnection, account_id: int, **values: object) -> None:
    await connection.execute(update(account).where(account.c.id == account_id).values(**values))


def _is_called(name: str) -> ColumnElement[bool]:
    return _has_name(name) & account.c.issuer.is_(None)


def _is_another_form(name: str) -> ColumnElement[bool]:
    return func.lower(account.c.name) != func.lower(name)


def _has_name(name: str) -> ColumnElement[bool]:
    """Compare with a name as it is given, as old ones were kept, and as new ones are."""
    return func.lower(account.c.name).in_((func.lower(name), func.lower(clean_name(name))))


def _is_known_as(issuer: str, subject: str) -> ColumnElement[bool]:
    return (account.c.issuer == issuer) & (account.c.subject == subject)


def _target(which: Account) -> audit.Target:
    return audit.Target("account", which.id)
