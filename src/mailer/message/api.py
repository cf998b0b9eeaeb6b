"""API routes of messages, over all mailings."""

from typing import Annotated, Any

from litestar import Controller, Request, get
from litestar.di import NamedDependency
from litestar.params import Parameter
from msgspec import UNSET, UnsetType
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from mailer.client.model import Phone
from mailer.client.store import find_ids_by_phone
from mailer.db.paging import RowPage
from mailer.message import across_mailings, reading
from mailer.message.model import Message, MessageHistory
from mailer.statuses import MessageStatus
from mailer.validation import MAX_ID
from mailer.web.paging import Page, page_of
from mailer.web.query import Id, PageQuery, accepts_query

NO_CLIENT_ID = 0
"""An id that no client has: the result of a search for an unknown phone."""

MessageId = Annotated[int, Parameter(ge=1, le=MAX_ID, description="The message's id.")]


class AllMessagesQuery(PageQuery, frozen=True, kw_only=True):
    """Filters and page of the list of all messages. Several filters must all match."""

    phone: Phone | UnsetType = UNSET
    client_id: Id | UnsetType = UNSET
    status: MessageStatus | UnsetType = UNSET


async def find_messages(connection: AsyncConnection, query: AllMessagesQuery) -> RowPage:
    """Return the page of the messages of all mailings that match a query."""
    status = None if query.status is UNSET else query.status
    client_ids = set() if query.client_id is UNSET else {query.client_id}
    if query.phone is not UNSET:
        with_phone = set(await find_ids_by_phone(connection, query.phone))
        client_ids = with_phone if query.client_id is UNSET else client_ids & with_phone
    elif query.client_id is UNSET:
        return await across_mailings.page(connection, query.position, status)
    client_id = client_ids.pop() if client_ids else NO_CLIENT_ID
    return await across_mailings.page_of_client(connection, query.position, client_id, status)


class MessageController(Controller):
    """Read messages, whatever their mailings."""

    path = "/messages"
    tags = ("messages",)

    @get(required_scope="read", **accepts_query(AllMessagesQuery))
    async def list_all_messages(
        self,
        engine: NamedDependency[AsyncEngine],
        request: Request[Any, Any, Any],
        query_params: NamedDependency[AllMessagesQuery],
    ) -> Page[Message]:
        """List the messages of all mailings that match all given filters, newest first.

        With `phone` or `client_id`: everything that was sent to a client, or will be. `count` is
        exact up to 10,000; 10001 stands for more.
        """
        async with engine.connect() as connection:
            page = await find_messages(connection, query_params)
        return page_of(page, request, reading.to_message)

    @get("/{message_id:int}", required_scope="read")
    async def get_message(
        self, engine: NamedDependency[AsyncEngine], message_id: MessageId
    ) -> MessageHistory:
        """Return a message with its text and its history: attempts, receipts and times."""
        async with engine.connect() as connection:
            return await reading.get_history(connection, None, message_id)
