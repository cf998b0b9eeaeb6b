"""Decisions about a claimed message, before its request and after its outcome."""

import operator
from datetime import UTC, date, datetime, time, timedelta
from typing import Any, NamedTuple
from zoneinfo import ZoneInfo

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.examples import thorough
from tests.factories import HOUR, NOON

from mailer.dispatch.send_policy import (
    LEASE_MARGIN,
    RetryPolicy,
    Send,
    decide_after_send,
    decide_before_send,
    end_untried,
    release_untried,
)
from mailer.gateway.protocol import Aborted, Accepted, Outcome, Rejected, TemporaryFailure, Unknown
from mailer.mailing.model import END_MARGIN, OnUnknown, RunningMailing
from mailer.mailing.window import SendingWindow
from mailer.message.model import ClaimedMessage, MessageResult

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


# ---- before the request ---------------------------------------------------------------------


def test_message_is_sent_with_the_gateway_timeout() -> None:
    assert decide_before_send(CLAIM, MAILING, NOON, 10) == Send(MAILING, "79161234567", 10)


def test_released_message_is_as_before_the_claim() -> None:
    assert release_untried(CLAIM) == MessageResult(CLAIM, "scheduled", 1)


def test_message_of_a_mailing_that_no_longer_runs_is_released() -> None:
    assert decide_before_send(CLAIM, None, NOON, 10) == release_untried(CLAIM)


def test_message_of_a_deleted_client_is_cancelled() -> None:
    result = decide_before_send(changed(CLAIM, phone=None), MAILING, NOON, 10)
    assert result == MessageResult(changed(CLAIM, phone=None), "cancelled", 1, "client_deleted")


@pytest.mark.parametrize("late", [-END_MARGIN, timedelta(0), timedelta(microseconds=1), HOUR])
def test_message_is_cancelled_from_right_before_the_end_on(late: timedelta) -> None:
    mailing = changed(MAILING, datetime_end=NOON - late)
    assert decide_before_send(CLAIM, mailing, NOON, 10) == MessageResult(
        CLAIM, "cancelled", 1, "expired"
    )


def test_timeout_ends_right_before_the_mailing() -> None:
    mailing = changed(MAILING, datetime_end=NOON + timedelta(seconds=3) + END_MARGIN)
    assert decide_before_send(CLAIM, mailing, NOON, 10) == Send(mailing, "79161234567", 3)


def test_message_with_too_short_a_lease_is_released() -> None:
    claim = changed(CLAIM, lease_expires_at=NOON + timedelta(milliseconds=500))
    assert decide_before_send(claim, MAILING, NOON, 10) == release_untried(claim)


@pytest.mark.parametrize(
    ("opens", "closes", "due_at"),
    [
        (time(13), time(14), NOON + HOUR),
        (time(9), time(12), None),
        (time(22), time(11), None),
    ],
)
def test_message_outside_its_window_is_rescheduled_or_cancelled(
    opens: time, closes: time, due_at: datetime | None
) -> None:
    mailing = changed(MAILING, window=SendingWindow(opens, closes))
    result = decide_before_send(CLAIM, mailing, NOON, 10)
    if due_at is None:
        assert result == MessageResult(CLAIM, "cancelled", 1, "no_window")
    else:
        assert result == MessageResult(CLAIM, "scheduled", 1, due_at=due_at)


def test_window_is_in_the_clients_time_zone() -> None:
    mailing = changed(MAILING, window=SendingWindow(time(15), time(16)))
    assert isinstance(decide_before_send(CLAIM, mailing, NOON, 10), MessageResult)
    in_moscow = changed(CLAIM, time_zone="Europe/Moscow")
    assert isinstance(decide_before_send(in_moscow, mailing, NOON, 10), Send)


# ---- after the outcome ----------------------------------------------------------------------


def test_accepted_message_is_delivered() -> None:
    assert decide_after_send(CLAIM, MAILING, Accepted(), NOON, POLICY) == MessageResult(
        CLAIM, "delivered", 2, sent_at=NOON
    )


def test_rejected_message_is_undelivered() -> None:
    outcome = Rejected("rejected_400")
    assert decide_after_send(CLAIM, MAILING, outcome, NOON, POLICY) == MessageResult(
        CLAIM, "undelivered", 2, "rejected_400", last_failure="rejected_400"
    )


@pytest.mark.parametrize("outcome", [TemporaryFailure("http_503"), Unknown("timeout")])
def test_message_is_requeued_after_a_temporary_failure_or_unknown_outcome(
    outcome: TemporaryFailure | Unknown,
) -> None:
    assert decide_after_send(CLAIM, MAILING, outcome, NOON, POLICY) == MessageResult(
        CLAIM,
        "scheduled",
        2,
        outcome.reason,
        due_at=NOON + timedelta(seconds=1),
        last_failure=outcome.reason,
        unknown_reason="timeout" if isinstance(outcome, Unknown) else None,
        retry_at=NOON + timedelta(seconds=1),
    )


def test_unknown_outcome_ends_the_message_if_on_unknown_is_hold() -> None:
    mailing = changed(MAILING, on_unknown="hold")
    result = decide_after_send(CLAIM, mailing, Unknown("timeout"), NOON, POLICY)
    assert result == MessageResult(
        *(CLAIM, "unknown", 2, "timeout"),
        sent_at=NOON,
        last_failure="timeout",
        unknown_reason="timeout",
    )
    result = decide_after_send(CLAIM, mailing, TemporaryFailure("http_500"), NOON, POLICY)
    assert result.status == "scheduled"


def test_message_has_failed_permanently_after_the_last_attempt() -> None:
    claim = changed(CLAIM, attempts=8)
    assert decide_after_send(
        claim, MAILING, TemporaryFailure("http_503"), NOON, POLICY
    ) == MessageResult(claim, "undelivered", 8, "attempts_exhausted", last_failure="http_503")


def test_message_whose_last_attempt_is_unknown_ends_as_unknown() -> None:
    claim = changed(CLAIM, attempts=8)
    assert decide_after_send(claim, MAILING, Unknown("timeout"), NOON, POLICY) == MessageResult(
        *(claim, "unknown", 8, "timeout"),
        sent_at=NOON,
        last_failure="timeout",
        unknown_reason="timeout",
    )


def test_message_with_an_earlier_unknown_attempt_ends_as_unknown() -> None:
    claim = changed(CLAIM, attempts=8, unknown_reason="connection_lost")
    assert decide_after_send(
        claim, MAILING, TemporaryFailure("http_503"), NOON, POLICY
    ) == MessageResult(claim, "unknown", 8, "connection_lost", last_failure="http_503")
    result = decide_after_send(claim, MAILING, Rejected("rejected_400"), NOON, POLICY)
    assert result == MessageResult(
        claim, "unknown", 8, "connection_lost", last_failure="rejected_400"
    )


@pytest.mark.parametrize(
    ("claim", "mailing"),
    [
        (changed(CLAIM, phone=None), MAILING),
        (CLAIM, changed(MAILING, datetime_end=NOON)),
    ],
    ids=["client_deleted", "expired"],
)
def test_message_that_may_have_been_accepted_always_ends_as_unknown(
    claim: ClaimedMessage, mailing: RunningMailing
) -> None:
    unknown = changed(claim, unknown_reason="timeout")
    ended = MessageResult(unknown, "unknown", 1, "timeout")
    assert decide_before_send(unknown, mailing, NOON, 10) == ended
    assert end_untried(unknown, "undelivered", "internal_error") == ended


@pytest.mark.parametrize("field", ["last_failure", "unknown_reason"])
def test_message_that_was_tried_is_rescheduled_past_the_end_when_its_window_is_over(
    field: str,
) -> None:
    mailing = changed(MAILING, window=SendingWindow(time(9), time(12)))
    tried = changed(CLAIM, **{field: "timeout"})
    assert decide_before_send(tried, mailing, NOON, 10) == MessageResult(
        tried, "scheduled", 1, due_at=NOON + 21 * HOUR
    )


@pytest.mark.parametrize("outcome", [TemporaryFailure("http_503"), Unknown("timeout")])
@pytest.mark.parametrize("attempts", [1, 2, 7, 8])
def test_gateway_failure_costs_no_attempt_and_never_ends_the_message(
    attempts: int, outcome: TemporaryFailure | Unknown
) -> None:
    claim = changed(CLAIM, attempts=attempts)
    result = decide_after_send(claim, MAILING, outcome, NOON, POLICY, is_gateway_failure=True)
    assert (result.status, result.attempts) == ("scheduled", attempts - 1)
    assert result.reason == result.last_failure == outcome.reason
    assert result.due_at is not None
    assert result.due_at > NOON


def test_message_of_an_aborted_request_is_released() -> None:
    for claim in (CLAIM, changed(CLAIM, attempts=8)):
        assert decide_after_send(claim, MAILING, Aborted(), NOON, POLICY) == release_untried(claim)


@pytest.mark.parametrize(("retry_after", "pause"), [(60.0, 60), (0.0, 1), (0.5, 1), (None, 1)])
def test_retry_after_of_the_gateway_is_obeyed(retry_after: float | None, pause: float) -> None:
    failure = TemporaryFailure("http_429", retry_after)
    result = decide_after_send(CLAIM, MAILING, failure, NOON, POLICY)
    assert result.due_at == NOON + timedelta(seconds=pause)


@pytest.mark.parametrize("outcome", [TemporaryFailure("http_503", 36_000), Unknown("timeout")])
def test_pause_past_the_end_does_not_end_the_message(outcome: TemporaryFailure | Unknown) -> None:
    mailing = changed(MAILING, datetime_end=NOON + timedelta(milliseconds=500))
    result = decide_after_send(CLAIM, mailing, outcome, NOON, POLICY)
    assert result.status == "scheduled"
    assert result.due_at is not None
    assert result.due_at > mailing.datetime_end


def test_next_attempt_is_in_the_window_even_past_the_end() -> None:
    mailing = changed(MAILING, window=SendingWindow(time(9), time(12, 0, 1)))
    for end in (10 * HOUR, 24 * HOUR):
        until = changed(mailing, datetime_end=NOON + end)
        result = decide_after_send(CLAIM, until, TemporaryFailure("http_503"), NOON, POLICY)
        assert result.status == "scheduled"
        assert result.retry_at == NOON + timedelta(seconds=1)
        assert result.due_at == NOON + 21 * HOUR


# ---- random cases against a reference implementation ----------------------------------------

LATER = datetime(2100, 1, 1, tzinfo=UTC)
"""After the end of every mailing."""
QUARTER = timedelta(minutes=15)
"""The present offsets of time zones, and their changes, are multiples of it."""


class Case(NamedTuple):
    """A message, its mailing and a time."""

    claim: ClaimedMessage
    mailing: RunningMailing
    now: datetime


def create_case(  # noqa: PLR0913  # everything that influences the decision
    *,
    now: datetime,
    attempts: int,
    lease: timedelta,
    end: timedelta,
    phone: str | None,
    window: SendingWindow | None,
    zone: str,
    on_unknown: OnUnknown,
    unknown: str | None,
    failure: str | None,
) -> Case:
    claim = ClaimedMessage(7, 3, attempts, now + lease, phone, zone, unknown, last_failure=failure)
    return Case(claim, RunningMailing(3, "Hello", now + end, window, on_unknown), now)


quarters = st.integers(0, 95).map(lambda number: time(number // 4, number % 4 * 15))
quarters_ahead = st.integers(0, 200).map(lambda number: number * 900_000)
spans = (
    st.sampled_from([0, 1_000, 10_900]) | quarters_ahead | st.integers(-1_000, 200_000_000)
).map(lambda number: timedelta(milliseconds=number))
moments = (quarters_ahead | st.integers(0, 365 * 86_400_000)).map(
    lambda number: datetime(2026, 1, 1, tzinfo=UTC) + timedelta(milliseconds=number)
)
cases = st.builds(
    create_case,
    now=moments,
    attempts=st.integers(1, 8),
    lease=spans,
    end=st.builds(operator.add, spans, st.sampled_from([timedelta(0), END_MARGIN])),
    phone=st.sampled_from(["79161234567"] * 9 + [None]),
    window=st.none()
    | st.builds(SendingWindow, quarters, quarters).filter(
        lambda window: window.opens != window.closes
    ),
    zone=st.sampled_from(
        ["UTC", "Europe/Berlin", "America/New_York", "Asia/Kathmandu", "Pacific/Chatham"]
    ),
    on_unknown=st.sampled_from(["retry", "hold"]),
    unknown=st.sampled_from([None, None, "lease_expired"]),
    failure=st.sampled_from([None, None, "http_503"]),
)


def reference_opening(case: Case, at: datetime, end: datetime) -> datetime | None:
    """Return the first time in [at, end) inside the window, or None.

    Goes in steps of a quarter of an hour, and compares the time since the window opened with its
    length.
    """

    def between(before: time, local: time) -> timedelta:
        difference = datetime.combine(date.min, local) - datetime.combine(date.min, before)
        return difference % timedelta(days=1)

    window, zone = case.mailing.window, ZoneInfo(case.claim.time_zone)
    while at < end:
        if window is None:
            return at
        local = at.astimezone(zone).time()
        if between(window.opens, local) < between(window.opens, window.closes):
            return at
        at += QUARTER - between(time(0), at.time()) % QUARTER
    return None


def reference_cancelled(claim: ClaimedMessage, reason: str) -> MessageResult:
    if claim.unknown_reason:
        return MessageResult(claim, "unknown", claim.attempts - 1, claim.unknown_reason)
    return MessageResult(claim, "cancelled", claim.attempts - 1, reason)


def reference_before(case: Case, timeout: float) -> Send | MessageResult:
    claim, mailing, now = case
    untried = claim.attempts - 1
    if claim.phone is None:
        return reference_cancelled(claim, "client_deleted")
    last = mailing.datetime_end - timedelta(milliseconds=100)
    left = last - now
    if left <= timedelta(0):
        return reference_cancelled(claim, "expired")
    opening = reference_opening(case, now, LATER)
    is_fresh = claim.unknown_reason is None and claim.last_failure is None
    if opening is None or (opening >= last and is_fresh):
        return MessageResult(claim, "cancelled", untried, "no_window")
    if opening != now:
        return MessageResult(claim, "scheduled", untried, due_at=opening)
    if claim.lease_expires_at < now + timedelta(seconds=timeout + 1):
        return MessageResult(claim, "scheduled", untried)
    return Send(mailing, claim.phone, min(timeout, left.total_seconds()))


def reference_after(  # noqa: PLR0911  # one return for each rule
    case: Case, outcome: Outcome, fraction: float, *, is_free: bool
) -> MessageResult:
    """Apply the contract's rules after an outcome, with the numbers of POLICY."""
    claim, mailing, now = case
    attempts = claim.attempts
    if isinstance(outcome, Accepted):
        return MessageResult(claim, "delivered", attempts, sent_at=now)
    if isinstance(outcome, Aborted):
        return MessageResult(claim, "scheduled", attempts - 1)
    reason = outcome.reason
    if isinstance(outcome, Rejected):
        if claim.unknown_reason:
            return MessageResult(
                claim, "unknown", attempts, claim.unknown_reason, last_failure=reason
            )
        return MessageResult(claim, "undelivered", attempts, reason, last_failure=reason)
    is_last = attempts == 8 and not is_free
    if isinstance(outcome, Unknown) and (mailing.on_unknown == "hold" or is_last):
        return MessageResult(
            *(claim, "unknown", attempts, reason),
            sent_at=now,
            last_failure=reason,
            unknown_reason=reason,
        )
    if is_last and claim.unknown_reason:
        return MessageResult(claim, "unknown", 8, claim.unknown_reason, last_failure=reason)
    if is_last:
        return MessageResult(claim, "undelivered", 8, "attempts_exhausted", last_failure=reason)
    counted_attempts = attempts - 1 if is_free else attempts
    pause = [1, 1, 2, 4, 8, 16, 32, 64][counted_attempts] * fraction  # for 0, 1, 2, ... attempts
    if isinstance(outcome, TemporaryFailure) and outcome.retry_after is not None:
        pause = max(pause, outcome.retry_after)
    retry_at = now + timedelta(seconds=pause)
    return MessageResult(
        *(claim, "scheduled", counted_attempts, reason),
        due_at=reference_opening(case, retry_at, LATER),
        last_failure=reason,
        unknown_reason=reason if isinstance(outcome, Unknown) else None,
        retry_at=retry_at,
    )


@thorough
@given(case=cases, timeout=st.sampled_from([0.5, 10.0, 60.0]))
def test_decision_before_the_request_equals_the_reference(case: Case, timeout: float) -> None:
    decision = decide_before_send(*case, timeout)
    assert decision == reference_before(case, timeout)
    if isinstance(decision, Send):
        ends = case.now + timedelta(seconds=decision.timeout)
        assert case.now < ends <= case.mailing.datetime_end - END_MARGIN
        assert ends <= case.claim.lease_expires_at - LEASE_MARGIN
    else:
        assert decision.attempts == case.claim.attempts - 1


@thorough
@given(
    case=cases,
    outcome=st.sampled_from([Accepted(), Rejected("rejected_404"), Aborted()])
    | st.sampled_from(["timeout", "connection_lost"]).map(Unknown)
    | st.sampled_from([None, 0.0, 0.5, 60.0, 5_000.0, 90_000.0]).map(
        lambda pause: TemporaryFailure("http_503", pause)
    ),
    is_free=st.booleans(),
    fraction=st.integers(0, 63).map(lambda number: number / 64),  # gives whole microseconds
)
def test_decision_after_the_outcome_equals_the_reference(
    case: Case,
    outcome: Outcome,
    is_free: bool,  # noqa: FBT001  # passed by keyword
    fraction: float,
) -> None:
    policy = changed(POLICY, draw=lambda: fraction)
    decision = decide_after_send(
        case.claim, case.mailing, outcome, case.now, policy, is_gateway_failure=is_free
    )
    assert decision == reference_after(case, outcome, fraction, is_free=is_free)
    if decision.due_at is not None:
        assert case.now <= decision.due_at
        local = decision.due_at.astimezone(ZoneInfo(case.claim.time_zone)).time()
        assert case.mailing.window is None or case.mailing.window.is_open(local)
