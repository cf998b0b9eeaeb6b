"""Erasing a client: also cancels scheduled messages, and erases field values, replies and lists.

It is apart from `mailer.client`, which knows nothing of messages.
"""

from litestar import Controller, delete
from litestar.di import NamedDependency
from sqlalchemy.ext.asyncio import AsyncEngine

from mailer.access import audit
from mailer.access.model import Actor
from mailer.client import store as clients
from mailer.client.api import ClientId
from mailer.client.lists import membership
from mailer.idempotency import store as claims
from mailer.mailing import ending
from mailer.message import erasing
from mailer.reply import store as replies


async def erase_client(engine: AsyncEngine, client_id: int, actor: Actor) -> None:
    """Erase a client's personal data permanently and cancel the client's scheduled messages.

    Raises `ClientNotFoundError`.
    """
    async with engine.begin() as connection:
        await replies.erase_of_client(connection, client_id)  # while the client has a phone
        await clients.erase(connection, client_id)
        await membership.remove_from_all(connection, client_id)
        await claims.erase_of_client(connection, client_id)
        await ending.cancel_scheduled_of_client(connection, client_id)
        await erasing.erase_values_of_client(connection, client_id)
        await audit.record(connection, actor, "client_erased", audit.Target("client", client_id))


class ErasureController(Controller):
    """The API route that erases a client."""

    path = "/clients"
    tags = ("clients",)

    @delete("/{client_id:int}", required_scope="write")
    async def delete_client(
        self, engine: NamedDependency[AsyncEngine], by: NamedDependency[Actor], client_id: ClientId
    ) -> None:
        """Delete a client: erase the personal data permanently and cancel its scheduled messages.

        A message that may already have been accepted becomes `unknown` instead of `cancelled`.
        """
        await erase_client(engine, client_id, by)
