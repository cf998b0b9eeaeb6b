"""The soak's checks of every request at a gateway: whether it was allowed at that time.

Each check is a generator that yields descriptions of the violations.
"""

import math
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Iterator
from http import HTTPStatus
from typing import NamedTuple

from soaking.claims import Request
from soaking.evidence import CheckReport, Evidence, is_open, moment
from soaking.journal import LAG, REACTION

MIN_RETRY_AFTER = 1.0
"""Seconds: the shortest Retry-After of the sandbox's answer 429."""

LOG_LAG = 0.05
"""Seconds by which an event of mailer's log may be later than what it reports."""


def check_requests(report: CheckReport, evidence: Evidence) -> None:
    """Check every request against its claim, its mailing, the sending window and the breaker."""
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
    seconds_after_end = (request.earliest - _end(evidence, request) for request in requests)
    latest = max(seconds_after_end, default=-math.inf)
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
    report.expect_none(
        "requests within the wait that the gateway asked for", _too_soon(evidence), of=total
    )
    report.expect_none(
        "requests while the breaker is open", _while_breaker_open(evidence), of=total
    )


def _describe(request: Request) -> str:
    """Return a request as text."""
    flag = ", overlap" if request.is_overlap else ""
    at = f"{request.gateway} at {moment(request.arrived)}"
    return f"message {request.id} to {at}: {request.kind}{flag}"


def _is_after_freeze(evidence: Evidence, request: Request) -> bool:
    """Return whether a freeze explains that a request overlaps another one for the message.

    Either the gateway was frozen and read the request late. Or a worker was frozen beyond its lease
    with a request in flight, and another worker sent the message again.
    """
    if request.earliest < request.arrived:
        return True
    return any(
        claim.outcome == "lease_expired"
        and claim.request is not None
        and claim.request.arrived < request.arrived
        and evidence.was_frozen(claim.opened.worker, claim.opened.at, claim.until)
        for claim in evidence.message_of(request).claims
    )


def _unclaimed(evidence: Evidence) -> Iterator[str]:
    """Yield the requests without a claim of their own."""
    for message in evidence.record.messages.values():
        yield from (_describe(request) for request in message.unclaimed)


def _after_lease(evidence: Evidence) -> Iterator[str]:
    """Yield the requests that were written after the lease of their claim."""
    for message in evidence.record.messages.values():
        for claim in message.claims:
            until = claim.opened.leased_until
            if claim.request and until and claim.request.earliest > until:
                yield f"{_describe(claim.request)}, lease until {moment(until)}"


def _after_end(evidence: Evidence, requests: list[Request]) -> Iterator[str]:
    """Yield the requests that were written after their mailing's end."""
    for request in requests:
        end = _end(evidence, request)
        if request.earliest - LAG > end:
            yield f"{_describe(request)}, end {moment(end)}"


def _end(evidence: Evidence, request: Request) -> float:
    """Return the latest end of its mailing that may have applied to a request."""
    return max(version.end for version in evidence.versions_for(request))


def _open_after_end(evidence: Evidence) -> Iterator[str]:
    """Yield the requests that were not aborted at their mailing's end: their results came later."""
    for message in evidence.record.messages.values():
        for claim in message.claims:
            request, closed = claim.request, claim.closed
            if request is None or closed is None or claim.outcome == "lease_expired":
                continue
            end = _end(evidence, request)
            is_late = request.earliest <= end and closed.at > end + REACTION
            if is_late and evidence.why_lease_expired(claim) is None:
                yield (
                    f"{_describe(request)} by {claim.opened.worker}, end {moment(end)},"
                    f" outcome at {moment(closed.at)}; {evidence.possible_causes(end, closed.at)}"
                )


def _outside_window(evidence: Evidence, requests: list[Request]) -> Iterator[str]:
    """Yield the requests that cannot have been written while the client's window was open.

    The window is checked at every second of the time in which the request may have been written.
    """
    for request in requests:
        zone = evidence.zone_of(request)
        start = request.earliest - LAG
        seconds = [start + second for second in range(math.ceil(request.arrived - start))]
        times = [*seconds, request.arrived]
        versions = evidence.versions_for(request)
        if not any(is_open(version, zone, at) for version in versions for at in times):
            windows = [f"{version.opens}-{version.closes}" for version in versions]
            yield f"{_describe(request)} in {zone}, windows {windows}"


def _not_running(evidence: Evidence, requests: list[Request]) -> Iterator[str]:
    """Yield the requests for a mailing that was not running or was deleted.

    A request is allowed for `REACTION` seconds after such a change (`Evidence.versions`).
    """
    for request in requests:
        versions = evidence.versions_for(request)
        is_running = any(
            version.status == "running" and not version.is_deleted for version in versions
        )
        if not is_running:
            yield f"{_describe(request)}: {[version.status for version in versions]}"


def _stopped(evidence: Evidence) -> Iterator[str]:
    """Yield the requests after the API answered a pause, a cancel or a delete."""
    by_mailing: dict[int, list[Request]] = defaultdict(list)
    for request in evidence.record.requests:
        if request.id in evidence.record.messages:
            by_mailing[evidence.message_of(request).last.mailing_id].append(request)
    for stop in _stops(evidence):
        for request in by_mailing[stop.mailing_id]:
            if stop.since < request.earliest - LAG and request.arrived < stop.until:
                stopped = f"mailing {stop.mailing_id} stopped at {moment(stop.since)}"
                yield f"{_describe(request)}, {stopped}"


class Stop(NamedTuple):
    """A time in which no request may be sent for a mailing."""

    mailing_id: int
    since: float
    until: float


def _stops(evidence: Evidence) -> Iterator[Stop]:
    """Yield a stop for each pause, cancel and delete that the API answered with success.

    A delete stops at the answer; for a pause and a cancel, `REACTION` is tolerated after it. A
    pause ends when the mailing is resumed.
    """
    for mailing_id, calls in evidence.calls.items():
        for index, call in enumerate(calls):
            if call.action == "delete" and call.status == HTTPStatus.NO_CONTENT:
                yield Stop(mailing_id, call.ended, math.inf)
            elif call.action in {"pause", "cancel"} and call.status == HTTPStatus.OK:
                resumed_at = (later.began for later in calls[index:] if later.action == "resume")
                yield Stop(mailing_id, call.ended + REACTION, next(resumed_at, math.inf))


def _too_soon(evidence: Evidence) -> Iterator[str]:
    """Yield the requests of a worker to a gateway that has asked it to wait, as with a 429.

    Requests do not count before the worker has certainly received the answer.
    """
    for requests in _by_channel(evidence).values():
        arrivals = [request.arrived for request in requests]
        for limited in (request for request in requests if request.kind == "limited"):
            received_at = limited.answered + LAG
            allowed_at = limited.arrived + MIN_RETRY_AFTER
            first, end = bisect_left(arrivals, received_at), bisect_left(arrivals, allowed_at)
            for request in requests[first:end]:
                yield f"{_describe(request)}, limited at {moment(limited.arrived)}"


def _while_breaker_open(evidence: Evidence) -> Iterator[str]:
    """Yield the requests of a worker while its breaker of the gateway was open (not half-open)."""
    by_channel = _by_channel(evidence)
    for opening in evidence.journal.breaker_openings:
        since, until = opening.began + LAG, opening.began + opening.seconds - LOG_LAG
        for request in by_channel[opening.worker, opening.gateway]:
            if since < request.arrived < until:
                yield f"{_describe(request)}, open since {moment(opening.began)}"


def _by_channel(evidence: Evidence) -> dict[tuple[str, str], list[Request]]:
    """Return the requests in order by worker and gateway, if their exact time is known."""
    by_channel: dict[tuple[str, str], list[Request]] = defaultdict(list)
    for message in evidence.record.messages.values():
        for claim in message.claims:
            if claim.request and claim.request.earliest == claim.request.arrived:
                by_channel[claim.opened.worker, claim.request.gateway].append(claim.request)
    for requests in by_channel.values():
        requests.sort(key=lambda request: request.arrived)
    return by_channel
