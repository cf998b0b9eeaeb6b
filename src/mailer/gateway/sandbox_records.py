"""What the sandbox gateway records: messages, requests and their counts."""

import msgspec

from mailer.gateway.faults import RequestKind


class SandboxMessage(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """A message as a request contains it. Its text form shows neither phone nor text."""

    id: int | None = None
    """mailer's id of the message; None if requests of this kind have none."""
    phone: int
    text: str

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
