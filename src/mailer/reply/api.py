"""API routes of replies."""

from typing import Annotated, Any

from litestar import Controller, Request, get, post
from litestar.di import NamedDependency
from litestar.params import JSONBody, Parameter
from msgspec import UNSET, Meta, UnsetType
from sqlalchemy.ext.asyncio import AsyncEngine

from mailer.access.model import Actor
from mailer.client.model import Phone
from mailer.gateway.channel import Channels
from mailer.idempotency.model import IdempotencyClaim
from mailer.mailing.api import ACTION_OPTIONS
from mailer.reply import reading, service
from mailer.reply.model import Answer, ClientReply, NewAnswer, ReadReply, ReplyDetail
from mailer.reply.reading import to_reply
from mailer.validation import MAX_ID
from mailer.web.body import JsonBody
from mailer.web.paging import Page, page_of
from mailer.web.query import Id, PageQuery, accepts_query

ReplyId = Annotated[int, Parameter(ge=1, le=MAX_ID, description="The reply's id.")]


class ReplyQuery(PageQuery, frozen=True, kw_only=True):
    """Filters and page of a list of replies. Several filters must all match."""

    phone: Phone | UnsetType = UNSET
    client_id: Id | UnsetType = UNSET
    mailing_id: Id | UnsetType = UNSET
    unread: (
        Annotated[
            bool,
            Meta(
                description="`true`: replies that nobody has read; `false`: the others.",
                extra={"rule": "must be true or false"},
            ),
        ]
        | UnsetType
    ) = UNSET


class ReplyController(Controller):
    """Read and answer the replies of clients."""

    path = "/replies"
    tags = ("replies",)
    dto = JsonBody
    return_dto = None

    @get(required_scope="read", **accepts_query(ReplyQuery))
    async def list_replies(
        self,
        engine: NamedDependency[AsyncEngine],
        request: Request[Any, Any, Any],
        query_params: NamedDependency[ReplyQuery],
    ) -> Page[ClientReply]:
        """List the replies that match all given filters, newest first.

        `count` is exact up to 10,000; 10001 stands for more.
        """
        async with engine.connect() as connection:
            page = await reading.page(connection, query_params.position, query_params.filters())
        return page_of(page, request, to_reply)

    @get("/{reply_id:int}", required_scope="read")
    async def get_reply(
        self, engine: NamedDependency[AsyncEngine], reply_id: ReplyId
    ) -> ReplyDetail:
        """Return a reply with its answers."""
        return await service.get(engine, reply_id)

    @post("/{reply_id:int}/read", **ACTION_OPTIONS)
    async def mark_as_read(
        self, engine: NamedDependency[AsyncEngine], reply_id: ReplyId
    ) -> ReadReply:
        """Mark a reply as read. A reply that is read already stays as it is."""
        return await service.mark_as_read(engine, reply_id)

    @post("/{reply_id:int}/answer", required_scope="write")
    async def answer_reply(  # noqa: PLR0913, PLR0917  # the parts of a change that is made once
        self,
        engine: NamedDependency[AsyncEngine],
        by: NamedDependency[Actor],
        claim: NamedDependency[IdempotencyClaim | None],
        channels: NamedDependency[Channels],
        reply_id: ReplyId,
        data: JSONBody[NewAnswer],
    ) -> Answer:
        """Answer a reply with one message, through the same gateway and with the same sender.

        It is sent within about a second, also to a client who has opted out. While the gateway is
        out or paused the answer waits, for 24 hours at most. If it is not known whether the gateway
        has accepted it, it becomes `unknown` and is not sent again. The reply counts as read.
        409 when the client is deleted, or the gateway is not configured any more.
        """
        return await service.create_answer(engine, channels, reply_id, data, by, claim)
