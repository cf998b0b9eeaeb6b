"""Log failures of the dispatcher's loops. While a loop keeps failing, this worker is not ready."""

from functools import partial
from typing import Literal

import structlog

from mailer import metrics
from mailer.clock import elapsed
from mailer.db.engine import is_unavailable
from mailer.log import describe

log = structlog.get_logger()

Loop = Literal["watch_running_mailings", "lifecycle", "claim", "record"]

DB_RETRY_DELAY = 0.5
"""Seconds between attempts while the database is unavailable."""
FAILURE_LOG_INTERVAL = 10.0
"""Least seconds between two log lines of one task while the database is unavailable."""
FAILING_AFTER = 10.0
"""Seconds after a loop's first failure, without a success since, when it counts as failing."""
IDLE_AFTER = 300.0
"""Seconds after a loop's last failure when it counts as idle: it has had nothing to do since."""
LOOP_FAILURE_REASONS: dict[Loop, str] = {
    "watch_running_mailings": "Running mailings cannot be read, and nothing is sent; see the log.",
    "lifecycle": "Starting, planning or finishing mailings keeps failing; see the log.",
    "claim": "Messages cannot be claimed, and nothing is sent; see the log.",
    "record": "Results of messages cannot be written; see the log.",
}


class LoopFailures:
    """Tracks the loops whose latest attempts have all failed, and since when."""

    def __init__(self) -> None:
        self._failures: dict[Loop, tuple[float, float]] = {}  # first and last failure
        for loop in LOOP_FAILURE_REASONS:
            metrics.watch_job(loop, partial(self._age, loop))

    def record(self, loop: Loop, *, has_failed: bool) -> None:
        """Record whether an attempt of a loop has failed."""
        if has_failed:
            metrics.job_failed(loop)
            now = elapsed()
            self._failures[loop] = (now - self._age(loop, now), now)
        else:
            self._failures.pop(loop, None)

    def reason(self, now: float) -> str | None:
        """Return why this worker is not ready at a moment of `elapsed()`, as a sentence for users.

        Returns None when it is ready.
        """
        return next(
            (
                LOOP_FAILURE_REASONS[loop]
                for loop in LOOP_FAILURE_REASONS
                if self._age(loop, now) >= FAILING_AFTER
            ),
            None,
        )

    def _age(self, loop: Loop, now: float | None = None) -> float:
        """Return the seconds since which every attempt of a loop has failed; 0 when it works."""
        now = elapsed() if now is None else now
        first, last = self._failures.get(loop, (now, now))
        return now - first if now - last < IDLE_AFTER else 0.0


_logged_at: dict[str, float] = {}


def log_task_error(error: Exception, *, at: str) -> None:
    """Log that the database is unavailable, or else an unexpected error, in the task `at`.

    The caller then pauses and goes on. So an unexpected error ends one step, and not the worker.
    """
    if not is_unavailable(error):
        log.error("task_failed", at=at, **describe(error))
    elif elapsed() - _logged_at.get(at, -FAILURE_LOG_INTERVAL) >= FAILURE_LOG_INTERVAL:
        _logged_at[at] = elapsed()
        log.warning("database_unavailable", at=at)
