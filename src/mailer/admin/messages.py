"""A mailing's messages: listed, filtered, downloaded, and the story of one."""

from typing import Annotated, Any

import msgspec
from litestar import Controller, Request, Response, get
from litestar.di import NamedDependency
from litestar.params import FromPath
from msgspec import UNSET, Meta, UnsetType
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from mailer.access.model import Actor
from mailer.admin.listing import NOTHING, address, asked, pages
from mailer.admin.render import Show
from mailer.client import store as clients
from mailer.client.model import Phone
from mailer.client.phone import normalize_phone
from mailer.clock import database_clock
from mailer.db.paging import Slice
from mailer.db.schema import MESSAGE_STATUSES
from mailer.gateway.breaker import Breaker
from mailer.mailing import store
from mailer.mailing.controls import controls
from mailer.mailing.hold import with_hold
from mailer.mailing.model import Mailing
from mailer.mailing.query import MailingId, MessageQuery, counted
from mailer.message import store as messages
from mailer.message import tally
from mailer.message.exporting import export_messages
from mailer.validation import MAX_ID
from mailer.web.download import Download, csv_answer
from mailer.web.query import read

FIELDS = ("status", "reason", "phone", "limit")
NOBODY = 0
"""No client has this id."""


class ListQuery(MessageQuery, frozen=True, kw_only=True):
    """Which messages of a mailing to list."""

    phone: Annotated[Phone, Meta(extra={"normalize": normalize_phone})] | UnsetType = UNSET

    async def resolved(self, connection: AsyncConnection) -> MessageQuery:
        """Return the query with the client in the place of the phone."""
        given = msgspec.structs.asdict(self)
        phone = given.pop("phone")
        if phone is not UNSET:
            found = await clients.id_of_phone(connection, phone)
            given["client_id"] = NOBODY if found is None else found
        return MessageQuery(**given)


async def found_of(connection: AsyncConnection, mailing: Mailing, query: MessageQuery) -> Slice:
    """Return the page of messages that is asked for."""
    if query.client_id == NOBODY:
        return NOTHING
    known = await counted(connection, mailing, query)
    return await messages.page(connection, mailing.id, query.position, known, **query.equal())


class MessageList(Controller):
    """Messages of a mailing, newest first."""

    path = "/mailings/{mailing_id:int}"

    @get("/messages", needs="read")
    async def list_messages(
        self,
        request: Request[Any, Any, Any],
        engine: NamedDependency[AsyncEngine],
        show: NamedDependency[Show],
        mailing_id: MailingId,
    ) -> Response[str]:
        """List the messages that are asked for, with the phones of their clients."""
        form, query = asked(request, ListQuery, *FIELDS)
        async with engine.connect() as connection:
            mailing = await store.get(connection, mailing_id)
            found = NOTHING
            if query is not None:
                found = await found_of(connection, mailing, await query.resolved(connection))
            phones = await clients.phones(connection, [row.client_id for row in found.rows])
            reasons = await tally.of_reasons(connection, mailing_id)
        path = f"/mailings/{mailing_id}/messages"
        return show.page(
            "mailings/messages.html",
            200 if query else 400,
            form=form,
            mailing=mailing,
            messages=found.rows,
            count=found.count,
            phones=phones,
            reasons=reasons,
            statuses=MESSAGE_STATUSES,
            pages=pages(found, path, form),
            download=address(f"{path}.csv", form),
        )

    @get("/messages.csv", needs="read")
    async def download_messages(
        self,
        request: Request[Any, Any, Any],
        engine: NamedDependency[AsyncEngine],
        by: NamedDependency[Actor],
        mailing_id: MailingId,
    ) -> Download:
        """Answer with all messages that are asked for, as a file."""
        query = read(request, ListQuery, blank_is_absent=True)
        async with engine.connect() as connection:
            await store.get(connection, mailing_id)
            equal = (await query.resolved(connection)).equal()
        return await csv_answer(
            f"mailing-{mailing_id}.csv",
            export_messages(engine, mailing_id, by, **equal),
            by.caller,
        )

    @get("/messages/{message_id:int}", needs="read")
    async def show_message(
        self,
        engine: NamedDependency[AsyncEngine],
        breaker: NamedDependency[Breaker | None],
        show: NamedDependency[Show],
        mailing_id: MailingId,
        message_id: FromPath[int],
    ) -> Response[str]:
        """Show what became of a message so far, and what comes next."""
        async with engine.connect() as connection:
            mailing = with_hold(await store.get(connection, mailing_id), breaker)
            # no message has so large an id, which PostgreSQL still takes
            story = await messages.story(connection, mailing_id, min(message_id, MAX_ID))
        now = database_clock.now()
        return show.page(
            "mailings/message.html",
            mailing=mailing,
            story=story,
            now=now,
            may_retry="retry" in controls(mailing, now),
        )
