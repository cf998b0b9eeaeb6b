"""Routes of the directory."""

from typing import Annotated, Any

from litestar import Controller, Request, delete, get, patch, post
from litestar.params import Parameter
from msgspec import UNSET, UnsetType
from sqlalchemy.ext.asyncio import AsyncEngine

from mailer.client import store
from mailer.client.model import Client, ClientChange, NewClient, OperatorCode, Phone, Tag, TimeZone
from mailer.validation import MAX_ID
from mailer.web.body import JsonBody
from mailer.web.paging import Page, page_of
from mailer.web.query import PageQuery, takes

ClientId = Annotated[int, Parameter(ge=1, le=MAX_ID, description="The client's id.")]


class ClientQuery(PageQuery, frozen=True, kw_only=True):
    """Which clients."""

    operator_code: OperatorCode | UnsetType = UNSET
    tag: Tag | UnsetType = UNSET
    time_zone: TimeZone | UnsetType = UNSET
    phone: Phone | UnsetType = UNSET


class ClientController(Controller):
    """The directory of clients."""

    path = "/clients"
    tags = ("clients",)
    dto = JsonBody
    return_dto = None

    @post()
    async def add_client(self, engine: AsyncEngine, data: NewClient) -> Client:
        """Add a client. 409 when the phone is taken."""
        async with engine.begin() as connection:
            return await store.add(connection, data)

    @get(**takes(ClientQuery))
    async def list_clients(
        self, engine: AsyncEngine, request: Request[Any, Any, Any], asked: ClientQuery
    ) -> Page[Client]:
        """List clients, newest first, those that equal what is given."""
        async with engine.connect() as connection:
            found = await store.page(connection, asked.position, **asked.equal())
        return page_of(found, request, lambda row: Client(**row._asdict()))

    @get("/{client_id:int}")
    async def get_client(self, engine: AsyncEngine, client_id: ClientId) -> Client:
        """Return a client."""
        async with engine.connect() as connection:
            return await store.get(connection, client_id)

    @patch("/{client_id:int}")
    async def change_client(
        self, engine: AsyncEngine, client_id: ClientId, data: ClientChange
    ) -> Client:
        """Change a client: the fields given; a new phone brings its own operator code."""
        async with engine.begin() as connection:
            return await store.change(connection, client_id, data)

    @delete("/{client_id:int}")
    async def delete_client(self, engine: AsyncEngine, client_id: ClientId) -> None:
        """Erase a client's personal data for good and cancel what was to be sent."""
        async with engine.begin() as connection:
            await store.erase(connection, client_id)
