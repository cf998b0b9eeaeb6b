"""Calls of a provider to mailer, which bring delivery receipts and replies of clients."""

from collections.abc import Mapping
from typing import Literal

import msgspec

ReceiptStatus = Literal["delivered", "sent", "failed", "expired", "unknown"]
"""`sent`: on its way. `unknown`: the gateway will not find out. Both decide nothing."""
SignatureName = Literal[
    "twilio",
    "vonage",
    "sinch",
    "messagebird",
    "plivo",
    "telnyx",
    "smsc",
    "smsru",
    "android",
    "textbee",
]
"""How a provider signs its calls; each is named after it."""


MAX_DOCUMENT_BYTES = 1024 * 1024
"""Most bytes of a call, or of the answer to a poll, that are read."""


class UnreadableCallbackError(ValueError):
    """A call that cannot be read. The reason is fixed text, and contains nothing of the call."""


class Callback(msgspec.Struct, frozen=True):
    """A call of a provider: one HTTP request to mailer."""

    method: str
    url: str
    """The URL that the provider has called, as it knows it: MAILER_PUBLIC_URL with path and query.
    A signature is made over it, also if a proxy has changed what mailer sees."""
    headers: Mapping[str, str]
    """By lower-case name."""
    body: bytes


class Receipt(msgspec.Struct, frozen=True):
    """A delivery receipt: what a gateway says about a message that it has accepted."""

    status: ReceiptStatus
    message_id: int | None = None
    """Mailer's id of the message; None if the receipt has only the gateway's."""
    gateway_message_id: str | None = None
    code: str | None = None
    """Error code of the provider; None without one."""
    part: str | None = None
    """Id of the part of the message, if the gateway sends a receipt for each part."""


class Reply(msgspec.Struct, frozen=True):
    """A message from a phone, or a part of one."""

    phone: str
    """The sender: as in the directory if it is a Russian number, else its digits."""
    text: str
    recipient: str | None = None
    """The number that the client has written to."""
    id: str | None = None
    """The gateway's id of the reply; None if it gives none."""
    reference: str | None = None
    """The same for all parts of one reply; None if it has a single part."""
    part: int = 1
    """Number of the part, from 1 to `parts`."""
    parts: int = 1


class CallbackContent(msgspec.Struct, frozen=True):
    """What a call brings."""

    receipts: list[Receipt]
    replies: list[Reply]

    @property
    def size(self) -> int:
        """Number of receipts and replies."""
        return len(self.receipts) + len(self.replies)
