"""Loops of the dispatcher that keep failing: then this process is not ready."""

from typing import Literal

from mailer.clock import elapsed

Loop = Literal["watch", "lifecycle"]

LIMIT = 10.0
"""Seconds from a loop's first failure, without a success since, until it counts as failing."""
REASONS: dict[Loop, str] = {
    "watch": "The running mailings cannot be read, and nothing is sent; see the log.",
    "lifecycle": "Mailings cannot be started, planned or ended as they should; see the log.",
}


class LoopFailures:
    """Since when each loop has failed at every attempt."""

    def __init__(self) -> None:
        self._since: dict[Loop, float] = {}

    def record(self, loop: Loop, *, has_failed: bool) -> None:
        """Note how an attempt of a loop has ended."""
        if has_failed:
            self._since.setdefault(loop, elapsed())
        else:
            self._since.pop(loop, None)

    def reason(self, now: float) -> str | None:
        """Return what does not work at a moment of `elapsed()`, as a sentence; None if all does."""
        failing = (loop for loop, since in self._since.items() if now - since >= LIMIT)
        return next((REASONS[loop] for loop in failing), None)
