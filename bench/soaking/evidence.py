"""Answers to the questions of the soak's checks: past states of mailings, and faults at a time.

The record contains all states and requests, the journal all faults and calls. The rules of filters
and sending windows are implemented here once more, without mailer's code.
"""

from collections import defaultdict
from collections.abc import Iterable
from datetime import UTC, datetime
from functools import cache
from typing import Any
from zoneinfo import ZoneInfo

import harness
from soaking.claims import Claim, Message, Request
from soaking.journal import (
    END_MARGIN,
    GATEWAY_TIMEOUT,
    LAG,
    REACTION,
    BreakerOpening,
    Call,
    Fault,
    Journal,
)
from soaking.opt_outs import OptOut, find_opt_outs
from soaking.record import Record, Version

MAX_EXAMPLES = 5
"""Violations printed for each check."""
DATABASE_FAULTS = ("PostgreSQL", "connections")
"""First words of the names of faults of the database."""
REROUTING = 4.0
"""Seconds after a change of the configuration or of a mailing's gateway until all scheduled
messages wait for the right gateways, while the database is available and a worker works."""


class Evidence:
    """Answers questions from the record and the journal. `clients` are the clients by id."""

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
        # a worker that is frozen while it enqueues or reroutes may keep others from changing routes
        freezes = [fault for fault in faults if fault.name == "mailer frozen"]
        rerouting_faults = [*self._database_faults, *journal.downtimes(), *freezes]
        self._rerouting_faults = sorted(rerouting_faults, key=lambda f: f.ended, reverse=True)
        self._unanswering_faults = [
            f for f in faults if f.name in {"gateway down", "gateway frozen"}
        ]
        self._openings: dict[str, list[BreakerOpening]] = defaultdict(list)
        for opening in journal.breaker_openings:
            self._openings[opening.worker].append(opening)
        self._faults_by_worker: dict[str, list[Fault]] = defaultdict(list)
        for fault in faults:
            self._faults_by_worker[fault.worker or ""].append(fault)
        self.late_after_freeze = 0
        """Number of requests that a worker wrote after its lease, when its freeze ended."""
        self.opt_outs = list(find_opt_outs(journal.keyword_replies))
        self._opt_outs_by_client: dict[int, list[OptOut]] = defaultdict(list)
        for opt_out in self.opt_outs:
            self._opt_outs_by_client[opt_out.client_id].append(opt_out)
        for message in record.messages.values():
            self._match_late_requests(message)
            for claim in message.claims:
                self._allow_for_freeze(claim)

    def _allow_for_freeze(self, claim: Claim) -> None:
        """If a request was written at the end of its worker's freeze, allow for the freeze.

        The worker may have been frozen between its last check and the write. So the earliest time
        of the request becomes the start of the freeze.
        """
        request = claim.request
        if request is None:
            return
        for fault in self._faults_by_worker[claim.opened.worker]:
            if fault.began <= request.arrived <= fault.ended + LAG:
                request.earliest = min(request.earliest, fault.began)

    def _match_late_requests(self, message: Message) -> None:
        """Match requests without a claim to claims that a worker lost while it was frozen.

        When the freeze ends, such a worker may write a request before it notices the loss.
        """
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

    def message_of(self, request: Request) -> Message:
        """Return the message of a request; raises `KeyError` for a request without one."""
        return self.record.messages[request.id or 0]  # no message has the id 0

    def opt_outs_of(self, client_id: int) -> list[OptOut]:
        """Return the opt-outs of a client, in order."""
        return self._opt_outs_by_client[client_id]

    def was_frozen(self, worker: str, start: float, end: float) -> bool:
        """Return whether a worker was frozen at some moment from `start` to `end`."""
        freezes = (f for f in self._faults_by_worker[worker] if f.name == "mailer frozen")
        return any(freeze.overlaps(start, end) for freeze in freezes)

    def versions(self, mailing_id: int, start: float, end: float) -> list[Version]:
        """Return the versions of a mailing that may have applied from `start` to `end`.

        A version may still apply for `REACTION` seconds after it was replaced.
        """
        return [
            version
            for version in self.record.mailings[mailing_id]
            if version.since <= end and version.until + REACTION >= start
        ]

    def versions_for(self, request: Request) -> list[Version]:
        """Return the versions of its mailing that may have applied when a request was written."""
        mailing_id = self.message_of(request).last.mailing_id
        return self.versions(mailing_id, request.earliest - LAG, request.arrived)

    def zone_of(self, request: Request) -> str:
        """Return the time zone of the request's client."""
        client_id = self.message_of(request).last.client_id
        return str(self.clients[client_id]["time_zone"])

    def possible_causes(self, start: float, end: float) -> str:
        """Describe the faults that may be the cause of something between two times."""
        names = [
            f"{fault.name} {fault.worker or fault.gateway or ''} {moment(fault.began)}"
            f" to {moment(min(fault.ended, end))}"
            for fault in self.journal.faults
            if fault.overlaps(start, end)
        ]
        return "; ".join(names) or "no fault"

    def route_events(self, start: float, end: float) -> list[str]:
        """Return when workers started, read the file of gateways, or changed routes."""
        starts = [(up[0], f"{worker} serves") for worker, up in self.journal.uptimes.items()]
        events = sorted([*starts, *self.journal.route_events])
        return [f"{moment(at)} {event}" for at, event in events if start <= at <= end]

    def was_retried(self, mailing_id: int, start: float, end: float) -> bool:
        """Return whether a `retry` call may have affected a mailing from `start` to `end`."""
        return any(
            call.action == "retry" and call.began <= end and call.ended + REACTION >= start
            for call in self.calls[mailing_id]
        )

    def was_breaker_open(
        self, worker: str, start: float, end: float, gateway: str | None = None
    ) -> bool:
        """Return whether a worker's breaker was not closed at some moment from `start` to `end`.

        It is the breaker of `gateway`; None stands for that of any gateway.
        """
        return any(
            opening.began <= end and opening.ended >= start and gateway in {None, opening.gateway}
            for opening in self._openings[worker]
        )

    def was_paused(self, gateway: str, start: float, end: float) -> bool:
        """Return whether a gateway was paused at some moment from `start` to `end`."""
        return any(
            pause.gateway == gateway and pause.since <= end and pause.until >= start
            for pause in self.record.pauses
        )

    def was_database_faulty(self, start: float, end: float) -> bool:
        """Return whether the database had a fault at some moment from `start` to `end`."""
        return any(fault.overlaps(start, end) for fault in self._database_faults)

    def rerouting_since(self, at: float) -> float:
        """Return since when a change of routes may still be on its way to messages at `at`."""
        since = at - REROUTING
        for fault in self._rerouting_faults:
            if fault.overlaps(since, at):
                since = min(since, fault.began - REROUTING)
        return since

    def why_lease_expired(self, claim: Claim) -> str | None:
        """Return the fault that explains why a result was not recorded within the lease.

        None if no fault explains it.
        """
        since, until = claim.opened.at - LAG, claim.opened.leased_until or claim.opened.at
        for fault in self._faults_by_worker[claim.opened.worker]:
            if fault.overlaps(since, until):
                return fault.name
        if self.was_database_faulty(since, until):
            return "database unavailable"
        return None

    def why_unanswered(self, claim: Claim) -> str | None:
        """Return what explains that a worker got no answer to the request of a claim.

        None if nothing explains it.
        """
        closed_at = claim.opened.at if claim.closed is None else claim.closed.at
        if any(
            fault.gateway == claim.opened.gateway
            and fault.overlaps(claim.opened.at, closed_at + LAG)
            for fault in self._unanswering_faults
        ):
            return "gateway unavailable"
        if self.was_frozen(claim.opened.worker, claim.opened.at, closed_at):
            return "mailer frozen"
        if self._was_receipt_slow(claim, closed_at):
            return "the gateway waited until its receipt was answered"
        # mailer aborts requests END_MARGIN before the end; LAG allows for its estimate of the clock
        latest_end = closed_at + END_MARGIN + LAG
        versions = self.versions(claim.opened.mailing_id, claim.opened.at, closed_at)
        if any(claim.opened.at < version.end <= latest_end for version in versions):
            return "aborted at the mailing's end"
        return None

    def _was_receipt_slow(self, claim: Claim, closed_at: float) -> bool:
        """Return whether a receipt before the answer may have delayed the answer to a request."""
        request = claim.request
        if request is None or request.kind != "accepted":
            return False
        receipts = self.record.messages[claim.opened.message_id].receipts_until(closed_at)
        timeout = min(closed_at, request.earliest + GATEWAY_TIMEOUT) - LAG
        return any(
            each.is_early and request.arrived <= each.started and each.ended > timeout
            for each in receipts
        )


class CheckReport:
    """Prints the result of each check of the soak, with its first violations."""

    def __init__(self, verdict: harness.Verdict) -> None:
        self._verdict = verdict

    def expect_none(self, check: str, violations: Iterable[str], *, of: int) -> None:
        """Print the number of violations, and the first of them; the limit is 0.

        `check` names what is counted; `of` is the number of objects that were checked.
        """
        lines = list(violations)
        self._verdict.check(f"{check}: {len(lines):,} of {of:,}", limit="0", holds=not lines)
        for line in lines[:MAX_EXAMPLES]:
            print(f"    {line}")


def is_open(version: Version, zone: str, at: float) -> bool:
    """Return whether the sending window of a mailing is open in a time zone at a Unix time."""
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
    """Return whether a filter, as the API returns it, matches a client."""
    if client_filter is None:
        return True
    if isinstance(client_filter, str):
        terms = {term.strip() for term in client_filter.split(",")}
        return bool(terms & {client["operator_code"], client["tag"]})
    fields = {"operator_codes": "operator_code", "tags": "tag", "time_zones": "time_zone"}
    return all(client[fields[name]] in values for name, values in client_filter.items())


def moment(at: float) -> str:
    """Return a Unix time as text: UTC, to the millisecond."""
    return datetime.fromtimestamp(at, UTC).strftime("%H:%M:%S.%f")[:-3]
