"""What becomes of a claimed message before and after it is sent."""

import operator
from datetime import UTC, date, datetime, time, timedelta
from typing import Any, NamedTuple
from zoneinfo import ZoneInfo

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.examples import thorough

from mailer.dispatch.judge import (
    LEASE_MARGIN,
    Send,
    after_sending,
    before_sending,
    end_untried,
    hand_back,
)
from mailer.dispatch.retry import RetryPolicy
from mailer.gateway.port import Accepted, Outcome, Refused, Stopped, Unavailable, Unknown
from mailer.mailing.model import END_MARGIN, OnUnknown, RunningMailing
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


@pytest.mark.parametrize("late", [-END_MARGIN, timedelta(0), timedelta(microseconds=1), HOUR])
def test_from_right_before_the_end_on_nothing_goes_out(late: timedelta) -> None:
    mailing = changed(MAILING, datetime_end=NOON - late)
    assert before_sending(CLAIM, mailing, NOON, 10) == FinishedMessage(
        CLAIM, "cancelled", 1, "expired"
    )


def test_a_request_ends_right_before_its_mailing() -> None:
    mailing = changed(MAILING, datetime_end=NOON + timedelta(seconds=3) + END_MARGIN)
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


# ---- after ----------------------------------------------------------------------------------


def test_an_accepted_message_is_delivered() -> None:
    assert after_sending(CLAIM, MAILING, Accepted(), NOON, POLICY) == FinishedMessage(
        CLAIM, "delivered", 2, sent_at=NOON
    )


def test_a_refused_message_is_given_up() -> None:
    outcome = Refused("rejected_400")
    assert after_sending(CLAIM, MAILING, outcome, NOON, POLICY) == FinishedMessage(
        CLAIM, "undelivered", 2, "rejected_400", last_failure="rejected_400"
    )


@pytest.mark.parametrize("outcome", [Unavailable("http_503"), Unknown("timeout")])
def test_a_temporary_answer_is_tried_again_after_a_pause(outcome: Unavailable | Unknown) -> None:
    assert after_sending(CLAIM, MAILING, outcome, NOON, POLICY) == FinishedMessage(
        CLAIM,
        "scheduled",
        2,
        outcome.reason,
        due_at=NOON + timedelta(seconds=1),
        last_failure=outcome.reason,
        unknown_reason="timeout" if isinstance(outcome, Unknown) else None,
        retry_at=NOON + timedelta(seconds=1),
    )


def test_an_unknown_outcome_is_held_where_the_mailing_says_so() -> None:
    mailing = changed(MAILING, on_unknown="hold")
    finished = after_sending(CLAIM, mailing, Unknown("timeout"), NOON, POLICY)
    assert finished == FinishedMessage(
        *(CLAIM, "unknown", 2, "timeout"),
        sent_at=NOON,
        last_failure="timeout",
        unknown_reason="timeout",
    )
    again = after_sending(CLAIM, mailing, Unavailable("http_500"), NOON, POLICY)
    assert again.status == "scheduled"


def test_after_the_last_attempt_a_message_has_failed_permanently() -> None:
    claim = changed(CLAIM, attempts=8)
    assert after_sending(claim, MAILING, Unavailable("http_503"), NOON, POLICY) == FinishedMessage(
        claim, "undelivered", 8, "attempts_exhausted", last_failure="http_503"
    )


def test_a_message_whose_last_attempt_is_unknown_ends_as_unknown() -> None:
    claim = changed(CLAIM, attempts=8)
    assert after_sending(claim, MAILING, Unknown("timeout"), NOON, POLICY) == FinishedMessage(
        *(claim, "unknown", 8, "timeout"),
        sent_at=NOON,
        last_failure="timeout",
        unknown_reason="timeout",
    )


def test_a_failure_after_an_unknown_attempt_does_not_tell_what_became_of_it() -> None:
    claim = changed(CLAIM, attempts=8, unknown_reason="connection_lost")
    assert after_sending(claim, MAILING, Unavailable("http_503"), NOON, POLICY) == FinishedMessage(
        claim, "unknown", 8, "connection_lost", last_failure="http_503"
    )
    refused = after_sending(claim, MAILING, Refused("rejected_400"), NOON, POLICY)
    assert refused == FinishedMessage(
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
def test_whatever_ends_a_message_that_may_have_been_accepted_ends_it_as_unknown(
    claim: ClaimedMessage, mailing: RunningMailing
) -> None:
    unknown = changed(claim, unknown_reason="timeout")
    ended = FinishedMessage(unknown, "unknown", 1, "timeout")
    assert before_sending(unknown, mailing, NOON, 10) == ended
    assert end_untried(unknown, "undelivered", "internal_error") == ended


@pytest.mark.parametrize("field", ["last_failure", "unknown_reason"])
def test_message_that_was_tried_waits_for_the_end_when_its_window_is_over(field: str) -> None:
    mailing = changed(MAILING, window=Window(time(9), time(12)))
    tried = changed(CLAIM, **{field: "timeout"})
    assert before_sending(tried, mailing, NOON, 10) == FinishedMessage(
        tried, "scheduled", 1, due_at=NOON + 21 * HOUR
    )


@pytest.mark.parametrize("outcome", [Unavailable("http_503"), Unknown("timeout")])
@pytest.mark.parametrize("attempts", [1, 2, 7, 8])
def test_a_failure_that_is_free_costs_no_attempt_and_never_the_message(
    attempts: int, outcome: Unavailable | Unknown
) -> None:
    claim = changed(CLAIM, attempts=attempts)
    finished = after_sending(claim, MAILING, outcome, NOON, POLICY, is_free=True)
    assert (finished.status, finished.attempts) == ("scheduled", attempts - 1)
    assert finished.reason == finished.last_failure == outcome.reason
    assert finished.due_at is not None
    assert finished.due_at > NOON


def test_a_request_that_was_stopped_is_as_before_the_claim() -> None:
    for claim in (CLAIM, changed(CLAIM, attempts=8)):
        assert after_sending(claim, MAILING, Stopped(), NOON, POLICY) == hand_back(claim)


@pytest.mark.parametrize(("asked", "pause"), [(60.0, 60), (0.0, 1), (0.5, 1), (None, 1)])
def test_a_pause_that_the_gateway_asks_for_is_kept(asked: float | None, pause: float) -> None:
    finished = after_sending(CLAIM, MAILING, Unavailable("http_429", asked), NOON, POLICY)
    assert finished.due_at == NOON + timedelta(seconds=pause)


@pytest.mark.parametrize("outcome", [Unavailable("http_503", 36_000), Unknown("timeout")])
def test_a_pause_past_the_end_ends_no_message(outcome: Unavailable | Unknown) -> None:
    mailing = changed(MAILING, datetime_end=NOON + timedelta(milliseconds=500))
    finished = after_sending(CLAIM, mailing, outcome, NOON, POLICY)
    assert finished.status == "scheduled"
    assert finished.due_at is not None
    assert finished.due_at > mailing.datetime_end


def test_a_next_attempt_waits_for_the_window_also_past_the_end() -> None:
    mailing = changed(MAILING, window=Window(time(9), time(12, 0, 1)))
    for end in (10 * HOUR, 24 * HOUR):
        until = changed(mailing, datetime_end=NOON + end)
        finished = after_sending(CLAIM, until, Unavailable("http_503"), NOON, POLICY)
        assert finished.status == "scheduled"
        assert finished.retry_at == NOON + timedelta(seconds=1)
        assert finished.due_at == NOON + 21 * HOUR


# ---- anything, against a second telling -----------------------------------------------------

LATER = datetime(2100, 1, 1, tzinfo=UTC)
"""Past every mailing's end."""
QUARTER = timedelta(minutes=15)
"""By whole quarters of an hour the clocks of today differ, and jump."""


class Case(NamedTuple):
    """A message of a mailing at a moment."""

    claim: ClaimedMessage
    mailing: RunningMailing
    now: datetime


def case_of(  # noqa: PLR0913  # all that counts
    *,
    now: datetime,
    attempts: int,
    lease: timedelta,
    end: timedelta,
    phone: str | None,
    window: Window | None,
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
    case_of,
    now=moments,
    attempts=st.integers(1, 8),
    lease=spans,
    end=st.builds(operator.add, spans, st.sampled_from([timedelta(0), END_MARGIN])),
    phone=st.sampled_from(["79161234567"] * 9 + [None]),
    window=st.none()
    | st.builds(Window, quarters, quarters).filter(lambda window: window.opens != window.closes),
    zone=st.sampled_from(
        ["UTC", "Europe/Berlin", "America/New_York", "Asia/Kathmandu", "Pacific/Chatham"]
    ),
    on_unknown=st.sampled_from(["retry", "hold"]),
    unknown=st.sampled_from([None, None, "lease_expired"]),
    failure=st.sampled_from([None, None, "http_503"]),
)


def opening_plainly(case: Case, at: datetime, end: datetime) -> datetime | None:
    """Return the first moment in [at, end) that lies in the window, or None.

    Goes from quarter to quarter, and counts how long the clock has been past the opening.
    """

    def between(before: time, local: time) -> timedelta:
        passed = datetime.combine(date.min, local) - datetime.combine(date.min, before)
        return passed % timedelta(days=1)

    window, zone = case.mailing.window, ZoneInfo(case.claim.time_zone)
    while at < end:
        if window is None:
            return at
        local = at.astimezone(zone).time()
        if between(window.opens, local) < between(window.opens, window.closes):
            return at
        at += QUARTER - between(time(0), at.time()) % QUARTER
    return None


def cancelled_plainly(claim: ClaimedMessage, why: str) -> FinishedMessage:
    if claim.unknown_reason:
        return FinishedMessage(claim, "unknown", claim.attempts - 1, claim.unknown_reason)
    return FinishedMessage(claim, "cancelled", claim.attempts - 1, why)


def before_plainly(case: Case, timeout: float) -> Send | FinishedMessage:
    claim, mailing, now = case
    untried = claim.attempts - 1
    if claim.phone is None:
        return cancelled_plainly(claim, "client_deleted")
    last = mailing.datetime_end - timedelta(milliseconds=100)
    left = last - now
    if left <= timedelta(0):
        return cancelled_plainly(claim, "expired")
    opening = opening_plainly(case, now, LATER)
    is_fresh = claim.unknown_reason is None and claim.last_failure is None
    if opening is None or (opening >= last and is_fresh):
        return FinishedMessage(claim, "cancelled", untried, "no_window")
    if opening != now:
        return FinishedMessage(claim, "scheduled", untried, due_at=opening)
    if claim.lease_expires_at < now + timedelta(seconds=timeout + 1):
        return FinishedMessage(claim, "scheduled", untried)
    return Send(mailing, claim.phone, min(timeout, left.total_seconds()))


def after_plainly(  # noqa: PLR0911  # a return a rule
    case: Case, outcome: Outcome, part: float, *, is_free: bool
) -> FinishedMessage:
    """Tell what becomes of a message by the contract's words, with POLICY's numbers."""
    claim, mailing, now = case
    tried = claim.attempts
    if isinstance(outcome, Accepted):
        return FinishedMessage(claim, "delivered", tried, sent_at=now)
    if isinstance(outcome, Stopped):
        return FinishedMessage(claim, "scheduled", tried - 1)
    why = outcome.reason
    if isinstance(outcome, Refused):
        if claim.unknown_reason:
            return FinishedMessage(claim, "unknown", tried, claim.unknown_reason, last_failure=why)
        return FinishedMessage(claim, "undelivered", tried, why, last_failure=why)
    is_last = tried == 8 and not is_free
    if isinstance(outcome, Unknown) and (mailing.on_unknown == "hold" or is_last):
        return FinishedMessage(
            *(claim, "unknown", tried, why), sent_at=now, last_failure=why, unknown_reason=why
        )
    if is_last and claim.unknown_reason:
        return FinishedMessage(claim, "unknown", 8, claim.unknown_reason, last_failure=why)
    if is_last:
        return FinishedMessage(claim, "undelivered", 8, "attempts_exhausted", last_failure=why)
    cost = tried - 1 if is_free else tried
    pause = [1, 1, 2, 4, 8, 16, 32, 64][cost] * part  # after no attempt, one, two, ...
    if isinstance(outcome, Unavailable) and outcome.retry_after is not None:
        pause = max(pause, outcome.retry_after)
    retry_at = now + timedelta(seconds=pause)
    return FinishedMessage(
        *(claim, "scheduled", cost, why),
        due_at=opening_plainly(case, retry_at, LATER),
        last_failure=why,
        unknown_reason=why if isinstance(outcome, Unknown) else None,
        retry_at=retry_at,
    )


@thorough
@given(case=cases, timeout=st.sampled_from([0.5, 10.0, 60.0]))
def test_before_it_is_sent_a_message_fares_as_a_second_telling_says(
    case: Case, timeout: float
) -> None:
    judged = before_sending(*case, timeout)
    assert judged == before_plainly(case, timeout)
    if isinstance(judged, Send):
        ends = case.now + timedelta(seconds=judged.within)
        assert case.now < ends <= case.mailing.datetime_end - END_MARGIN
        assert ends <= case.claim.lease_expires_at - LEASE_MARGIN
    else:
        assert judged.attempts == case.claim.attempts - 1


@thorough
@given(
    case=cases,
    outcome=st.sampled_from([Accepted(), Refused("rejected_404"), Stopped()])
    | st.sampled_from(["timeout", "connection_lost"]).map(Unknown)
    | st.sampled_from([None, 0.0, 0.5, 60.0, 5_000.0, 90_000.0]).map(
        lambda pause: Unavailable("http_503", pause)
    ),
    is_free=st.booleans(),
    part=st.integers(0, 63).map(lambda number: number / 64),  # of a pause: whole microseconds
)
def test_after_it_was_sent_a_message_fares_as_a_second_telling_says(
    case: Case,
    outcome: Outcome,
    is_free: bool,  # noqa: FBT001  # given by name
    part: float,
) -> None:
    policy = changed(POLICY, draw=lambda: part)
    judged = after_sending(case.claim, case.mailing, outcome, case.now, policy, is_free=is_free)
    assert judged == after_plainly(case, outcome, part, is_free=is_free)
    if judged.due_at is not None:
        assert case.now <= judged.due_at
        local = judged.due_at.astimezone(ZoneInfo(case.claim.time_zone)).time()
        assert case.mailing.window is None or case.mailing.window.is_open(local)
