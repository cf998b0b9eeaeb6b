"""The soak's checks of every request at the gateway: whether it was allowed at that time."""

import math
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Iterator
from http import HTTPStatus

from soaking.claims import Request
from soaking.evidence import CheckReport, Evidence, is_open, moment
from soaking.journal import LAG, MAX_ANSWER_SECONDS, REACTION

MIN_RETRY_AFTER = 1.0
"""Seconds: the shortest Retry-After of the sandbox's answer 429."""

LOG_LAG = 0.05
"""Seconds by which a log event may be later than what it reports."""


def check_requests(report: CheckReport, evidence: Evidence) -> None:
    """Check every request against the mailing, the sending window and the claim of that time."""
    record = evidence.record
    requests = [request for request in record.requests if request.id in record.messages]
    total = len(requests)
    unmatched = (_describe(request) for request in record.unmatched_requests)
    report.expect_none(
        "requests without a message, or rejected as invalid", unmatched, of=len(record.requests)
    )
    report.expect_none(
        "requests without a claim, or second of a claim", _unclaimed(evidence), of=total
    )
    report.expect_none("requests after the lease of their claim", _after_lease(evidence), of=total)
    overlaps = [request for request in requests if request.is_overlap]
    unexplained = [_describe(r) for r in overlaps if not _is_after_freeze(evidence, r)]
    report.expect_none("requests during another request for the message", unexplained, of=total)
    explained = len(overlaps) - len(unexplained)
    print(f"    and {explained:,} after a freeze of the gateway, or of a worker beyond its lease")
    late = evidence.late_after_freeze
    print(f"    and {late:,} that a worker wrote after its lease, at the end of its freeze")
    report.expect_none("requests after the mailing's end", _after_end(evidence, requests), of=total)
    latest = max((r.earliest - _end(evidence, r) for r in requests), default=-math.inf)
    print(f"    the latest request reached the gateway {latest * 1e3:+,.0f} ms from the end")
    report.expect_none(
        "requests not aborted at the mailing's end", _open_after_end(evidence), of=total
    )
    report.expect_none(
        "requests outside the sending window", _outside_window(evidence, requests), of=total
    )
    report.expect_none(
        "requests 1 s after the mailing stopped running", _not_running(evidence, requests), of=total
    )
    report.expect_none(
        "requests after the answer to pause, cancel, delete", _stopped(evidence), of=total
    )
    report.expect_none("requests within Retry-After of a 429", _too_soon(evidence), of=total)
    report.expect_none(
        "requests while the breaker is open", _while_breaker_open(evidence), of=total
    )


def _describe(request: Request) -> str:
    flag = ", overlap" if request.is_overlap else ""
    return f"message {request.id} at {moment(request.arrived)}: {request.kind}{flag}"


def _is_after_freeze(evidence: Evidence, request: Request) -> bool:
    """Return whether a freeze explains that a request overlaps another one.

    Either the gateway read the request late, or a frozen worker left its request open.
    """
    if request.earliest < request.arrived:
        return True
    return any(
        claim.outcome == "lease_expired"
        and claim.request is not None
        and claim.request.arrived < request.arrived
        and evidence.was_frozen(claim.opened.worker, claim.opened.at, claim.until)
        for claim in evidence.record.messages[request.id or 0].claims
    )


def _unclaimed(evidence: Evidence) -> Iterator[str]:
    for message in evidence.record.messages.values():
        yield from (_describe(request) for request in message.unclaimed)


def _after_lease(evidence: Evidence) -> Iterator[str]:
    for message in evidence.record.messages.values():
        for claim in message.claims:
            until = claim.opened.leased_until
            if claim.request and until and claim.request.earliest > until:
                yield f"{_describe(claim.request)}, lease until {moment(until)}"


def _after_end(evidence: Evidence, requests: list[Request]) -> Iterator[str]:
    for request in requests:
        end = _end(evidence, request)
        if request.earliest - LAG > end:
            yield f"{_describe(request)}, end {moment(end)}"


def _end(evidence: Evidence, request: Request) -> float:
    return max(version.end for version in evidence.versions_for(request))


def _open_after_end(evidence: Evidence) -> Iterator[str]:
    """Yield the requests that were not aborted at the end: their results came too late."""
    for message in evidence.record.messages.values():
        for claim in message.claims:
            request, closed = claim.request, claim.closed
            if request is None or closed is None or claim.outcome == "lease_expired":
                continue
            end = _end(evidence, request)
            is_late = request.earliest <= end and closed.at > end + REACTION
            if is_late and evidence.why_lease_expired(claim) is None:
                yield f"{_describe(request)}, end {moment(end)}, outcome at {moment(closed.at)}"


def _outside_window(evidence: Evidence, requests: list[Request]) -> Iterator[str]:
    for request in requests:
        zone = evidence.zone_of(request)
        start = request.earliest - LAG
        times = [start + second for second in range(math.ceil(request.arrived - start))]
        versions = evidence.versions_for(request)
        if not any(
            is_open(version, zone, at) for version in versions for at in (*times, request.arrived)
        ):
            windows = [f"{version.opens}-{version.closes}" for version in versions]
            yield f"{_describe(request)} in {zone}, windows {windows}"


def _not_running(evidence: Evidence, requests: list[Request]) -> Iterator[str]:
    for request in requests:
        versions = evidence.versions_for(request)
        if not any(v.status == "running" and not v.is_deleted for v in versions):
            yield f"{_describe(request)}: {[v.status for v in versions]}"


def _stopped(evidence: Evidence) -> Iterator[str]:
    """Yield the requests after the API confirmed a pause, cancel or delete."""
    arrivals: dict[int, list[Request]] = defaultdict(list)
    for request in evidence.record.requests:
        if message := evidence.record.messages.get(request.id or 0):
            arrivals[message.last.mailing_id].append(request)
    for mailing_id, since, until in _stops(evidence):
        for request in arrivals[mailing_id]:
            if since < request.earliest - LAG and request.arrived < until:
                yield f"{_describe(request)}, mailing {mailing_id} stopped at {moment(since)}"


def _stops(evidence: Evidence) -> Iterator[tuple[int, float, float]]:
    """Yield a mailing and the times from which and until which no request may be sent for it."""
    for mailing_id, calls in evidence.calls.items():
        for number, call in enumerate(calls):
            if call.action == "delete" and call.status == HTTPStatus.NO_CONTENT:
                yield mailing_id, call.ended, math.inf
            elif call.action in {"pause", "cancel"} and call.status == HTTPStatus.OK:
                resumed_at = (later.began for later in calls[number:] if later.action == "resume")
                yield mailing_id, call.ended + REACTION, next(resumed_at, math.inf)


def _too_soon(evidence: Evidence) -> Iterator[str]:
    """Yield the requests of a worker within the Retry-After that it received."""
    for requests in _by_worker(evidence).values():
        arrivals = [request.arrived for request in requests]
        for limited in (request for request in requests if request.kind == "limited"):
            received_at = limited.arrived + MAX_ANSWER_SECONDS + LAG
            first = bisect_left(arrivals, received_at)
            until = bisect_left(arrivals, limited.arrived + MIN_RETRY_AFTER)
            for request in requests[first:until]:
                yield f"{_describe(request)}, 429 at {moment(limited.arrived)}"


def _while_breaker_open(evidence: Evidence) -> Iterator[str]:
    """Yield the requests of a worker while its breaker is open."""
    by_worker = _by_worker(evidence)
    for opening in evidence.journal.breaker_openings:
        since, until = opening.began + LAG, opening.began + opening.seconds - LOG_LAG
        for request in by_worker[opening.worker]:
            if since < request.arrived < until:
                yield f"{_describe(request)}, open since {moment(opening.began)}"


def _by_worker(evidence: Evidence) -> dict[str, list[Request]]:
    """Return the requests of each worker in order, without those whose exact time is unknown."""
    by_worker: dict[str, list[Request]] = defaultdict(list)
    for message in evidence.record.messages.values():
        for claim in message.claims:
            if claim.request and claim.request.earliest == claim.request.arrived:
                by_worker[claim.opened.worker].append(claim.request)
    for requests in by_worker.values():
        requests.sort(key=lambda request: request.arrived)
    return by_worker
