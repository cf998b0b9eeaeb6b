"""Sign-in of users that an OpenID provider has identified."""

from sqlalchemy.ext.asyncio import AsyncEngine

from mailer.access import users as access_users
from mailer.access.service import begin_session, record_sign_in_failure
from mailer.oidc import users
from mailer.oidc.model import Identity, SignInError


async def sign_in(
    engine: AsyncEngine, identity: Identity, address: str | None, user_agent: str
) -> str:
    """Sign a user in by an OpenID identity; return the secret for the session cookie.

    Raises `SignInError` for a disabled user.
    """
    async with engine.begin() as connection:
        user = await users.upsert(connection, identity, address)
        return await begin_session(connection, user, address, user_agent)


async def record_failed_sign_in(
    engine: AsyncEngine, error: SignInError, address: str | None
) -> None:
    """Record a failed sign-in with the OpenID provider in the audit log.

    If the provider says that the user has no role any more, all sessions of the user end.
    """
    async with engine.begin() as connection:
        user = None
        if error.issuer_and_subject is not None:
            user = await users.find_by_subject(connection, *error.issuer_and_subject)
        if user is not None and error.reason == "no_role":
            await access_users.end_sessions(connection, user.id, user.actor(address))
        await record_sign_in_failure(connection, user.id if user else None, address)
