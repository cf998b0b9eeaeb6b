"""Check the authorization of long operations again, before they commit or continue.

During an import or a download, a key may be revoked, or a user disabled.
"""

from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import TypeVar

import asyncpg
import msgspec
from sqlalchemy.ext.asyncio import AsyncEngine

from mailer.access.keys import CURRENT_SCOPE_SQL
from mailer.access.model import Actor
from mailer.access.sessions import CURRENT_ROLE_SQL, MAX_LIFETIME
from mailer.db.engine import asyncpg_connection
from mailer.errors import ForbiddenError
from mailer.roles import SCOPE_BY_ROLE, Scope

Part = TypeVar("Part")


class AccessRevokedError(ForbiddenError):
    """The right to do this was revoked in the meantime."""


async def ensure_authorized(database: asyncpg.Connection, by: Actor, needed: Scope) -> None:
    """Raise `AccessRevokedError` if the actor's key or session no longer has the scope `needed`."""
    if by.kind == "key":
        scope = await database.fetchval(CURRENT_SCOPE_SQL, by.id)
    elif by.kind == "user":
        role = await database.fetchval(CURRENT_ROLE_SQL, by.id, by.session, MAX_LIFETIME)
        scope = SCOPE_BY_ROLE.get(role)
    else:  # the command line and anonymous requests cannot lose access
        return
    if scope is None or not msgspec.structs.replace(by, scope=scope).may(needed):
        raise AccessRevokedError


async def stream_while_authorized(
    engine: AsyncEngine, by: Actor, needed: Scope, parts: AsyncGenerator[Part, None]
) -> AsyncGenerator[Part, None]:
    """Yield the parts of a download while the actor has the scope `needed`.

    Before each part the scope is checked; raises `AccessRevokedError` if it is lost.
    """
    async with aclosing(parts):
        async for part in parts:
            if by.kind in {"key", "user"}:
                async with engine.connect() as connection:
                    await ensure_authorized(await asyncpg_connection(connection), by, needed)
            yield part
