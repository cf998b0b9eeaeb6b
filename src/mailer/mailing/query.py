"""What may be asked of lists of mailings and of their messages."""

from typing import Annotated

from litestar.params import Parameter
from msgspec import UNSET, Meta, UnsetType
from sqlalchemy.ext.asyncio import AsyncConnection

from mailer.mailing.model import Mailing, Status
from mailer.message import tally
from mailer.message.model import Status as MessageStatus
from mailer.validation import MAX_ID, STORABLE
from mailer.web.query import Id, PageQuery

MailingId = Annotated[int, Parameter(ge=1, le=MAX_ID, description="The mailing's id.")]


class MailingQuery(PageQuery, frozen=True, kw_only=True):
    """Which mailings."""

    status: Status | UnsetType = UNSET


class MessageQuery(PageQuery, frozen=True, kw_only=True):
    """Which messages of a mailing."""

    status: MessageStatus | UnsetType = UNSET
    reason: (
        Annotated[str, Meta(min_length=1, max_length=64, pattern=STORABLE, examples=["timeout"])]
        | UnsetType
    ) = UNSET
    client_id: Id | UnsetType = UNSET


async def counted(connection: AsyncConnection, mailing: Mailing, asked: MessageQuery) -> int | None:
    """Return how many messages are asked for, if the ledger or a tally tells."""
    equal = asked.equal()
    if not equal or mailing.created_messages == 0:
        return mailing.created_messages
    if equal.keys() == {"status"}:
        count: int = getattr(mailing, f"{asked.status}_messages")
        return count
    if "client_id" in equal or asked.reason is UNSET:
        return None
    alike = await tally.of_reason(connection, mailing.id, asked.reason)
    return alike.messages if asked.status is UNSET else alike.of(asked.status)
