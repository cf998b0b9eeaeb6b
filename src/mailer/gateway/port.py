"""The interface of a gateway: it takes one message and returns an outcome."""

import asyncio
from collections.abc import Callable
from typing import Protocol

import msgspec

from mailer.clock import elapsed


class Accepted(msgspec.Struct, frozen=True):
    """The gateway took the message."""


class Refused(msgspec.Struct, frozen=True):
    """The gateway will never take this message; `reason` names its answer."""

    reason: str


class Unavailable(msgspec.Struct, frozen=True):
    """The message did not go out, and may later; `retry_after` is the pause asked for, seconds.

    `affects_all`: the failure concerns the whole gateway, not this message.
    """

    reason: str
    retry_after: float | None = None
    affects_all: bool = False


class Unknown(msgspec.Struct, frozen=True):
    """The message may or may not have gone out."""

    reason: str


class Stopped(msgspec.Struct, frozen=True):
    """The request was aborted before any of it was written."""


Outcome = Accepted | Refused | Unavailable | Unknown | Stopped


class Request:
    """One request to the gateway, under way in a task: what it carries, and how far it is.

    A gateway calls `begin` first and `write` right before it hands the request to the network.
    `deadline` is a moment of `elapsed()`; whoever made the request cuts it then. `may_go`
    is asked once more before the write, at a moment of `elapsed()`, since a connection can take
    long to come, and a process may stand still.
    """

    __slots__ = (
        "_is_cancelled",
        "_task",
        "cut_because",
        "deadline",
        "is_written",
        "may_go",
        "message_id",
        "phone",
        "text",
    )

    def __init__(
        self,
        message_id: int,
        phone: str,
        text: str,
        deadline: float,
        may_go: Callable[[float], bool] | None = None,
    ) -> None:
        self.message_id = message_id
        self.phone = phone
        self.text = text
        self.deadline = deadline
        self.may_go = may_go
        self.is_written = False
        self.cut_because: str | None = None
        self._task: asyncio.Task[object] | None = None
        self._is_cancelled = False

    def begin(self) -> None:
        """Note the task that is to be ended when the request is cut."""
        self._task = asyncio.current_task()

    def write(self) -> bool:
        """Note that from here on the gateway may have it; False when it may not go any more.

        A process that stood still may come here before the timer that would have cut the request.
        """
        now = elapsed()
        if now >= self.deadline or (self.may_go is not None and not self.may_go(now)):
            self.cut_because = self.cut_because or "stopped"
        self.is_written = self.cut_because is None
        return self.is_written

    def stop(self) -> None:
        """Take it back, if nothing of it was written: then nothing will be."""
        if not self.is_written:
            self.cut("stopped")

    def cut(self, because: str) -> None:
        """End it now, once; what was written of it stays written."""
        if self.cut_because is None:
            self.cut_because = because
            if self._task is not None:
                self._is_cancelled = self._task.cancel()

    def outcome_of_cut(self) -> Outcome | None:
        """Return the outcome of a request that was cut.

        None when it was not, and when its task is cancelled for another reason, too.
        """
        if self.cut_because is None:
            return None
        if self._is_cancelled and self._task is not None and self._task.uncancel() > 0:
            return None
        if self.is_written:
            return Unknown(self.cut_because)
        return Stopped() if self.cut_because == "stopped" else Unavailable("connection_failed")


class Gateway(Protocol):
    """Takes messages. Expected failures are outcomes; it raises nothing but a cancellation."""

    async def send(self, request: Request) -> Outcome:
        """Send one message and return its outcome, also when the request is cut."""
        ...
