"""The soak's look for what is stuck: nothing is sent though much is due and nothing is broken."""

import math
from collections.abc import Iterator
from itertools import pairwise

from soaking.claims import Message
from soaking.evidence import Audit, Evidence, is_open, moment
from soaking.journal import LEASE

LIMIT = 3.0
"""Seconds without a request, at most; mailer itself looks at what is due once a second."""
RECOVERY = {"PostgreSQL": 3.0, "connections": 3.0, "gateway": 0.5}
"""Seconds after a trouble until mailer is expected to send again."""
WARM_UP = 1.0
"""Seconds after a run of mailer began to serve."""
SETTLED = LEASE + 7.0
"""Seconds after a change until nothing of it, and no lease of the dead, keeps a message waiting."""


def check_silence(audit: Audit, evidence: Evidence) -> None:
    """Check that no due message waits while a mailer whose breaker is closed could send it."""
    arrivals = [request.arrived for request in evidence.record.requests]
    longest, looked_at = 0.0, 0
    stuck = []
    for since, until in _calm(evidence):
        looked_at += 1
        within = [since, *(at for at in arrivals if since < at < until), until]
        for start, end in pairwise(within):
            if end - start > max(longest, 1.0) and _due(evidence, start, end):
                longest = end - start
            if end - start > LIMIT and (due := _due(evidence, start, end)):
                meanwhile = ", ".join(_meanwhile(evidence, start, end))
                stuck.append(f"{moment(start)} to {moment(end)}, {due:,} due; {meanwhile}")
    audit.none(f"silences over {LIMIT:g} s with messages due", stuck, of=looked_at)
    print(f"    the longest was {longest:.1f} s" if longest else "    none was over 1 s")


def _calm(evidence: Evidence) -> Iterator[tuple[float, float]]:
    """Yield the times in which nothing was broken and some mailer was there to send."""
    edges = sorted([*_broken(evidence), *_ready(evidence)])
    broken = ready = 0
    calm_since = None
    for at, breaks, readies in edges:
        broken, ready = broken + breaks, ready + readies
        is_calm = ready > 0 and not broken
        if calm_since is not None and not is_calm:
            yield calm_since, at
        if is_calm and calm_since is None:
            calm_since = at
        elif not is_calm:
            calm_since = None


def _broken(evidence: Evidence) -> Iterator[tuple[float, int, int]]:
    """Yield when database or gateway went away (1) and were back (-1)."""
    for trouble in evidence.journal.troubles:
        recovery = RECOVERY.get(trouble.what.split()[0])
        if recovery is not None:
            yield trouble.began, 1, 0
            yield trouble.ended + recovery, -1, 0


def _ready(evidence: Evidence) -> Iterator[tuple[float, int, int]]:
    """Yield when a mailer could send (1), and could no longer (-1)."""
    journal = evidence.journal
    for life, uptime in journal.uptimes.items():
        began, ended = uptime[0] + WARM_UP, uptime[-1] if len(uptime) > 1 else math.inf
        for away_since, away_until in sorted(_away(evidence, life)):
            if began < min(away_since, ended):
                yield began, 0, 1
                yield min(away_since, ended), 0, -1
            began = max(began, away_until)
        if began < ended:
            yield began, 0, 1
            yield ended, 0, -1


def _away(evidence: Evidence, life: str) -> Iterator[tuple[float, float]]:
    """Yield the times in which a run of mailer was not to send, or could not."""
    for opening in evidence.journal.openings:
        if opening.life == life:
            yield opening.began, opening.ended
    for trouble in evidence.journal.troubles:
        if trouble.life == life:
            yield trouble.began, trouble.ended + WARM_UP


def _meanwhile(evidence: Evidence, start: float, end: float) -> Iterator[str]:
    """Yield what was broken then, for who looks for the cause."""
    for trouble in evidence.journal.troubles:
        if trouble.touches(start - SETTLED, end):
            yield f"{trouble.what} {trouble.life or ''} {moment(trouble.began)}"


def _due(evidence: Evidence, start: float, end: float) -> int:
    """Return how many messages could have been sent all the time from `start` to `end`."""
    messages = evidence.record.messages.values()
    return sum(_is_due(evidence, message, start, end) for message in messages)


def _is_due(evidence: Evidence, message: Message, start: float, end: float) -> bool:
    states = [change for change in message.changes if change.at < end]
    if not states or states[-1].status != "scheduled" or states[-1].at > start - SETTLED:
        return False
    zone = evidence.clients[states[-1].client_id]["time_zone"]
    return any(
        version.since <= start - SETTLED
        and end < min(version.until, version.end)
        and version.status == "running"
        and not version.is_deleted
        and all(is_open(version, zone, at) for at in (start, (start + end) / 2, end))
        for version in evidence.record.mailings[states[-1].mailing_id]
    )
