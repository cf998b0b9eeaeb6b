"""Query parameters of lists of mailings and of their messages."""

from typing import Annotated

from litestar.params import Parameter
from msgspec import UNSET, Meta, UnsetType
from sqlalchemy.ext.asyncio import AsyncConnection

from mailer.mailing.model import Mailing, Status
from mailer.message import counters
from mailer.message.model import Status as MessageStatus
from mailer.validation import MAX_ID, STORABLE
from mailer.web.query import Id, PageQuery

MailingId = Annotated[int, Parameter(ge=1, le=MAX_ID, description="The mailing's id.")]


class MailingQuery(PageQuery, frozen=True, kw_only=True):
    """Filter and page of a list of mailings."""

    status: Status | UnsetType = UNSET


class MessageQuery(PageQuery, frozen=True, kw_only=True):
    """Filter and page of a list of a mailing's messages."""

    status: MessageStatus | UnsetType = UNSET
    reason: (
        Annotated[str, Meta(min_length=1, max_length=64, pattern=STORABLE, examples=["timeout"])]
        | UnsetType
    ) = UNSET
    client_id: Id | UnsetType = UNSET


async def get_known_count(
    connection: AsyncConnection, mailing: Mailing, query: MessageQuery
) -> int | None:
    """Return how many messages a query matches, from counters; None when no counter covers it."""
    equal = query.equal()
    if not equal or mailing.created_messages == 0:
        return mailing.created_messages
    if equal.keys() == {"status"}:
        count: int = getattr(mailing, f"{query.status}_messages")
        return count
    if "client_id" in equal or query.reason is UNSET:
        return None
    counts = await counters.get_of_reason(connection, mailing.id, query.reason)
    return counts.messages if query.status is UNSET else counts.count_of(query.status)
