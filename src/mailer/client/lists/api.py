"""API routes of the lists of clients.

The clients to put on a list, or to take off it, are in the body and not in the address: proxies log
addresses.
"""

from http import HTTPStatus
from typing import Annotated, Any

from litestar import Controller, Request, delete, get, post
from litestar.di import NamedDependency
from litestar.params import JSONBody, Parameter
from msgspec import UNSET, Meta, UnsetType
from sqlalchemy.ext.asyncio import AsyncEngine

from mailer.access.model import Actor
from mailer.client import store as clients
from mailer.client.lists import service, store
from mailer.client.lists.model import (
    AddedMembers,
    ClientList,
    ListMembers,
    NewList,
    RemovedMembers,
)
from mailer.client.model import Client
from mailer.idempotency.model import IdempotencyClaim
from mailer.validation import MAX_ID
from mailer.web.body import JsonBody
from mailer.web.paging import Page, page_of
from mailer.web.query import PageQuery, SearchWords, accepts_query

ListId = Annotated[int, Parameter(ge=1, le=MAX_ID, description="The list's id.")]


class ListQuery(PageQuery, frozen=True, kw_only=True):
    """The search, and paging, of the lists of clients."""

    search: (
        Annotated[
            SearchWords,
            Meta(
                description="Lists with this text anywhere in their name, without regard to case.",
                examples=["sale"],
            ),
        ]
        | UnsetType
    ) = UNSET


class ListController(Controller):
    """Lists of clients: named sets of them. A client may be on many lists.

    A mailing is for the clients on a list when its `client_filter` names the list. An import of
    clients can put them on a list too.
    """

    path = "/lists"
    tags = ("lists",)
    dto = JsonBody
    return_dto = None

    @get(required_scope="read", **accepts_query(ListQuery))
    async def list_lists(
        self,
        engine: NamedDependency[AsyncEngine],
        request: Request[Any, Any, Any],
        query_params: NamedDependency[ListQuery],
    ) -> Page[ClientList]:
        """List the lists of clients, newest first; with `search` those with it in their name."""
        async with engine.connect() as connection:
            page = await store.page(connection, query_params.position, **query_params.filters())
        return page_of(page, request, lambda row: ClientList(**row._asdict()))

    @post(required_scope="write")
    async def create_list(
        self,
        engine: NamedDependency[AsyncEngine],
        by: NamedDependency[Actor],
        claim: NamedDependency[IdempotencyClaim | None],
        data: JSONBody[NewList],
    ) -> ClientList:
        """Create a list without clients. 409 when another list has this name."""
        return await service.create(engine, data, by, claim)

    @get("/{list_id:int}", required_scope="read")
    async def get_list(self, engine: NamedDependency[AsyncEngine], list_id: ListId) -> ClientList:
        """Return a list with the number of its clients."""
        async with engine.connect() as connection:
            return await store.get(connection, list_id)

    @delete("/{list_id:int}", required_scope="write")
    async def delete_list(
        self, engine: NamedDependency[AsyncEngine], by: NamedDependency[Actor], list_id: ListId
    ) -> None:
        """Delete a list. Its clients stay in the directory.

        409 when mailings that have not ended are for this list; the error names them.
        """
        await service.delete(engine, list_id, by)

    @get("/{list_id:int}/clients", required_scope="read", **accepts_query(PageQuery))
    async def list_members(
        self,
        engine: NamedDependency[AsyncEngine],
        request: Request[Any, Any, Any],
        list_id: ListId,
        query_params: NamedDependency[PageQuery],
    ) -> Page[Client]:
        """List the clients on a list, those with the highest ids first."""
        async with engine.connect() as connection:
            name = (await store.get(connection, list_id)).name
            page = await clients.page(connection, query_params.position, list=name)
        return page_of(page, request, lambda row: Client(**row._asdict()))

    @post("/{list_id:int}/clients", required_scope="write", status_code=HTTPStatus.OK)
    async def add_members(
        self,
        engine: NamedDependency[AsyncEngine],
        by: NamedDependency[Actor],
        claim: NamedDependency[IdempotencyClaim | None],
        list_id: ListId,
        data: JSONBody[ListMembers],
    ) -> AddedMembers:
        """Put up to 1,000 clients on a list, by their phones or ids.

        400 when a phone or an id is that of no client: the errors name each by its position, such
        as `phones[3]`, counted from 0, and nobody is put on the list.
        """
        return await service.add_members(engine, list_id, data, by, claim)

    @delete("/{list_id:int}/clients", required_scope="write", status_code=HTTPStatus.OK)
    async def remove_members(
        self,
        engine: NamedDependency[AsyncEngine],
        by: NamedDependency[Actor],
        list_id: ListId,
        data: JSONBody[ListMembers],
    ) -> RemovedMembers:
        """Take up to 1,000 clients off a list, by their phones or ids; they are in the body.

        Clients who are not on the list count as unchanged. 400 as when clients are put on it.
        """
        return await service.remove_members(engine, list_id, data, by)
