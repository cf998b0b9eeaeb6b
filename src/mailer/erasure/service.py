"""Erasing a client, with the open messages and the stored responses of the client."""

from sqlalchemy.ext.asyncio import AsyncEngine

from mailer.access import audit
from mailer.access.model import Actor
from mailer.client import store as clients
from mailer.idempotency import store as responses
from mailer.message import ending


async def erase_client(engine: AsyncEngine, client_id: int, actor: Actor) -> None:
    """Erase a client's personal data for good and cancel the client's open messages.

    Raises `ClientNotFoundError`.
    """
    async with engine.begin() as connection:
        await clients.erase(connection, client_id)
        await responses.erase_of_client(connection, client_id)
        await ending.cancel_of_client(connection, client_id)
        await audit.record(connection, actor, "client_erased", audit.Target("client", client_id))
