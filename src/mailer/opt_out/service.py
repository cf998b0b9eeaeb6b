"""Use cases of opt-outs: opt phones out and in, in the caller's transaction or in one of their own.

What users do has an entry in the audit log, without the phone. Opt-outs by replies and gateways
have none: the opt-out itself has its source.
"""

from collections.abc import Iterable, Sequence

import msgspec
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from mailer.access import audit
from mailer.access.model import Actor
from mailer.db.engine import AnyConnection
from mailer.idempotency.do_once import do_once
from mailer.idempotency.model import IdempotencyClaim
from mailer.opt_out import store
from mailer.opt_out.model import OptOut, OptOutNotFoundError, OptOutSource


class OptOutResult(msgspec.Struct, frozen=True):
    """The opt-out of a phone, and whether it is new."""

    opt_out: OptOut
    is_new: bool


async def opt_out_phones(
    connection: AnyConnection,
    phones: Sequence[str],
    source: OptOutSource,
    gateway: str | None = None,
) -> list[OptOut]:
    """Opt phones out in the caller's transaction; return the new opt-outs.

    The scheduled marketing messages of the clients are cancelled, and so are, within a second after
    the commit, those that workers have claimed and not written yet. A phone need not be that of a
    client. `gateway` is the one of the reply or of the answer, if any.
    """
    added = await store.add(connection, phones, source, gateway)
    await stop_messages(connection, added)
    return added


async def stop_messages(connection: AnyConnection, opt_outs: Iterable[OptOut]) -> None:
    """Stop the marketing messages of the clients of new opt-outs; see `store.stop_messages`."""
    client_ids = [new.client_id for new in opt_outs if new.client_id is not None]
    await store.stop_messages(connection, client_ids)


async def opt_out_phone(
    connection: AsyncConnection, phone: str, source: OptOutSource, gateway: str | None = None
) -> OptOut | None:
    """Opt a phone out; return None if it was opted out already. See `opt_out_phones`."""
    added = await opt_out_phones(connection, [phone], source, gateway)
    return added[0] if added else None


async def opt_in_phone(
    connection: AsyncConnection,
    phone: str,
    source: OptOutSource,  # noqa: ARG001  # nothing remains of an opt-out in which it could be kept
) -> OptOut | None:
    """Opt a phone in again, in the caller's transaction; return None if it was not opted out.

    Messages that were cancelled stay so.
    """
    return await store.remove(connection, phone)


async def opt_out(
    engine: AsyncEngine,
    phone: str,
    source: OptOutSource,
    actor: Actor,
    claim: IdempotencyClaim | None = None,
) -> OptOutResult:
    """Opt a phone out for a user; return its opt-out, whether it is new or not."""

    async def work() -> OptOutResult:
        added = await opt_out_phone(connection, phone, source)
        if added is not None:
            await _audit(connection, actor, "client_opted_out", added)
        found = added or await store.find(connection, phone)
        if found is None:  # it was deleted since the statement that found it
            raise OptOutNotFoundError
        return OptOutResult(found, is_new=added is not None)

    async with engine.begin() as connection:
        done = await do_once(
            connection,
            claim,
            work,
            lambda result: {"id": result.opt_out.id, "is_new": result.is_new},
            client_id_of=lambda result: result.opt_out.client_id,
        )
        found = await store.get(connection, done.result["id"])
        return OptOutResult(found, is_new=done.result["is_new"])


async def opt_in(
    engine: AsyncEngine, phone: str, actor: Actor, claim: IdempotencyClaim | None = None
) -> None:
    """Opt a phone in again for a user; raises `OptOutNotFoundError`."""

    async def work() -> int:
        removed = await store.remove(connection, phone)
        return await _audit_opt_in(connection, removed, actor)

    async with engine.begin() as connection:
        await do_once(connection, claim, work)


async def opt_in_by_id(engine: AsyncEngine, opt_out_id: int, actor: Actor) -> None:
    """Delete an opt-out for a user; raises `OptOutNotFoundError`."""
    async with engine.begin() as connection:
        removed = await store.remove_by_id(connection, opt_out_id)
        await _audit_opt_in(connection, removed, actor)


async def _audit_opt_in(connection: AsyncConnection, removed: OptOut | None, actor: Actor) -> int:
    """Write the audit log entry of an opt-in; return the id of the opt-out that was deleted."""
    if removed is None:
        raise OptOutNotFoundError
    await _audit(connection, actor, "client_opted_in", removed)
    return removed.id


async def _audit(connection: AsyncConnection, actor: Actor, action: str, changed: OptOut) -> None:
    """Write an entry about a client, or about an opt-out without a client."""
    target = audit.Target("opt_out", changed.id)
    if changed.client_id is not None:
        target = audit.Target("client", changed.client_id)
    await audit.record(connection, actor, action, target)
