"""The soak's checks of every request at the gateway: whether it might go out at that moment."""

import math
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Iterator

from soaking.claims import Request
from soaking.evidence import Audit, Evidence, is_open, moment
from soaking.journal import LAG, LONGEST_ANSWER, REACTION

LEAST_RETRY_AFTER = 1.0
"""Seconds that a 429 of the sandbox asks to wait at least."""

SLACK = 0.05
"""Seconds by which what is logged may come after what is done."""


def check_requests(audit: Audit, evidence: Evidence) -> None:
    """Check every request against the mailing, the window and the claim as they were then."""
    record = evidence.record
    named = [request for request in record.requests if request.id in record.messages]
    total = len(named)
    strangers = (_tell(request) for request in record.strangers)
    audit.none("requests for no message, or refused as invalid", strangers, of=len(record.requests))
    audit.none("requests under no claim, or second under one", _unclaimed(evidence), of=total)
    audit.none("requests after the lease of their claim", _after_lease(evidence), of=total)
    overlaps = [request for request in named if request.is_overlap]
    broken = [_tell(r) for r in overlaps if not _is_after_freeze(evidence, r)]
    audit.none("requests while another for the message is open", broken, of=total)
    frozen = len(overlaps) - len(broken)
    print(f"    besides {frozen:,} after the gateway, or a mailer past its lease, was frozen")
    print(f"    besides {evidence.thawed:,} that a mailer wrote past its lease, as it thawed")
    audit.none("requests after the mailing's end", _after_end(evidence, named), of=total)
    latest = max((r.earliest - _end(evidence, r) for r in named), default=-math.inf)
    print(f"    the latest reached the gateway {latest * 1e3:+,.0f} ms from its mailing's end")
    audit.none("requests left open past the end", _open_after_end(evidence), of=total)
    audit.none("requests outside the window", _outside_window(evidence, named), of=total)
    audit.none("requests 1 s after it stopped running", _not_running(evidence, named), of=total)
    audit.none("requests after the answer to pause, cancel, delete", _stopped(evidence), of=total)
    audit.none("requests within Retry-After of a 429", _too_soon(evidence), of=total)
    audit.none("requests while the breaker is open", _held_back(evidence), of=total)


def _tell(request: Request) -> str:
    flag = ", overlap" if request.is_overlap else ""
    return f"message {request.id} at {moment(request.arrived)}: {request.kind}{flag}"


def _is_after_freeze(evidence: Evidence, request: Request) -> bool:
    """Whether a request overlaps one that was left open, or was read late, after a freeze."""
    if request.earliest < request.arrived:
        return True
    return any(
        claim.outcome == "lease_expired"
        and claim.request is not None
        and claim.request.arrived < request.arrived
        and evidence.was_frozen(claim.opened.life, claim.opened.at, claim.until)
        for claim in evidence.record.messages[request.id or 0].claims
    )


def _unclaimed(evidence: Evidence) -> Iterator[str]:
    for message in evidence.record.messages.values():
        yield from (_tell(request) for request in message.unclaimed)


def _after_lease(evidence: Evidence) -> Iterator[str]:
    for message in evidence.record.messages.values():
        for claim in message.claims:
            until = claim.opened.leased_until
            if claim.request and until and claim.request.earliest > until:
                yield f"{_tell(claim.request)}, lease until {moment(until)}"


def _after_end(evidence: Evidence, named: list[Request]) -> Iterator[str]:
    for request in named:
        end = _end(evidence, request)
        if request.earliest - LAG > end:
            yield f"{_tell(request)}, end {moment(end)}"


def _end(evidence: Evidence, request: Request) -> float:
    return max(version.end for version in evidence.versions_for(request))


def _open_after_end(evidence: Evidence) -> Iterator[str]:
    """Yield the requests whose outcome came so late that they were not cut at the end."""
    for message in evidence.record.messages.values():
        for claim in message.claims:
            request, closed = claim.request, claim.closed
            if request is None or closed is None or claim.outcome == "lease_expired":
                continue
            end = _end(evidence, request)
            is_late = request.earliest <= end and closed.at > end + REACTION
            if is_late and evidence.why_lost(claim) is None:
                yield f"{_tell(request)}, end {moment(end)}, outcome at {moment(closed.at)}"


def _outside_window(evidence: Evidence, named: list[Request]) -> Iterator[str]:
    for request in named:
        zone = evidence.zone_of(request)
        start = request.earliest - LAG
        moments = [start + second for second in range(math.ceil(request.arrived - start))]
        versions = evidence.versions_for(request)
        if not any(
            is_open(version, zone, at) for version in versions for at in (*moments, request.arrived)
        ):
            windows = [f"{version.opens}-{version.closes}" for version in versions]
            yield f"{_tell(request)} in {zone}, windows {windows}"


def _not_running(evidence: Evidence, named: list[Request]) -> Iterator[str]:
    for request in named:
        versions = evidence.versions_for(request)
        if not any(v.status == "running" and not v.is_deleted for v in versions):
            yield f"{_tell(request)}: {[v.status for v in versions]}"


def _stopped(evidence: Evidence) -> Iterator[str]:
    """Yield the requests after an answer that said that there would be none."""
    arrivals: dict[int, list[Request]] = defaultdict(list)
    for request in evidence.record.requests:
        if message := evidence.record.messages.get(request.id or 0):
            arrivals[message.last.mailing_id].append(request)
    for mailing_id, since, until in _stops(evidence):
        for request in arrivals[mailing_id]:
            if since < request.earliest - LAG and request.arrived < until:
                yield f"{_tell(request)}, mailing {mailing_id} stopped at {moment(since)}"


def _stops(evidence: Evidence) -> Iterator[tuple[int, float, float]]:
    """Yield mailings with the times from which and until which nothing may be sent for them."""
    for mailing_id, calls in evidence.calls.items():
        for number, call in enumerate(calls):
            if call.action == "delete" and call.status == 204:  # noqa: PLR2004  # deleted
                yield mailing_id, call.ended, math.inf
            elif call.action in {"pause", "cancel"} and call.status == 200:  # noqa: PLR2004  # done
                resumed = (later.began for later in calls[number:] if later.action == "resume")
                yield mailing_id, call.ended + REACTION, next(resumed, math.inf)


def _too_soon(evidence: Evidence) -> Iterator[str]:
    """Yield the requests of a process that has been told to wait; only it knows."""
    for requests in _by_life(evidence).values():
        arrivals = [request.arrived for request in requests]
        for limited in (request for request in requests if request.kind == "limited"):
            heard = limited.arrived + LONGEST_ANSWER + LAG
            first = bisect_left(arrivals, heard)
            until = bisect_left(arrivals, limited.arrived + LEAST_RETRY_AFTER)
            for request in requests[first:until]:
                yield f"{_tell(request)}, 429 at {moment(limited.arrived)}"


def _held_back(evidence: Evidence) -> Iterator[str]:
    """Yield the requests of a process that has just said that it sends nothing for a while."""
    by_life = _by_life(evidence)
    for opening in evidence.journal.openings:
        since, until = opening.began + LAG, opening.began + opening.seconds - SLACK
        for request in by_life[opening.life]:
            if since < request.arrived < until:
                yield f"{_tell(request)}, open since {moment(opening.began)}"


def _by_life(evidence: Evidence) -> dict[str, list[Request]]:
    """Return the requests of each run of mailer, in order, whose time is known to the moment."""
    by_life: dict[str, list[Request]] = defaultdict(list)
    for message in evidence.record.messages.values():
        for claim in message.claims:
            if claim.request and claim.request.earliest == claim.request.arrived:
                by_life[claim.opened.life].append(claim.request)
    for requests in by_life.values():
        requests.sort(key=lambda request: request.arrived)
    return by_life
