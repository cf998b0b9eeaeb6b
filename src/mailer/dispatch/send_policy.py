"""Decide whether a claimed message is sent, and what its result is. It does no I/O."""

import random
from collections.abc import Callable
from datetime import datetime, timedelta
from typing import assert_never

import msgspec
from msgspec.structs import replace

from mailer.gateway.protocol import (
    NO_RECEIPTS,
    Aborted,
    Accepted,
    Outcome,
    ReceiptUse,
    Rejected,
    TemporaryFailure,
    Unknown,
)
from mailer.mailing.model import RunningMailing
from mailer.mailing.text_template import (
    MAX_CHARACTERS,
    MISSING_FIELD,
    TEXT_TOO_LONG,
    MissingField,
    parse_stored,
    render,
)
from mailer.message.model import ClaimedMessage, MessageResult
from mailer.statuses import MessageStatus

LEASE_MARGIN = timedelta(seconds=1)
"""Least time of a lease that must be left after the request's timeout, to store the result."""
TOO_MANY_PARTS = "too_many_parts"
"""Reason of an undelivered message: no gateway takes a text of so many parts."""
MAX_DOUBLINGS = 64
"""Most doublings of a pause, so that its exponent stays small. Any pause reaches its cap before."""


class RetryPolicy(msgspec.Struct, frozen=True):
    """How often a message is tried, and the pauses between the attempts.

    A pause is random. Its maximum is `base` seconds after the first attempt, doubles after each
    further attempt, and is at most `cap` seconds.
    """

    attempts: int
    """Most attempts of a message."""
    base: float
    cap: float
    draw: Callable[[], float] = random.random
    """Returns a random number from 0 to 1, without 1."""

    def is_exhausted(self, attempt: int) -> bool:
        """Return whether attempt number `attempt`, counted from 1, was the last one."""
        return attempt >= self.attempts

    def pause(self, attempt: int) -> float:
        """Return the seconds to wait after attempt number `attempt`, counted from 1.

        Exponential backoff with full jitter, so that messages that failed together are not retried
        together. Source: M. Brooker, "Exponential Backoff And Jitter", AWS Architecture Blog, 2015.
        """
        return min(self.cap, self.base * 2.0 ** min(attempt - 1, MAX_DOUBLINGS)) * self.draw()


class Send(msgspec.Struct, frozen=True):
    """The decision to send a message now, in a request that ends within `timeout` seconds."""

    mailing: RunningMailing
    """The mailing, with the text to send."""
    phone: str
    timeout: float
    seconds_left: float
    """Seconds until all requests of the mailing must have ended."""


def release_untried(claim: ClaimedMessage) -> MessageResult:
    """Return the result that releases a message that was not sent. It costs no attempt."""
    return MessageResult(claim, "scheduled", claim.attempts - 1)


def refuse_long_text(claim: ClaimedMessage, *, has_other_gateway: bool) -> MessageResult:
    """Return the result of a message whose text has more parts than its gateway takes.

    Another gateway may take it, unless only this one may send it, because delivery is unknown.
    """
    if has_other_gateway and claim.unknown_reason is None:
        return replace(release_untried(claim), excludes_gateway=True)
    return end_untried(claim, "undelivered", TOO_MANY_PARTS)


def end_untried(claim: ClaimedMessage, status: MessageStatus, reason: str) -> MessageResult:
    """Return the result that ends a message that was not sent. It costs no attempt.

    If delivery by an earlier attempt is unknown, the message ends as unknown, with the reason of
    that attempt.
    """
    return _end(claim, status, reason, attempts=claim.attempts - 1)


def _end(
    claim: ClaimedMessage,
    status: MessageStatus,
    reason: str,
    attempts: int,
    last_failure: str | None = None,
) -> MessageResult:
    """Return the result that ends a message; as unknown if an earlier attempt is unknown."""
    if claim.unknown_reason is not None:
        status, reason = "unknown", claim.unknown_reason
    return MessageResult(claim, status, attempts, reason, last_failure=last_failure)


def end_opted_out(claim: ClaimedMessage) -> MessageResult:
    """Return the result of a message that is not sent because its client has opted out."""
    return end_untried(claim, "cancelled", "opted_out")


def decide_before_send(  # noqa: PLR0911  # one return for each reason not to send
    claim: ClaimedMessage,
    mailing: RunningMailing | None,
    now: datetime,
    timeout: float,
    *,
    has_opted_out: bool = False,
) -> Send | MessageResult:
    """Decide whether a message may be sent at `now`; if not, return its result.

    `mailing` is None when the mailing is not running any more. `timeout` is the gateway's, in
    seconds. `has_opted_out` is whether the client has opted out since the claim.
    """
    if mailing is None:
        return release_untried(claim)
    if claim.phone is None:
        return end_untried(claim, "cancelled", "client_deleted")
    if mailing.respects_opt_outs and (claim.is_opted_out or has_opted_out):
        return end_opted_out(claim)
    seconds_left = mailing.time_left(now)
    if seconds_left <= 0:
        return end_untried(claim, "cancelled", "expired")
    if result := _check_window(claim, mailing, now):
        return result  # the cap may permit the message when the window opens
    if claim.is_over_cap:
        return end_untried(claim, "cancelled", "contact_cap")
    longest_request = timedelta(0, timeout)  # `seconds=` takes a microsecond more
    if claim.lease_expires_at - now < longest_request + LEASE_MARGIN:
        return release_untried(claim)  # the response could come after the end of the lease
    if claim.text_version != mailing.text_version or mailing.template is not None:
        with_text = _with_text(claim, mailing)
        if isinstance(with_text, MessageResult):
            return with_text
        mailing = with_text
    return Send(mailing, claim.phone, min(timeout, seconds_left), seconds_left)


def _with_text(claim: ClaimedMessage, mailing: RunningMailing) -> RunningMailing | MessageResult:
    """Return the mailing with the text for one client, or the result if there is none."""
    if claim.text_version != mailing.text_version:
        if claim.earlier_text is None:
            return release_untried(claim)  # the text has changed since the claim
        template = parse_stored(claim.earlier_template)
        mailing = mailing.with_text(claim.text_version, claim.earlier_text, template)
    if mailing.template is None:
        return mailing
    fields = msgspec.json.decode(claim.field_values or "{}", type=dict[str, str])
    match render(mailing.template, fields):
        case MissingField():
            return end_untried(claim, "cancelled", MISSING_FIELD)
        case text if len(text) > MAX_CHARACTERS:
            return end_untried(claim, "undelivered", TEXT_TOO_LONG)
        case text:
            return mailing.with_text(claim.text_version, text)


def _check_window(
    claim: ClaimedMessage, mailing: RunningMailing, now: datetime
) -> MessageResult | None:
    """Return the result of a message outside its sending window; None when it is inside.

    The message is scheduled for the next opening. If that is not before the mailing's end, a
    message that was never tried is cancelled. But a message that was tried stays scheduled: it may
    be late only because the gateway asked for a pause, and the user may still move the end.
    """
    if mailing.window is None:
        return None
    opening = mailing.window.next_opening(claim.time_zone, now)
    if opening <= now:
        return None
    if mailing.time_left(opening) <= 0 and not claim.was_tried:
        return end_untried(claim, "cancelled", "no_window")
    return MessageResult(claim, "scheduled", claim.attempts - 1, due_at=opening)


def decide_after_send(  # noqa: PLR0911, PLR0913  # one return for each kind of outcome, and all inputs of the decision
    claim: ClaimedMessage,
    mailing: RunningMailing,
    outcome: Outcome,
    now: datetime,
    policy: RetryPolicy,
    *,
    receipts: ReceiptUse = NO_RECEIPTS,
    is_gateway_failure: bool = False,
    has_other_gateway: bool = False,
) -> MessageResult:
    """Return the result of a message whose request ended at `now` with `outcome`.

    With `is_gateway_failure` a failure belongs to a gateway outage and costs no attempt. If it was
    the first attempt, the pause is as after a first attempt that counts. With `receipts` that are
    awaited, an accepted message is not delivered yet. `has_other_gateway` is
    whether the message may also be sent through another gateway.
    """
    counted_attempts = claim.attempts - 1 if is_gateway_failure else claim.attempts
    is_last_attempt = policy.is_exhausted(counted_attempts) and not is_gateway_failure
    match outcome:
        case Accepted(gateway_message_id=gateway_message_id):
            return MessageResult(
                claim,
                "sent" if receipts.is_awaited else "delivered",
                claim.attempts,
                sent_at=now,
                gateway_message_id=gateway_message_id,
                parts=mailing.parts,
                uses_gateway_id=receipts.is_awaited and receipts.name_gateway_id,
            )
        case Rejected(reason=reason, other_gateways=True) if (
            has_other_gateway and not is_last_attempt and claim.unknown_reason is None
        ):
            result = _requeue(claim, mailing, now, 0.0)
            return replace(result, reason=reason, last_failure=reason, excludes_gateway=True)
        case Rejected(reason=reason, is_opt_out=True):
            result = _end(claim, "undelivered", reason, claim.attempts, last_failure=reason)
            return replace(result, is_opt_out=True)
        case Rejected(reason=reason):  # this request; delivery by an earlier one may be unknown
            return _end(claim, "undelivered", reason, claim.attempts, last_failure=reason)
        case Aborted():
            return release_untried(claim)
        case Unknown(reason=reason, is_final=is_final) if (
            is_final or is_last_attempt or not mailing.repeats_unknown
        ):
            result = MessageResult(claim, "unknown", claim.attempts, reason, sent_at=now)
            return replace(result, last_failure=reason, unknown_reason=reason)
        case Unknown(reason=reason):
            result = _requeue(claim, mailing, now, policy.pause(max(1, counted_attempts)))
            return replace(
                result,
                attempts=counted_attempts,
                reason=reason,
                last_failure=reason,
                unknown_reason=reason,
            )
        case TemporaryFailure(reason=reason) if is_last_attempt:
            return _end(
                claim, "undelivered", "attempts_exhausted", counted_attempts, last_failure=reason
            )
        case TemporaryFailure(reason=reason, retry_after=retry_after):
            pause = max(policy.pause(max(1, counted_attempts)), retry_after or 0.0)
            result = _requeue(claim, mailing, now, pause)
            return replace(result, attempts=counted_attempts, reason=reason, last_failure=reason)
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
