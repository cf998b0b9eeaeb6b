"""Facts about a mailing, which actions it allows, and the errors of the others."""

from datetime import UTC, datetime, timedelta
from typing import get_args

import msgspec
import pytest

from mailer.errors import ConflictError
from mailer.mailing import model
from mailer.mailing.actions import Action, allowed_actions, ensure_allowed
from mailer.mailing.model import (
    Mailing,
    MailingEndedError,
    MailingNotPausedError,
    MailingPausedError,
    NothingToRetryError,
)
from mailer.statuses import NOT_FINAL, RETRYABLE, MailingStatus, MessageCounts, MessageStatus

END = datetime(2030, 1, 1, tzinfo=UTC)
BEFORE_END = END - timedelta(hours=1)
EXPECTED: dict[Action, dict[MailingStatus, type[ConflictError] | None]] = {
    "change": {
        "scheduled": None,
        "running": None,
        "paused": None,
        "finished": MailingEndedError,
        "cancelled": MailingEndedError,
    },
    "pause": {
        "scheduled": None,
        "running": None,
        "paused": MailingPausedError,
        "finished": MailingEndedError,
        "cancelled": MailingEndedError,
    },
    "resume": {
        "scheduled": MailingNotPausedError,
        "running": MailingNotPausedError,
        "paused": None,
        "finished": MailingEndedError,
        "cancelled": MailingEndedError,
    },
    "retry": {
        "scheduled": None,
        "running": None,
        "paused": None,
        "finished": None,
        "cancelled": MailingEndedError,
    },
    "duplicate": {
        "scheduled": None,
        "running": None,
        "paused": None,
        "finished": None,
        "cancelled": None,
    },
    "cancel": {
        "scheduled": None,
        "running": None,
        "paused": None,
        "finished": MailingEndedError,
        "cancelled": MailingEndedError,
    },
    "delete": {
        "scheduled": None,
        "running": None,
        "paused": None,
        "finished": None,
        "cancelled": None,
    },
}
"""The error of each action in each status, before the end, of a mailing with messages to retry."""
PAIRS = [(action, status) for action in get_args(Action) for status in get_args(MailingStatus)]
ALLOWED_AFTER_END = ["duplicate", "delete"]


def mailing(status: MailingStatus, **counts: int) -> Mailing:
    """Return a mailing with messages by status."""
    messages = MessageCounts.of(**counts)
    return Mailing(
        id=1,
        datetime_start=END - timedelta(days=1),
        datetime_end=END,
        send_interval_time_start=None,
        send_interval_time_end=None,
        text="Hello",
        client_filter=None,
        on_unknown="retry",
        status=status,
        clients_count=messages.total,
        created_messages=messages.total,
        scheduled_messages=messages.scheduled,
        sending_messages=messages.sending,
        delivered_messages=messages.delivered,
        undelivered_messages=messages.undelivered,
        unknown_messages=messages.unknown,
        cancelled_messages=messages.cancelled,
        created_at=END,
        updated_at=END,
    )


def error_of(action: Action, mailing: Mailing, at: datetime) -> type[Exception] | None:
    """Return the type of the error with which an action is refused."""
    try:
        ensure_allowed(action, mailing, at)
    except ConflictError as error:
        return type(error)
    return None


@pytest.mark.parametrize(("action", "status"), PAIRS)
def test_a_status_allows_an_action_or_says_why_not(action: Action, status: MailingStatus) -> None:
    failed = mailing(status, undelivered=1)
    expected = EXPECTED[action][status]
    assert error_of(action, failed, BEFORE_END) == expected
    assert (action in allowed_actions(failed, BEFORE_END)) == (expected is None)


@pytest.mark.parametrize("status", get_args(MailingStatus))
def test_after_the_end_only_copies_and_deletion_are_allowed(status: MailingStatus) -> None:
    failed = mailing(status, undelivered=1)
    assert allowed_actions(failed, END) == ALLOWED_AFTER_END
    for action in EXPECTED.keys() - {*ALLOWED_AFTER_END}:
        assert error_of(action, failed, END) == MailingEndedError


@pytest.mark.parametrize("name", get_args(MessageStatus))
def test_only_a_mailing_with_messages_to_retry_is_retried(name: MessageStatus) -> None:
    expected = None if name in RETRYABLE else NothingToRetryError
    assert error_of("retry", mailing("finished", **{name: 1}), BEFORE_END) == expected


def test_unsent_messages_include_those_that_are_not_created_yet() -> None:
    running = mailing("running", scheduled=3, sending=2, delivered=4)
    assert running.count_unsent() == 3


@pytest.mark.parametrize(
    ("status", "counts", "facts"),
    [
        ("running", {"delivered": 2}, []),
        ("paused", {"cancelled": 2}, []),
        ("cancelled", {"scheduled": 1, "delivered": 1}, ["ended"]),
        ("cancelled", {"sending": 1, "delivered": 1}, ["ended"]),
        ("cancelled", {"cancelled": 1}, ["ended"]),  # one message is not created yet
        ("cancelled", {"delivered": 1, "cancelled": 1}, ["ended", "closed", "settled"]),
        ("finished", {"unknown": 1, "undelivered": 1}, ["ended", "closed", "settled"]),
    ],
)
def test_a_mailing_is_ended_then_closed_then_settled(
    status: MailingStatus, counts: dict[str, int], facts: list[str]
) -> None:
    ended = msgspec.structs.replace(mailing(status, **counts), clients_count=2)
    found = {"ended": ended.has_ended, "closed": ended.is_closed, "settled": ended.is_settled}
    assert [name for name, is_true in found.items() if is_true] == facts


def test_a_closed_mailing_with_a_message_that_is_not_final_is_not_settled(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(model, "NOT_FINAL", (*NOT_FINAL, "unknown"))
    closed = mailing("finished", delivered=1, unknown=1)
    assert closed.is_closed
    assert not closed.is_settled
