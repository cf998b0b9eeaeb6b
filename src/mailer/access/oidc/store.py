"""SQL of ways to the OpenID provider that have begun. The caller owns the transaction."""

from datetime import timedelta

import msgspec
from sqlalchemy import delete, func, insert
from sqlalchemy.ext.asyncio import AsyncConnection

from mailer.access.oidc.model import Start
from mailer.access.secret import digest
from mailer.db.access import sign_in

LONGEST = timedelta(minutes=10)
"""How long somebody may be at the provider."""


class Pending(msgspec.Struct, frozen=True):
    """What was kept for somebody's way back."""

    nonce: str
    verifier: str
    back: str


async def keep(connection: AsyncConnection, start: Start, back: str) -> None:
    """Keep what is needed when the browser comes back, then to be led on to `back`."""
    await connection.execute(
        insert(sign_in).values(
            digest=digest(start.state), nonce=start.nonce, verifier=start.verifier, back=back
        )
    )


async def take(connection: AsyncConnection, state: str) -> Pending | None:
    """Return what was kept under a state, once: None of one that is unknown, used or too old."""
    statement = (
        delete(sign_in)
        .where(sign_in.c.digest == digest(state), sign_in.c.created_at > func.now() - LONGEST)
        .returning(sign_in.c.nonce, sign_in.c.verifier, sign_in.c.back)
    )
    row = (await connection.execute(statement)).mappings().one_or_none()
    return None if row is None else Pending(**row)
