"""What the dispatcher knows of a gateway: it takes one message and tells an outcome."""

from typing import Protocol

import msgspec


class Accepted(msgspec.Struct, frozen=True):
    """The gateway took the message."""


class Refused(msgspec.Struct, frozen=True):
    """The gateway will never take this message; `reason` names its answer."""

    reason: str


class Unavailable(msgspec.Struct, frozen=True):
    """The message did not go out, and may later; `retry_after` is the pause asked for, seconds."""

    reason: str
    retry_after: float | None = None


class Unknown(msgspec.Struct, frozen=True):
    """The message may or may not have gone out."""

    reason: str


Outcome = Accepted | Refused | Unavailable | Unknown


class Gateway(Protocol):
    """Takes messages. Expected failures are outcomes; it raises nothing but a cancellation."""

    async def send(self, message_id: int, phone: str, text: str, within: float) -> Outcome:
        """Send one message, and wait for the answer no longer than `within` seconds."""
        ...
