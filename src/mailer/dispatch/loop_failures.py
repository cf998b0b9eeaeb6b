"""Failures of the dispatcher's loops: they are logged, and this worker is not ready meanwhile.

A loop is a task of the dispatcher that runs until the worker stops.
"""

from functools import partial
from typing import Literal, NamedTuple

import structlog

from mailer import metrics
from mailer.clock import elapsed
from mailer.db.engine import is_unavailable
from mailer.log import describe

log = structlog.get_logger()

Loop = Literal["watch_running_mailings", "lifecycle", "claim", "record"]
"""The name of a loop, also in the metrics."""

DB_RETRY_DELAY = 0.5
"""Seconds after which a loop tries again while the database is unavailable."""
FAILURE_LOG_INTERVAL = 10.0
"""Least seconds between two log lines of one task while the database is unavailable."""
FAILING_AFTER = 10.0
"""Seconds after its first failure, without a success since, from which a loop counts as failing."""
IDLE_AFTER = 300.0
"""Seconds after its last failure from which a loop counts as idle and not as failing: it has had
nothing to do since."""
LOOP_FAILURE_REASONS: dict[Loop, str] = {
    "watch_running_mailings": "Running mailings cannot be read, and nothing is sent; see the log.",
    "lifecycle": "Starting, planning or finishing mailings keeps failing; see the log.",
    "claim": "Messages cannot be claimed, and nothing is sent; see the log.",
    "record": "Results of messages cannot be written; see the log.",
}
"""Why a worker is not ready while a loop fails, as a sentence for users."""


class FailurePeriod(NamedTuple):
    """When the first and the last failure of a loop since its last success happened.

    Both are moments of `elapsed()`.
    """

    first_at: float
    last_at: float


class LoopFailures:
    """Tracks which loops are failing, and since when."""

    def __init__(self) -> None:
        self._failing: dict[Loop, FailurePeriod] = {}
        for loop in LOOP_FAILURE_REASONS:
            metrics.watch_job(loop, partial(self._seconds_failing, loop))

    def record(self, loop: Loop, *, has_failed: bool) -> None:
        """Record whether an iteration of a loop has failed."""
        if has_failed:
            metrics.job_failed(loop)
            now = elapsed()
            first_at = now - self._seconds_failing(loop, now)  # now, if it was idle or did not fail
            self._failing[loop] = FailurePeriod(first_at, last_at=now)
        else:
            self._failing.pop(loop, None)

    def reason(self, now: float) -> str | None:
        """Return why this worker is not ready at a moment of `elapsed()`, as a sentence for users.

        Returns None when it is ready.
        """
        return next(
            (
                LOOP_FAILURE_REASONS[loop]
                for loop in LOOP_FAILURE_REASONS
                if self._seconds_failing(loop, now) >= FAILING_AFTER
            ),
            None,
        )

    def _seconds_failing(self, loop: Loop, now: float | None = None) -> float:
        """Return for how many seconds a loop has been failing; 0 when it works or is idle.

        `now` is a moment of `elapsed()`; None for the present one.
        """
        now = elapsed() if now is None else now
        failing = self._failing.get(loop)
        if failing is None or now - failing.last_at >= IDLE_AFTER:
            return 0.0
        return now - failing.first_at


_logged_at: dict[str, float] = {}
"""When each task last logged that the database is unavailable, a moment of `elapsed()`."""


def log_task_error(error: Exception, *, at: str) -> None:
    """Log an error in the task `at`: an unexpected one, or that the database is unavailable.

    After this call the caller pauses and goes on. So an unexpected error ends one step of the task,
    and not the worker.
    """
    if not is_unavailable(error):
        log.error("task_failed", at=at, **describe(error))
    elif elapsed() - _logged_at.get(at, -FAILURE_LOG_INTERVAL) >= FAILURE_LOG_INTERVAL:
        _logged_at[at] = elapsed()
        log.warning("database_unavailable", at=at)
