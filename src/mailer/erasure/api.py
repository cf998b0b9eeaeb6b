"""API route that erases a client."""

from litestar import Controller, delete
from litestar.di import NamedDependency
from sqlalchemy.ext.asyncio import AsyncEngine

from mailer.access.model import Actor
from mailer.client.api import ClientId
from mailer.erasure.service import erase_client


class ErasureController(Controller):
    """Erase a client of the directory."""

    path = "/clients"
    tags = ("clients",)

    @delete("/{client_id:int}", required_scope="write")
    async def delete_client(
        self, engine: NamedDependency[AsyncEngine], by: NamedDependency[Actor], client_id: ClientId
    ) -> None:
        """Delete a client: erase the personal data for good and cancel the client's open messages.

        A message that may already have been accepted becomes `unknown` instead of `cancelled`.
        """
        await erase_client(engine, client_id, by)
