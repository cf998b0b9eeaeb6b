"""The soak's checks of every claim: whether what mailer believed is what the gateway did."""

from collections import Counter, defaultdict
from collections.abc import Iterator
from itertools import pairwise

from soaking.claims import (
    NOT_TAKEN,
    SILENT,
    UNKNOWN,
    Change,
    Claim,
    Message,
)
from soaking.evidence import Audit, Evidence, is_open, matches, moment
from soaking.journal import END_MARGIN, LAG, RETRY_ATTEMPTS

TAKEN_BACK = frozenset({"expired", "no_window", "filter_changed"})
"""Why a message was cancelled that a change of its mailing may schedule again."""


def check_outcomes(audit: Audit, evidence: Evidence) -> None:
    """Check every claim and every change of state."""
    messages = evidence.record.messages.values()
    claims = [claim for message in messages for claim in message.claims]
    made = sum(claim.request is not None for claim in claims)
    changes = sum(len(message.changes) for message in messages)
    audit.none("outcomes that are not what the gateway did", _untrue(evidence, claims), of=made)
    audit.none("answers lost without a cause", _cut(evidence, claims), of=made)
    audit.none("leases lost without a cause", _lost(evidence, claims), of=len(claims))
    audit.none("attempts counted without a request", _phantoms(evidence, claims), of=len(claims))
    audit.none("requests that cost no attempt", _uncounted(evidence, claims), of=made)
    audit.none(f"attempts miscounted, or past {RETRY_ATTEMPTS}", _miscounted(evidence), of=changes)
    audit.none("changes of state that nothing allows", _illegal(evidence), of=changes)
    audit.none("reasons that are not true", _unfounded(evidence), of=changes)
    audit.none("held messages sent again unasked", _held(evidence), of=made)
    _check_accepted(audit, evidence)


def _check_accepted(audit: Audit, evidence: Evidence) -> None:
    """Compare accepted requests with delivered messages, and explain the difference."""
    delivered, accepted, repeats, in_doubt = 0, 0, 0, 0
    lost: list[str] = []
    miscounted: list[str] = []
    unexplained: list[str] = []
    classes: Counter[str] = Counter()
    for key, message in evidence.record.messages.items():
        taken = [c for c in message.claims if c.request and c.request.kind == "accepted"]
        is_delivered = message.last.status == "delivered"
        delivered += is_delivered
        accepted += bool(taken)
        repeats += max(0, len(taken) - 1)
        in_doubt += sum(_is_in_doubt(claim) for claim in taken)
        if is_delivered and not taken:
            lost.append(f"message {key}: delivered, never accepted")
        if not all(_is_in_doubt(claim) for claim in (taken[:-1] if is_delivered else taken)):
            unexplained.append(f"message {key}: {_tell_state(message.last)}, {len(taken)} accepted")
        elif taken and not is_delivered:
            is_deleted = evidence.record.mailings[message.last.mailing_id][-1].is_deleted
            became = "deleted" if is_deleted else _tell_state(message.last)
            if not is_deleted and message.last.status in {"cancelled", "undelivered"}:
                miscounted.append(f"message {key}: {became}, accepted")
            classes[f"{became}, its answer lost: {taken[-1].outcome}"] += 1
    audit.none("delivered messages that were never accepted", lost, of=delivered)
    audit.none("accepted, yet cancelled or undelivered", miscounted, of=accepted)
    audit.none("accepted, not delivered, never in doubt", unexplained, of=accepted)
    for what, count in sorted(classes.items()):
        print(f"    accepted, yet {what}: {count:,}")
    audit.none(
        "repeats beyond the accepted requests in doubt",
        [f"{repeats} repeats"] if repeats > in_doubt else [],
        of=repeats,
    )
    print(f"    {repeats:,} repeats, {in_doubt:,} accepted requests whose answer was lost")


def _is_in_doubt(claim: Claim) -> bool:
    return claim.outcome in UNKNOWN


def _tell_state(change: Change) -> str:
    return change.status if change.reason is None else f"{change.status}/{change.reason}"


def _tell(claim: Claim) -> str:
    opened, closed, request = claim.opened, claim.closed, claim.request
    did = "no request" if request is None else f"{request.kind} at {moment(request.arrived)}"
    became = "open" if closed is None else f"{_tell_state(closed)} at {moment(closed.at)}"
    what = f"message {opened.message_id} of mailing {opened.mailing_id}"
    return f"{what}, claimed {moment(opened.at)} by {opened.life}: {did}, {became}"


def _untrue(evidence: Evidence, claims: list[Claim]) -> Iterator[str]:
    """Yield the claims whose outcome is another than the gateway's, and no answer was lost."""
    for claim in claims:
        closed, request = claim.closed, claim.request
        if closed is None or request is None or claim.outcome == "lease_expired":
            continue
        is_told = claim.tells(request)
        is_lost = closed.reason in UNKNOWN
        is_held = _on_unknown(evidence, claim) == {"hold"}
        if not is_told and not is_lost:
            yield _tell(claim)
        elif is_held and request.kind in SILENT and closed.status != "unknown":
            yield f"{_tell(claim)}, though the mailing holds what is unknown"
        elif _is_held_unasked(evidence, claim) and not _ends_doubt(evidence, claim):
            yield f"{_tell(claim)}, though the mailing retries what is unknown"


def _is_held_unasked(evidence: Evidence, claim: Claim) -> bool:
    """Whether a claim ended as unknown with attempts left, in a mailing that retries such."""
    closed = claim.closed
    return (
        closed is not None
        and closed.status == "unknown"
        and closed.attempts < RETRY_ATTEMPTS
        and "hold" not in _on_unknown(evidence, claim)
    )


def _ends_doubt(evidence: Evidence, claim: Claim) -> bool:
    """Whether an answer ended a message as unknown, since an earlier attempt was unknown."""
    closed, request = claim.closed, claim.request
    if closed is None or request is None or closed.status != "unknown":
        return False
    is_last = closed.attempts == RETRY_ATTEMPTS and request.kind in NOT_TAKEN
    earlier = evidence.record.messages[claim.opened.message_id].claims
    return (is_last or request.kind == "reject") and any(
        before.outcome in UNKNOWN for before in earlier if before.opened.at < claim.opened.at
    )


def _on_unknown(evidence: Evidence, claim: Claim) -> set[str]:
    return {version.on_unknown for version in evidence.record.mailings[claim.opened.mailing_id]}


def _cut(evidence: Evidence, claims: list[Claim]) -> Iterator[str]:
    """Yield the claims under which an answer was given and nothing explains why it got lost."""
    for claim in claims:
        closed, request = claim.closed, claim.request
        if closed is None or request is None or claim.outcome == "lease_expired":
            continue
        is_told = claim.tells(request) or _ends_doubt(evidence, claim)
        if (not is_told or request.kind == "gone") and not evidence.why_cut(claim):
            yield _tell(claim)


def _lost(evidence: Evidence, claims: list[Claim]) -> Iterator[str]:
    causes: Counter[str] = Counter()
    for claim in claims:
        if claim.outcome == "lease_expired":
            why = evidence.why_lost(claim)
            causes[why or "nothing"] += 1
            if why is None:
                yield _tell(claim)
    told = ", ".join(f"{why} {count:,}" for why, count in sorted(causes.items()))
    print(f"    leases lost: {told or 'none'}")


def _phantoms(evidence: Evidence, claims: list[Claim]) -> Iterator[str]:
    """Yield attempts that never reached the gateway though it was there."""
    for claim in claims:
        is_lost = claim.outcome in {"open", "lease_expired"}
        is_phantom = claim.is_counted and claim.request is None and not is_lost
        if is_phantom and not evidence.why_cut(claim):
            yield _tell(claim)


def _uncounted(evidence: Evidence, claims: list[Claim]) -> Iterator[str]:
    """Yield the free attempts that are no failures while the breaker was not closed."""
    free = 0
    for claim in claims:
        closed, request = claim.closed, claim.request
        if closed is None or request is None or claim.is_counted:
            continue
        free += 1
        is_held = evidence.held_back(claim.opened.life, request.earliest, closed.at)
        if closed.reason is None or not is_held:
            yield _tell(claim)
    print(f"    {free:,} attempts were free, failures while the breaker was open")


def _steps(message: Message) -> Iterator[tuple[Change | None, Change]]:
    yield from zip([None, *message.changes], message.changes, strict=False)


def _miscounted(evidence: Evidence) -> Iterator[str]:
    for message in evidence.record.messages.values():
        failed: dict[str, set[int]] = defaultdict(set)
        for before, after in _steps(message):
            had = before.attempts if before else 0
            allowed = {had}
            if before and before.status == "sending":
                allowed = {had, had - 1}  # handed back untried
            elif after.status == "sending":
                allowed = {had + 1}
            elif before and before.status in {"undelivered", "unknown"}:
                allowed = {had, 0}  # tried anew on request
            elif after.status == "scheduled" and evidence.held_back(after.life, 0, after.at):
                # the last failures in this process, for an opening breaker explains them
                allowed = {had}
                while min(allowed) in failed[after.life]:
                    allowed.add(min(allowed) - 1)
            if before and before.status == "sending" and after.status == "scheduled":
                failed[after.life].add(after.attempts)
            if after.attempts not in allowed or after.attempts > RETRY_ATTEMPTS:
                yield f"message {after.message_id}: {had} to {after.attempts}, {after.status}"


def _illegal(evidence: Evidence) -> Iterator[str]:
    """Yield the changes of state that are no step of a message's life."""
    for message in evidence.record.messages.values():
        for before, after in _steps(message):
            match before.status if before else None, after.status:
                case None, "scheduled" | "cancelled":
                    is_legal = True
                case "scheduled", "scheduled" | "sending" | "cancelled":
                    is_legal = True
                case "scheduled", "unknown":  # one that may have been accepted ends so
                    is_legal = after.reason in UNKNOWN
                case "sending", status:
                    is_legal = status != "sending"
                case "cancelled", "scheduled" | "cancelled":
                    is_legal = before is not None and before.reason in TAKEN_BACK
                case "undelivered" | "unknown", "scheduled" | "cancelled":
                    since = before.at if before else after.at
                    is_legal = evidence.was_retried(after.mailing_id, since, after.at)
                case _:
                    is_legal = False
            if not is_legal:
                was = _tell_state(before) if before else "nothing"
                yield f"message {after.message_id}: {was} to {_tell_state(after)}"


def _unfounded(evidence: Evidence) -> Iterator[str]:
    """Yield the states whose reason does not hold for the mailing as it was."""
    for message in evidence.record.messages.values():
        for change in message.changes:
            if change.reason in FOUNDED and not FOUNDED[change.reason](evidence, change):
                yield f"message {change.message_id}: {_tell_state(change)} at {moment(change.at)}"


def _is_expired(evidence: Evidence, change: Change) -> bool:
    versions = evidence.versions(change.mailing_id, change.at, change.at)
    return any(change.at + END_MARGIN + LAG >= version.end for version in versions)


def _has_no_window(evidence: Evidence, change: Change) -> bool:
    """Whether the window stays closed until the end."""
    zone = evidence.clients[change.client_id]["time_zone"]
    for version in evidence.versions(change.mailing_id, change.at, change.at):
        since = int(change.at + 1)
        if not any(is_open(version, zone, at) for at in range(since, int(version.end))):
            return True
    return False


def _is_filtered(evidence: Evidence, change: Change) -> bool:
    client = evidence.clients[change.client_id]
    versions = evidence.versions(change.mailing_id, change.at, change.at)
    return any(not matches(version.client_filter, client) for version in versions)


def _is_cancelled(evidence: Evidence, change: Change) -> bool:
    versions = evidence.versions(change.mailing_id, change.at, change.at + LAG)
    return any(version.status == "cancelled" for version in versions)


def _is_exhausted(_: Evidence, change: Change) -> bool:
    return change.attempts == RETRY_ATTEMPTS


FOUNDED = {
    "expired": _is_expired,
    "no_window": _has_no_window,
    "filter_changed": _is_filtered,
    "mailing_cancelled": _is_cancelled,
    "attempts_exhausted": _is_exhausted,
}
"""What has to hold for each reason that can be checked by itself."""


def _held(evidence: Evidence) -> Iterator[str]:
    """Yield the claims that follow an unknown outcome in a mailing that holds those."""
    for message in evidence.record.messages.values():
        sent = [claim for claim in message.claims if claim.request]
        for before, after in pairwise(sent):
            if _on_unknown(evidence, before) != {"hold"} or not before.request:
                continue
            is_unknown = before.request.kind not in NOT_TAKEN
            was_asked = evidence.was_retried(
                before.opened.mailing_id, before.opened.at, after.opened.at
            )
            if is_unknown and not was_asked:
                yield _tell(after)
