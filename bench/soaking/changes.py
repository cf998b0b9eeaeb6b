"""The soak's checks of every change of a message: its status, reason and number of attempts.

Each check is a generator that yields descriptions of the violations.
"""

from collections import defaultdict
from collections.abc import Collection, Iterator

from soaking.claims import UNKNOWN_REASONS, Change, Message
from soaking.evidence import Evidence, is_open, matches, moment
from soaking.journal import END_MARGIN, LAG, RECEIPT_WAIT, RETRY_ATTEMPTS

RESCHEDULABLE_REASONS = frozenset({"expired", "no_window", "filter_changed"})
"""Reasons of cancelled messages that a change of the mailing may schedule again."""


def describe_state(change: Change) -> str:
    """Return status and reason as text, such as `cancelled/expired`."""
    return change.status if change.reason is None else f"{change.status}/{change.reason}"


def _describe(change: Change) -> str:
    state, gateway = describe_state(change), change.gateway or "-"
    return f"{moment(change.at)} {change.worker} {state} {gateway} {change.attempts}"


def describe_history(changes: list[Change]) -> str:
    """Return the changes of a message as text."""
    return ", ".join(_describe(change) for change in changes)


def _transitions(message: Message) -> Iterator[tuple[Change | None, Change]]:
    """Yield each change of a message, with the change before it; None before the first."""
    yield from zip([None, *message.changes], message.changes, strict=False)


def miscounted(evidence: Evidence) -> Iterator[str]:
    """Yield the changes after which the number of attempts is not one of the allowed numbers."""
    for message in evidence.record.messages.values():
        # by worker: the numbers of the attempts that failed and were scheduled again
        failed: dict[str, set[int]] = defaultdict(set)
        for before, after in _transitions(message):
            attempts = before.attempts if before else 0
            allowed = _allowed_attempts(evidence, before, after, failed[after.worker])
            if before and before.status == "sending" and after.status == "scheduled":
                failed[after.worker].add(after.attempts)
            if after.attempts not in allowed or after.attempts > RETRY_ATTEMPTS:
                history = describe_history(message.changes)
                yield f"message {after.message_id}: {attempts} to {after.attempts} in {history}"


def _allowed_attempts(
    evidence: Evidence, before: Change | None, after: Change, failed: set[int]
) -> Collection[int]:
    """Return the numbers of attempts that are allowed after the change from `before` to `after`.

    `failed` contains the attempts of the message that failed in the same worker.
    """
    attempts = before.attempts if before else 0
    if before and before.status == "sending":
        return {attempts, attempts - 1}  # less if it was released without a request
    if after.status == "sending":
        return {attempts + 1}
    if before and before.status in {"undelivered", "unknown"}:
        return {attempts, 0}  # retried by a user
    if after.status == "scheduled" and evidence.was_breaker_open(after.worker, 0, after.at):
        # when its breaker opens, a worker refunds its last failures, one or several
        fewest = attempts
        while fewest in failed:
            fewest -= 1
        return range(fewest, attempts + 1)
    return {attempts}


def illegal_changes(evidence: Evidence) -> Iterator[str]:
    """Yield the changes of status that mailer must never make."""
    for message in evidence.record.messages.values():
        for before, after in _transitions(message):
            if before is None:
                is_legal = after.status in {"scheduled", "cancelled"}
            else:
                is_legal = _is_legal(evidence, before, after) or _is_by_receipt(
                    message, before, after
                )
            if not is_legal:
                old_state = describe_state(before) if before else "new"
                yield f"message {after.message_id}: {old_state} to {describe_state(after)}"


def _is_legal(evidence: Evidence, before: Change, after: Change) -> bool:
    """Return whether mailer may make a change without a receipt."""
    match before.status, after.status:
        case "scheduled", "scheduled" | "sending" | "cancelled":
            return True
        case "scheduled", "unknown":  # it may have been accepted, and its mailing ended
            return after.reason in {*UNKNOWN_REASONS, "bad_response"}
        case "sent", "sent":
            return (before.reason, after.reason) == (None, "no_receipt")
        case "cancelled", "scheduled" | "cancelled":
            return before.reason in RESCHEDULABLE_REASONS
        case "undelivered" | "unknown", "scheduled" | "cancelled":
            return evidence.was_retried(after.mailing_id, before.at, after.at)
        case old_status, status:
            return old_status == "sending" and status != "sending"


def _is_by_receipt(message: Message, before: Change, after: Change) -> bool:
    """Return whether a receipt may have changed a message that was not being sent.

    It shows that the gateway has accepted a message whose delivery is unknown, or decides about one
    that is `sent`. That the message is delivered, it may show at any time.
    """
    may_have_been_accepted = before.status in {"sent", "unknown"} or (
        before.status == "scheduled" and before.unknown_reason is not None
    )
    return (
        after.is_receipt_state
        and after.status in {each.shown for each in message.receipts_until(after.at)}
        and (may_have_been_accepted or after.status == "delivered")
        and before.status not in {after.status, "delivered"}
    )


def wrong_reasons(evidence: Evidence) -> Iterator[str]:
    """Yield the changes whose reason does not hold for the mailing at that time."""
    for message in evidence.record.messages.values():
        for change in message.changes:
            rule = REASON_RULES.get(change.reason or "")
            if rule is not None and not rule(evidence, change):
                state = describe_state(change)
                history = describe_history(message.changes)
                yield f"message {change.message_id}: {state} at {moment(change.at)} in {history}"


def _is_expired(evidence: Evidence, change: Change) -> bool:
    """Return whether the mailing had ended."""
    versions = evidence.versions(change.mailing_id, change.at, change.at)
    return any(change.at + END_MARGIN + LAG >= version.end for version in versions)


def _has_no_window(evidence: Evidence, change: Change) -> bool:
    """Return whether the client's sending window stayed closed until the mailing's end."""
    zone = evidence.clients[change.client_id]["time_zone"]
    for version in evidence.versions(change.mailing_id, change.at, change.at):
        since = int(change.at + 1)
        if not any(is_open(version, zone, at) for at in range(since, int(version.end))):
            return True
    return False


def _is_filtered_out(evidence: Evidence, change: Change) -> bool:
    """Return whether the mailing's filter did not match the client."""
    client = evidence.clients[change.client_id]
    versions = evidence.versions(change.mailing_id, change.at, change.at)
    return any(not matches(version.client_filter, client) for version in versions)


def _is_cancelled(evidence: Evidence, change: Change) -> bool:
    """Return whether the mailing was cancelled."""
    versions = evidence.versions(change.mailing_id, change.at, change.at + LAG)
    return any(version.status == "cancelled" for version in versions)


def _has_no_receipt(evidence: Evidence, change: Change) -> bool:
    """Return whether the receipt of a message has been awaited since an accepted request.

    That may be a request of an earlier life: a late receipt resolves an unknown delivery.
    """
    return any(
        claim.opened.at + RECEIPT_WAIT - LAG <= change.at
        for claim in evidence.record.messages[change.message_id].claims
        if claim.request is not None and claim.request.kind == "accepted"
    )


def _has_opted_out(evidence: Evidence, change: Change) -> bool:
    """Return whether the client may have been opted out, and the mailing was not of service."""
    [purpose] = {version.purpose for version in evidence.record.mailings[change.mailing_id]}
    may_be_out = any(
        opt_out.began <= change.at <= opt_out.may_end + LAG
        for opt_out in evidence.opt_outs_of(change.client_id)
    )
    return purpose == "marketing" and may_be_out


def _is_exhausted(_: Evidence, change: Change) -> bool:
    """Return whether the message had all its attempts."""
    return change.attempts == RETRY_ATTEMPTS


REASON_RULES = {
    "expired": _is_expired,
    "no_window": _has_no_window,
    "filter_changed": _is_filtered_out,
    "mailing_cancelled": _is_cancelled,
    "opted_out": _has_opted_out,
    "no_receipt": _has_no_receipt,
    "attempts_exhausted": _is_exhausted,
}
"""By reason: the function that returns whether the reason is true for a change of a message. Other
reasons cannot be checked on their own."""
