"""The soak's checks of every claim: whether mailer recorded what the gateway did.

Each check is a generator that yields descriptions of the violations.
"""

from collections import Counter
from collections.abc import Iterator
from itertools import pairwise

from soaking.changes import describe_state, illegal_changes, miscounted, wrong_reasons
from soaking.claims import (
    TEMPORARILY_FAILED,
    UNANSWERED,
    UNKNOWN_REASONS,
    Claim,
)
from soaking.evidence import CheckReport, Evidence, moment
from soaking.journal import RETRY_ATTEMPTS


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
        f"attempts miscounted, or over {RETRY_ATTEMPTS}", miscounted(evidence), of=changes
    )
    report.expect_none("illegal changes of state", illegal_changes(evidence), of=changes)
    report.expect_none("reasons that do not hold", wrong_reasons(evidence), of=changes)
    check = "messages sent again after an unknown outcome, though on_unknown is hold"
    report.expect_none(check, _sent_after_unknown(evidence), of=sent)
    _check_accepted(report, evidence)


def _check_accepted(report: CheckReport, evidence: Evidence) -> None:
    """Compare the requests that the gateway accepted with the messages that count as accepted.

    Those are sent or delivered, or not delivered as a receipt says. A message may be accepted and
    not count as that only if the answer was lost, so that the outcome of the claim is unknown. A
    message may be accepted again only after a lost answer, or in another life.
    """
    counted, accepted, repeats, lost_answers = 0, 0, 0, 0
    never_accepted: list[str] = []
    wrong_status: list[str] = []
    unexplained: list[str] = []
    explained: Counter[str] = Counter()
    for message_id, message in evidence.record.messages.items():
        if message.last.is_accepted:
            counted += 1
            if not _accepted_claims(message.claims):
                state = describe_state(message.last)
                never_accepted.append(f"message {message_id}: {state}, never accepted")
        for all_claims, last in message.lives():
            claims = _accepted_claims(all_claims)
            state = describe_state(last)
            accepted += bool(claims)
            repeats += max(0, len(claims) - 1)
            lost_answers += sum(claim.is_unknown for claim in claims)
            uncounted = claims[:-1] if last.is_accepted else claims
            if not all(claim.is_unknown for claim in uncounted):
                unexplained.append(f"message {message_id}: {state}, {len(claims)} accepted")
            elif claims and not last.is_accepted:
                is_deleted = evidence.record.mailings[last.mailing_id][-1].is_deleted
                if not is_deleted and last.status in {"cancelled", "undelivered"}:
                    wrong_status.append(f"message {message_id}: {state}, accepted")
                explained[f"{'deleted' if is_deleted else state}: {claims[-1].outcome}"] += 1
    report.expect_none(
        "sent, delivered and not delivered messages that were never accepted",
        never_accepted,
        of=counted,
    )
    report.expect_none("accepted, but cancelled or undelivered", wrong_status, of=accepted)
    report.expect_none("accepted, not sent, outcome not unknown", unexplained, of=accepted)
    for explanation, count in sorted(explained.items()):
        print(f"    accepted, answer lost, ended as {explanation}: {count:,}")
    report.expect_none(
        "repeats beyond the accepted requests with unknown outcome",
        [f"{repeats} repeats"] if repeats > lost_answers else [],
        of=repeats,
    )
    print(f"    {repeats:,} repeats, {lost_answers:,} accepted requests whose answer was lost")


def _accepted_claims(claims: list[Claim]) -> list[Claim]:
    """Return the claims whose request the gateway accepted."""
    return [
        claim for claim in claims if claim.request is not None and claim.request.kind == "accepted"
    ]


def _describe(claim: Claim) -> str:
    """Return a claim, its request and its end as text."""
    opened, closed, request = claim.opened, claim.closed, claim.request
    sent = "no request" if request is None else f"{request.kind} at {moment(request.arrived)}"
    result = "open" if closed is None else f"{describe_state(closed)} at {moment(closed.at)}"
    message = f"message {opened.message_id} of mailing {opened.mailing_id}"
    claimed = f"claimed {moment(opened.at)} by {opened.worker} for {opened.gateway}"
    return f"{message}, {claimed}: {sent}, {result}"


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
        is_unknown = closed.reason in UNKNOWN_REASONS or claim.is_unknown
        must_stay_unknown = _on_unknown(evidence, claim) == {"hold"} and not claim.may_be_by_receipt
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
    return is_final and any(claim.is_unknown for claim in earlier_claims)


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
                faults = evidence.possible_causes(claim.opened.at, claim.until)
                yield f"{_describe(claim)}; {faults}"
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
        was_open = evidence.was_breaker_open(
            claim.opened.worker, request.earliest, closed.at, request.gateway
        )
        is_failure = closed.reason is not None or claim.may_be_by_receipt
        if not is_failure or not was_open:
            yield _describe(claim)
    print(f"    {uncounted:,} requests cost no attempt: failures while the breaker was open")


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
