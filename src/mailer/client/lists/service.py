"""Use cases of lists of clients: create and delete one, put clients on it and take them off.

Each one writes its audit log entry in the transaction that makes the change. An entry has the name
of the list and numbers of clients, and names no client.
"""

import msgspec
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from mailer.access import audit
from mailer.access.model import Actor
from mailer.client.lists import membership, store
from mailer.client.lists.model import (
    AddedMembers,
    ClientList,
    ListInUseError,
    ListMembers,
    NewList,
    RemovedMembers,
)
from mailer.idempotency.do_once import do_once
from mailer.idempotency.model import IdempotencyClaim


async def create(
    engine: AsyncEngine, new: NewList, actor: Actor, claim: IdempotencyClaim | None = None
) -> ClientList:
    """Create a list, or return the one that an earlier attempt of the request created.

    Raises `ListNameTakenError`.
    """
    async with engine.begin() as connection:
        done = await do_once(connection, claim, lambda: _create(connection, new, actor))
        return await store.get(connection, done.result["id"])


async def _create(connection: AsyncConnection, new: NewList, actor: Actor) -> int:
    """Create a list in the caller's transaction; return its id."""
    created = await store.create(connection, new.name)
    target = audit.Target("list", created.id)
    await audit.record(connection, actor, "list_created", target, after={"name": created.name})
    return created.id


async def delete(engine: AsyncEngine, list_id: int, actor: Actor) -> None:
    """Delete a list; its clients stay in the directory.

    Raises `ListNotFoundError`, and `ListInUseError` when mailings that have not ended are for it.
    """
    async with engine.begin() as connection:
        deleted = await store.lock_for_deletion(connection, list_id)
        if mailing_ids := await store.find_unended_mailings(connection, deleted.name):
            raise ListInUseError.of(mailing_ids)
        await store.mark_deleted(connection, list_id)
        before = {"name": deleted.name, "clients_count": deleted.clients_count}
        await audit.record(
            connection, actor, "list_deleted", audit.Target("list", list_id), before=before
        )


async def add_members(
    engine: AsyncEngine,
    list_id: int,
    members: ListMembers,
    actor: Actor,
    claim: IdempotencyClaim | None = None,
) -> AddedMembers:
    """Put clients on a list.

    Raises `ListNotFoundError`, and `InvalidError` naming every phone or id without a client; then
    nobody is put on the list.
    """
    async with engine.begin() as connection:
        done = await do_once(
            connection,
            claim,
            lambda: _add_members(connection, list_id, members, actor),
            msgspec.to_builtins,
        )
    return msgspec.convert(done.result, AddedMembers)


async def _add_members(
    connection: AsyncConnection, list_id: int, members: ListMembers, actor: Actor
) -> AddedMembers:
    """Put clients on a list in the caller's transaction."""
    changed = await store.get(connection, list_id)
    client_ids = await membership.find_clients(connection, members)
    added = await membership.add(connection, list_id, client_ids)
    if added:
        await _record(connection, actor, "list_clients_added", changed, {"added": added})
    return AddedMembers(added=added, unchanged=len(client_ids) - added)


async def remove_members(
    engine: AsyncEngine, list_id: int, members: ListMembers, actor: Actor
) -> RemovedMembers:
    """Take clients off a list; errors as in `add_members`."""
    async with engine.begin() as connection:
        changed = await store.get(connection, list_id)
        client_ids = await membership.find_clients(connection, members)
        removed = await membership.remove(connection, list_id, client_ids)
        if removed:
            await _record(connection, actor, "list_clients_removed", changed, {"removed": removed})
    return RemovedMembers(removed=removed, unchanged=len(client_ids) - removed)


async def _record(
    connection: AsyncConnection,
    actor: Actor,
    action: str,
    changed: ClientList,
    counts: dict[str, int],
) -> None:
    """Write to the audit log how many clients were put on a list, or taken off it."""
    after = {"name": changed.name, **counts}
    await audit.record(connection, actor, action, audit.Target("list", changed.id), after=after)
