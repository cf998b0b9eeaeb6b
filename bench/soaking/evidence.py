"""What the soak's checks ask of the record: as it was then, and what was broken at that time."""

from collections import defaultdict
from collections.abc import Iterable
from datetime import UTC, datetime
from functools import cache
from typing import Any
from zoneinfo import ZoneInfo

import harness
from soaking.claims import Claim, Message, Request
from soaking.journal import END_MARGIN, LAG, REACTION, Call, Journal, Opening, Trouble
from soaking.record import Record, Version

EXAMPLES = 5
"""Broken rows that are printed of each check."""
DATABASE = ("PostgreSQL", "connections")
"""How the names of the troubles begin that befell the database."""


class Evidence:
    """The record and the journal, and what can be told from both."""

    def __init__(
        self, record: Record, journal: Journal, clients: dict[int, dict[str, Any]]
    ) -> None:
        self.record = record
        self.journal = journal
        self.clients = clients
        self.calls: dict[int, list[Call]] = defaultdict(list)
        for call in journal.calls:
            self.calls[call.mailing_id].append(call)
        troubles = journal.troubles
        self._database = [trouble for trouble in troubles if trouble.what.startswith(DATABASE)]
        self._gateway = [trouble for trouble in troubles if trouble.what.startswith("gateway")]
        self._openings: dict[str, list[Opening]] = defaultdict(list)
        for opening in journal.openings:
            self._openings[opening.life].append(opening)
        self._lives: dict[str, list[Trouble]] = defaultdict(list)
        for trouble in troubles:
            self._lives[trouble.life or ""].append(trouble)
        self.thawed = 0
        """Requests that a frozen process wrote as it went on, after its lease."""
        for message in record.messages.values():
            self._claim_thawed(message)
            for claim in message.claims:
                self._allow_for_freeze(claim)

    def _allow_for_freeze(self, claim: Claim) -> None:
        """Count a request that a process writes as it thaws from when it was frozen.

        It was to go out when the process was stopped between its last look and the write.
        """
        request = claim.request
        for trouble in self._lives[claim.opened.life] if request else ():
            if request and trouble.began <= request.arrived <= trouble.ended + LAG:
                request.earliest = min(request.earliest, trouble.began)

    def _claim_thawed(self, message: Message) -> None:
        """Give a request that seems to have no claim to one that a frozen process had lost."""
        for request in list(message.unclaimed):
            for claim in message.claims:
                if claim.request is None and any(
                    trouble.what == "mailer frozen"
                    and trouble.touches(claim.opened.at, claim.until)
                    and trouble.began <= request.arrived <= trouble.ended + LAG
                    for trouble in self._lives[claim.opened.life]
                ):
                    claim.request = request
                    message.unclaimed.remove(request)
                    self.thawed += 1
                    break

    def was_frozen(self, life: str, start: float, end: float) -> bool:
        """Whether a run of mailer was frozen at some moment from `start` to `end`."""
        freezes = (trouble for trouble in self._lives[life] if trouble.what == "mailer frozen")
        return any(freeze.touches(start, end) for freeze in freezes)

    def versions(self, mailing_id: int, start: float, end: float) -> list[Version]:
        """Return a mailing as it was from `start` to `end`, each version a little longer."""
        return [
            version
            for version in self.record.mailings[mailing_id]
            if version.since <= end and version.until + REACTION >= start
        ]

    def versions_for(self, request: Request) -> list[Version]:
        """Return what a request may have gone by: a change acts within a second."""
        mailing_id = self.record.messages[request.id or 0].last.mailing_id
        return self.versions(mailing_id, request.earliest - LAG, request.arrived)

    def zone_of(self, request: Request) -> str:
        """Return the time zone of the client that a request is for."""
        client_id = self.record.messages[request.id or 0].last.client_id
        return str(self.clients[client_id]["time_zone"])

    def was_retried(self, mailing_id: int, start: float, end: float) -> bool:
        """Whether a call of `retry` may have acted on a mailing from `start` to `end`."""
        return any(
            call.action == "retry" and call.began <= end and call.ended + REACTION >= start
            for call in self.calls[mailing_id]
        )

    def held_back(self, life: str, start: float, end: float) -> bool:
        """Whether a run's breaker was not closed at some moment from `start` to `end`."""
        return any(o.began <= end and o.ended >= start for o in self._openings[life])

    def why_lost(self, claim: Claim) -> str | None:
        """Return why the holder of a claim could not write its outcome within the lease."""
        since, until = claim.opened.at - LAG, claim.opened.leased_until or claim.opened.at
        for trouble in self._lives[claim.opened.life]:
            if trouble.touches(since, until):
                return trouble.what
        if any(trouble.touches(since, until) for trouble in self._database):
            return "database away"
        return None

    def why_cut(self, claim: Claim) -> str | None:
        """Return why no answer came under a claim, though the gateway gave or would give one."""
        closed_at = claim.opened.at if claim.closed is None else claim.closed.at
        if any(trouble.touches(claim.opened.at, closed_at + LAG) for trouble in self._gateway):
            return "gateway away"
        if self.was_frozen(claim.opened.life, claim.opened.at, closed_at):
            return "mailer frozen"
        # the worker's estimate of the database's clock may be a little ahead
        cut_by = closed_at + END_MARGIN + LAG
        versions = self.versions(claim.opened.mailing_id, claim.opened.at, closed_at)
        if any(claim.opened.at < version.end <= cut_by for version in versions):
            return "cut at the end"
        return None


class Audit:
    """Prints each check with its figure, and the first rows that break it."""

    def __init__(self, verdict: harness.Verdict) -> None:
        self._verdict = verdict

    def none(self, what: str, broken: Iterable[str], *, of: int) -> None:
        """Check that no row is broken, of so many that were looked at."""
        rows = list(broken)
        self._verdict.check(f"{what}: {len(rows):,} of {of:,}", limit="0", holds=not rows)
        for row in rows[:EXAMPLES]:
            print(f"    {row}")


def is_open(version: Version, zone: str, at: float) -> bool:
    """Whether a version's window is open on a zone's clock; the soak's own reading of it."""
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
    """Whether a filter means a client; the soak's own reading of it."""
    if client_filter is None:
        return True
    if isinstance(client_filter, str):
        terms = {term.strip() for term in client_filter.split(",")}
        return bool(terms & {client["operator_code"], client["tag"]})
    names = {"operator_codes": "operator_code", "tags": "tag", "time_zones": "time_zone"}
    return all(client[names[key]] in values for key, values in client_filter.items())


def moment(at: float) -> str:
    """Return a moment as it is printed: UTC, to the millisecond."""
    return datetime.fromtimestamp(at, UTC).strftime("%H:%M:%S.%f")[:-3]
