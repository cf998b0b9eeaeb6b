"""Whether who began something long may still do it: asked again before it counts."""

from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import TypeVar

import asyncpg
import msgspec
from sqlalchemy.ext.asyncio import AsyncEngine

from mailer.access.keys import STILL as KEY
from mailer.access.model import SCOPE_OF, Actor
from mailer.access.sessions import LONGEST
from mailer.access.sessions import STILL as SESSION
from mailer.db.engine import raw
from mailer.errors import ForbiddenError
from mailer.settings import Scope

Part = TypeVar("Part")


class TakenAwayError(ForbiddenError):
    """The right to do this was taken away meanwhile."""


async def ensure(database: asyncpg.Connection, by: Actor, needed: Scope) -> None:
    """Raise `TakenAwayError` if the key or the session of who asks opens no such thing any more."""
    if by.kind == "key":
        scope = await database.fetchval(KEY, by.id)
    elif by.kind == "account":
        role = await database.fetchval(SESSION, by.id, by.session, LONGEST)
        scope = SCOPE_OF.get(role)
    else:
        return
    if scope is None or not msgspec.structs.replace(by, scope=scope).may(needed):
        raise TakenAwayError


async def while_allowed(
    engine: AsyncEngine, by: Actor, needed: Scope, parts: AsyncGenerator[Part, None]
) -> AsyncGenerator[Part, None]:
    """Give parts for as long as who asks may have them; then raises `TakenAwayError`."""
    async with aclosing(parts):
        async for part in parts:
            if by.kind in {"key", "account"}:
                async with engine.connect() as connection:
                    await ensure(await raw(connection), by, needed)
            yield part
