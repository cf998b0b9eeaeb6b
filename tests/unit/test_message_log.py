"""Each result of a message has its own log event."""

from datetime import UTC, datetime

import pytest
from structlog.testing import capture_logs

from mailer.dispatch.message_log import log_result
from mailer.message.model import ClaimedMessage, MessageResult

NOW = datetime(2026, 1, 1, tzinfo=UTC)
CLAIM = ClaimedMessage(7, 3, 2, NOW, "79161234567", "UTC")


@pytest.mark.parametrize(
    ("result", "event"),
    [
        (MessageResult(CLAIM, "delivered", 2, sent_at=NOW), "message_delivered"),
        (
            MessageResult(CLAIM, "undelivered", 2, "rejected_400", last_failure="rejected_400"),
            "message_rejected",
        ),
        (
            MessageResult(CLAIM, "undelivered", 2, "attempts_exhausted", last_failure="http_503"),
            "message_failed",
        ),
        (
            MessageResult(CLAIM, "scheduled", 2, "timeout", due_at=NOW, last_failure="timeout"),
            "message_retry_scheduled",
        ),
        (MessageResult(CLAIM, "scheduled", 1), "message_released"),
        (MessageResult(CLAIM, "unknown", 2, "timeout", sent_at=NOW), "message_unknown"),
        (MessageResult(CLAIM, "cancelled", 1, "expired"), "message_cancelled"),
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
            "attempts": result.attempts,
            "reason": result.reason,
        }
    ]
