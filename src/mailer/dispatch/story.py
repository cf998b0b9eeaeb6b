"""Debug log of each message: when it was claimed, and its result."""

import structlog

from mailer.log import shows_debug
from mailer.message.model import ClaimedMessage, FinishedMessage

log = structlog.get_logger()


def tell_claimed(claim: ClaimedMessage) -> None:
    """Log that a message was claimed."""
    if shows_debug():
        log.debug("message_claimed", message_id=claim.id, mailing_id=claim.mailing_id)


def tell_finished(finished: FinishedMessage) -> None:
    """Log the result of a claimed message."""
    if shows_debug():
        log.debug(
            _event(finished),
            message_id=finished.claim.id,
            mailing_id=finished.claim.mailing_id,
            attempts=finished.attempts,
            reason=finished.reason,
        )


def _event(finished: FinishedMessage) -> str:
    match finished.status:
        case "delivered":
            return "message_sent"
        case "undelivered" if finished.reason == finished.last_failure:
            return "message_refused"
        case "undelivered":
            return "message_given_up"
        case "scheduled" if finished.last_failure is not None:
            return "message_tried_again"
        case "scheduled":
            return "message_handed_back"
        case status:
            return f"message_{status}"
