"""What the dispatcher and a gateway exchange: a request for one message, and its outcome."""

import asyncio
from collections.abc import Callable
from datetime import datetime
from typing import Literal, Protocol

import msgspec

from mailer.clock import elapsed

AccountTrouble = Literal["no_credit", "bad_credentials", "sender_refused", "account_blocked"]
"""Why a gateway refuses all messages until somebody acts."""

DEFAULT_VALIDITY = 86_400
"""Seconds for which a gateway may deliver a message, when no mailing says it."""


class Accepted(msgspec.Struct, frozen=True):
    """The gateway accepted the message, and may have given it an id of its own."""

    gateway_message_id: str | None = None


class Rejected(msgspec.Struct, frozen=True):
    """The gateway refuses this message permanently; `reason` is for example `rejected_400`."""

    reason: str
    other_gateways: bool = False
    """Whether another gateway may take the message."""
    is_opt_out: bool = False
    """Whether the client has opted out."""


class TemporaryFailure(msgspec.Struct, frozen=True):
    """The message was not accepted, but may be later.

    `retry_after` is the pause in seconds that the gateway asks for, or None. `affects_all` means
    that the gateway would accept no other message now either.
    """

    reason: str
    retry_after: float | None = None
    affects_all: bool = False
    trouble: AccountTrouble | None = None
    """Set if the gateway accepts nothing until somebody acts, for example pays."""


class Unknown(msgspec.Struct, frozen=True):
    """The message may or may not have been accepted: delivery is unknown."""

    reason: str
    is_final: bool = False
    """Whether the message is not sent again, because a part of it was certainly accepted."""


class Aborted(msgspec.Struct, frozen=True):
    """The request was aborted before any of it was written."""


Outcome = Accepted | Rejected | TemporaryFailure | Unknown | Aborted


class OutgoingMessage(msgspec.Struct, frozen=True, gc=False):
    """What a gateway is to send, and to whom."""

    id: int
    phone: str
    text: str
    sender: str = ""
    """Name or number that the client sees; "" for the gateway's default."""
    validity: int = DEFAULT_VALIDITY
    """Seconds after which the gateway should not deliver the message any more."""
    valid_from: datetime | None = None
    """When the validity begins, by the database's clock."""
    callback: str = ""
    """URL for receipts; "" for none."""


class ReceiptUse(msgspec.Struct, frozen=True):
    """How a gateway reports the delivery of the messages that it has accepted."""

    is_awaited: bool = False
    """Whether an accepted message is `sent` until a receipt comes. If not, it is delivered."""
    url: str = ""
    """URL that a request gives to the gateway, without the message's id at its end; "" for none."""
    name_gateway_id: bool = False
    """Whether receipts name a message by the gateway's id only."""


NO_RECEIPTS = ReceiptUse()


class Request:
    """One request to the gateway: its contents, and how far it has come.

    The dispatcher creates it and may abort it. A gateway sends it in a task: it calls `attach_task`
    first, and `mark_written` right before it writes the request to the network. Whether an aborted
    request was written decides its outcome.

    `deadline` is a moment of `elapsed()`, at which the dispatcher aborts the request. `may_write`
    is called right before the write, with the present moment of `elapsed()`; if it returns False,
    the request is not written. So checks that were made at the start can be made again: connecting
    can take long, and a process can be suspended.
    """

    __slots__ = (
        "_has_cancelled_task",
        "_task",
        "abort_reason",
        "deadline",
        "is_written",
        "may_write",
        "message",
    )

    def __init__(
        self,
        message: OutgoingMessage,
        deadline: float,
        may_write: Callable[[float], bool] | None = None,
    ) -> None:
        self.message = message
        self.deadline = deadline
        self.may_write = may_write
        self.is_written = False
        self.abort_reason: str | None = None
        """Why the request was aborted: `stopped` (it must not be sent any more), or another word,
        which is the reason of the outcome; None while it is not aborted."""
        self._task: asyncio.Task[object] | None = None
        self._has_cancelled_task = False

    def attach_task(self) -> None:
        """Let an abort cancel the current task, which sends the request."""
        self._task = asyncio.current_task()

    def mark_written(self) -> bool:
        """Mark the request as written: from now on the gateway may have it.

        Return False when the request must not be written any more; then it counts as aborted. The
        deadline is checked here too, because after a suspension of the process this may run before
        the timer that aborts the request.
        """
        now = elapsed()
        if now >= self.deadline or (self.may_write is not None and not self.may_write(now)):
            self.abort_reason = self.abort_reason or "stopped"
        self.is_written = self.abort_reason is None
        return self.is_written

    def abort_unwritten(self) -> None:
        """Abort the request if it is not written yet, so that it is never sent."""
        if not self.is_written:
            self.abort("stopped")

    def abort(self, reason: str) -> None:
        """Abort the request now, whether it was written or not. A second call has no effect."""
        if self.abort_reason is None:
            self.abort_reason = reason
            if self._task is not None:
                self._has_cancelled_task = self._task.cancel()

    def outcome_of_abort(self) -> Outcome | None:
        """Return the outcome of an aborted request; None when it was not aborted.

        The cancellation of the task by the abort is undone. If the task was also cancelled by
        others, for example because the worker stops, this returns None too: the gateway must then
        raise the `CancelledError`.
        """
        if self.abort_reason is None:
            return None
        if self._has_cancelled_task and self._task is not None and self._task.uncancel() > 0:
            return None
        if self.is_written:
            return Unknown(self.abort_reason)
        if self.abort_reason == "stopped":
            return Aborted()
        return TemporaryFailure("connection_failed")  # for example, connecting took too long

    def outcome_of_error(self) -> Outcome:
        """Return the outcome of a request that ended with an error of mailer itself."""
        reason = "internal_error"
        return Unknown(reason) if self.is_written else TemporaryFailure(reason)


class Gateway(Protocol):
    """What the dispatcher needs of a gateway: an async context manager, entered before `send`.

    A failure of the gateway or the network is returned as an outcome. Only the cancellation of the
    sending task is raised.
    """

    async def __aenter__(self) -> object: ...

    async def __aexit__(self, *exc_info: object) -> None: ...

    async def send(self, request: Request) -> Outcome:
        """Send one message and return its outcome, also when the request is aborted."""
        ...
