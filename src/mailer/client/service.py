"""What people do with clients: add, change, erase; each is written into the audit log.

The log stays when a client is erased, so that it tells neither phone nor tag: only that they
changed, and a phone's last two digits.
"""

from typing import Any

import msgspec
from sqlalchemy.ext.asyncio import AsyncEngine

from mailer.access import audit
from mailer.access.model import Actor
from mailer.client import store
from mailer.client.model import Client, ClientChange, NewClient
from mailer.log import HIDDEN


async def add(engine: AsyncEngine, new: NewClient, by: Actor) -> Client:
    """Add a client; raises `PhoneTakenError`."""
    async with engine.begin() as connection:
        if by.effect is not None:
            return await store.get(connection, by.effect["id"])
        client = await store.add(connection, new)
        target = audit.Target("client", client.id)
        await audit.record(connection, by, "client_added", target, after=_facts(client))
    return client


async def change(engine: AsyncEngine, client_id: int, changes: ClientChange, by: Actor) -> Client:
    """Change a client; raises `ClientNotFoundError` and `PhoneTakenError`."""
    async with engine.begin() as connection:
        was = await store.get(connection, client_id, lock=True)
        client = await store.change(connection, client_id, changes)
        before, after = _facts(was), _facts(client)
        if differ := [name for name in after if getattr(was, name) != getattr(client, name)]:
            await audit.record(
                connection,
                by,
                "client_changed",
                audit.Target("client", client_id),
                before={name: before[name] for name in differ},
                after={name: after[name] for name in differ},
            )
    return client


async def erase(engine: AsyncEngine, client_id: int, by: Actor) -> None:
    """Erase a client's personal data for good and cancel what was to be sent.

    Raises `ClientNotFoundError`.
    """
    async with engine.begin() as connection:
        await store.erase(connection, client_id)
        await audit.record(connection, by, "client_erased", audit.Target("client", client_id))


def _facts(client: Client) -> dict[str, Any]:
    """Return what the audit log may tell of a client."""
    facts = {name: getattr(client, name) for name in NewClient.__struct_fields__}
    tag = client.tag and HIDDEN
    return msgspec.to_builtins(facts | {"phone": HIDDEN + client.phone[-2:], "tag": tag})  # type: ignore[no-any-return]  # a dict stays one
