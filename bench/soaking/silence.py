"""The soak's check that sending never stops while messages are due and nothing is broken.

A silence is a time without any request at a gateway. A calm of a gateway is a time in which no
fault affects it or the database, its configuration stays the same, and at least one worker is able
to send to it.
"""

import math
from collections.abc import Iterator
from itertools import pairwise
from typing import NamedTuple

from soaking.claims import Message
from soaking.evidence import REROUTING, CheckReport, Evidence, is_open, moment
from soaking.journal import LEASE
from soaking.sandbox import GATEWAYS

MAX_SILENCE = 3.0
"""Longest silence in seconds that is allowed; mailer reads due messages at least once a second."""
RECOVERY = {"PostgreSQL": 3.0, "connections": 3.0, "gateway": 1.0}
"""Seconds after a fault until mailer must send again, by the first word of the fault's name."""
WARM_UP = 1.0
"""Seconds until a worker must send, after its start or after a fault that blocked it."""
MAX_DELAY = LEASE + 7.0
"""Seconds for which a change of a message or its mailing, or the death of a worker, may delay the
message."""


def check_silence(report: CheckReport, evidence: Evidence) -> None:
    """Check that in a calm no due message waits without a request for `MAX_SILENCE` seconds."""
    longest_silence, calms = 0.0, 0
    silences = []
    for gateway in GATEWAYS:
        requests = [each for each in evidence.record.requests if each.gateway == gateway]
        for calm in _calms(evidence, gateway):
            calms += 1
            arrivals = [each.arrived for each in requests if calm.start < each.arrived < calm.end]
            for start, end in pairwise([calm.start, *arrivals, calm.end]):
                due = _count_due(evidence, gateway, start, end) if end - start > 1.0 else 0
                if due:
                    longest_silence = max(longest_silence, end - start)
                if due and end - start > MAX_SILENCE:
                    faults = evidence.possible_causes(start - MAX_DELAY, end)
                    when = f"{gateway} {moment(start)} to {moment(end)}"
                    silences.append(f"{when}, {due:,} due; {faults}")
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
    """1 when a fault of the database or the gateway begins, -1 when it ends; likewise a time in
    which the configuration prevents a calm."""
    workers: int = 0
    """1 when a worker becomes able to send, -1 when it no longer is."""


def _calms(evidence: Evidence, gateway: str) -> Iterator[Interval]:
    """Yield the calms of a gateway."""
    faults = workers = 0
    calm_since = None
    steps = [
        *_fault_steps(evidence, gateway),
        *_configuration_steps(evidence, gateway),
        *_worker_steps(evidence, gateway),
    ]
    for step in sorted(steps):
        faults, workers = faults + step.faults, workers + step.workers
        is_calm = workers > 0 and not faults
        if is_calm and calm_since is None:
            calm_since = step.at
        elif not is_calm and calm_since is not None:
            yield Interval(calm_since, step.at)
            calm_since = None


def _fault_steps(evidence: Evidence, gateway: str) -> Iterator[Step]:
    """Yield the beginnings and ends of faults of the database and the gateway, and of pauses."""
    for fault in evidence.journal.faults:
        recovery = RECOVERY.get(fault.name.split()[0])
        if recovery is not None and fault.gateway in {None, gateway}:
            yield Step(fault.began, faults=1)
            yield Step(fault.ended + recovery, faults=-1)
    for pause in evidence.record.pauses:  # the last one may not have ended
        if pause.gateway == gateway:
            yield Step(pause.since, faults=1)
            yield Step(pause.until + RECOVERY["gateway"], faults=-1)


def _configuration_steps(evidence: Evidence, gateway: str) -> Iterator[Step]:
    """Yield the beginnings and ends of times in which the configuration prevents a calm.

    It has just changed, or does not have the gateway, or gives it a weight: then it waits for
    others that are slow or frozen.
    """
    for configuration in evidence.journal.configurations:
        entry = configuration.entries.get(gateway)
        is_alone = entry is not None and entry.weight is None
        yield Step(configuration.began, faults=1)
        yield Step(configuration.began + REROUTING if is_alone else configuration.ended, faults=-1)


def _worker_steps(evidence: Evidence, gateway: str) -> Iterator[Step]:
    """Yield the times at which a worker becomes able to send, and no longer is."""
    for worker, uptime in evidence.journal.uptimes.items():
        able_since = uptime[0] + WARM_UP
        stopped_at = uptime[-1] if len(uptime) > 1 else math.inf
        for blocked in sorted(_blocked_intervals(evidence, worker, gateway)):
            able_until = min(blocked.start, stopped_at)
            if able_since < able_until:
                yield Step(able_since, workers=1)
                yield Step(able_until, workers=-1)
            able_since = max(able_since, blocked.end)
        if able_since < stopped_at:
            yield Step(able_since, workers=1)
            yield Step(stopped_at, workers=-1)


def _blocked_intervals(evidence: Evidence, worker: str, gateway: str) -> Iterator[Interval]:
    """Yield the times in which a fault of a worker, or its breaker, kept it from sending."""
    for opening in evidence.journal.breaker_openings:
        if (opening.worker, opening.gateway) == (worker, gateway):
            yield Interval(opening.began, opening.ended)
    for fault in evidence.journal.faults:
        if fault.worker == worker:
            yield Interval(fault.began, fault.ended + WARM_UP)


def _count_due(evidence: Evidence, gateway: str, start: float, end: float) -> int:
    """Return the number of messages that a gateway could get during the whole time of a silence."""
    middle = (start + end) / 2
    configuration = evidence.journal.configurations_during(middle, middle)[-1]
    order = configuration.entries[gateway].order
    first_for = {
        route
        for route, names in evidence.record.routes.items()
        if gateway in names
        and all(
            entry.order >= order for name, entry in configuration.entries.items() if name in names
        )
    }
    messages = evidence.record.messages.values()
    return sum(_is_due(evidence, message, first_for, start, end) for message in messages)


def _is_due(
    evidence: Evidence, message: Message, routes: set[int], start: float, end: float
) -> bool:
    """Return whether a message could be sent during the whole time from `start` to `end`.

    The message must be scheduled with one of the routes, and its mailing running, and both
    unchanged since `MAX_DELAY` before `start`. The sending window is checked at three moments: the
    start, the middle and the end.
    """
    changes = [change for change in message.changes if change.at < end]
    if not changes or changes[-1].status != "scheduled" or changes[-1].at > start - MAX_DELAY:
        return False
    if changes[-1].route not in routes:
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
