"""What becomes of a claimed message before and after it is sent."""

from datetime import UTC, datetime, time, timedelta
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mailer.dispatch.judge import LEASE_MARGIN, Send, after_sending, before_sending, hand_back
from mailer.dispatch.retry import RetryPolicy
from mailer.gateway.port import Accepted, Outcome, Refused, Unavailable, Unknown
from mailer.mailing.model import RunningMailing
from mailer.mailing.window import Window
from mailer.message.model import ClaimedMessage, FinishedMessage

NOON = datetime(2026, 3, 4, 12, tzinfo=UTC)
HOUR = timedelta(hours=1)
CLAIM = ClaimedMessage(
    id=7,
    mailing_id=3,
    attempts=2,
    lease_expires_at=NOON + timedelta(minutes=1),
    phone="79161234567",
    time_zone="UTC",
)
MAILING = RunningMailing(
    id=3, text="Hello", datetime_end=NOON + 10 * HOUR, window=None, on_unknown="retry"
)
POLICY = RetryPolicy(attempts=8, base=1, cap=300, draw=lambda: 0.5)


def changed(value: Any, **fields: Any) -> Any:
    return msgspec.structs.replace(value, **fields)


# ---- before ---------------------------------------------------------------------------------


def test_a_message_may_go_out_for_as_long_as_the_gateway_is_given() -> None:
    assert before_sending(CLAIM, MAILING, NOON, 10) == Send(MAILING, "79161234567", 10)


def test_a_message_handed_back_is_as_before_the_claim() -> None:
    assert hand_back(CLAIM) == FinishedMessage(CLAIM, "scheduled", 1)


def test_a_mailing_that_no_longer_runs_costs_no_attempt() -> None:
    assert before_sending(CLAIM, None, NOON, 10) == hand_back(CLAIM)


def test_a_deleted_clients_message_is_cancelled() -> None:
    finished = before_sending(changed(CLAIM, phone=None), MAILING, NOON, 10)
    assert finished == FinishedMessage(changed(CLAIM, phone=None), "cancelled", 1, "client_deleted")


@pytest.mark.parametrize("late", [timedelta(0), timedelta(microseconds=1), HOUR])
def test_from_the_end_on_nothing_goes_out(late: timedelta) -> None:
    mailing = changed(MAILING, datetime_end=NOON - late)
    assert before_sending(CLAIM, mailing, NOON, 10) == FinishedMessage(
        CLAIM, "cancelled", 1, "expired"
    )


def test_a_request_ends_with_its_mailing() -> None:
    mailing = changed(MAILING, datetime_end=NOON + timedelta(seconds=3))
    assert before_sending(CLAIM, mailing, NOON, 10) == Send(mailing, "79161234567", 3)


def test_a_message_whose_lease_cannot_hold_a_request_is_handed_back() -> None:
    claim = changed(CLAIM, lease_expires_at=NOON + timedelta(milliseconds=500))
    assert before_sending(claim, MAILING, NOON, 10) == hand_back(claim)


@pytest.mark.parametrize(
    ("opens", "closes", "due_at"),
    [
        (time(13), time(14), NOON + HOUR),
        (time(9), time(12), None),
        (time(22), time(11), None),
    ],
)
def test_outside_the_window_a_message_waits_or_is_cancelled(
    opens: time, closes: time, due_at: datetime | None
) -> None:
    mailing = changed(MAILING, window=Window(opens, closes))
    finished = before_sending(CLAIM, mailing, NOON, 10)
    if due_at is None:
        assert finished == FinishedMessage(CLAIM, "cancelled", 1, "no_window")
    else:
        assert finished == FinishedMessage(CLAIM, "scheduled", 1, due_at=due_at)


def test_the_window_is_on_the_clients_clock() -> None:
    mailing = changed(MAILING, window=Window(time(15), time(16)))
    assert isinstance(before_sending(CLAIM, mailing, NOON, 10), FinishedMessage)
    in_moscow = changed(CLAIM, time_zone="Europe/Moscow")
    assert isinstance(before_sending(in_moscow, mailing, NOON, 10), Send)


@given(
    lease=st.timedeltas(-HOUR, HOUR),
    end=st.timedeltas(-HOUR, HOUR),
    timeout=st.floats(0.001, 3600),
)
def test_a_request_outlives_neither_its_lease_nor_its_mailing(
    lease: timedelta, end: timedelta, timeout: float
) -> None:
    claim = changed(CLAIM, lease_expires_at=NOON + lease)
    mailing = changed(MAILING, datetime_end=NOON + end)
    judged = before_sending(claim, mailing, NOON, timeout)
    if isinstance(judged, Send):
        assert 0 < judged.within <= timeout
        ends = NOON + timedelta(seconds=judged.within)
        assert ends <= mailing.datetime_end
        assert ends <= claim.lease_expires_at - LEASE_MARGIN
    else:
        assert judged.attempts == claim.attempts - 1


# ---- after ----------------------------------------------------------------------------------


def test_an_accepted_message_is_delivered() -> None:
    assert after_sending(CLAIM, MAILING, Accepted(), NOON, POLICY) == FinishedMessage(
        CLAIM, "delivered", 2, sent_at=NOON
    )


def test_a_refused_message_is_given_up() -> None:
    outcome = Refused("rejected_400")
    assert after_sending(CLAIM, MAILING, outcome, NOON, POLICY) == FinishedMessage(
        CLAIM, "undelivered", 2, "rejected_400"
    )


@pytest.mark.parametrize("outcome", [Unavailable("http_503"), Unknown("timeout")])
def test_a_temporary_answer_is_tried_again_after_a_pause(outcome: Unavailable | Unknown) -> None:
    assert after_sending(CLAIM, MAILING, outcome, NOON, POLICY) == FinishedMessage(
        CLAIM, "scheduled", 2, outcome.reason, due_at=NOON + timedelta(seconds=1)
    )


def test_an_unknown_outcome_is_held_where_the_mailing_says_so() -> None:
    mailing = changed(MAILING, on_unknown="hold")
    finished = after_sending(CLAIM, mailing, Unknown("timeout"), NOON, POLICY)
    assert finished == FinishedMessage(CLAIM, "unknown", 2, "timeout", sent_at=NOON)
    again = after_sending(CLAIM, mailing, Unavailable("http_500"), NOON, POLICY)
    assert again.status == "scheduled"


@pytest.mark.parametrize("outcome", [Unavailable("http_503"), Unknown("timeout")])
def test_after_the_last_attempt_a_message_is_given_up(outcome: Outcome) -> None:
    claim = changed(CLAIM, attempts=8)
    assert after_sending(claim, MAILING, outcome, NOON, POLICY) == FinishedMessage(
        claim, "undelivered", 8, "attempts_exhausted"
    )


@pytest.mark.parametrize(("asked", "pause"), [(60.0, 60), (0.0, 1), (0.5, 1), (None, 1)])
def test_a_pause_that_the_gateway_asks_for_is_kept(asked: float | None, pause: float) -> None:
    finished = after_sending(CLAIM, MAILING, Unavailable("http_429", asked), NOON, POLICY)
    assert finished.due_at == NOON + timedelta(seconds=pause)


@pytest.mark.parametrize("asked", [36_000, 1e9, 1e300, float("inf")])
def test_what_cannot_be_tried_again_before_the_end_expires(asked: float) -> None:
    finished = after_sending(CLAIM, MAILING, Unavailable("http_503", asked), NOON, POLICY)
    assert finished == FinishedMessage(CLAIM, "cancelled", 2, "expired")


def test_a_next_attempt_waits_for_the_window() -> None:
    mailing = changed(MAILING, window=Window(time(9), time(12, 0, 1)))
    outcome = Unavailable("http_503")
    assert after_sending(CLAIM, mailing, outcome, NOON, POLICY).status == "cancelled"
    longer = changed(mailing, datetime_end=NOON + 24 * HOUR)
    finished = after_sending(CLAIM, longer, outcome, NOON, POLICY)
    assert finished.due_at == NOON + 21 * HOUR


@given(
    attempts=st.integers(1, 10),
    asked=st.none() | st.floats(0, 1e6),
    end=st.timedeltas(timedelta(0), 48 * HOUR),
    hours=st.none()
    | st.tuples(st.integers(0, 23), st.integers(0, 23)).filter(lambda h: h[0] != h[1]),
    part=st.floats(0, 1, exclude_max=True),
)
def test_the_next_attempt_lies_after_the_pause_inside_the_window_and_before_the_end(
    attempts: int,
    asked: float | None,
    end: timedelta,
    hours: tuple[int, int] | None,
    part: float,
) -> None:
    window = None if hours is None else Window(time(hours[0]), time(hours[1]))
    mailing = changed(MAILING, datetime_end=NOON + end, window=window)
    claim = changed(CLAIM, attempts=attempts)
    policy = RetryPolicy(attempts=8, base=1, cap=300, draw=lambda: part)
    finished = after_sending(claim, mailing, Unavailable("http_503", asked), NOON, policy)
    assert finished.attempts == attempts
    if finished.status == "scheduled":
        assert attempts < policy.attempts
        assert finished.due_at is not None
        assert finished.due_at < mailing.datetime_end
        assert finished.due_at >= NOON + timedelta(seconds=max(policy.pause(attempts), asked or 0))
        assert window is None or window.is_open(finished.due_at.time())
    else:
        assert finished.status == ("undelivered" if attempts >= policy.attempts else "cancelled")
