"""Loops of the dispatcher that keep failing: then this process is not ready."""

from functools import partial
from typing import Literal

from mailer import metrics
from mailer.clock import elapsed

Loop = Literal["watch", "lifecycle", "claim", "record"]

LIMIT = 10.0
"""Seconds from a loop's first failure, without a success since, until it counts as failing."""
LAPSE = 300.0
"""Seconds after a loop's last failure from which it counts as idle: it has nothing to do."""
REASONS: dict[Loop, str] = {
    "watch": "The running mailings cannot be read, and nothing is sent; see the log.",
    "lifecycle": "Starting, planning or finishing mailings keeps failing; see the log.",
    "claim": "Messages cannot be claimed, and nothing is sent; see the log.",
    "record": "Results of messages cannot be written; see the log.",
}


class LoopFailures:
    """The loops that have failed at every attempt of late, and since when."""

    def __init__(self) -> None:
        self._failures: dict[Loop, tuple[float, float]] = {}  # the first and the last
        for loop in REASONS:
            metrics.watch_job(loop, partial(self._age, loop))

    def record(self, loop: Loop, *, has_failed: bool) -> None:
        """Note how an attempt of a loop has ended."""
        if has_failed:
            metrics.job_failed(loop)
            now = elapsed()
            self._failures[loop] = (now - self._age(loop, now), now)
        else:
            self._failures.pop(loop, None)

    def reason(self, now: float) -> str | None:
        """Return what does not work at a moment of `elapsed()`, as a sentence; None if all does."""
        return next((REASONS[loop] for loop in REASONS if self._age(loop, now) >= LIMIT), None)

    def _age(self, loop: Loop, now: float | None = None) -> float:
        """Return for how many seconds a loop has failed at every attempt; 0 when it works."""
        now = elapsed() if now is None else now
        first, last = self._failures.get(loop, (now, now))
        return now - first if now - last < LAPSE else 0.0
