"""The soak's check that sending never stops while messages are due and nothing is broken."""

import math
from collections.abc import Iterator
from itertools import pairwise

from soaking.claims import Message
from soaking.evidence import CheckReport, Evidence, is_open, moment
from soaking.journal import LEASE

MAX_SILENCE = 3.0
"""Seconds without a request; mailer itself reads due messages at least once a second."""
RECOVERY = {"PostgreSQL": 3.0, "connections": 3.0, "gateway": 0.5}
"""Seconds after a fault until mailer must send again, by the first word of the fault's name."""
WARM_UP = 1.0
"""Seconds until a worker must send, after its start or after a fault that blocked it."""
MAX_DELAY = LEASE + 7.0
"""Seconds after a change, or the death of a worker, for which it may delay a message."""


def check_silence(report: CheckReport, evidence: Evidence) -> None:
    """Check that no due message waits while a worker whose breaker is closed could send it."""
    arrivals = [request.arrived for request in evidence.record.requests]
    longest, checked = 0.0, 0
    silences = []
    for since, until in _calm(evidence):
        checked += 1
        times = [since, *(at for at in arrivals if since < at < until), until]
        for start, end in pairwise(times):
            if end - start > max(longest, 1.0) and _count_due(evidence, start, end):
                longest = end - start
            if end - start > MAX_SILENCE and (due := _count_due(evidence, start, end)):
                faults = ", ".join(_possible_causes(evidence, start, end))
                silences.append(f"{moment(start)} to {moment(end)}, {due:,} due; {faults}")
    report.expect_none(f"silences over {MAX_SILENCE:g} s with messages due", silences, of=checked)
    print(f"    the longest was {longest:.1f} s" if longest else "    none was over 1 s")


def _calm(evidence: Evidence) -> Iterator[tuple[float, float]]:
    """Yield the intervals in which nothing was broken and at least one worker could send."""
    edges = sorted([*_broken(evidence), *_ready(evidence)])
    broken = ready = 0
    calm_since = None
    for at, broken_change, ready_change in edges:
        broken, ready = broken + broken_change, ready + ready_change
        is_calm = ready > 0 and not broken
        if calm_since is not None and not is_calm:
            yield calm_since, at
        if is_calm and calm_since is None:
            calm_since = at
        elif not is_calm:
            calm_since = None


def _broken(evidence: Evidence) -> Iterator[tuple[float, int, int]]:
    """Yield (time, change of the number of faults, 0) for faults of database or gateway."""
    for fault in evidence.journal.faults:
        recovery = RECOVERY.get(fault.name.split()[0])
        if recovery is not None:
            yield fault.began, 1, 0
            yield fault.ended + recovery, -1, 0


def _ready(evidence: Evidence) -> Iterator[tuple[float, int, int]]:
    """Yield (time, 0, change of the number of workers that can send)."""
    journal = evidence.journal
    for worker, uptime in journal.uptimes.items():
        began, ended = uptime[0] + WARM_UP, uptime[-1] if len(uptime) > 1 else math.inf
        for blocked_since, blocked_until in sorted(_blocked(evidence, worker)):
            if began < min(blocked_since, ended):
                yield began, 0, 1
                yield min(blocked_since, ended), 0, -1
            began = max(began, blocked_until)
        if began < ended:
            yield began, 0, 1
            yield ended, 0, -1


def _blocked(evidence: Evidence, worker: str) -> Iterator[tuple[float, float]]:
    """Yield the intervals in which a worker could not send, or its breaker was open."""
    for opening in evidence.journal.breaker_openings:
        if opening.worker == worker:
            yield opening.began, opening.ended
    for fault in evidence.journal.faults:
        if fault.worker == worker:
            yield fault.began, fault.ended + WARM_UP


def _possible_causes(evidence: Evidence, start: float, end: float) -> Iterator[str]:
    """Yield the faults from `MAX_DELAY` before `start` to `end`: one may be the cause."""
    for fault in evidence.journal.faults:
        if fault.overlaps(start - MAX_DELAY, end):
            yield f"{fault.name} {fault.worker or ''} {moment(fault.began)}"


def _count_due(evidence: Evidence, start: float, end: float) -> int:
    """Return the number of messages due from `start` to `end`, and for `MAX_DELAY` before."""
    messages = evidence.record.messages.values()
    return sum(_is_due(evidence, message, start, end) for message in messages)


def _is_due(evidence: Evidence, message: Message, start: float, end: float) -> bool:
    """Return whether a message could be sent at any time from `start` to `end`.

    It must be scheduled, and its mailing running and unchanged, from `MAX_DELAY` before `start`.
    The sending window is checked at three moments: the start, the middle and the end.
    """
    changes = [change for change in message.changes if change.at < end]
    if not changes or changes[-1].status != "scheduled" or changes[-1].at > start - MAX_DELAY:
        return False
    zone = evidence.clients[changes[-1].client_id]["time_zone"]
    return any(
        version.since <= start - MAX_DELAY
        and end < min(version.until, version.end)
        and version.status == "running"
        and not version.is_deleted
        and all(is_open(version, zone, at) for at in (start, (start + end) / 2, end))
        for version in evidence.record.mailings[changes[-1].mailing_id]
    )
