"""Who did what to which thing, when and from where: written with the change, and never altered.

A trigger refuses every change of what stands there, whoever asks for it.
"""

from collections.abc import Mapping
from typing import Any, Literal

import asyncpg
import msgspec
from sqlalchemy.ext.asyncio import AsyncConnection

from mailer.access.model import Actor
from mailer.errors import ConflictError

Facts = Mapping[str, Any]
"""Fields of a thing, as JSON can hold them: never a phone, a tag or a secret."""


TargetKind = Literal["mailing", "client", "directory", "key", "account", "database", "gateway"]


class Target(msgspec.Struct, frozen=True):
    """What something was done to."""

    kind: TargetKind
    id: int | None = None


class ClaimLostError(ConflictError):
    """Another attempt of this request has taken over; ask again."""


RECORD = """
    INSERT INTO audit
        (actor_kind, actor_id, actor, address, action, target_kind, target_id, before, after)
    VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9)"""
# What a request under an Idempotency-Key has done is known from the moment it is done, and is done
# by one attempt alone.
FULFIL = """
    UPDATE idempotency SET effect = $1, client_id = $2, digest = $3
    WHERE owner = $4 AND key = $5 AND attempt = $6 AND effect IS NULL"""


async def record(  # noqa: PLR0913  # what an audit log tells
    connection: AsyncConnection | asyncpg.Connection,
    by: Actor,
    action: str,
    target: Target,
    *,
    before: Facts | None = None,
    after: Facts | None = None,
    effect: Facts | None = None,
) -> None:
    """Write down what was done, in the transaction that does it.

    `effect` is what a repeat of the request needs to know of it, the target's id unless given.
    Raises `ClaimLostError` when the request is done by another attempt: the transaction must end.
    """
    who = (by.kind, by.id, by.name, by.address)
    what = (action, target.kind, target.id, _json(before), _json(after))
    await _execute(connection, RECORD, (*who, *what))
    if by.claim is None:
        return
    claim = by.claim
    client_id = target.id if target.kind == "client" else None
    effect = {"id": target.id} if effect is None else effect
    values = (_json(effect), client_id, claim.digest, claim.owner, claim.key, claim.attempt)
    if await _execute(connection, FULFIL, values) == 0:
        raise ClaimLostError


async def _execute(
    connection: AsyncConnection | asyncpg.Connection, sql: str, values: tuple[Any, ...]
) -> int:
    """Return how many rows a statement wrote."""
    if isinstance(connection, AsyncConnection):
        return (await connection.exec_driver_sql(sql, values)).rowcount
    return int((await connection.execute(sql, *values)).rpartition(" ")[2])


def _json(facts: Facts | None) -> str | None:
    return None if facts is None else msgspec.json.encode(facts).decode()
