"""The soak's checks of every claim: whether mailer recorded what the gateway did.

Each check is a generator that yields descriptions of the violations.
"""

from collections import Counter, defaultdict
from collections.abc import Collection, Iterator
from itertools import pairwise

from soaking.claims import (
    TEMPORARILY_FAILED,
    UNANSWERED,
    UNKNOWN_REASONS,
    Change,
    Claim,
    Message,
)
from soaking.evidence import CheckReport, Evidence, is_open, matches, moment
from soaking.journal import END_MARGIN, LAG, RETRY_ATTEMPTS

RESCHEDULABLE_REASONS = frozenset({"expired", "no_window", "filter_changed"})
"""Reasons of cancelled messages that a change of the mailing may schedule again."""


def check_outcomes(report: CheckReport, evidence: Evidence) -> None:
    """Check every claim of a message, and every change of a message's status and reason."""
    messages = evidence.record.messages.values()
    claims = [claim for message in messages for claim in message.claims]
    sent = sum(claim.request is not None for claim in claims)
    changes = sum(len(message.changes) for message in messages)
    report.expect_none(
        "outcomes that differ from what the gateway did", _wrong_outcomes(evidence, claims), of=sent
    )
    report.expect_none("answers lost without a cause", _lost_answers(evidence, claims), of=sent)
    report.expect_none(
        "leases expired without a cause", _expired_leases(evidence, claims), of=len(claims)
    )
    report.expect_none(
        "attempts counted without a request", _counted_unsent(evidence, claims), of=len(claims)
    )
    report.expect_none("requests that cost no attempt", _uncounted_sent(evidence, claims), of=sent)
    report.expect_none(
        f"attempts miscounted, or over {RETRY_ATTEMPTS}", _miscounted(evidence), of=changes
    )
    report.expect_none("illegal changes of state", _illegal_changes(evidence), of=changes)
    report.expect_none("reasons that do not hold", _wrong_reasons(evidence), of=changes)
    check = "messages sent again after an unknown outcome, though on_unknown is hold"
    report.expect_none(check, _sent_after_unknown(evidence), of=sent)
    _check_accepted(report, evidence)


def _check_accepted(report: CheckReport, evidence: Evidence) -> None:
    """Compare the requests that the gateway accepted with the delivered messages.

    A message may be accepted and not delivered only if the answer was lost, so that the outcome of
    the claim is unknown. A message may be accepted again only after a lost answer.
    """
    delivered, accepted, repeats, lost_answers = 0, 0, 0, 0
    never_accepted: list[str] = []
    wrong_status: list[str] = []
    unexplained: list[str] = []
    explained: Counter[str] = Counter()
    for message_id, message in evidence.record.messages.items():
        claims = _accepted_claims(message)
        state = _describe_state(message.last)
        is_delivered = message.last.status == "delivered"
        delivered += is_delivered
        accepted += bool(claims)
        repeats += max(0, len(claims) - 1)
        lost_answers += sum(_is_unknown(claim) for claim in claims)
        if is_delivered and not claims:
            never_accepted.append(f"message {message_id}: delivered, never accepted")
        claims_without_delivery = claims[:-1] if is_delivered else claims
        if not all(map(_is_unknown, claims_without_delivery)):
            unexplained.append(f"message {message_id}: {state}, {len(claims)} accepted")
        elif claims and not is_delivered:
            is_deleted = evidence.record.mailings[message.last.mailing_id][-1].is_deleted
            if not is_deleted and message.last.status in {"cancelled", "undelivered"}:
                wrong_status.append(f"message {message_id}: {state}, accepted")
            explained[f"{'deleted' if is_deleted else state}: {claims[-1].outcome}"] += 1
    report.expect_none("delivered messages that were never accepted", never_accepted, of=delivered)
    report.expect_none("accepted, but cancelled or undelivered", wrong_status, of=accepted)
    report.expect_none("accepted, not delivered, outcome not unknown", unexplained, of=accepted)
    for explanation, count in sorted(explained.items()):
        print(f"    accepted, answer lost, ended as {explanation}: {count:,}")
    report.expect_none(
        "repeats beyond the accepted requests with unknown outcome",
        [f"{repeats} repeats"] if repeats > lost_answers else [],
        of=repeats,
    )
    print(f"    {repeats:,} repeats, {lost_answers:,} accepted requests whose answer was lost")


def _accepted_claims(message: Message) -> list[Claim]:
    """Return the claims of a message whose request the gateway accepted."""
    return [
        claim
        for claim in message.claims
        if claim.request is not None and claim.request.kind == "accepted"
    ]


def _is_unknown(claim: Claim) -> bool:
    """Return whether mailer recorded that it does not know the outcome of a claim."""
    return claim.outcome in UNKNOWN_REASONS


def _describe_state(change: Change) -> str:
    """Return status and reason as text, such as `cancelled/expired`."""
    return change.status if change.reason is None else f"{change.status}/{change.reason}"


def _describe(claim: Claim) -> str:
    """Return a claim, its request and its end as text."""
    opened, closed, request = claim.opened, claim.closed, claim.request
    sent = "no request" if request is None else f"{request.kind} at {moment(request.arrived)}"
    result = "open" if closed is None else f"{_describe_state(closed)} at {moment(closed.at)}"
    message = f"message {opened.message_id} of mailing {opened.mailing_id}"
    return f"{message}, claimed {moment(opened.at)} by {opened.worker}: {sent}, {result}"


def _wrong_outcomes(evidence: Evidence, claims: list[Claim]) -> Iterator[str]:
    """Yield the claims whose recorded outcome contradicts what the gateway did.

    An unknown outcome contradicts nothing, because the answer may have been lost. But the message
    must then be sent again or stay unknown as the mailing's `on_unknown` says; other claims are
    yielded too.
    """
    for claim in claims:
        closed, request = claim.closed, claim.request
        if closed is None or request is None or claim.outcome == "lease_expired":
            continue
        is_unknown = closed.reason in UNKNOWN_REASONS
        must_stay_unknown = _on_unknown(evidence, claim) == {"hold"}
        if not claim.agrees_with(request) and not is_unknown:
            yield _describe(claim)
        elif must_stay_unknown and request.kind in UNANSWERED and closed.status != "unknown":
            yield f"{_describe(claim)}, though on_unknown is hold"
        elif _ended_with_attempts_left(evidence, claim) and not _follows_unknown(evidence, claim):
            yield f"{_describe(claim)}, though on_unknown is retry"


def _ended_with_attempts_left(evidence: Evidence, claim: Claim) -> bool:
    """Return whether a message ended as unknown although it should have been sent again.

    It had attempts left, and its mailing has never had `on_unknown` set to `hold`.
    """
    closed = claim.closed
    return (
        closed is not None
        and closed.status == "unknown"
        and closed.attempts < RETRY_ATTEMPTS
        and "hold" not in _on_unknown(evidence, claim)
    )


def _follows_unknown(evidence: Evidence, claim: Claim) -> bool:
    """Return whether a message ended as unknown because of an attempt before this claim.

    The gateway rejected the message in this claim, or temporarily failed in the last attempt. That
    alone would end the message as undelivered. But an earlier attempt may have been accepted.
    """
    closed, request = claim.closed, claim.request
    if closed is None or request is None or closed.status != "unknown":
        return False
    is_last_attempt = closed.attempts == RETRY_ATTEMPTS and request.kind in TEMPORARILY_FAILED
    all_claims = evidence.record.messages[claim.opened.message_id].claims
    earlier_claims = [other for other in all_claims if other.opened.at < claim.opened.at]
    is_final = is_last_attempt or request.kind == "reject"
    return is_final and any(map(_is_unknown, earlier_claims))


def _on_unknown(evidence: Evidence, claim: Claim) -> set[str]:
    """Return all values that `on_unknown` has had in the mailing of a claim."""
    return {version.on_unknown for version in evidence.record.mailings[claim.opened.mailing_id]}


def _lost_answers(evidence: Evidence, claims: list[Claim]) -> Iterator[str]:
    """Yield the claims whose answer was lost without a known cause."""
    for claim in claims:
        closed, request = claim.closed, claim.request
        if closed is None or request is None or claim.outcome == "lease_expired":
            continue
        is_explained = claim.agrees_with(request) or _follows_unknown(evidence, claim)
        is_lost = not is_explained or request.kind == "disconnected"
        if is_lost and not evidence.why_unanswered(claim):
            yield _describe(claim)


def _expired_leases(evidence: Evidence, claims: list[Claim]) -> Iterator[str]:
    """Yield the claims whose lease expired without a known cause; print all causes."""
    causes: Counter[str] = Counter()
    for claim in claims:
        if claim.outcome == "lease_expired":
            cause = evidence.why_lease_expired(claim)
            causes[cause or "unknown cause"] += 1
            if cause is None:
                yield _describe(claim)
    listed = ", ".join(f"{cause} {count:,}" for cause, count in sorted(causes.items()))
    print(f"    expired leases: {listed or 'none'}")


def _counted_unsent(evidence: Evidence, claims: list[Claim]) -> Iterator[str]:
    """Yield the claims that count as attempts although the gateway got no request.

    A claim with a known cause, such as a frozen gateway, is not yielded.
    """
    for claim in claims:
        has_result = claim.outcome not in {"open", "lease_expired"}
        is_unsent = claim.is_counted and claim.request is None and has_result
        if is_unsent and not evidence.why_unanswered(claim):
            yield _describe(claim)


def _uncounted_sent(evidence: Evidence, claims: list[Claim]) -> Iterator[str]:
    """Yield the requests that cost no attempt without a cause.

    The only cause is a failure while the breaker was open or half-open: mailer refunds the attempt.
    """
    uncounted = 0
    for claim in claims:
        closed, request = claim.closed, claim.request
        if closed is None or request is None or claim.is_counted:
            continue
        uncounted += 1
        was_open = evidence.was_breaker_open(claim.opened.worker, request.earliest, closed.at)
        if closed.reason is None or not was_open:
            yield _describe(claim)
    print(f"    {uncounted:,} requests cost no attempt: failures while the breaker was open")


def _transitions(message: Message) -> Iterator[tuple[Change | None, Change]]:
    """Yield each change of a message, with the change before it; None before the first."""
    yield from zip([None, *message.changes], message.changes, strict=False)


def _miscounted(evidence: Evidence) -> Iterator[str]:
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
                yield f"message {after.message_id}: {attempts} to {after.attempts}, {after.status}"


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


def _illegal_changes(evidence: Evidence) -> Iterator[str]:
    """Yield the changes of status that mailer must never make."""
    for message in evidence.record.messages.values():
        for before, after in _transitions(message):
            match before.status if before else None, after.status:
                case None, "scheduled" | "cancelled":
                    is_legal = True
                case "scheduled", "scheduled" | "sending" | "cancelled":
                    is_legal = True
                case "scheduled", "unknown":  # it may have been accepted, and its mailing ended
                    is_legal = after.reason in UNKNOWN_REASONS
                case "sending", status:
                    is_legal = status != "sending"
                case "cancelled", "scheduled" | "cancelled":
                    is_legal = before is not None and before.reason in RESCHEDULABLE_REASONS
                case "undelivered" | "unknown", "scheduled" | "cancelled":
                    since = before.at if before else after.at
                    is_legal = evidence.was_retried(after.mailing_id, since, after.at)
                case _:
                    is_legal = False
            if not is_legal:
                old_state = _describe_state(before) if before else "new"
                yield f"message {after.message_id}: {old_state} to {_describe_state(after)}"


def _wrong_reasons(evidence: Evidence) -> Iterator[str]:
    """Yield the changes whose reason does not hold for the mailing at that time."""
    for message in evidence.record.messages.values():
        for change in message.changes:
            rule = REASON_RULES.get(change.reason or "")
            if rule is not None and not rule(evidence, change):
                state = _describe_state(change)
                yield f"message {change.message_id}: {state} at {moment(change.at)}"


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


def _is_exhausted(_: Evidence, change: Change) -> bool:
    """Return whether the message had all its attempts."""
    return change.attempts == RETRY_ATTEMPTS


REASON_RULES = {
    "expired": _is_expired,
    "no_window": _has_no_window,
    "filter_changed": _is_filtered_out,
    "mailing_cancelled": _is_cancelled,
    "attempts_exhausted": _is_exhausted,
}
"""By reason: the function that returns whether the reason is true for a change of a message. Other
reasons cannot be checked on their own."""


def _sent_after_unknown(evidence: Evidence) -> Iterator[str]:
    """Yield the claims that sent a message again although it should have stayed unknown.

    The outcome of the claim before was unknown, `on_unknown` of the mailing has always been `hold`,
    and no user retried the mailing in between.
    """
    for message in evidence.record.messages.values():
        sent = [claim for claim in message.claims if claim.request]
        for before, after in pairwise(sent):
            if _on_unknown(evidence, before) != {"hold"} or not before.request:
                continue
            is_unknown = before.request.kind not in TEMPORARILY_FAILED
            was_retried = evidence.was_retried(
                before.opened.mailing_id, before.opened.at, after.opened.at
            )
            if is_unknown and not was_retried:
                yield _describe(after)
