"""Decide about a claimed message, before and after it is sent: pure policy."""

from datetime import datetime, timedelta
from typing import assert_never

import msgspec
from msgspec.structs import replace

from mailer.dispatch.retry import RetryPolicy
from mailer.gateway.port import Accepted, Outcome, Refused, Stopped, Unavailable, Unknown
from mailer.mailing.model import RunningMailing
from mailer.message.model import ClaimedMessage, FinishedMessage, Status

LEASE_MARGIN = timedelta(seconds=1)
"""Kept of a lease after the gateway's last moment to answer, to write the outcome."""


class Send(msgspec.Struct, frozen=True):
    """The message may go out now, in a request that ends within that many seconds."""

    mailing: RunningMailing
    phone: str
    within: float


def hand_back(claim: ClaimedMessage) -> FinishedMessage:
    """Return a message untried to where it was; it costs no attempt."""
    return FinishedMessage(claim, "scheduled", claim.attempts - 1)


def end_untried(claim: ClaimedMessage, status: Status, reason: str) -> FinishedMessage:
    """End a claimed message that was not sent; this attempt is not counted.

    After an attempt whose delivery is unknown it ends as unknown, for that attempt's reason.
    """
    if claim.unknown_reason is not None:
        status, reason = "unknown", claim.unknown_reason
    return FinishedMessage(claim, status, claim.attempts - 1, reason)


def before_sending(
    claim: ClaimedMessage, mailing: RunningMailing | None, now: datetime, timeout: float
) -> Send | FinishedMessage:
    """Return a message cleared for sending at `now`, or its result when it may not be sent."""
    if mailing is None:
        return hand_back(claim)
    if claim.phone is None:
        return end_untried(claim, "cancelled", "client_deleted")
    left = mailing.time_left(now)
    if left <= 0:
        return end_untried(claim, "cancelled", "expired")
    if closed := _outside_window(claim, mailing, now):
        return closed
    if claim.lease_expires_at - now < timedelta(0, timeout) + LEASE_MARGIN:
        return hand_back(claim)  # it waited here so long that its answer may outlive its lease
    return Send(mailing, claim.phone, min(timeout, left))


def _outside_window(
    claim: ClaimedMessage, mailing: RunningMailing, now: datetime
) -> FinishedMessage | None:
    """Return the result of a message outside its window, None inside.

    A message that was tried stays scheduled until `datetime_end`: a pause that its gateway asked
    for ends no message, and a later end can still make it due.
    """
    if mailing.window is None:
        return None
    opening = mailing.window.next_opening(claim.time_zone, now)
    if opening <= now:
        return None
    if mailing.time_left(opening) <= 0 and not claim.was_tried:
        return end_untried(claim, "cancelled", "no_window")
    return FinishedMessage(claim, "scheduled", claim.attempts - 1, due_at=opening)


def after_sending(  # noqa: PLR0911, PLR0913  # a return a row of the table, on all that the table rests on
    claim: ClaimedMessage,
    mailing: RunningMailing,
    outcome: Outcome,
    now: datetime,
    policy: RetryPolicy,
    *,
    is_free: bool = False,
) -> FinishedMessage:
    """Return the result of a message after the gateway's answer at `now`.

    A failure that `is_free` is the gateway's own: it costs the message no attempt.
    """
    attempts = claim.attempts - is_free
    is_last = policy.is_exhausted(attempts) and not is_free
    match outcome:
        case Accepted():
            return FinishedMessage(claim, "delivered", claim.attempts, sent_at=now)
        case Refused(reason=reason):  # of a repeat it does not tell what the first request did
            ended = end_untried(claim, "undelivered", reason)
            return replace(ended, attempts=claim.attempts, last_failure=reason)
        case Stopped():
            return hand_back(claim)
        case Unknown(reason=reason) if is_last or mailing.on_unknown == "hold":
            ended = FinishedMessage(claim, "unknown", claim.attempts, reason, sent_at=now)
            return replace(ended, last_failure=reason, unknown_reason=reason)
        case Unknown(reason=reason):
            again = _try_again(claim, mailing, now, policy.pause(max(1, attempts)))
            return replace(
                again, attempts=attempts, reason=reason, last_failure=reason, unknown_reason=reason
            )
        case Unavailable(reason=reason) if is_last:
            ended = end_untried(claim, "undelivered", "attempts_exhausted")
            return replace(ended, attempts=attempts, last_failure=reason)
        case Unavailable(reason=reason, retry_after=asked):
            pause = max(policy.pause(max(1, attempts)), asked or 0.0)
            again = _try_again(claim, mailing, now, pause)
            return replace(again, attempts=attempts, reason=reason, last_failure=reason)
        case _:
            assert_never(outcome)


def _try_again(
    claim: ClaimedMessage, mailing: RunningMailing, now: datetime, pause: float
) -> FinishedMessage:
    """Schedule a message again after a pause in seconds, inside its window.

    That may be past the end: the message stays scheduled until `datetime_end`, and a later end can
    still make it due.
    """
    retry_at = now + timedelta(seconds=pause)
    window = mailing.window
    due_at = retry_at if window is None else window.next_opening(claim.time_zone, retry_at)
    return FinishedMessage(claim, "scheduled", claim.attempts, due_at=due_at, retry_at=retry_at)
