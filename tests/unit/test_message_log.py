"""Each result of a message has its own log event."""

from datetime import UTC, datetime

import pytest
from structlog.testing import capture_logs

from mailer.dispatch.message_log import log_result
from mailer.message.model import ClaimedMessage, MessageResult

NOW = datetime(2026, 1, 1, tzinfo=UTC)
CLAIM = ClaimedMessage(
    id=7,
    mailing_id=3,
    attempts=2,
    lease_expires_at=NOW,
    phone="79161234567",
    time_zone="UTC",
    gateway="main",
)


@pytest.mark.parametrize(
    ("result", "event"),
    [
        (MessageResult(CLAIM, "delivered", attempts=2, sent_at=NOW), "message_delivered"),
        (
            MessageResult(
                CLAIM,
                "undelivered",
                attempts=2,
                reason="rejected_400",
                last_failure="rejected_400",
            ),
            "message_rejected",
        ),
        (
            MessageResult(
                CLAIM,
                "undelivered",
                attempts=2,
                reason="attempts_exhausted",
                last_failure="http_503",
            ),
            "message_failed",
        ),
        (
            MessageResult(
                CLAIM,
                "scheduled",
                attempts=2,
                reason="timeout",
                due_at=NOW,
                last_failure="timeout",
            ),
            "message_retry_scheduled",
        ),
        (MessageResult(CLAIM, "scheduled", attempts=1), "message_released"),
        (
            MessageResult(CLAIM, "unknown", attempts=2, reason="timeout", sent_at=NOW),
            "message_unknown",
        ),
        (MessageResult(CLAIM, "cancelled", attempts=1, reason="expired"), "message_cancelled"),
    ],
)
def test_each_result_has_its_own_log_event(result: MessageResult, event: str) -> None:
    with capture_logs() as logs:
        log_result(result)
    assert logs == [
        {
            "event": event,
            "log_level": "debug",
            "message_id": 7,
            "mailing_id": 3,
            "gateway": "main",
            "attempts": result.attempts,
            "reason": result.reason,
        }
    ]
