"""Write the audit log: the actor, action and target of every change, its time and IP address.

An entry is written in the transaction of its change. A database trigger refuses changes of entries.
"""

from collections.abc import Mapping
from typing import Any, Literal

import msgspec

from mailer.access.model import Actor
from mailer.db.engine import AnyConnection, execute_driver_sql

AuditedFields = Mapping[str, Any]
"""Names and values of fields of a target, stored as JSON. Secrets are left out; a phone and a tag
are masked."""

TargetKind = Literal[
    "mailing",
    "client",
    "directory",
    "list",
    "opt_out",
    "key",
    "user",
    "database",
    "gateway",
    "reply",
    "webhook",
]


class Target(msgspec.Struct, frozen=True):
    """The object that an action changed."""

    kind: TargetKind
    id: int | None = None


INSERT_ENTRY = """
    INSERT INTO audit
        (actor_kind, actor_id, actor, address, action, target_kind, target_id, before, after)
    VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9)"""


async def record(  # noqa: PLR0913  # the fields of an entry
    connection: AnyConnection,
    by: Actor,
    action: str,
    target: Target,
    *,
    before: AuditedFields | None = None,
    after: AuditedFields | None = None,
) -> None:
    """Write an entry: the actor `by` has done `action` to `target`.

    `action` is a fixed name such as `mailing_paused`. `before` and `after` are the changed fields,
    or None. The connection must be in the transaction of the change itself.
    """
    actor_values = (by.kind, by.id, by.name, by.address)
    action_values = (action, target.kind, target.id, _json(before), _json(after))
    await execute_driver_sql(connection, INSERT_ENTRY, (*actor_values, *action_values))


def _json(fields: AuditedFields | None) -> str | None:
    return None if fields is None else msgspec.json.encode(fields).decode()
