"""Which actions a mailing allows, with which error others are refused, and when it is closed."""

import itertools
from datetime import UTC, datetime, timedelta
from typing import get_args

import msgspec
import pytest

from mailer.errors import ConflictError
from mailer.mailing import model
from mailer.mailing.actions import Action, allowed_actions, ensure_allowed
from mailer.mailing.errors import (
    MailingDraftError,
    MailingEndedError,
    MailingNotDraftError,
    MailingNotPausedError,
    MailingPausedError,
    MailingRunsError,
    NothingToRetryError,
)
from mailer.mailing.model import Mailing
from mailer.statuses import NOT_FINAL, RETRYABLE, MailingStatus, MessageCounts, MessageStatus

END = datetime(2030, 1, 1, tzinfo=UTC)
BEFORE_END = END - timedelta(hours=1)
EXPECTED: dict[Action, dict[MailingStatus, type[ConflictError] | None]] = {
    "launch": {
        "draft": None,
        "scheduled": MailingNotDraftError,
        "running": MailingNotDraftError,
        "paused": MailingNotDraftError,
        "finished": MailingNotDraftError,
        "cancelled": MailingNotDraftError,
    },
    "start": {
        "draft": None,
        "scheduled": None,
        "running": MailingRunsError,
        "paused": MailingRunsError,
        "finished": MailingEndedError,
        "cancelled": MailingEndedError,
    },
    "change": {
        "draft": None,
        "scheduled": None,
        "running": None,
        "paused": None,
        "finished": MailingEndedError,
        "cancelled": MailingEndedError,
    },
    "pause": {
        "draft": MailingDraftError,
        "scheduled": None,
        "running": None,
        "paused": MailingPausedError,
        "finished": MailingEndedError,
        "cancelled": MailingEndedError,
    },
    "resume": {
        "draft": MailingDraftError,
        "scheduled": MailingNotPausedError,
        "running": MailingNotPausedError,
        "paused": None,
        "finished": MailingEndedError,
        "cancelled": MailingEndedError,
    },
    "retry": {
        "draft": MailingDraftError,
        "scheduled": None,
        "running": None,
        "paused": None,
        "finished": None,
        "cancelled": MailingEndedError,
    },
    "duplicate": {
        "draft": None,
        "scheduled": None,
        "running": None,
        "paused": None,
        "finished": None,
        "cancelled": None,
    },
    "test": {
        "draft": None,
        "scheduled": None,
        "running": None,
        "paused": None,
        "finished": MailingEndedError,
        "cancelled": MailingEndedError,
    },
    "cancel": {
        "draft": MailingDraftError,
        "scheduled": None,
        "running": None,
        "paused": None,
        "finished": MailingEndedError,
        "cancelled": MailingEndedError,
    },
    "delete": {
        "draft": None,
        "scheduled": None,
        "running": None,
        "paused": None,
        "finished": None,
        "cancelled": None,
    },
}
"""The error with which each action is refused in each status; None where it is allowed.

It holds before the end of a mailing that has messages to retry.
"""
ACTIONS_AND_STATUSES = [*itertools.product(get_args(Action), get_args(MailingStatus))]
ALLOWED_AFTER_END = ["duplicate", "delete"]
LAUNCHED = [status for status in get_args(MailingStatus) if status != "draft"]


def create_mailing(status: MailingStatus, **counts: int) -> Mailing:
    """Return a mailing; `counts` are its messages by status."""
    messages = MessageCounts.of(**counts)
    return Mailing(
        id=1,
        name=None,
        labels=[],
        datetime_start=END - timedelta(days=1),
        datetime_end=END,
        send_interval_time_start=None,
        send_interval_time_end=None,
        text="Hello",
        client_filter=None,
        on_unknown="retry",
        purpose="marketing",
        priority="normal",
        rate=None,
        gateway=None,
        sender=None,
        status=status,
        text_version=1,
        clients_count=messages.total,
        created_messages=messages.total,
        scheduled_messages=messages.scheduled,
        sending_messages=messages.sending,
        sent_messages=messages.sent,
        delivered_messages=messages.delivered,
        undelivered_messages=messages.undelivered,
        unknown_messages=messages.unknown,
        cancelled_messages=messages.cancelled,
        created_at=END,
        updated_at=END,
    )


def error_of(action: Action, mailing: Mailing, at: datetime) -> type[Exception] | None:
    """Return the type of the error with which an action is refused; None when it is allowed."""
    try:
        ensure_allowed(action, mailing, at)
    except ConflictError as error:
        return type(error)
    return None


@pytest.mark.parametrize(("action", "status"), ACTIONS_AND_STATUSES)
def test_a_status_allows_an_action_or_says_why_not(action: Action, status: MailingStatus) -> None:
    with_failure = create_mailing(status, undelivered=1)
    expected = EXPECTED[action][status]
    assert error_of(action, with_failure, BEFORE_END) == expected
    assert (action in allowed_actions(with_failure, BEFORE_END)) == (expected is None)


@pytest.mark.parametrize("status", LAUNCHED)
def test_after_the_end_only_duplicating_and_deleting_are_allowed(status: MailingStatus) -> None:
    with_failure = create_mailing(status, undelivered=1)
    assert allowed_actions(with_failure, END) == ALLOWED_AFTER_END
    for action in EXPECTED.keys() - {*ALLOWED_AFTER_END, "launch"}:
        assert error_of(action, with_failure, END) == MailingEndedError


def test_a_draft_allows_the_same_after_its_end_as_before() -> None:
    draft = create_mailing("draft")
    assert allowed_actions(draft, END) == allowed_actions(draft, BEFORE_END)


@pytest.mark.parametrize("name", get_args(MessageStatus))
def test_only_a_mailing_with_messages_to_retry_is_retried(name: MessageStatus) -> None:
    with_one_message = create_mailing("finished", **{name: 1})
    expected = None if name in RETRYABLE else NothingToRetryError
    assert error_of("retry", with_one_message, BEFORE_END) == expected


def test_unsent_messages_include_those_that_are_not_created_yet() -> None:
    running = create_mailing("running", scheduled=3, sending=2, delivered=4)
    with_clients_to_enqueue = msgspec.structs.replace(running, clients_count=9 + 5)
    assert running.count_unsent() == 3
    assert with_clients_to_enqueue.count_unsent() == 3 + 5


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
def test_a_mailing_to_two_clients_is_ended_then_closed_then_settled(
    status: MailingStatus, counts: dict[str, int], facts: list[str]
) -> None:
    mailing = msgspec.structs.replace(create_mailing(status, **counts), clients_count=2)
    found = {"ended": mailing.has_ended, "closed": mailing.is_closed, "settled": mailing.is_settled}
    assert [name for name, is_true in found.items() if is_true] == facts


def test_a_closed_mailing_with_a_message_that_is_not_final_is_not_settled(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # today all outcomes are final; act as if a receipt could still change an unknown message
    monkeypatch.setattr(model, "NOT_FINAL", (*NOT_FINAL, "unknown"))
    closed = create_mailing("finished", delivered=1, unknown=1)
    assert closed.is_closed
    assert not closed.is_settled
