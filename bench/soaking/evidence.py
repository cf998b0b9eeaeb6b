"""Questions of the soak's checks to record and journal: past states, and faults at a time."""

from collections import defaultdict
from collections.abc import Iterable
from datetime import UTC, datetime
from functools import cache
from typing import Any
from zoneinfo import ZoneInfo

import harness
from soaking.claims import Claim, Message, Request
from soaking.journal import END_MARGIN, LAG, REACTION, BreakerOpening, Call, Fault, Journal
from soaking.record import Record, Version

MAX_EXAMPLES = 5
"""Violations printed for each check."""
DATABASE_FAULTS = ("PostgreSQL", "connections")
"""First words of the names of database faults."""


class Evidence:
    """The record and the journal, with questions answered from both."""

    def __init__(
        self, record: Record, journal: Journal, clients: dict[int, dict[str, Any]]
    ) -> None:
        self.record = record
        self.journal = journal
        self.clients = clients
        self.calls: dict[int, list[Call]] = defaultdict(list)
        for call in journal.calls:
            self.calls[call.mailing_id].append(call)
        faults = journal.faults
        self._database_faults = [f for f in faults if f.name.startswith(DATABASE_FAULTS)]
        self._gateway_faults = [f for f in faults if f.name.startswith("gateway")]
        self._openings: dict[str, list[BreakerOpening]] = defaultdict(list)
        for opening in journal.breaker_openings:
            self._openings[opening.worker].append(opening)
        self._faults_by_worker: dict[str, list[Fault]] = defaultdict(list)
        for fault in faults:
            self._faults_by_worker[fault.worker or ""].append(fault)
        self.late_after_freeze = 0
        """Requests that a worker wrote after its lease, when its freeze ended."""
        for message in record.messages.values():
            self._match_late_requests(message)
            for claim in message.claims:
                self._allow_for_freeze(claim)

    def _allow_for_freeze(self, claim: Claim) -> None:
        """If a request was written at the end of a freeze, set its earliest time to the start.

        The worker may have been frozen between its last check and the write.
        """
        request = claim.request
        for fault in self._faults_by_worker[claim.opened.worker] if request else ():
            if request and fault.began <= request.arrived <= fault.ended + LAG:
                request.earliest = min(request.earliest, fault.began)

    def _match_late_requests(self, message: Message) -> None:
        """Match a request without a claim to a claim that its worker lost while it was frozen."""
        for request in list(message.unclaimed):
            for claim in message.claims:
                if claim.request is None and any(
                    fault.name == "mailer frozen"
                    and fault.overlaps(claim.opened.at, claim.until)
                    and fault.began <= request.arrived <= fault.ended + LAG
                    for fault in self._faults_by_worker[claim.opened.worker]
                ):
                    claim.request = request
                    message.unclaimed.remove(request)
                    self.late_after_freeze += 1
                    break

    def was_frozen(self, worker: str, start: float, end: float) -> bool:
        """Return whether a worker was frozen at some moment from `start` to `end`."""
        freezes = (f for f in self._faults_by_worker[worker] if f.name == "mailer frozen")
        return any(freeze.overlaps(start, end) for freeze in freezes)

    def versions(self, mailing_id: int, start: float, end: float) -> list[Version]:
        """Return the versions of a mailing from `start` to `end`.

        Each version counts for `REACTION` longer than it lasted.
        """
        return [
            version
            for version in self.record.mailings[mailing_id]
            if version.since <= end and version.until + REACTION >= start
        ]

    def versions_for(self, request: Request) -> list[Version]:
        """Return the versions that may apply to a request; changes take effect within a second."""
        mailing_id = self.record.messages[request.id or 0].last.mailing_id
        return self.versions(mailing_id, request.earliest - LAG, request.arrived)

    def zone_of(self, request: Request) -> str:
        """Return the time zone of the request's client."""
        client_id = self.record.messages[request.id or 0].last.client_id
        return str(self.clients[client_id]["time_zone"])

    def was_retried(self, mailing_id: int, start: float, end: float) -> bool:
        """Return whether a `retry` call may have affected a mailing from `start` to `end`."""
        return any(
            call.action == "retry" and call.began <= end and call.ended + REACTION >= start
            for call in self.calls[mailing_id]
        )

    def was_breaker_open(self, worker: str, start: float, end: float) -> bool:
        """Return whether a worker's breaker was open or half-open from `start` to `end`."""
        return any(o.began <= end and o.ended >= start for o in self._openings[worker])

    def why_lease_expired(self, claim: Claim) -> str | None:
        """Return the fault that kept a worker from recording the result within its lease."""
        since, until = claim.opened.at - LAG, claim.opened.leased_until or claim.opened.at
        for fault in self._faults_by_worker[claim.opened.worker]:
            if fault.overlaps(since, until):
                return fault.name
        if any(fault.overlaps(since, until) for fault in self._database_faults):
            return "database unavailable"
        return None

    def why_unanswered(self, claim: Claim) -> str | None:
        """Return why a worker got no answer for a claim, though the gateway works."""
        closed_at = claim.opened.at if claim.closed is None else claim.closed.at
        if any(fault.overlaps(claim.opened.at, closed_at + LAG) for fault in self._gateway_faults):
            return "gateway unavailable"
        if self.was_frozen(claim.opened.worker, claim.opened.at, closed_at):
            return "mailer frozen"
        # the worker's estimate of the database's clock may be a little ahead
        aborted_by = closed_at + END_MARGIN + LAG
        versions = self.versions(claim.opened.mailing_id, claim.opened.at, closed_at)
        if any(claim.opened.at < version.end <= aborted_by for version in versions):
            return "aborted at the mailing's end"
        return None


class CheckReport:
    """Prints the result of each check, with its first violations."""

    def __init__(self, verdict: harness.Verdict) -> None:
        self._verdict = verdict

    def expect_none(self, check: str, violations: Iterable[str], *, of: int) -> None:
        """Check that there is no violation; `of` is the number of objects checked."""
        lines = list(violations)
        self._verdict.check(f"{check}: {len(lines):,} of {of:,}", limit="0", holds=not lines)
        for line in lines[:MAX_EXAMPLES]:
            print(f"    {line}")


def is_open(version: Version, zone: str, at: float) -> bool:
    """Return whether a version's sending window is open in a time zone at a Unix time.

    The soak implements the contract's rule itself, without mailer's code.
    """
    if version.opens is None or version.closes is None:
        return True
    local = datetime.fromtimestamp(at, _zone(zone)).time()
    if version.opens < version.closes:
        return version.opens <= local < version.closes
    return local >= version.opens or local < version.closes


@cache
def _zone(name: str) -> ZoneInfo:
    return ZoneInfo(name)


def matches(client_filter: Any, client: dict[str, Any]) -> bool:  # noqa: ANN401  # JSON
    """Return whether a filter matches a client; implemented without mailer's code."""
    if client_filter is None:
        return True
    if isinstance(client_filter, str):
        terms = {term.strip() for term in client_filter.split(",")}
        return bool(terms & {client["operator_code"], client["tag"]})
    names = {"operator_codes": "operator_code", "tags": "tag", "time_zones": "time_zone"}
    return all(client[names[key]] in values for key, values in client_filter.items())


def moment(at: float) -> str:
    """Return a Unix time as text: UTC, to the millisecond."""
    return datetime.fromtimestamp(at, UTC).strftime("%H:%M:%S.%f")[:-3]
