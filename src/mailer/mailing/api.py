"""Routes of mailings and of their messages."""

from typing import Any

import msgspec
from litestar import Controller, Request, delete, get, patch, post
from litestar.di import NamedDependency
from litestar.params import JSONBody
from litestar.status_codes import HTTP_200_OK
from sqlalchemy.ext.asyncio import AsyncEngine

from mailer.access.model import Actor
from mailer.db.paging import Position
from mailer.gateway.breaker import Breaker
from mailer.mailing import service, store
from mailer.mailing.hold import with_hold
from mailer.mailing.model import Mailing, MailingChange, MailingDetail, NewMailing
from mailer.mailing.query import MailingId, MailingQuery, MessageQuery, counted
from mailer.message import store as messages
from mailer.message.exporting import export_messages
from mailer.message.model import Message
from mailer.message.store import to_message
from mailer.web.body import JsonBody, takes_nothing
from mailer.web.download import csv_answer, wants_csv
from mailer.web.paging import Page, page_of
from mailer.web.query import takes

NEWEST = 100
"""Messages shown with a mailing."""
CONTROL: dict[str, Any] = {
    "needs": "write",
    "status_code": HTTP_200_OK,
    "before_request": takes_nothing,
}
"""Of a call that says all there is to say by its address."""


class MailingController(Controller):
    """Mailings: created, watched, changed, steered, deleted."""

    path = "/mailings"
    tags = ("mailings",)
    dto = JsonBody
    return_dto = None

    @post(needs="write")
    async def create_mailing(
        self,
        engine: NamedDependency[AsyncEngine],
        by: NamedDependency[Actor],
        breaker: NamedDependency[Breaker | None],
        data: JSONBody[NewMailing],
    ) -> Mailing:
        """Create a mailing. It goes out by itself; one that is already due, at once."""
        return with_hold(await service.create(engine, data, by), breaker)

    @get(needs="read", **takes(MailingQuery))
    async def list_mailings(
        self,
        engine: NamedDependency[AsyncEngine],
        breaker: NamedDependency[Breaker | None],
        request: Request[Any, Any, Any],
        asked: NamedDependency[MailingQuery],
    ) -> Page[Mailing]:
        """List mailings with their ledgers, newest first: the general statistics."""
        async with engine.connect() as connection:
            found = await store.page(connection, asked.position, **asked.equal())
        return page_of(found, request, lambda row: with_hold(store.to_mailing(row), breaker))

    @get("/{mailing_id:int}", needs="read")
    async def get_mailing(
        self,
        engine: NamedDependency[AsyncEngine],
        breaker: NamedDependency[Breaker | None],
        mailing_id: MailingId,
    ) -> MailingDetail:
        """Return a mailing with its ledger and its newest 100 messages."""
        async with engine.connect() as connection:
            mailing = with_hold(await store.get(connection, mailing_id), breaker)
            known = mailing.created_messages
            newest = await messages.page(connection, mailing_id, Position(NEWEST), known)
        shown = [to_message(row) for row in newest.rows]
        return MailingDetail(**msgspec.structs.asdict(mailing), mailing_messages=shown)

    @get("/{mailing_id:int}/messages", needs="read", **takes(MessageQuery, or_csv=True))
    async def list_messages(
        self,
        engine: NamedDependency[AsyncEngine],
        by: NamedDependency[Actor],
        request: Request[Any, Any, Any],
        mailing_id: MailingId,
        asked: NamedDependency[MessageQuery],
    ) -> Page[Message]:
        """List all messages of a mailing, newest first, those that equal what is given.

        With `Accept: text/csv` all of them, by their clients, as a file.
        """
        equal = asked.equal()
        async with engine.connect() as connection:
            mailing = await store.get(connection, mailing_id)
            if not wants_csv(request):
                known = await counted(connection, mailing, asked)
                found = await messages.page(connection, mailing_id, asked.position, known, **equal)
                return page_of(found, request, to_message)
        return await csv_answer(  # type: ignore[return-value]  # the schema shows the usual form
            f"mailing-{mailing_id}.csv",
            export_messages(engine, mailing_id, by, **equal),
            by.caller,
        )

    @patch("/{mailing_id:int}", needs="write")
    async def change_mailing(
        self,
        engine: NamedDependency[AsyncEngine],
        by: NamedDependency[Actor],
        breaker: NamedDependency[Breaker | None],
        mailing_id: MailingId,
        data: JSONBody[MailingChange],
    ) -> Mailing:
        """Change a mailing: before its start all of it, while it runs what was not sent yet."""
        return with_hold(await service.change(engine, mailing_id, data, by), breaker)

    @post("/{mailing_id:int}/pause", **CONTROL)
    async def pause_mailing(
        self,
        engine: NamedDependency[AsyncEngine],
        by: NamedDependency[Actor],
        mailing_id: MailingId,
    ) -> Mailing:
        """Pause a mailing: no request for it starts after the answer, until it is resumed."""
        return await service.pause(engine, mailing_id, by)

    @post("/{mailing_id:int}/resume", **CONTROL)
    async def resume_mailing(
        self,
        engine: NamedDependency[AsyncEngine],
        by: NamedDependency[Actor],
        breaker: NamedDependency[Breaker | None],
        mailing_id: MailingId,
    ) -> Mailing:
        """Let a paused mailing go on."""
        return with_hold(await service.resume(engine, mailing_id, by), breaker)

    @post("/{mailing_id:int}/cancel", **CONTROL)
    async def cancel_mailing(
        self,
        engine: NamedDependency[AsyncEngine],
        by: NamedDependency[Actor],
        mailing_id: MailingId,
    ) -> Mailing:
        """Cancel a mailing for good: no request for it starts after the answer."""
        return await service.cancel(engine, mailing_id, by)

    @post("/{mailing_id:int}/retry", **CONTROL)
    async def retry_mailing(
        self,
        engine: NamedDependency[AsyncEngine],
        by: NamedDependency[Actor],
        breaker: NamedDependency[Breaker | None],
        mailing_id: MailingId,
    ) -> Mailing:
        """Send again what is undelivered or unknown, before the mailing's end."""
        return with_hold(await service.retry(engine, mailing_id, by), breaker)

    @delete("/{mailing_id:int}", needs="write")
    async def delete_mailing(
        self,
        engine: NamedDependency[AsyncEngine],
        by: NamedDependency[Actor],
        mailing_id: MailingId,
    ) -> None:
        """Delete a mailing: no request for it starts after the answer."""
        await service.delete(engine, mailing_id, by)
