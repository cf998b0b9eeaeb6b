"""Decide about a claimed message, before and after it is sent, and when to retry. No I/O."""

import random
from collections.abc import Callable
from datetime import datetime, timedelta
from typing import assert_never

import msgspec
from msgspec.structs import replace

from mailer.gateway.protocol import Aborted, Accepted, Outcome, Rejected, TemporaryFailure, Unknown
from mailer.mailing.model import RunningMailing
from mailer.message.model import ClaimedMessage, MessageResult
from mailer.statuses import MessageStatus

LEASE_MARGIN = timedelta(seconds=1)
"""Least time of a lease that must be left after the request's timeout, to store the result."""
MAX_DOUBLINGS = 64
"""Most doublings of the base: enough for every base to reach every cap."""


class RetryPolicy(msgspec.Struct, frozen=True):
    """At most `attempts` attempts, with exponential pauses from `base` to `cap` seconds."""

    attempts: int
    base: float
    cap: float
    draw: Callable[[], float] = random.random
    """Returns a random number in [0, 1)."""

    def is_exhausted(self, attempt: int) -> bool:
        """Return whether attempt number `attempt`, counted from 1, was the last one."""
        return attempt >= self.attempts

    def pause(self, attempt: int) -> float:
        """Return the seconds to wait after attempt number `attempt`.

        Exponential backoff with full jitter, so that messages that failed together are not retried
        together. Source: M. Brooker, "Exponential Backoff And Jitter", AWS Architecture Blog, 2015.
        """
        return min(self.cap, self.base * 2.0 ** min(attempt - 1, MAX_DOUBLINGS)) * self.draw()


class Send(msgspec.Struct, frozen=True):
    """The message may be sent now, in a request that ends within `timeout` seconds."""

    mailing: RunningMailing
    phone: str
    timeout: float


def release_untried(claim: ClaimedMessage) -> MessageResult:
    """Return the result that releases a message that was not sent. It costs no attempt."""
    return MessageResult(claim, "scheduled", claim.attempts - 1)


def end_untried(claim: ClaimedMessage, status: MessageStatus, reason: str) -> MessageResult:
    """Return the result that ends a message without counting this attempt.

    If delivery by an earlier attempt is unknown, the message ends as unknown, with the reason of
    that attempt.
    """
    if claim.unknown_reason is not None:
        status, reason = "unknown", claim.unknown_reason
    return MessageResult(claim, status, claim.attempts - 1, reason)


def decide_before_send(
    claim: ClaimedMessage, mailing: RunningMailing | None, now: datetime, timeout: float
) -> Send | MessageResult:
    """Decide whether a message may be sent at `now`; if not, return its result.

    `timeout` is the gateway's, in seconds.
    """
    if mailing is None:
        return release_untried(claim)
    if claim.phone is None:
        return end_untried(claim, "cancelled", "client_deleted")
    seconds_left = mailing.time_left(now)
    if seconds_left <= 0:
        return end_untried(claim, "cancelled", "expired")
    if result := _check_window(claim, mailing, now):
        return result
    if claim.lease_expires_at - now < timedelta(0, timeout) + LEASE_MARGIN:
        return release_untried(claim)  # the answer could come after the end of the lease
    return Send(mailing, claim.phone, min(timeout, seconds_left))


def _check_window(
    claim: ClaimedMessage, mailing: RunningMailing, now: datetime
) -> MessageResult | None:
    """Return the result of a message outside its sending window; None inside.

    Without an opening before the mailing's end, the message is cancelled. But if it was tried
    before, it stays scheduled until `datetime_end`: a pause that the gateway asked for ends no
    message, and a later end of the mailing can still make it due.
    """
    if mailing.window is None:
        return None
    opening = mailing.window.next_opening(claim.time_zone, now)
    if opening <= now:
        return None
    if mailing.time_left(opening) <= 0 and not claim.was_tried:
        return end_untried(claim, "cancelled", "no_window")
    return MessageResult(claim, "scheduled", claim.attempts - 1, due_at=opening)


def decide_after_send(  # noqa: PLR0911, PLR0913  # one return for each row of the contract's table, and all its inputs
    claim: ClaimedMessage,
    mailing: RunningMailing,
    outcome: Outcome,
    now: datetime,
    policy: RetryPolicy,
    *,
    is_gateway_failure: bool = False,
) -> MessageResult:
    """Return the result of a message whose request ended at `now` with `outcome`.

    With `is_gateway_failure` a failure belongs to a gateway outage and costs no attempt.
    """
    attempts = claim.attempts - is_gateway_failure
    is_last = policy.is_exhausted(attempts) and not is_gateway_failure
    match outcome:
        case Accepted():
            return MessageResult(claim, "delivered", claim.attempts, sent_at=now)
        case Rejected(reason=reason):  # it does not answer an earlier request with unknown delivery
            result = end_untried(claim, "undelivered", reason)
            return replace(result, attempts=claim.attempts, last_failure=reason)
        case Aborted():
            return release_untried(claim)
        case Unknown(reason=reason) if is_last or mailing.on_unknown == "hold":
            result = MessageResult(claim, "unknown", claim.attempts, reason, sent_at=now)
            return replace(result, last_failure=reason, unknown_reason=reason)
        case Unknown(reason=reason):
            result = _requeue(claim, mailing, now, policy.pause(max(1, attempts)))
            return replace(
                result, attempts=attempts, reason=reason, last_failure=reason, unknown_reason=reason
            )
        case TemporaryFailure(reason=reason) if is_last:
            result = end_untried(claim, "undelivered", "attempts_exhausted")
            return replace(result, attempts=attempts, last_failure=reason)
        case TemporaryFailure(reason=reason, retry_after=retry_after):
            pause = max(policy.pause(max(1, attempts)), retry_after or 0.0)
            result = _requeue(claim, mailing, now, pause)
            return replace(result, attempts=attempts, reason=reason, last_failure=reason)
        case _:
            assert_never(outcome)


def _requeue(
    claim: ClaimedMessage, mailing: RunningMailing, now: datetime, pause: float
) -> MessageResult:
    """Return the result that schedules a message again after `pause` seconds, inside its window.

    The new due time may be after the mailing's end. The message stays scheduled until
    `datetime_end`, and a later end can still make it due.
    """
    retry_at = now + timedelta(seconds=pause)
    window = mailing.window
    due_at = retry_at if window is None else window.next_opening(claim.time_zone, retry_at)
    return MessageResult(claim, "scheduled", claim.attempts, due_at=due_at, retry_at=retry_at)
