"""Decide what a receipt changes in a message.

A receipt may come before the gateway's answer is recorded, several times, and in any order. So the
decision depends on the state of the message alone: a final status is never overwritten, except that
`delivered` counts after a failure too.
"""

import re
from collections.abc import Iterable
from datetime import datetime
from typing import Literal

import msgspec
from msgspec.structs import replace

from mailer.gateway.callback import Receipt
from mailer.message.model import StoredReceipt
from mailer.statuses import MessageStatus

MAX_RECEIPTS = 100
"""Receipts of a message that are kept. The longest text has 48 parts, and for each a receipt that
decides."""
NO_RECEIPT = "no_receipt"
"""Reason of a message that is `sent`: no receipt came in time. A later one still counts."""
NOT_DELIVERED, VALIDITY_EXPIRED = "not_delivered", "validity_expired"
"""Reasons of an undelivered message, as its receipt says; the first may have a code at its end."""
CODE = re.compile(r"[0-9A-Za-z_.-]{1,40}")
"""Error codes that a reason may contain."""

ShownStatus = Literal["delivered", "undelivered", "sent"]
"""What receipts show. `sent`: only that the gateway has accepted the message."""


class MessageState(msgspec.Struct, frozen=True):
    """The part of a message on which the effect of a receipt depends."""

    id: int
    mailing_id: int
    status: MessageStatus
    reason: str | None = None
    unknown_reason: str | None = None
    """Why delivery by an earlier attempt is unknown; None when it is not."""
    gateway: str | None = None
    gateway_message_id: str | None = None
    parts: int | None = None
    receipt_status: ShownStatus | None = None
    """For a message that is being sent: the status that it gets once its result is recorded."""
    receipt_reason: str | None = None
    receipts: tuple[StoredReceipt, ...] = ()

    @property
    def is_final(self) -> bool:
        """Whether only a late receipt can change the message, so that its mailing may be settled.

        A message that is `sent` is final once no receipt is awaited any more.
        """
        is_awaited = self.status == "sent" and self.reason is None
        return self.status not in {"scheduled", "sending"} and not is_awaited


def must_wait(message: MessageState, receipt: Receipt) -> bool:
    """Return whether a receipt can be applied only after the result of the message is recorded.

    Receipts of single parts need the number of parts, which is stored with the result. If the
    message has the gateway's id of an earlier attempt, only the id of this attempt tells whether a
    receipt is about it.
    """
    return message.status == "sending" and (
        receipt.part is not None or _may_be_about_earlier_attempt(message, receipt)
    )


def note_waiting(message: MessageState, receipt: Receipt) -> MessageState:
    """Return a message that is being sent after a receipt that must wait.

    That of a part shows that the gateway has accepted the message: if the result is lost, the
    message is not sent again before the receipt is applied.
    """
    shows_nothing = receipt.status == "unknown" or _may_be_about_earlier_attempt(message, receipt)
    if shows_nothing or message.receipt_status is not None:
        return message
    return replace(message, receipt_status="sent")


def _may_be_about_earlier_attempt(message: MessageState, receipt: Receipt) -> bool:
    is_decided_by_attempt = receipt.status in {"sent", "failed", "expired"}
    return is_decided_by_attempt and message.gateway_message_id is not None


def apply_receipt(
    message: MessageState, receipt: Receipt, gateway: str, at: datetime
) -> MessageState:
    """Return the message after a receipt of `gateway` that was received at `at`."""
    stored = StoredReceipt(at, receipt.status, gateway, receipt.code, receipt.part)
    if not _is_repeated(message.receipts, stored):
        message = replace(message, receipts=_keep_newest((*message.receipts, stored)))
    shown = _find_status(message, receipt, gateway)
    if shown is None:
        return message
    reason = _find_reason(receipt) if shown == "undelivered" else None
    if message.status == "sending":
        if message.receipt_status == "delivered" or (shown == "sent" and message.receipt_status):
            return message
        return replace(message, receipt_status=shown, receipt_reason=reason)
    if not _is_allowed(message, shown):
        return message
    return replace(message, status=shown, reason=reason)


def _keep_newest(receipts: tuple[StoredReceipt, ...]) -> tuple[StoredReceipt, ...]:
    """Return the newest receipts; of the others, those that decide nothing are left out first."""
    if len(receipts) <= MAX_RECEIPTS:
        return receipts
    surplus = next(
        (number for number, each in enumerate(receipts) if each.status in {"sent", "unknown"}), 0
    )
    return receipts[:surplus] + receipts[surplus + 1 :]


def _is_repeated(receipts: Iterable[StoredReceipt], new: StoredReceipt) -> bool:
    """Return whether a receipt says the same as one that is stored already."""
    return any(replace(stored, at=new.at) == new for stored in receipts)


def _find_status(message: MessageState, receipt: Receipt, gateway: str) -> ShownStatus | None:
    """Return what a receipt shows together with those before; None if it does not count.

    All but a delivery counts only if it is about the last attempt: after a retry, an older receipt
    may be repeated. A message of several parts is delivered when all of them are.
    """
    if receipt.status == "delivered" and _are_all_parts_delivered(message, receipt):
        return "delivered"
    if receipt.status == "unknown" or not _is_about_last_attempt(message, receipt, gateway):
        return None
    return "undelivered" if receipt.status in {"failed", "expired"} else "sent"


def _are_all_parts_delivered(message: MessageState, receipt: Receipt) -> bool:
    if receipt.part is None:
        return True
    delivered = {
        each.part
        for each in message.receipts
        if each.part is not None and each.status == "delivered"
    }
    return len(delivered) >= (message.parts or 1)


def _is_about_last_attempt(message: MessageState, receipt: Receipt, gateway: str) -> bool:
    if message.gateway != gateway:
        return False
    ids = message.gateway_message_id
    if ids is None or receipt.gateway_message_id is None:
        return True
    has_stored_id = receipt.gateway_message_id in {ids, *ids.split(",")}
    # if delivery is unknown, the last attempt has no id, and the stored one is of an attempt before
    is_of_last_attempt = message.status not in {"unknown", "scheduled"}
    return has_stored_id == is_of_last_attempt


def _is_allowed(message: MessageState, shown: ShownStatus) -> bool:
    """Return whether the message gets the status that receipts show."""
    match message.status:
        case "sent":
            return shown != "sent"
        case "unknown":
            return True
        case "scheduled":  # it was accepted already: it is not sent again
            return shown == "delivered" or message.unknown_reason is not None
        case "undelivered" | "cancelled":
            return shown == "delivered"
        case _:
            return False


def _find_reason(receipt: Receipt) -> str:
    if receipt.status == "expired":
        return VALIDITY_EXPIRED
    if receipt.code is not None and CODE.fullmatch(receipt.code) and receipt.code.strip("0"):
        return f"{NOT_DELIVERED}_{receipt.code}"
    return NOT_DELIVERED
