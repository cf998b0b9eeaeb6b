"""The soak's check that sending never stops while messages are due and nothing is broken.

A silence is a time without any request at the gateway. A calm is a time in which no fault affects
the database or the gateway, and at least one worker is able to send.
"""

import math
from collections.abc import Iterator
from itertools import pairwise
from typing import NamedTuple

from soaking.claims import Message
from soaking.evidence import CheckReport, Evidence, is_open, moment
from soaking.journal import LEASE

MAX_SILENCE = 3.0
"""Longest silence in seconds that is allowed; mailer reads due messages at least once a second."""
RECOVERY = {"PostgreSQL": 3.0, "connections": 3.0, "gateway": 0.5}
"""Seconds after a fault until mailer must send again, by the first word of the fault's name."""
WARM_UP = 1.0
"""Seconds until a worker must send, after its start or after a fault that blocked it."""
MAX_DELAY = LEASE + 7.0
"""Seconds for which a change of a message or its mailing, or the death of a worker, may delay the
message."""


def check_silence(report: CheckReport, evidence: Evidence) -> None:
    """Check that in a calm no due message waits without a request for `MAX_SILENCE` seconds."""
    arrivals = [request.arrived for request in evidence.record.requests]
    longest_silence, calms = 0.0, 0
    silences = []
    for calm in _calms(evidence):
        calms += 1
        arrivals_in_calm = [at for at in arrivals if calm.start < at < calm.end]
        for start, end in pairwise([calm.start, *arrivals_in_calm, calm.end]):
            if end - start > max(longest_silence, 1.0) and _count_due(evidence, start, end):
                longest_silence = end - start
            if end - start > MAX_SILENCE and (due := _count_due(evidence, start, end)):
                faults = ", ".join(_possible_causes(evidence, start, end))
                silences.append(f"{moment(start)} to {moment(end)}, {due:,} due; {faults}")
    report.expect_none(f"silences over {MAX_SILENCE:g} s with messages due", silences, of=calms)
    longest = f"the longest was {longest_silence:.1f} s" if longest_silence else "none was over 1 s"
    print(f"    {longest}")


class Interval(NamedTuple):
    """A time from `start` to `end`, both in Unix time."""

    start: float
    end: float


class Step(NamedTuple):
    """A change of what decides whether there is a calm."""

    at: float
    faults: int = 0
    """1 when a fault of the database or the gateway begins, -1 when it ends."""
    workers: int = 0
    """1 when a worker becomes able to send, -1 when it no longer is."""


def _calms(evidence: Evidence) -> Iterator[Interval]:
    """Yield the calms: no fault is present, and at least one worker is able to send."""
    faults = workers = 0
    calm_since = None
    for step in sorted([*_fault_steps(evidence), *_worker_steps(evidence)]):
        faults, workers = faults + step.faults, workers + step.workers
        is_calm = workers > 0 and not faults
        if is_calm and calm_since is None:
            calm_since = step.at
        elif not is_calm and calm_since is not None:
            yield Interval(calm_since, step.at)
            calm_since = None


def _fault_steps(evidence: Evidence) -> Iterator[Step]:
    """Yield the beginnings and ends of faults of the database and the gateway."""
    for fault in evidence.journal.faults:
        recovery = RECOVERY.get(fault.name.split()[0])
        if recovery is not None:
            yield Step(fault.began, faults=1)
            yield Step(fault.ended + recovery, faults=-1)


def _worker_steps(evidence: Evidence) -> Iterator[Step]:
    """Yield the times at which a worker becomes able to send, and no longer is."""
    for worker, uptime in evidence.journal.uptimes.items():
        able_since = uptime[0] + WARM_UP
        stopped_at = uptime[-1] if len(uptime) > 1 else math.inf
        for blocked in sorted(_blocked_intervals(evidence, worker)):
            able_until = min(blocked.start, stopped_at)
            if able_since < able_until:
                yield Step(able_since, workers=1)
                yield Step(able_until, workers=-1)
            able_since = max(able_since, blocked.end)
        if able_since < stopped_at:
            yield Step(able_since, workers=1)
            yield Step(stopped_at, workers=-1)


def _blocked_intervals(evidence: Evidence, worker: str) -> Iterator[Interval]:
    """Yield the times in which a fault of a worker, or its breaker, kept it from sending."""
    for opening in evidence.journal.breaker_openings:
        if opening.worker == worker:
            yield Interval(opening.began, opening.ended)
    for fault in evidence.journal.faults:
        if fault.worker == worker:
            yield Interval(fault.began, fault.ended + WARM_UP)


def _possible_causes(evidence: Evidence, start: float, end: float) -> Iterator[str]:
    """Describe the faults that may be the cause of a silence: from `MAX_DELAY` before it."""
    for fault in evidence.journal.faults:
        if fault.overlaps(start - MAX_DELAY, end):
            yield f"{fault.name} {fault.worker or ''} {moment(fault.began)}"


def _count_due(evidence: Evidence, start: float, end: float) -> int:
    """Return the number of messages that could be sent during the whole time of a silence."""
    messages = evidence.record.messages.values()
    return sum(_is_due(evidence, message, start, end) for message in messages)


def _is_due(evidence: Evidence, message: Message, start: float, end: float) -> bool:
    """Return whether a message could be sent during the whole time from `start` to `end`.

    The message must be scheduled, and its mailing running, and both unchanged since `MAX_DELAY`
    before `start`. The sending window is checked at three moments: the start, the middle and the
    end.
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
