"""Replies of clients and the answers to them, as the API and the pages show them."""

from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import Any, ClassVar, Literal

import msgspec

from mailer.errors import ConflictError, FieldError, NotFoundError
from mailer.mailing.field_types import Text
from mailer.text import is_blank
from mailer.validation import Input

ReplyAction = Literal["opted_out", "opted_in"]
AnswerKind = Literal["answer", "acknowledgement"]
AnswerStatus = Literal["waiting", "sending", "accepted", "failed", "unknown"]
"""`waiting`: not sent yet. `sending`: a worker sends it. `accepted`: the gateway accepted it.
`failed`: it was not accepted, and is not tried again. `unknown`: the gateway may have accepted it;
it is not sent again."""


class ReplyNotFoundError(NotFoundError):
    """There is no such reply."""


class ReplyErasedError(ConflictError):
    """The client was deleted, and the phone with the client."""


class ReplyGatewayError(ConflictError):
    """The gateway of the reply is not configured any more."""


class ClientReply(msgspec.Struct, frozen=True, kw_only=True):
    """A message that a client has sent."""

    EXAMPLE: ClassVar[dict[str, Any]] = {
        "id": 5,
        "gateway": "main",
        "gateway_reply_id": "SM9876543210",
        "phone": "79161234567",
        "recipient": "15005550006",
        "text": "When do you open?",
        "received_at": "2030-01-15T06:05:00Z",
        "client_id": 1,
        "mailing_id": 1,
        "message_id": 7,
        "action": None,
        "read_at": None,
    }

    id: int
    gateway: str
    """The gateway through which it came."""
    gateway_reply_id: str | None
    """The gateway's id of the reply; None if it gives none."""
    phone: str | None
    """The phone of the sender; None once it is erased."""
    recipient: str | None
    """The number that the client has written to; None if the gateway does not say it."""
    text: str | None
    """None once it is erased."""
    received_at: datetime
    client_id: int | None
    """The client who had the phone when the reply came; None if there was none."""
    mailing_id: int | None
    """The mailing that the reply most likely answers; None if none is known."""
    message_id: int | None
    """The message of that mailing to the client."""
    action: ReplyAction | None
    """What the reply has done; None for most replies."""
    read_at: datetime | None
    """When a user has read it; None while it is unread."""


class ReadReply(msgspec.Struct, frozen=True):
    """A reply that was marked as read.

    It has no phone and no text: the response to a request with an Idempotency-Key is stored.
    """

    EXAMPLE: ClassVar[dict[str, Any]] = {"id": 5, "read_at": "2030-01-15T06:10:00Z"}

    id: int
    read_at: datetime


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    """A message that answers a reply, without its text: see `ReadReply`."""

    EXAMPLE: ClassVar[dict[str, Any]] = {
        "id": 4711,
        "reply_id": 5,
        "kind": "answer",
        "gateway": "main",
        "status": "accepted",
        "reason": None,
        "attempts": 1,
        "gateway_message_id": "SM0123456789",
        "parts": 1,
        "created_by": "olga",
        "created_at": "2030-01-15T06:10:00Z",
        "updated_at": "2030-01-15T06:10:01Z",
    }

    id: int
    """The id that the gateway gets; no message has the same."""
    reply_id: int
    kind: AnswerKind
    """`answer`: a user or a program has written it. `acknowledgement`: of an opt-out."""
    gateway: str
    status: AnswerStatus
    reason: str | None
    """Why it has this status, or why it waits again; None if there is nothing to explain."""
    attempts: int
    """Number of attempts so far, without those during an outage of the gateway."""
    gateway_message_id: str | None
    """The id that the gateway gave to it; None without one."""
    parts: int | None
    """Number of SMS; None unless the gateway has accepted it."""
    created_by: str | None
    """Name of the user or the API key; None for an acknowledgement."""
    created_at: datetime
    updated_at: datetime


class AnswerDetail(Answer, frozen=True, kw_only=True):
    """An answer with its text."""

    EXAMPLE: ClassVar[dict[str, Any]] = {**Answer.EXAMPLE, "text": "At nine."}

    text: str | None
    """None once it is erased."""


class ReplyDetail(ClientReply, frozen=True, kw_only=True):
    """A reply with its answers."""

    EXAMPLE: ClassVar[dict[str, Any]] = {**ClientReply.EXAMPLE, "answers": [AnswerDetail.EXAMPLE]}

    answers: list[AnswerDetail]
    """Oldest first; at most the newest 100."""


class NewAnswer(Input, frozen=True, kw_only=True):
    """An answer to a reply: one message, through the same gateway and with the same sender."""

    EXAMPLE: ClassVar[dict[str, Any]] = {"text": "At nine."}

    text: Text

    @classmethod
    def broken_rules(cls, values: Mapping[str, Any], at: datetime) -> Iterable[FieldError]:  # noqa: ARG003  # a text does not depend on the moment
        """Refuse a text without a visible character."""
        if "text" in values and is_blank(values["text"]):
            yield FieldError("text", "must contain a visible character")
