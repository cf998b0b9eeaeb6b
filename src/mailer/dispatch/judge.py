"""What to do with a claimed message, before and after it is sent: pure policy."""

from datetime import datetime, timedelta
from typing import assert_never

import msgspec

from mailer.dispatch.retry import RetryPolicy
from mailer.gateway.port import Accepted, Outcome, Refused, Stopped, Unavailable, Unknown
from mailer.mailing.model import RunningMailing
from mailer.message.model import ClaimedMessage, FinishedMessage

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


def before_sending(
    claim: ClaimedMessage, mailing: RunningMailing | None, now: datetime, timeout: float
) -> Send | FinishedMessage:
    """Return whether a message may go out at `now`, or what becomes of it instead."""
    if mailing is None:
        return hand_back(claim)
    if claim.phone is None:
        return FinishedMessage(claim, "cancelled", claim.attempts - 1, "client_deleted")
    left = mailing.time_left(now)
    if left <= 0:
        return FinishedMessage(claim, "cancelled", claim.attempts - 1, "expired")
    if closed := _outside_window(claim, mailing, now):
        return closed
    if claim.lease_expires_at - now < timedelta(seconds=timeout) + LEASE_MARGIN:
        return hand_back(claim)  # it waited here so long that its answer may outlive its lease
    return Send(mailing, claim.phone, min(timeout, left))


def _outside_window(
    claim: ClaimedMessage, mailing: RunningMailing, now: datetime
) -> FinishedMessage | None:
    """Return what becomes of a message outside its window, None inside."""
    if mailing.window is None:
        return None
    opening = mailing.window.next_opening(claim.time_zone, now)
    if opening <= now:
        return None
    if mailing.time_left(opening) <= 0:
        return FinishedMessage(claim, "cancelled", claim.attempts - 1, "no_window")
    return FinishedMessage(claim, "scheduled", claim.attempts - 1, due_at=opening)


def after_sending(  # noqa: PLR0911, PLR0913  # a return a row of the table, on all it rests on
    claim: ClaimedMessage,
    mailing: RunningMailing,
    outcome: Outcome,
    now: datetime,
    policy: RetryPolicy,
    *,
    is_free: bool = False,
) -> FinishedMessage:
    """Return what becomes of a message after the gateway's answer at `now`.

    A failure that `is_free` is the gateway's own: it costs the message no attempt.
    """
    match outcome:
        case Accepted():
            return FinishedMessage(claim, "delivered", claim.attempts, sent_at=now)
        case Refused(reason=reason):
            return FinishedMessage(
                claim, "undelivered", claim.attempts, reason, last_failure=reason
            )
        case Stopped():
            return hand_back(claim)
        case Unknown(reason=reason) if mailing.on_unknown == "hold":
            return FinishedMessage(
                claim, "unknown", claim.attempts, reason, sent_at=now, last_failure=reason
            )
        case Unknown(reason=reason):
            attempts, asked = claim.attempts - is_free, 0.0
        case Unavailable(reason=reason, retry_after=pause):
            attempts, asked = claim.attempts - is_free, pause or 0.0
        case _:
            assert_never(outcome)
    if policy.is_exhausted(attempts) and not is_free:
        return FinishedMessage(
            claim, "undelivered", attempts, "attempts_exhausted", last_failure=reason
        )
    pause = max(policy.pause(max(1, attempts)), asked)
    due_at = _next_due(claim, mailing, now, pause)
    if isinstance(due_at, datetime):
        return FinishedMessage(
            claim, "scheduled", attempts, reason, due_at=due_at, last_failure=reason
        )
    return FinishedMessage(claim, "cancelled", attempts, due_at, last_failure=reason)


def _next_due(
    claim: ClaimedMessage, mailing: RunningMailing, now: datetime, pause: float
) -> datetime | str:
    """Return when a message may be tried again after a pause in seconds, or why it may not.

    It is inside the window, and never past the end.
    """
    if pause >= mailing.time_left(now):
        return "expired"
    due_at = now + timedelta(seconds=pause)
    if mailing.window is not None:
        due_at = mailing.window.next_opening(claim.time_zone, due_at)
        if mailing.time_left(due_at) <= 0:
            return "no_window"
    return due_at
