"""Pages of the messages of a mailing: list, CSV download, and the history of one message."""

from datetime import timedelta
from typing import Annotated, Any

import msgspec
from litestar import Controller, Request, Response, get
from litestar.di import NamedDependency
from litestar.params import FromPath
from msgspec import UNSET, Meta, UnsetType
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from mailer.access.model import Actor
from mailer.admin.listing import EMPTY_PAGE, list_url, page_links, read_list_query
from mailer.admin.mailings.history import events_of
from mailer.admin.render import PageContext
from mailer.client import store as clients
from mailer.client.model import Phone
from mailer.client.phone import normalize_phone
from mailer.clock import database_clock
from mailer.db.paging import RowPage
from mailer.gateway.channel import Channels
from mailer.mailing import store
from mailer.mailing.actions import allowed_actions
from mailer.mailing.activity import with_holds
from mailer.mailing.api import MailingId, MessageQuery, read_count
from mailer.mailing.model import Mailing
from mailer.message import counters
from mailer.message import reading as messages
from mailer.message.exporting import export_messages
from mailer.settings import Settings
from mailer.validation import MAX_ID
from mailer.web.download import Download, csv_answer
from mailer.web.query import read_query

MESSAGE_FILTER_FIELDS = ("status", "reason", "gateway", "phone", "limit")
NO_CLIENT_ID = 0
"""An id that no client has: the result of a search for an unknown phone."""


class MessageListQuery(MessageQuery, frozen=True, kw_only=True):
    """Filters of the list of messages: those of the API, and the phone of the client."""

    phone: Annotated[Phone, Meta(extra={"normalize": normalize_phone})] | UnsetType = UNSET

    async def with_client_id(self, connection: AsyncConnection) -> MessageQuery:
        """Return the query of the API, with the id of the client in place of the phone.

        The id is `NO_CLIENT_ID` if no client has the phone.
        """
        values = msgspec.structs.asdict(self)
        phone = values.pop("phone")
        if phone is not UNSET:
            client_id = await clients.find_id_by_phone(connection, phone)
            values["client_id"] = NO_CLIENT_ID if client_id is None else client_id
        return MessageQuery(**values)


async def find_messages(
    connection: AsyncConnection, mailing: Mailing, query: MessageQuery
) -> RowPage:
    """Return the page of a mailing's messages that match a query."""
    if query.client_id == NO_CLIENT_ID:
        return EMPTY_PAGE
    count = await read_count(connection, mailing, query)
    return await messages.page(connection, mailing.id, query.position, count, **query.filters())


class MessageList(Controller):
    """Messages of a mailing, newest first."""

    path = "/mailings/{mailing_id:int}"

    @get("/messages", required_scope="read")
    async def list_messages(
        self,
        request: Request[Any, Any, Any],
        engine: NamedDependency[AsyncEngine],
        context: NamedDependency[PageContext],
        mailing_id: MailingId,
    ) -> Response[str]:
        """List the messages that match the filters, with the phones of their clients."""
        form, query = read_list_query(request, MessageListQuery, *MESSAGE_FILTER_FIELDS)
        async with engine.connect() as connection:
            mailing = await store.get(connection, mailing_id)
            page = EMPTY_PAGE
            if query is not None:
                page = await find_messages(
                    connection, mailing, await query.with_client_id(connection)
                )
            phones = await clients.get_phones(connection, [row.client_id for row in page.rows])
            reasons = await counters.get_by_reason(connection, mailing_id)
            by_gateway = await counters.get_by_gateway(connection, mailing_id)
        path = f"/mailings/{mailing_id}/messages"
        return await context.render_page(
            "mailings/messages.html",
            200 if query else 400,
            form=form,
            mailing=mailing,
            messages=page.rows,
            count=page.count,
            phones=phones,
            reasons=reasons,
            gateways=list(by_gateway),
            pages=page_links(page, path, form),
            download=list_url(f"{path}.csv", form),
        )

    @get("/messages.csv", required_scope="read")
    async def download_messages(
        self,
        request: Request[Any, Any, Any],
        engine: NamedDependency[AsyncEngine],
        by: NamedDependency[Actor],
        mailing_id: MailingId,
    ) -> Download:
        """Download all messages that match the filters, as CSV."""
        query = read_query(request, MessageListQuery, blank_is_absent=True)
        async with engine.connect() as connection:
            await store.get(connection, mailing_id)  # 404 if there is no such mailing
            filters = (await query.with_client_id(connection)).filters()
        return await csv_answer(
            f"mailing-{mailing_id}.csv",
            export_messages(engine, mailing_id, by, **filters),
            by.quota_key,
        )

    @get("/messages/{message_id:int}", required_scope="read")
    async def show_message(  # noqa: PLR0913, PLR0917  # Litestar passes its dependencies so
        self,
        engine: NamedDependency[AsyncEngine],
        channels: NamedDependency[Channels],
        context: NamedDependency[PageContext],
        settings: NamedDependency[Settings],
        mailing_id: MailingId,
        message_id: FromPath[int],
    ) -> Response[str]:
        """Show the history of a message, and what happens to it next."""
        async with engine.connect() as connection:
            mailing = await store.get(connection, mailing_id)
            [mailing] = await with_holds(connection, [mailing], channels)
            # PostgreSQL refuses a larger id; that no message has MAX_ID makes this 404
            history = await messages.get_history(connection, mailing_id, min(message_id, MAX_ID))
        now = database_clock.now()
        return await context.render_page(
            "mailings/message.html",
            mailing=mailing,
            message=history,
            events=events_of(history),
            receipt_deadline=(
                history.sent_at + timedelta(seconds=settings.receipt_wait)
                if history.is_awaiting_receipt and history.sent_at
                else None
            ),
            now=now,
            may_retry="retry" in allowed_actions(mailing, now),  # the mailing's failed messages
        )
