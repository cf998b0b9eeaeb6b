"""Rules of attempts: the pause after a failure, and when an endpoint is disabled."""

from datetime import datetime, timedelta
from http import HTTPStatus

RETRY_PAUSES = (5, 5 * 60, 30 * 60, 2 * 3600, 5 * 3600, 10 * 3600, 14 * 3600, 20 * 3600, 20 * 3600)
"""Seconds between two attempts of a delivery: the schedule that the Standard Webhooks specification
gives as an example, ended after three days."""
JITTER = 0.2
"""Part of a pause by which it may be shorter, at random, so that retries do not come together."""
MAX_RETRY_AFTER = 24 * 3600.0
"""Longest pause, in seconds, that an endpoint can ask for."""
FAILING_PERIOD = timedelta(days=3)
"""An endpoint is disabled when all attempts have failed for so long,"""
MAX_CONSECUTIVE_FAILURES, MIN_FAILING_PERIOD = 100, timedelta(days=1)
"""or when so many consecutive attempts have failed and the first of them was so long ago."""


def retry_pause(attempts: int, random: float, retry_after: float | None = None) -> float | None:
    """Return the seconds until the next attempt after `attempts` failed ones; None: no more.

    `random` is a random number from 0 to 1. `retry_after` is a pause in seconds that the endpoint
    asks for; a longer pause of the schedule counts instead.
    """
    if attempts > len(RETRY_PAUSES):
        return None
    pause = RETRY_PAUSES[attempts - 1] * (1 - JITTER * random)
    return max(pause, min(retry_after or 0.0, MAX_RETRY_AFTER))


def is_failing_too_long(failures: int, failing_since: datetime, now: datetime) -> bool:
    """Return whether an endpoint is to be disabled after consecutive failures."""
    period = now - failing_since
    return period >= FAILING_PERIOD or (
        failures >= MAX_CONSECUTIVE_FAILURES and period >= MIN_FAILING_PERIOD
    )


def is_success(status: int) -> bool:
    """Return whether a response with this HTTP status means that the endpoint has the event."""
    return HTTPStatus.OK <= status < HTTPStatus.MULTIPLE_CHOICES


def failure_of(status: int) -> str:
    """Return the name of the failure that a response with this HTTP status is."""
    if HTTPStatus.MULTIPLE_CHOICES <= status < HTTPStatus.BAD_REQUEST:
        return "redirect"
    return f"http_{status}"
