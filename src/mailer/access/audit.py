"""Write the audit log: the actor, action and target of every change, its time and IP address.

An entry is written in the transaction of its change. A database trigger refuses changes of entries.
"""

from collections.abc import Mapping
from typing import Any, Literal

import asyncpg
import msgspec
from sqlalchemy.ext.asyncio import AsyncConnection

from mailer.access.model import Actor
from mailer.errors import ConflictError

AuditedFields = Mapping[str, Any]
"""Fields of the target as JSON; never a phone, a tag or a secret."""


TargetKind = Literal["mailing", "client", "directory", "key", "user", "database", "gateway"]


class Target(msgspec.Struct, frozen=True):
    """The object that an action changed."""

    kind: TargetKind
    id: int | None = None


class ClaimLostError(ConflictError):
    """Another attempt of this request is being processed; send it again."""


INSERT_ENTRY = """
    INSERT INTO audit
        (actor_kind, actor_id, actor, address, action, target_kind, target_id, before, after)
    VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9)"""
# Written in the transaction of the change. `attempt` and `result IS NULL` make sure that only one
# attempt of a request does its work.
COMPLETE_IDEMPOTENCY = """
    UPDATE idempotency SET result = $1, client_id = $2, digest = $3
    WHERE owner = $4 AND key = $5 AND attempt = $6 AND result IS NULL"""


async def record(  # noqa: PLR0913  # the fields of an entry
    connection: AsyncConnection | asyncpg.Connection,
    by: Actor,
    action: str,
    target: Target,
    *,
    before: AuditedFields | None = None,
    after: AuditedFields | None = None,
    result: AuditedFields | None = None,
) -> None:
    """Record an action in the audit log, in the transaction of its change.

    `result` is stored for a repeat of a request with an Idempotency-Key. Default: the target's id.
    Raises `ClaimLostError` if another attempt of the request has done the work; the transaction
    must then be rolled back.
    """
    actor_values = (by.kind, by.id, by.name, by.address)
    action_values = (action, target.kind, target.id, _json(before), _json(after))
    await _execute(connection, INSERT_ENTRY, (*actor_values, *action_values))
    if by.claim is None:
        return
    claim = by.claim
    client_id = target.id if target.kind == "client" else None
    result = {"id": target.id} if result is None else result
    values = (_json(result), client_id, claim.digest, claim.owner, claim.key, claim.attempt)
    if await _execute(connection, COMPLETE_IDEMPOTENCY, values) == 0:
        raise ClaimLostError


async def _execute(
    connection: AsyncConnection | asyncpg.Connection, sql: str, values: tuple[Any, ...]
) -> int:
    """Execute a statement and return the number of rows that it wrote."""
    if isinstance(connection, AsyncConnection):
        return (await connection.exec_driver_sql(sql, values)).rowcount
    return int((await connection.execute(sql, *values)).rpartition(" ")[2])


def _json(fields: AuditedFields | None) -> str | None:
    return None if fields is None else msgspec.json.encode(fields).decode()
