"""What to do with a claimed message, before and after it is sent: pure policy."""

from datetime import datetime, timedelta
from typing import assert_never

import msgspec

from mailer.dispatch.retry import RetryPolicy
from mailer.gateway.port import Accepted, Outcome, Refused, Unavailable, Unknown
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
    if now >= mailing.datetime_end:
        return FinishedMessage(claim, "cancelled", claim.attempts - 1, "expired")
    if closed := _outside_window(claim, mailing, now):
        return closed
    if claim.lease_expires_at - now < timedelta(seconds=timeout) + LEASE_MARGIN:
        return hand_back(claim)  # it waited here so long that its answer may outlive its lease
    left = (mailing.datetime_end - now).total_seconds()
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
    if opening >= mailing.datetime_end:
        return FinishedMessage(claim, "cancelled", claim.attempts - 1, "no_window")
    return FinishedMessage(claim, "scheduled", claim.attempts - 1, due_at=opening)


def after_sending(
    claim: ClaimedMessage,
    mailing: RunningMailing,
    outcome: Outcome,
    now: datetime,
    policy: RetryPolicy,
) -> FinishedMessage:
    """Return what becomes of a message after the gateway's answer at `now`."""
    match outcome:
        case Accepted():
            return FinishedMessage(claim, "delivered", claim.attempts, sent_at=now)
        case Refused(reason=reason):
            return FinishedMessage(claim, "undelivered", claim.attempts, reason)
        case Unknown(reason=reason) if mailing.on_unknown == "hold":
            return FinishedMessage(claim, "unknown", claim.attempts, reason, sent_at=now)
        case Unknown(reason=reason):
            return _again(claim, mailing, reason, now, policy)
        case Unavailable(reason=reason, retry_after=asked):
            return _again(claim, mailing, reason, now, policy, at_least=asked or 0)
        case _:
            assert_never(outcome)


def _again(  # noqa: PLR0913  # everything the decision rests on, nothing hidden
    claim: ClaimedMessage,
    mailing: RunningMailing,
    reason: str,
    now: datetime,
    policy: RetryPolicy,
    *,
    at_least: float = 0,
) -> FinishedMessage:
    """Return when a message is tried again: inside the window, and never past the end."""
    if policy.is_exhausted(claim.attempts):
        return FinishedMessage(claim, "undelivered", claim.attempts, "attempts_exhausted")
    pause = max(policy.pause(claim.attempts), at_least)
    left = (mailing.datetime_end - now).total_seconds()
    if pause >= left:
        return FinishedMessage(claim, "cancelled", claim.attempts, "expired")
    due_at = now + timedelta(seconds=pause)
    if mailing.window is not None:
        due_at = mailing.window.next_opening(claim.time_zone, due_at)
    if due_at >= mailing.datetime_end:
        return FinishedMessage(claim, "cancelled", claim.attempts, "no_window")
    return FinishedMessage(claim, "scheduled", claim.attempts, reason, due_at=due_at)
