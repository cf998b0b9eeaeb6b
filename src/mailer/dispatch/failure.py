"""What a loop that must go on says of an error."""

import structlog

from mailer.db.engine import is_away
from mailer.log import describe

log = structlog.get_logger()


def log_failure(error: Exception, *, at: str) -> None:
    """Log that the database is away, or an error that should not be; the caller pauses and goes on.

    One that should not be costs the step it came in, and not the process.
    """
    if is_away(error):
        log.warning("database_away", at=at)
    else:
        log.error("step_failed", at=at, **describe(error))
