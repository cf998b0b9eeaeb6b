"""What the sandbox gateway records: messages, requests, its own calls, and their counts."""

import msgspec

from mailer.gateway.faults import RequestKind
from mailer.gateway.sandbox_options import CallContent


class SandboxMessage(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """A message as a request contains it. Its text form shows neither phone nor text."""

    id: int | None = None
    """mailer's id of the message; None if requests of this kind have none."""
    phone: int
    text: str
    sender: str = ""
    """"" if the request has none."""
    callback: str = ""
    """URL for receipts; "" if the request asks for none."""

    def __repr__(self) -> str:
        return f"SandboxMessage(id={self.id})"

    __str__ = __repr__


class SandboxRequest(msgspec.Struct, frozen=True, gc=False):
    """A record of one request and how it ended."""

    message: SandboxMessage | None
    """None if the request had no valid one."""
    arrived: int
    """When the request had been read, in microseconds of Unix time."""
    monotonic: float
    """The same moment by `time.monotonic()`, in seconds, to compute intervals and rates."""
    kind: RequestKind
    repeat: bool = False
    """Whether the message was accepted and had been accepted before."""
    overlap: bool = False
    """Whether another request for the same message had no response yet when this one came."""

    @property
    def id(self) -> int | None:
        """The message's id; None without a message or if it has none."""
        return None if self.message is None else self.message.id


class SandboxCall(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """A record of one call of the sandbox to mailer, and how it ended."""

    content: CallContent
    message_id: int | None
    """mailer's id of the message, as far as the request had it."""
    new_id: int
    """The gateway's id of the message, without the letters that it may begin with."""
    part: int | None = None
    """Number of the part of the message; None if the receipt is about the whole message."""
    is_stop: bool = False
    """Whether it was a reply with a stop word."""
    is_repeat: bool = False
    """Whether it was a receipt that the sandbox sends twice on purpose."""
    is_early: bool = False
    """Whether its first attempt came before the response to the request."""
    started: int
    """When the first attempt began, in microseconds of Unix time."""
    ended: int
    """When the last attempt ended."""
    attempts: int
    status: int | None
    """HTTP status of the last response; None without a response."""
    is_taken: bool
    """Whether mailer responded with 200, and with the body that the provider expects."""


class SandboxCallCounts(msgspec.Struct, frozen=True, kw_only=True):
    """Numbers of calls to mailer."""

    receipts: int = 0
    """Receipts that mailer took."""
    replies: int = 0
    """Replies that mailer took, or parts of them."""
    refused: int = 0
    """Calls with an answer that ends the attempts."""
    unanswered: int = 0
    """Calls that were not taken after several attempts, or until the sandbox stopped."""
    lost: int = 0
    """Receipts that were not sent, as `CallOptions.receipt_loss` asks for."""


class PollRequest(msgspec.Struct, frozen=True, gc=False):
    """A valid request for the status of messages."""

    keys: tuple[int, ...]
    """The ids of the messages: mailer's, or those of the gateway."""


class SandboxCounts(msgspec.Struct, frozen=True, kw_only=True):
    """Numbers of requests by kind, and of repeats and overlaps among them.

    Every request has exactly one kind. `Faults` describes the kinds from `error` to `reset`, and
    `SandboxRequest` what a repeat and an overlap is.
    """

    accepted: int = 0
    """`accepted - repeats` is the number of different messages, if requests have a message id."""
    error: int = 0
    reject: int = 0
    malformed: int = 0
    hang: int = 0
    reset: int = 0
    account: int = 0
    """The account could not send, as `SandboxGateway.fail_for` asked for."""
    limited: int = 0
    """Over the rate limit."""
    unauthorized: int = 0
    """A key of the account is missing or wrong."""
    balance: int = 0
    """The request asked for the balance of the account."""
    poll: int = 0
    """The request asked for the status of messages."""
    invalid: int = 0
    """The request does not follow the profile."""
    disconnected: int = 0
    """The client disconnected, or the sandbox stopped, before the response was due."""
    repeats: int = 0
    overlaps: int = 0

    @property
    def total(self) -> int:
        """The number of all requests."""
        counts: tuple[int, ...] = msgspec.structs.astuple(self)
        return sum(counts) - self.repeats - self.overlaps
