"""API routes of mailings and of the messages of a mailing."""

from typing import Annotated, Any

import msgspec
from litestar import Controller, Request, delete, get, patch, post
from litestar.di import NamedDependency
from litestar.params import JSONBody, Parameter
from litestar.status_codes import HTTP_200_OK
from msgspec import UNSET, Meta, UnsetType
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from mailer.access.model import Actor
from mailer.db.engine import snapshot
from mailer.db.paging import Cursor
from mailer.gateway.channel import Channels
from mailer.idempotency.model import IdempotencyClaim
from mailer.mailing import launching, listing, service, store, texts
from mailer.mailing.activity import with_current_hold, with_holds
from mailer.mailing.field_types import GatewayName
from mailer.mailing.list_query import MailingQuery
from mailer.mailing.model import Mailing, MailingChange, MailingDetail, NewMailing, TextVersion
from mailer.message import counters
from mailer.message import reading as messages
from mailer.message.exporting import export_messages
from mailer.message.model import Message
from mailer.message.reading import to_message
from mailer.settings import Settings
from mailer.statuses import MessageStatus
from mailer.validation import MAX_ID, STORABLE
from mailer.web.body import JsonBody, reject_body
from mailer.web.download import csv_answer, wants_csv
from mailer.web.paging import Page, page_of
from mailer.web.query import Id, PageQuery, accepts_query

MailingId = Annotated[int, Parameter(ge=1, le=MAX_ID, description="The mailing's id.")]


class MessageQuery(PageQuery, frozen=True, kw_only=True):
    """Filter and page of a list of a mailing's messages."""

    status: MessageStatus | UnsetType = UNSET
    reason: (
        Annotated[str, Meta(min_length=1, max_length=64, pattern=STORABLE, examples=["timeout"])]
        | UnsetType
    ) = UNSET
    client_id: Id | UnsetType = UNSET
    gateway: GatewayName | UnsetType = UNSET


async def read_count(
    connection: AsyncConnection, mailing: Mailing, query: MessageQuery
) -> int | None:
    """Return how many messages a query matches, without counting rows.

    The number comes from the counts of the mailing or from counters. Return None when neither has
    it; the rows must then be counted.
    """
    conditions = query.filters()
    if not conditions or mailing.created_messages == 0:
        return mailing.created_messages
    if conditions.keys() == {"status"}:
        count: int = getattr(mailing, f"{query.status}_messages")
        return count
    if not conditions.keys().isdisjoint(("client_id", "gateway")) or query.reason is UNSET:
        return None
    counts = await counters.get_of_reason(connection, mailing.id, query.reason)
    return counts.messages if query.status is UNSET else counts.count_of(query.status)


MAX_NEWEST_MESSAGES = 100
"""Messages in the answer for a single mailing, at most."""
ACTION_OPTIONS: dict[str, Any] = {
    "required_scope": "write",
    "status_code": HTTP_200_OK,
    "before_request": reject_body,
}
"""Options of routes that act on an object without a request body, such as `/pause`."""


class MailingController(Controller):
    """Create, read, change, control and delete mailings."""

    path = "/mailings"
    tags = ("mailings",)
    dto = JsonBody
    return_dto = None

    @post(required_scope="write")
    async def create_mailing(  # noqa: PLR0913, PLR0917  # Litestar passes its dependencies so
        self,
        engine: NamedDependency[AsyncEngine],
        by: NamedDependency[Actor],
        claim: NamedDependency[IdempotencyClaim | None],
        channels: NamedDependency[Channels],
        settings: NamedDependency[Settings],
        data: JSONBody[NewMailing],
    ) -> Mailing:
        """Create a mailing. Sending starts at `datetime_start`, or at once when that has passed.

        With `draft`, it is only saved: nothing is sent until it is launched.
        """
        created = await service.create(
            engine, data, by, claim, approval_above=settings.approval_above
        )
        return await with_current_hold(engine, created, channels)

    @get(required_scope="read", **accepts_query(MailingQuery))
    async def list_mailings(
        self,
        engine: NamedDependency[AsyncEngine],
        channels: NamedDependency[Channels],
        request: Request[Any, Any, Any],
        query_params: NamedDependency[MailingQuery],
    ) -> Page[Mailing]:
        """List mailings with their counts of messages by status, newest first or in another order.

        A search, a label or a period counts up to 1,001 mailings: then there are more than 1,000.
        """
        async with engine.connect() as connection:
            page = await listing.page(
                connection,
                query_params.position,
                query_params.conditions(),
                query_params.order,
            )
            mailings = [store.to_mailing(row) for row in page.rows]
            by_id = {each.id: each for each in await with_holds(connection, mailings, channels)}
        return page_of(page, request, lambda row: by_id[row.id])

    @get("/{mailing_id:int}", required_scope="read")
    async def get_mailing(
        self,
        engine: NamedDependency[AsyncEngine],
        channels: NamedDependency[Channels],
        mailing_id: MailingId,
    ) -> MailingDetail:
        """Return a mailing with its counts of messages by status and its newest 100 messages."""
        async with engine.connect() as connection:
            mailing = await store.get(connection, mailing_id)
            [mailing] = await with_holds(connection, [mailing], channels)
            newest = await messages.page(
                connection, mailing_id, Cursor(MAX_NEWEST_MESSAGES), mailing.created_messages
            )
        mailing_messages = [to_message(row) for row in newest.rows]
        return MailingDetail(**msgspec.structs.asdict(mailing), mailing_messages=mailing_messages)

    @get(
        "/{mailing_id:int}/messages",
        required_scope="read",
        **accepts_query(MessageQuery, or_csv=True),
    )
    async def list_messages(
        self,
        engine: NamedDependency[AsyncEngine],
        by: NamedDependency[Actor],
        request: Request[Any, Any, Any],
        mailing_id: MailingId,
        query_params: NamedDependency[MessageQuery],
    ) -> Page[Message]:
        """List the messages of a mailing that match all given parameters, newest first.

        With `Accept: text/csv`, return all matching messages as one file, ordered by client.
        """
        conditions = query_params.filters()
        async with engine.connect() as connection:
            mailing = await store.get(connection, mailing_id)
            if not wants_csv(request):
                count = await read_count(connection, mailing, query_params)
                page = await messages.page(
                    connection, mailing_id, query_params.position, count, **conditions
                )
                return page_of(page, request, to_message)
        return await csv_answer(  # type: ignore[return-value]  # the OpenAPI schema shows the JSON answer
            f"mailing-{mailing_id}.csv",
            export_messages(engine, mailing_id, by, **conditions),
            by.quota_key,
        )

    @get("/{mailing_id:int}/versions", required_scope="read")
    async def list_text_versions(
        self, engine: NamedDependency[AsyncEngine], mailing_id: MailingId
    ) -> list[TextVersion]:
        """List the versions of the text of a mailing and their messages, the newest first."""
        async with snapshot(engine) as connection:
            await store.get(connection, mailing_id)
            return await texts.list_versions(connection, mailing_id)

    @patch("/{mailing_id:int}", required_scope="write")
    async def change_mailing(  # noqa: PLR0913, PLR0917  # Litestar passes its dependencies so
        self,
        engine: NamedDependency[AsyncEngine],
        by: NamedDependency[Actor],
        channels: NamedDependency[Channels],
        settings: NamedDependency[Settings],
        mailing_id: MailingId,
        data: JSONBody[MailingChange],
    ) -> Mailing:
        """Change a mailing. After its start, changes apply to messages that were not sent yet."""
        changed = await service.change(
            engine, mailing_id, data, by, approval_above=settings.approval_above
        )
        return await with_current_hold(engine, changed, channels)

    @post("/{mailing_id:int}/launch", **ACTION_OPTIONS)
    async def launch_mailing(  # noqa: PLR0913, PLR0917  # Litestar passes its dependencies so
        self,
        engine: NamedDependency[AsyncEngine],
        by: NamedDependency[Actor],
        claim: NamedDependency[IdempotencyClaim | None],
        channels: NamedDependency[Channels],
        settings: NamedDependency[Settings],
        mailing_id: MailingId,
    ) -> Mailing:
        """Launch a draft. Sending starts at `datetime_start`, or at once when that has passed."""
        launched = await launching.launch(
            engine, mailing_id, by, claim, approval_above=settings.approval_above
        )
        return await with_current_hold(engine, launched, channels)

    @post("/{mailing_id:int}/pause", **ACTION_OPTIONS)
    async def pause_mailing(
        self,
        engine: NamedDependency[AsyncEngine],
        by: NamedDependency[Actor],
        claim: NamedDependency[IdempotencyClaim | None],
        mailing_id: MailingId,
    ) -> Mailing:
        """Pause a mailing. After the answer, no gateway request for it starts until it resumes."""
        return await service.pause(engine, mailing_id, by, claim)

    @post("/{mailing_id:int}/resume", **ACTION_OPTIONS)
    async def resume_mailing(
        self,
        engine: NamedDependency[AsyncEngine],
        by: NamedDependency[Actor],
        claim: NamedDependency[IdempotencyClaim | None],
        channels: NamedDependency[Channels],
        mailing_id: MailingId,
    ) -> Mailing:
        """Resume a paused mailing."""
        mailing = await service.resume(engine, mailing_id, by, claim)
        return await with_current_hold(engine, mailing, channels)

    @post("/{mailing_id:int}/cancel", **ACTION_OPTIONS)
    async def cancel_mailing(
        self,
        engine: NamedDependency[AsyncEngine],
        by: NamedDependency[Actor],
        claim: NamedDependency[IdempotencyClaim | None],
        mailing_id: MailingId,
    ) -> Mailing:
        """Cancel a mailing permanently. After the answer, no gateway request for it starts."""
        return await service.cancel(engine, mailing_id, by, claim)

    @post("/{mailing_id:int}/retry", **ACTION_OPTIONS)
    async def retry_mailing(
        self,
        engine: NamedDependency[AsyncEngine],
        by: NamedDependency[Actor],
        claim: NamedDependency[IdempotencyClaim | None],
        channels: NamedDependency[Channels],
        mailing_id: MailingId,
    ) -> Mailing:
        """Send the undelivered and unknown messages of a mailing again, before its end."""
        mailing = await service.retry(engine, mailing_id, by, claim)
        return await with_current_hold(engine, mailing, channels)

    @delete("/{mailing_id:int}", required_scope="write")
    async def delete_mailing(
        self,
        engine: NamedDependency[AsyncEngine],
        by: NamedDependency[Actor],
        mailing_id: MailingId,
    ) -> None:
        """Delete a mailing. After the answer, no gateway request for it starts."""
        await service.delete(engine, mailing_id, by)
