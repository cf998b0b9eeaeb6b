from datetime import UTC, datetime

import pytest
from structlog.testing import capture_logs

from mailer.dispatch.story import tell_finished
from mailer.message.model import ClaimedMessage, FinishedMessage

NOW = datetime(2026, 1, 1, tzinfo=UTC)
CLAIM = ClaimedMessage(7, 3, 2, NOW, "79161234567", "UTC")


@pytest.mark.parametrize(
    ("finished", "event"),
    [
        (FinishedMessage(CLAIM, "delivered", 2, sent_at=NOW), "message_sent"),
        (
            FinishedMessage(CLAIM, "undelivered", 2, "rejected_400", last_failure="rejected_400"),
            "message_refused",
        ),
        (
            FinishedMessage(CLAIM, "undelivered", 2, "attempts_exhausted", last_failure="http_503"),
            "message_given_up",
        ),
        (
            FinishedMessage(CLAIM, "scheduled", 2, "timeout", due_at=NOW, last_failure="timeout"),
            "message_tried_again",
        ),
        (FinishedMessage(CLAIM, "scheduled", 1), "message_handed_back"),
        (FinishedMessage(CLAIM, "unknown", 2, "timeout", sent_at=NOW), "message_unknown"),
        (FinishedMessage(CLAIM, "cancelled", 1, "expired"), "message_cancelled"),
    ],
)
def test_each_way_that_a_message_goes_has_a_name(finished: FinishedMessage, event: str) -> None:
    with capture_logs() as logs:
        tell_finished(finished)
    assert logs == [
        {
            "event": event,
            "log_level": "debug",
            "message_id": 7,
            "mailing_id": 3,
            "attempts": finished.attempts,
            "reason": finished.reason,
        }
    ]
