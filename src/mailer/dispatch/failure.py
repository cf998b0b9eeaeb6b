"""Log errors of endless loops; repeat "database unavailable" at most every 10 s."""

import structlog

from mailer.clock import elapsed
from mailer.db.engine import is_away
from mailer.log import describe

log = structlog.get_logger()

SAY_AGAIN = 10.0
"""Seconds after which a database that is still away is worth another line."""

_said_at: dict[str, float] = {}


def log_failure(error: Exception, *, at: str) -> None:
    """Log that the database is away, or an error that should not be; the caller pauses and goes on.

    One that should not be costs the step it came in, and not the process.
    """
    if not is_away(error):
        log.error("step_failed", at=at, **describe(error))
    elif elapsed() - _said_at.get(at, -SAY_AGAIN) >= SAY_AGAIN:
        _said_at[at] = elapsed()
        log.warning("database_away", at=at)
