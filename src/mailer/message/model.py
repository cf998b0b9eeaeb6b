"""A message: one mailing's text for one client, and a row of the job table."""

from datetime import UTC, datetime
from typing import Annotated, Any, ClassVar

import msgspec
from msgspec import Meta

from mailer.errors import NotFoundError
from mailer.gateway.callback import ReceiptStatus
from mailer.statuses import MessageStatus


class Message(msgspec.Struct, frozen=True):
    """A message of a mailing."""

    EXAMPLE: ClassVar[dict[str, Any]] = {
        "id": 7,
        "mailing_id": 1,
        "client_id": 1,
        "phone": "79161234567",
        "status": "delivered",
        "reason": None,
        "last_failure": "http_503",
        "attempts": 2,
        "gateway": "main",
        "gateway_message_id": "SM0123456789",
        "parts": 1,
        "text_version": 1,
        "datetime_send": "2030-01-15T06:00:00.120000Z",
        "created_at": "2030-01-15T06:00:00.040000Z",
        "updated_at": "2030-01-15T06:00:00.150000Z",
    }

    id: int
    mailing_id: int
    client_id: int
    phone: Annotated[
        str | None, Meta(description="The client's phone; null if the client was deleted.")
    ]
    status: Annotated[
        MessageStatus,
        Meta(
            description="`sent`: the gateway has accepted the message, and its receipt is awaited;"
            " with the reason `no_receipt`, none came in time. `delivered`: the receipt says so; if"
            " the gateway sends no receipts, it has accepted the message. `undelivered`: failed"
            " permanently, or the receipt says so. `unknown`: it may have been accepted. A receipt"
            " may change the status of a message whose mailing is finished."
        ),
    ]
    reason: Annotated[
        str | None,
        Meta(
            description="Why the message has this status, such as `expired`. That of a receipt is"
            " `not_delivered`, the same with the provider's code, as in `not_delivered_30003`, or"
            " `validity_expired`. Null if there is nothing to explain."
        ),
    ]
    last_failure: str | None
    """Why the last failed attempt failed, such as `http_503`; None when none has failed."""
    attempts: int
    """Number of attempts so far, without refunded ones."""
    gateway: str | None
    """The gateway of the current attempt, or else of the last one; None when there was none."""
    gateway_message_id: str | None
    """The id that the gateway gave to the message when it accepted it; None without one."""
    parts: int | None
    """Number of SMS that the text takes; None unless the gateway has accepted the message."""
    text_version: Annotated[
        int | None,
        Meta(
            description="Version of the mailing's text in the current attempt, or else in the last"
            " one. Null if there was none."
        ),
    ]
    datetime_send: datetime
    """When the message was sent, or its last attempt failed permanently; else when it is due."""
    created_at: datetime
    updated_at: datetime


class FailedAttempt(msgspec.Struct, frozen=True):
    """A failed attempt: when it started, when it ended, and why it failed."""

    attempt: int
    """Number of the attempt, from 1. The attempt after a refunded one has the same number. After a
    retry of the mailing the numbers start again at 1."""
    claimed_at: datetime
    ended_at: datetime
    reason: str
    gateway: str | None = None
    """The gateway of the attempt; None for attempts before gateways had names."""


class StoredReceipt(msgspec.Struct, frozen=True, omit_defaults=True):
    """A receipt in the history of a message."""

    at: datetime
    """When mailer received it."""
    status: ReceiptStatus
    gateway: str
    code: str | None = None
    """Error code of the provider; None without one."""
    part: str | None = None
    """Id of the part, if the gateway sends a receipt for each part."""


class MessageHistory(Message, frozen=True):
    """A message with its text, its failed attempts, its receipts and its times."""

    EXAMPLE: ClassVar[dict[str, Any]] = Message.EXAMPLE | {
        "due_at": "2030-01-15T06:00:00Z",
        "retry_at": None,
        "sent_at": "2030-01-15T06:00:00.120000Z",
        "claimed_at": "2030-01-15T06:00:00.060000Z",
        "lease_expires_at": None,
        "failures": [
            {
                "attempt": 1,
                "claimed_at": "2030-01-15T05:59:50Z",
                "ended_at": "2030-01-15T05:59:51Z",
                "reason": "http_503",
                "gateway": "main",
            }
        ],
        "receipts": [
            {"at": "2030-01-15T06:00:00.150000Z", "status": "delivered", "gateway": "main"}
        ],
        "operator_code": "916",
        "time_zone": "Europe/Moscow",
        "text": "Your order is ready.",
    }

    text: str
    """As it was sent, or else as it will be sent if the mailing is not changed."""
    due_at: datetime
    retry_at: datetime | None
    """When the pause after the last attempt ends. `due_at` is that time, or later if the sending
    window is closed then."""
    sent_at: datetime | None
    """When the gateway accepted the message, or may have; None when it has not."""
    claimed_at: datetime | None
    """When the current attempt started, or else the last one: its claim, or its request if that
    came more than a second later. None when there was no attempt. A claim that was released without
    an attempt does not count."""
    lease_expires_at: datetime | None
    """When another worker may rescue the message; None unless it is being sent."""
    failures: tuple[FailedAttempt, ...]
    """The newest failed attempts, at most 20, oldest first."""
    receipts: tuple[StoredReceipt, ...]
    """The newest receipts, at most 100, oldest first."""
    operator_code: str
    """The client's operator code when the message was created."""
    time_zone: str
    """The client's time zone when the message was created."""

    @property
    def is_accepted(self) -> bool:
        """Whether the gateway has certainly accepted the message.

        An undelivered message that was sent is one whose receipt says so.
        """
        was_sent = self.status == "undelivered" and self.sent_at is not None
        return self.status in {"sent", "delivered"} or was_sent

    @property
    def is_awaiting_receipt(self) -> bool:
        """Whether a receipt decides the status, and has not come yet."""
        return self.status == "sent" and self.reason is None


class MessageNotFoundError(NotFoundError):
    """There is no such message."""


EARLIEST_DUE = datetime(1970, 1, 1, tzinfo=UTC)
"""A moment before every `due_at`."""


class ClaimedMessage(msgspec.Struct, frozen=True, gc=False):
    """A message that this worker has claimed, under a lease until `lease_expires_at`.

    `attempts` includes the current attempt. `phone` is None when the client has been deleted.

    The result is stored only if the message's attempts, lease owner and end of lease are still
    those of the claim. `gc=False` because a worker creates thousands of claims, and they are never
    part of a reference cycle.
    """

    id: int
    mailing_id: int
    attempts: int
    lease_expires_at: datetime
    phone: str | None
    time_zone: str
    unknown_reason: str | None = None
    """Why delivery by an earlier attempt is unknown; None when it is not."""
    due_at: datetime = EARLIEST_DUE
    """Messages of a mailing are claimed in the order of `due_at` and `id`."""
    last_failure: str | None = None
    """Why the attempt before this one failed; None when no attempt has failed."""
    route: int = 1
    """Id of the set of gateways that may take the message."""
    gateway: str = ""
    """Name of the gateway for which the message is claimed."""
    is_opted_out: bool = False
    """Whether the client had opted out when the message was claimed."""
    text_version: int = 1
    """Version of the mailing's text that the message is sent with."""
    earlier_text: str | None = None
    """This text, if the mailing has a newer one: delivery by an earlier attempt is unknown, and a
    repeat must have the same text. None: the text of the mailing."""
    field_values: str | None = None
    """The values of the client's fields that the text uses, as JSON; None for a literal text."""
    earlier_template: str | None = None
    """The template of `earlier_text`, as JSON; None if that is literal."""
    is_over_cap: bool = False
    """Whether the contact cap did not permit the message when it was claimed."""

    @property
    def was_tried(self) -> bool:
        """Whether an earlier attempt failed or ended with delivery unknown."""
        return self.last_failure is not None or self.unknown_reason is not None


class MessageResult(msgspec.Struct, frozen=True, gc=False):
    """The result to store for a claimed message: its new status, and why.

    `attempts` is the number to store. It is one less than the claim's when the attempt does not
    count, for example because the message was not sent.
    """

    claim: ClaimedMessage
    status: MessageStatus
    attempts: int
    reason: str | None = None
    due_at: datetime | None = None
    """When the message is due again; None when its due time does not change."""
    sent_at: datetime | None = None
    """When the gateway accepted the message, or may have; None when it has not."""
    last_failure: str | None = None
    """Why this attempt failed; None when it did not."""
    unknown_reason: str | None = None
    """Why delivery by this attempt is unknown. None keeps the stored reason of earlier attempts."""
    retry_at: datetime | None = None
    """When the pause after this attempt ends; None when the message is not requeued. `due_at` is
    that time, or later if the sending window is closed then."""
    gateway_message_id: str | None = None
    """The id that the gateway gave to the message when it accepted it, if any."""
    parts: int | None = None
    """Number of SMS that the text takes; None if the gateway did not accept the message."""
    uses_gateway_id: bool = False
    """Whether the receipts of this message name it by `gateway_message_id` only."""
    excludes_gateway: bool = False
    """Whether the message is sent through other gateways from now on."""
    is_opt_out: bool = False
    """Whether the gateway has answered that the client has opted out."""
    started_at: datetime | None = None
    """When the request started; None if it followed the claim at once."""

    @property
    def changes_route(self) -> bool:
        """Whether the message waits for other gateways than before.

        If delivery is unknown, only the gateway that may have the message may send it again.
        """
        return self.excludes_gateway or self.unknown_reason is not None
