"""SQL of pending sign-ins: those whose user has been redirected to the OpenID provider.

They are stored so that any process can handle the callback. The caller owns the transaction.
"""

from datetime import timedelta

import msgspec
from sqlalchemy import delete, func, insert
from sqlalchemy.ext.asyncio import AsyncConnection

from mailer.access.credentials import digest
from mailer.db.tables.access import oidc_sign_in
from mailer.oidc.model import SignInStart

SIGN_IN_TIMEOUT = timedelta(minutes=10)
"""The time that a user has to sign in at the provider."""


class PendingSignIn(msgspec.Struct, frozen=True):
    """What mailer must know again when the provider redirects the user back."""

    nonce: str
    verifier: str
    return_path: str
    """The path to redirect to after the sign-in."""


async def store_pending(connection: AsyncConnection, start: SignInStart, return_path: str) -> None:
    """Store a sign-in until its callback, which then redirects the browser to `return_path`.

    Of the state only a digest is stored, by which the callback finds the sign-in.
    """
    await connection.execute(
        insert(oidc_sign_in).values(
            digest=digest(start.state),
            nonce=start.nonce,
            verifier=start.verifier,
            return_path=return_path,
        )
    )


async def take_pending(connection: AsyncConnection, state: str) -> PendingSignIn | None:
    """Delete and return the pending sign-in with a state; so a state can be used only once.

    Return None if there is none, or if it is older than `SIGN_IN_TIMEOUT`.
    """
    statement = (
        delete(oidc_sign_in)
        .where(
            oidc_sign_in.c.digest == digest(state),
            oidc_sign_in.c.created_at > func.now() - SIGN_IN_TIMEOUT,
        )
        .returning(oidc_sign_in.c.nonce, oidc_sign_in.c.verifier, oidc_sign_in.c.return_path)
    )
    row = (await connection.execute(statement)).mappings().one_or_none()
    return None if row is None else PendingSignIn(**row)
