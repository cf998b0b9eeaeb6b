"""Options of the calls that the sandbox gateway makes to mailer."""

from typing import Literal

import msgspec

from mailer.errors import FieldError, InvalidError
from mailer.gateway.callback import ReceiptStatus

CallContent = Literal[ReceiptStatus, "reply"]
"""What a call of the sandbox gateway brings: a receipt with this status, or a reply."""

_MAX_DELAY = 86_400.0


class CallOptions(msgspec.Struct, frozen=True, kw_only=True):
    """Receipts and replies of the sandbox gateway. Each share is a fraction from 0 to 1.

    The sandbox calls the URL for receipts that a request contains. A request without one gets no
    receipts, unless there is a `receipts_url`. Raises InvalidError naming every wrong field.
    """

    receipts_url: str | None = None
    """URL of mailer for receipts and replies, of a kind that has it as a setting of the account."""
    callback_secret: str | None = None
    """Secret with which calls are signed; None for the token of the account, if the kind signs with
    it. For the kind `telnyx` any text, of which a key pair is made."""
    receipt_delay: float = 0.0
    """Mean seconds until the receipt that decides, 0 to 86,400; random (exponential)."""
    receipt_failed: float = 0.0
    """Share of accepted messages that are not delivered."""
    receipt_loss: float = 0.0
    """Share of receipts that are never sent."""
    receipt_repeat: float = 0.0
    """Share of receipts that are sent twice."""
    receipt_disorder: float = 0.0
    """Share of messages whose receipt `sent` comes after the one that decides."""
    receipt_early: float = 0.0
    """Share of messages whose receipts are sent before the response to the request."""
    reply_share: float = 0.0
    """Share of accepted messages to which the client replies."""
    stop_share: float = 0.0
    """Share of replies that are a stop word."""

    def __post_init__(self) -> None:
        """Refuse values that are out of range."""
        maximums = {"receipt_delay": _MAX_DELAY}
        errors = [
            FieldError(field, f"must be from 0 to {maximums.get(field, 1.0):,g}")
            for field in self.__struct_fields__
            if field not in {"receipts_url", "callback_secret"}
            and not 0.0 <= getattr(self, field) <= maximums.get(field, 1.0)  # refuses NaN too
        ]
        url = self.receipts_url
        if url is not None and not url.startswith(("http://", "https://")):
            errors.append(FieldError("receipts_url", "must start with http:// or https://"))
        if errors:
            raise InvalidError(errors)

    def __repr__(self) -> str:
        return "CallOptions()"  # no secret

    __str__ = __repr__
