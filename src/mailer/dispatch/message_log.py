"""Log each message's claim and result, at level debug."""

import structlog

from mailer.log import shows_debug
from mailer.message.model import ClaimedMessage, MessageResult

log = structlog.get_logger()


def log_claimed(claim: ClaimedMessage) -> None:
    """Log that a message was claimed."""
    if shows_debug():
        log.debug(
            "message_claimed",
            message_id=claim.id,
            mailing_id=claim.mailing_id,
            gateway=claim.gateway,
        )


def log_result(result: MessageResult) -> None:
    """Log the result of a claimed message."""
    if shows_debug():
        log.debug(
            _event(result),
            message_id=result.claim.id,
            mailing_id=result.claim.mailing_id,
            gateway=result.claim.gateway,
            attempts=result.attempts,
            reason=result.reason,
        )


def _event(result: MessageResult) -> str:
    """Return the log event of a result.

    In an undelivered message, the reason is the last failure only if the gateway rejected it: after
    the last attempt, the reason is `attempts_exhausted`. A message that is scheduled again without
    a failure was not sent.
    """
    match result.status:
        case "undelivered" if result.reason == result.last_failure:
            return "message_rejected"
        case "undelivered":
            return "message_failed"
        case "scheduled" if result.last_failure is not None:
            return "message_retry_scheduled"
        case "scheduled":
            return "message_released"
        case status:
            return f"message_{status}"
