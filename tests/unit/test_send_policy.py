"""Decisions about a claimed message, before its request and after its outcome."""

import operator
from datetime import UTC, date, datetime, time, timedelta
from typing import NamedTuple
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace
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
from mailer.mailing.field_types import OnUnknown
from mailer.mailing.model import END_MARGIN, RunningMailing
from mailer.mailing.window import SendingWindow
from mailer.message.model import ClaimedMessage, MessageResult

TIMEOUT = 10.0
"""The gateway's timeout, in seconds."""
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
"""After the second attempt, as of CLAIM, it pauses 0.5 of two seconds."""


# ---- before the request ---------------------------------------------------------------------


def test_message_is_sent_with_the_gateway_timeout() -> None:
    decision = decide_before_send(CLAIM, MAILING, NOON, TIMEOUT)
    assert decision == Send(MAILING, "79161234567", TIMEOUT, MAILING.time_left(NOON))


def test_released_message_has_the_attempts_from_before_the_claim() -> None:
    assert release_untried(CLAIM) == MessageResult(CLAIM, "scheduled", attempts=1)


def test_message_of_a_mailing_that_no_longer_runs_is_released() -> None:
    assert decide_before_send(CLAIM, None, NOON, TIMEOUT) == release_untried(CLAIM)


def test_message_of_a_deleted_client_is_cancelled() -> None:
    claim = replace(CLAIM, phone=None)
    assert decide_before_send(claim, MAILING, NOON, TIMEOUT) == MessageResult(
        claim, "cancelled", attempts=1, reason="client_deleted"
    )


@pytest.mark.parametrize(
    ("at_claim", "since_claim"), [(True, False), (False, True)], ids=["at the claim", "since then"]
)
def test_message_of_a_client_who_has_opted_out_is_cancelled(
    *, at_claim: bool, since_claim: bool
) -> None:
    claim = replace(CLAIM, is_opted_out=at_claim)
    assert decide_before_send(
        claim, MAILING, NOON, TIMEOUT, has_opted_out=since_claim
    ) == MessageResult(claim, "cancelled", attempts=1, reason="opted_out")
    service = replace(MAILING, respects_opt_outs=False)
    decision = decide_before_send(claim, service, NOON, TIMEOUT, has_opted_out=since_claim)
    assert isinstance(decision, Send)


def test_opt_out_that_the_gateway_knows_is_recorded_with_the_result() -> None:
    outcome = Rejected("opted_out", is_opt_out=True)
    assert decide_after_send(CLAIM, MAILING, outcome, NOON, POLICY) == MessageResult(
        CLAIM,
        "undelivered",
        CLAIM.attempts,
        reason="opted_out",
        last_failure="opted_out",
        is_opt_out=True,
    )
    unknown = replace(CLAIM, unknown_reason="timeout")
    result = decide_after_send(unknown, MAILING, outcome, NOON, POLICY)
    assert (result.status, result.reason, result.is_opt_out) == ("unknown", "timeout", True)


@pytest.mark.parametrize("since_end", [-END_MARGIN, timedelta(0), timedelta(microseconds=1), HOUR])
def test_message_is_cancelled_from_right_before_the_end_on(since_end: timedelta) -> None:
    mailing = replace(MAILING, datetime_end=NOON - since_end)
    assert decide_before_send(CLAIM, mailing, NOON, TIMEOUT) == MessageResult(
        CLAIM, "cancelled", attempts=1, reason="expired"
    )


def test_timeout_ends_right_before_the_mailing() -> None:
    mailing = replace(MAILING, datetime_end=NOON + timedelta(seconds=3) + END_MARGIN)
    decision = decide_before_send(CLAIM, mailing, NOON, TIMEOUT)
    assert decision == Send(mailing, "79161234567", timeout=3, seconds_left=3)


def test_message_with_too_short_a_lease_is_released() -> None:
    claim = replace(CLAIM, lease_expires_at=NOON + timedelta(milliseconds=500))
    assert decide_before_send(claim, MAILING, NOON, TIMEOUT) == release_untried(claim)


def test_message_before_its_window_is_scheduled_for_the_opening() -> None:
    mailing = replace(MAILING, window=SendingWindow(opens=time(13), closes=time(14)))
    assert decide_before_send(CLAIM, mailing, NOON, TIMEOUT) == MessageResult(
        CLAIM, "scheduled", attempts=1, due_at=NOON + HOUR
    )


def test_message_over_the_cap_is_cancelled_only_inside_its_window() -> None:
    claim = replace(CLAIM, is_over_cap=True)
    assert decide_before_send(claim, MAILING, NOON, TIMEOUT) == MessageResult(
        claim, "cancelled", attempts=1, reason="contact_cap"
    )
    later = replace(MAILING, window=SendingWindow(opens=time(13), closes=time(14)))
    assert decide_before_send(claim, later, NOON, TIMEOUT) == MessageResult(
        claim, "scheduled", attempts=1, due_at=NOON + HOUR
    )


@pytest.mark.parametrize(("opens", "closes"), [(time(9), time(12)), (time(22), time(11))])
def test_message_whose_window_does_not_open_before_the_end_is_cancelled(
    opens: time, closes: time
) -> None:
    mailing = replace(MAILING, window=SendingWindow(opens, closes))
    assert decide_before_send(CLAIM, mailing, NOON, TIMEOUT) == MessageResult(
        CLAIM, "cancelled", attempts=1, reason="no_window"
    )


def test_window_is_in_the_clients_time_zone() -> None:
    mailing = replace(MAILING, window=SendingWindow(opens=time(15), closes=time(16)))
    assert isinstance(decide_before_send(CLAIM, mailing, NOON, TIMEOUT), MessageResult)
    in_moscow = replace(CLAIM, time_zone="Europe/Moscow")  # where noon UTC is 15:00
    assert isinstance(decide_before_send(in_moscow, mailing, NOON, TIMEOUT), Send)


# ---- after the outcome ----------------------------------------------------------------------


def test_accepted_message_is_delivered() -> None:
    assert decide_after_send(CLAIM, MAILING, Accepted(), NOON, POLICY) == MessageResult(
        CLAIM, "delivered", attempts=2, sent_at=NOON, parts=1
    )


def test_rejected_message_is_undelivered() -> None:
    outcome = Rejected("rejected_400")
    assert decide_after_send(CLAIM, MAILING, outcome, NOON, POLICY) == MessageResult(
        CLAIM, "undelivered", attempts=2, reason="rejected_400", last_failure="rejected_400"
    )


@pytest.mark.parametrize("outcome", [TemporaryFailure("http_503"), Unknown("timeout")])
def test_message_is_requeued_after_a_temporary_failure_or_unknown_outcome(
    outcome: TemporaryFailure | Unknown,
) -> None:
    assert decide_after_send(CLAIM, MAILING, outcome, NOON, POLICY) == MessageResult(
        CLAIM,
        "scheduled",
        attempts=2,
        reason=outcome.reason,
        due_at=NOON + timedelta(seconds=1),
        last_failure=outcome.reason,
        unknown_reason="timeout" if isinstance(outcome, Unknown) else None,
        retry_at=NOON + timedelta(seconds=1),
    )


def test_partly_accepted_message_is_not_sent_again() -> None:
    outcome = Unknown("partly_accepted", is_final=True)
    result = decide_after_send(CLAIM, MAILING, outcome, NOON, POLICY)
    assert (result.status, result.reason) == ("unknown", "partly_accepted")


def ended_as_unknown(claim: ClaimedMessage, reason: str) -> MessageResult:
    """Return the result of a message whose current attempt is unknown and the last one."""
    return MessageResult(
        claim,
        "unknown",
        claim.attempts,
        reason,
        sent_at=NOON,
        last_failure=reason,
        unknown_reason=reason,
    )


def test_unknown_outcome_ends_the_message_if_on_unknown_is_hold() -> None:
    mailing = replace(MAILING, on_unknown="hold")
    result = decide_after_send(CLAIM, mailing, Unknown("timeout"), NOON, POLICY)
    assert result == ended_as_unknown(CLAIM, "timeout")


def test_temporary_failure_requeues_the_message_although_on_unknown_is_hold() -> None:
    mailing = replace(MAILING, on_unknown="hold")
    result = decide_after_send(CLAIM, mailing, TemporaryFailure("http_500"), NOON, POLICY)
    assert result.status == "scheduled"


def test_message_has_failed_permanently_after_the_last_attempt() -> None:
    claim = replace(CLAIM, attempts=POLICY.attempts)
    result = decide_after_send(claim, MAILING, TemporaryFailure("http_503"), NOON, POLICY)
    assert result == MessageResult(
        claim, "undelivered", attempts=8, reason="attempts_exhausted", last_failure="http_503"
    )


def test_message_whose_last_attempt_is_unknown_ends_as_unknown() -> None:
    claim = replace(CLAIM, attempts=POLICY.attempts)
    result = decide_after_send(claim, MAILING, Unknown("timeout"), NOON, POLICY)
    assert result == ended_as_unknown(claim, "timeout")


@pytest.mark.parametrize("outcome", [TemporaryFailure("http_503"), Rejected("rejected_400")])
def test_message_with_an_earlier_unknown_attempt_ends_as_unknown(
    outcome: TemporaryFailure | Rejected,
) -> None:
    claim = replace(CLAIM, attempts=POLICY.attempts, unknown_reason="connection_lost")
    assert decide_after_send(claim, MAILING, outcome, NOON, POLICY) == MessageResult(
        claim, "unknown", attempts=8, reason="connection_lost", last_failure=outcome.reason
    )


@pytest.mark.parametrize(
    ("claim", "mailing"),
    [
        (replace(CLAIM, phone=None), MAILING),
        (CLAIM, replace(MAILING, datetime_end=NOON)),
        (replace(CLAIM, is_opted_out=True), MAILING),
    ],
    ids=["client_deleted", "expired", "opted_out"],
)
def test_message_that_may_have_been_accepted_is_unknown_and_not_cancelled(
    claim: ClaimedMessage, mailing: RunningMailing
) -> None:
    unknown = replace(claim, unknown_reason="timeout")
    assert decide_before_send(unknown, mailing, NOON, TIMEOUT) == MessageResult(
        unknown, "unknown", attempts=1, reason="timeout"
    )


def test_message_that_may_have_been_accepted_is_unknown_after_an_internal_error() -> None:
    unknown = replace(CLAIM, unknown_reason="timeout")
    assert end_untried(unknown, "undelivered", "internal_error") == MessageResult(
        unknown, "unknown", attempts=1, reason="timeout"
    )


@pytest.mark.parametrize("field", ["last_failure", "unknown_reason"])
def test_message_that_was_tried_is_rescheduled_past_the_end_when_its_window_is_over(
    field: str,
) -> None:
    mailing = replace(MAILING, window=SendingWindow(opens=time(9), closes=time(12)))
    tried = replace(CLAIM, **{field: "timeout"})
    opening_next_day = NOON + 21 * HOUR
    assert decide_before_send(tried, mailing, NOON, TIMEOUT) == MessageResult(
        tried, "scheduled", attempts=1, due_at=opening_next_day
    )


@pytest.mark.parametrize("outcome", [TemporaryFailure("http_503"), Unknown("timeout")])
@pytest.mark.parametrize("attempts", [1, 2, 7, POLICY.attempts])
def test_gateway_failure_costs_no_attempt_and_never_ends_the_message(
    attempts: int, outcome: TemporaryFailure | Unknown
) -> None:
    claim = replace(CLAIM, attempts=attempts)
    result = decide_after_send(claim, MAILING, outcome, NOON, POLICY, is_gateway_failure=True)
    assert (result.status, result.attempts) == ("scheduled", attempts - 1)
    assert result.reason == result.last_failure == outcome.reason
    assert result.due_at is not None
    assert result.due_at > NOON


def test_message_of_an_aborted_request_is_released() -> None:
    for claim in (CLAIM, replace(CLAIM, attempts=POLICY.attempts)):
        assert decide_after_send(claim, MAILING, Aborted(), NOON, POLICY) == release_untried(claim)


@pytest.mark.parametrize(("retry_after", "pause"), [(60.0, 60), (0.0, 1), (0.5, 1), (None, 1)])
def test_pause_is_that_of_the_gateway_if_it_is_longer_than_that_of_the_policy(
    retry_after: float | None, pause: float
) -> None:
    failure = TemporaryFailure("http_429", retry_after=retry_after)
    result = decide_after_send(CLAIM, MAILING, failure, NOON, POLICY)
    assert result.due_at == NOON + timedelta(seconds=pause)


@pytest.mark.parametrize(
    "outcome", [TemporaryFailure("http_503", retry_after=36_000), Unknown("timeout")]
)
def test_pause_past_the_end_does_not_end_the_message(outcome: TemporaryFailure | Unknown) -> None:
    mailing = replace(MAILING, datetime_end=NOON + timedelta(milliseconds=500))
    result = decide_after_send(CLAIM, mailing, outcome, NOON, POLICY)
    assert result.status == "scheduled"
    assert result.due_at is not None
    assert result.due_at > mailing.datetime_end


@pytest.mark.parametrize("ends_in", [10 * HOUR, 24 * HOUR], ids=["before", "after"])
def test_next_attempt_is_in_the_window_even_past_the_end(ends_in: timedelta) -> None:
    """The window closes during the pause, and opens again 21 hours after noon."""
    window = SendingWindow(opens=time(9), closes=time(12, 0, 1))
    mailing = replace(MAILING, window=window, datetime_end=NOON + ends_in)
    result = decide_after_send(CLAIM, mailing, TemporaryFailure("http_503"), NOON, POLICY)
    assert result.status == "scheduled"
    assert result.retry_at == NOON + timedelta(seconds=1)
    assert result.due_at == NOON + 21 * HOUR


# ---- random cases against a reference implementation ----------------------------------------

LATER = datetime(2100, 1, 1, tzinfo=UTC)
"""After the end of every mailing."""
QUARTER_HOUR = timedelta(minutes=15)
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
    unknown_reason: str | None,
    last_failure: str | None,
) -> Case:
    """Return a case whose lease expires and whose mailing ends `lease` and `end` after `now`."""
    claim = ClaimedMessage(
        id=7,
        mailing_id=3,
        attempts=attempts,
        lease_expires_at=now + lease,
        phone=phone,
        time_zone=zone,
        unknown_reason=unknown_reason,
        last_failure=last_failure,
    )
    mailing = RunningMailing(
        id=3, text="Hello", datetime_end=now + end, window=window, on_unknown=on_unknown
    )
    return Case(claim, mailing, now)


times_on_the_quarter_hour = st.integers(0, 95).map(
    lambda number: time(number // 4, number % 4 * 15)
)
whole_quarter_hours = st.integers(0, 200).map(lambda number: number * 900_000)  # milliseconds
spans = (
    st.sampled_from([0, 1_000, 10_900]) | whole_quarter_hours | st.integers(-1_000, 200_000_000)
).map(lambda milliseconds: timedelta(milliseconds=milliseconds))
moments = (whole_quarter_hours | st.integers(0, 365 * 86_400_000)).map(
    lambda milliseconds: datetime(2026, 1, 1, tzinfo=UTC) + timedelta(milliseconds=milliseconds)
)
cases = st.builds(
    create_case,
    now=moments,
    attempts=st.integers(1, 8),
    lease=spans,
    end=st.builds(operator.add, spans, st.sampled_from([timedelta(0), END_MARGIN])),
    phone=st.sampled_from(["79161234567"] * 9 + [None]),
    window=st.none()
    | st.builds(SendingWindow, times_on_the_quarter_hour, times_on_the_quarter_hour).filter(
        lambda window: window.opens != window.closes
    ),
    zone=st.sampled_from(
        ["UTC", "Europe/Berlin", "America/New_York", "Asia/Kathmandu", "Pacific/Chatham"]
    ),
    on_unknown=st.sampled_from(["retry", "hold"]),
    unknown_reason=st.sampled_from([None, None, "lease_expired"]),
    last_failure=st.sampled_from([None, None, "http_503"]),
)


def reference_opening(case: Case, at: datetime, end: datetime) -> datetime | None:
    """Return the first time inside the window from `at` on and before `end`, or None.

    Goes in steps of a quarter of an hour, and compares the time since the window opened with its
    length.
    """

    def time_between(earlier: time, later: time) -> timedelta:
        """Return the time from one time of day to the next occurrence of another."""
        difference = datetime.combine(date.min, later) - datetime.combine(date.min, earlier)
        return difference % timedelta(days=1)

    window, zone = case.mailing.window, ZoneInfo(case.claim.time_zone)
    while at < end:
        if window is None:
            return at
        local = at.astimezone(zone).time()
        if time_between(window.opens, local) < time_between(window.opens, window.closes):
            return at
        at += QUARTER_HOUR - time_between(time(0), at.time()) % QUARTER_HOUR
    return None


def reference_cancelled(claim: ClaimedMessage, reason: str) -> MessageResult:
    """Return the result of a message that is cancelled without a request."""
    if claim.unknown_reason:
        return MessageResult(claim, "unknown", claim.attempts - 1, claim.unknown_reason)
    return MessageResult(claim, "cancelled", claim.attempts - 1, reason)


def reference_before(case: Case, timeout: float) -> Send | MessageResult:
    """Apply the rules for a message before its request, in the order of their priority."""
    claim, mailing, now = case
    attempts_before = claim.attempts - 1
    if claim.phone is None:
        return reference_cancelled(claim, "client_deleted")
    requests_end_at = mailing.datetime_end - timedelta(milliseconds=100)
    time_left = requests_end_at - now
    if time_left <= timedelta(0):
        return reference_cancelled(claim, "expired")
    opening = reference_opening(case, now, LATER)
    was_tried = claim.unknown_reason is not None or claim.last_failure is not None
    if opening is None or (opening >= requests_end_at and not was_tried):
        return MessageResult(claim, "cancelled", attempts_before, "no_window")
    if opening != now:
        return MessageResult(claim, "scheduled", attempts_before, due_at=opening)
    if claim.lease_expires_at < now + timedelta(seconds=timeout + 1):
        return MessageResult(claim, "scheduled", attempts_before)
    seconds_left = time_left.total_seconds()
    return Send(mailing, claim.phone, min(timeout, seconds_left), seconds_left)


def reference_after(  # noqa: PLR0911  # one return for each rule
    case: Case, outcome: Outcome, fraction: float, *, costs_no_attempt: bool
) -> MessageResult:
    """Apply the rules for a message after its outcome, with the numbers of POLICY."""
    claim, mailing, now = case
    attempts = claim.attempts
    if isinstance(outcome, Accepted):
        return MessageResult(claim, "delivered", attempts, sent_at=now, parts=mailing.parts)
    if isinstance(outcome, Aborted):
        return MessageResult(claim, "scheduled", attempts - 1)
    reason = outcome.reason
    if isinstance(outcome, Rejected):
        if claim.unknown_reason:
            return MessageResult(
                claim, "unknown", attempts, claim.unknown_reason, last_failure=reason
            )
        return MessageResult(claim, "undelivered", attempts, reason, last_failure=reason)
    is_last_attempt = attempts == 8 and not costs_no_attempt  # of eight
    if isinstance(outcome, Unknown) and (mailing.on_unknown == "hold" or is_last_attempt):
        return MessageResult(
            claim,
            "unknown",
            attempts,
            reason,
            sent_at=now,
            last_failure=reason,
            unknown_reason=reason,
        )
    if is_last_attempt and claim.unknown_reason:
        return MessageResult(claim, "unknown", 8, claim.unknown_reason, last_failure=reason)
    if is_last_attempt:
        return MessageResult(claim, "undelivered", 8, "attempts_exhausted", last_failure=reason)
    counted_attempts = attempts - 1 if costs_no_attempt else attempts
    max_pauses = (1, 1, 2, 4, 8, 16, 32, 64)  # seconds, after 0 to 7 counted attempts
    pause = max_pauses[counted_attempts] * fraction
    if isinstance(outcome, TemporaryFailure) and outcome.retry_after is not None:
        pause = max(pause, outcome.retry_after)
    retry_at = now + timedelta(seconds=pause)
    return MessageResult(
        claim,
        "scheduled",
        counted_attempts,
        reason,
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
        ends_at = case.now + timedelta(seconds=decision.timeout)
        assert case.now < ends_at <= case.mailing.datetime_end - END_MARGIN
        assert ends_at <= case.claim.lease_expires_at - LEASE_MARGIN
    else:
        assert decision.attempts == case.claim.attempts - 1


@thorough
@given(
    case=cases,
    outcome=st.sampled_from([Accepted(), Rejected("rejected_404"), Aborted()])
    | st.sampled_from(["timeout", "connection_lost"]).map(Unknown)
    | st.sampled_from([None, 0.0, 0.5, 60.0, 5_000.0, 90_000.0]).map(
        lambda pause: TemporaryFailure("http_503", retry_after=pause)
    ),
    costs_no_attempt=st.booleans(),
    fraction=st.integers(0, 63).map(lambda number: number / 64),  # gives whole microseconds
)
def test_decision_after_the_outcome_equals_the_reference(
    case: Case,
    outcome: Outcome,
    costs_no_attempt: bool,  # noqa: FBT001  # passed by keyword
    fraction: float,
) -> None:
    policy = replace(POLICY, draw=lambda: fraction)
    decision = decide_after_send(
        case.claim, case.mailing, outcome, case.now, policy, is_gateway_failure=costs_no_attempt
    )
    assert decision == reference_after(case, outcome, fraction, costs_no_attempt=costs_no_attempt)
    if decision.due_at is not None:
        assert case.now <= decision.due_at
        local = decision.due_at.astimezone(ZoneInfo(case.claim.time_zone)).time()
        assert case.mailing.window is None or case.mailing.window.is_open(local)
