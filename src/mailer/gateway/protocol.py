"""The interface of a gateway: it takes one message and returns an outcome."""

import asyncio
from collections.abc import Callable
from typing import Protocol

import msgspec

from mailer.clock import elapsed


class Accepted(msgspec.Struct, frozen=True):
    """The gateway accepted the message."""


class Rejected(msgspec.Struct, frozen=True):
    """The gateway refuses this message permanently; `reason` names its answer."""

    reason: str


class TemporaryFailure(msgspec.Struct, frozen=True):
    """The message was not accepted, but may be later.

    `retry_after` is the pause in seconds that the gateway asks for, or None. With `affects_all` the
    failure concerns the whole gateway, not only this message.
    """

    reason: str
    retry_after: float | None = None
    affects_all: bool = False


class Unknown(msgspec.Struct, frozen=True):
    """The message may or may not have been accepted: delivery is unknown."""

    reason: str


class Aborted(msgspec.Struct, frozen=True):
    """The request was aborted before any of it was written."""


Outcome = Accepted | Rejected | TemporaryFailure | Unknown | Aborted


class Request:
    """One request to the gateway, which runs in a task: its contents and its progress.

    A gateway calls `begin` first, and `mark_written` right before it writes the request to the
    network. `deadline` is a moment of `elapsed()`, at which the creator of the request aborts it.
    `precondition` is called with a moment of `elapsed()` right before the write, because connecting
    can take long and a process can be suspended. If it returns False, the request is not written.
    """

    __slots__ = (
        "_is_cancelled",
        "_task",
        "abort_reason",
        "deadline",
        "is_written",
        "message_id",
        "phone",
        "precondition",
        "text",
    )

    def __init__(
        self,
        message_id: int,
        phone: str,
        text: str,
        deadline: float,
        precondition: Callable[[float], bool] | None = None,
    ) -> None:
        self.message_id = message_id
        self.phone = phone
        self.text = text
        self.deadline = deadline
        self.precondition = precondition
        self.is_written = False
        self.abort_reason: str | None = None
        self._task: asyncio.Task[object] | None = None
        self._is_cancelled = False

    def begin(self) -> None:
        """Store the current task, which is cancelled when the request is aborted."""
        self._task = asyncio.current_task()

    def mark_written(self) -> bool:
        """Mark the request as written: from now on the gateway may have it.

        Return False when the request must not be written any more. The deadline is checked here
        too, because after a suspension this may run before the timer that aborts the request.
        """
        now = elapsed()
        if now >= self.deadline or (self.precondition is not None and not self.precondition(now)):
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
                self._is_cancelled = self._task.cancel()

    def outcome_of_abort(self) -> Outcome | None:
        """Return the outcome of an aborted request.

        Return None when it was not aborted, or when its task was also cancelled for another reason.
        """
        if self.abort_reason is None:
            return None
        if self._is_cancelled and self._task is not None and self._task.uncancel() > 0:
            return None
        if self.is_written:
            return Unknown(self.abort_reason)
        return (
            Aborted() if self.abort_reason == "stopped" else TemporaryFailure("connection_failed")
        )


class Gateway(Protocol):
    """A gateway. Expected failures are outcomes; only a cancellation is raised."""

    async def send(self, request: Request) -> Outcome:
        """Send one message and return its outcome, also when the request is aborted."""
        ...
