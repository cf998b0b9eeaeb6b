"""Creating and changing a client, with an entry in the audit log.

The audit log stays when a client is erased. So it holds no personal data: of a phone only the last
two digits, of a tag only whether it is set and whether it changed, of fields only the names.
"""

from collections.abc import Mapping
from typing import Any

import msgspec
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from mailer.access import audit
from mailer.access.model import Actor
from mailer.client import store
from mailer.client.fields import check_fields
from mailer.client.model import Client, ClientChange, NewClient
from mailer.idempotency.do_once import do_once
from mailer.idempotency.model import IdempotencyClaim
from mailer.log import MASK


async def create(
    engine: AsyncEngine, new: NewClient, actor: Actor, claim: IdempotencyClaim | None = None
) -> Client:
    """Create a client, or return the one that an earlier attempt of the request created.

    Raises `PhoneTakenError`.
    """
    async with engine.begin() as connection:
        done = await do_once(
            connection, claim, lambda: _create(connection, new, actor), client_id_of=int
        )
        return await store.get(connection, done.result["id"])


async def _create(connection: AsyncConnection, new: NewClient, actor: Actor) -> int:
    """Create a client and return its id."""
    client = await store.create(connection, new)
    target = audit.Target("client", client.id)
    await audit.record(connection, actor, "client_created", target, after=_audited_fields(client))
    return client.id


class FieldEdits(msgspec.Struct, frozen=True):
    """Changes to some fields of a client; the other fields stay as they are."""

    values: Mapping[str, str] = {}
    """The new values by name; an empty one removes the field."""

    def apply(self, fields: Mapping[str, str]) -> Mapping[str, str]:
        """Return all fields after the changes; raises `InvalidError` for too many."""
        return check_fields({**fields, **self.values})


NO_EDITS = FieldEdits()


async def change(
    engine: AsyncEngine,
    client_id: int,
    changes: ClientChange,
    actor: Actor,
    edits: FieldEdits = NO_EDITS,
) -> Client:
    """Change a client; raises `ClientNotFoundError` and `PhoneTakenError`.

    With `edits`, raises `InvalidError` if the client would have too many fields.
    """
    async with engine.begin() as connection:
        old = await store.get(connection, client_id, lock=True)
        if edits.values:
            changes = msgspec.structs.replace(changes, fields=edits.apply(old.fields))
        await store.change(connection, client_id, changes)
        client = await store.get(connection, client_id)  # a new phone may be opted out
        before, after = _audited_fields(old), _audited_fields(client)
        # compared without hiding, because two hidden tags are equal
        if changed := [name for name in after if getattr(old, name) != getattr(client, name)]:
            await audit.record(
                connection,
                actor,
                "client_changed",
                audit.Target("client", client_id),
                before={name: before[name] for name in changed},
                after={name: after[name] for name in changed},
            )
    return client


def _audited_fields(client: Client) -> dict[str, Any]:
    """Return the fields of a client for the audit log, with personal data hidden."""
    fields = {name: getattr(client, name) for name in NewClient.__struct_fields__}
    tag = None if client.tag is None else MASK
    hidden = {
        "phone": MASK + client.phone[-2:],
        "tag": tag,
        "fields": dict.fromkeys(client.fields, MASK),
    }
    return msgspec.to_builtins(fields | hidden)  # type: ignore[no-any-return]  # of a dict it returns a dict
