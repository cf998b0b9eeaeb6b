"""What all schemes check alike."""

import hmac
from datetime import datetime, timedelta

from msgspec.structs import replace

from mailer.gateway.callback import Callback
from mailer.gateway.signatures.fields import encode

MAX_SIGNATURE_AGE = timedelta(minutes=5)
"""Longest time from the signature to the call, unless the provider's retries need more."""
MAX_SIGNATURE_AHEAD = timedelta(minutes=1)
"""Longest time by which a provider's clock may be ahead."""
MAX_TIMESTAMP_DIGITS = 11


def fits(expected: str, given: str | bytes) -> bool:
    """Return whether a signature is the expected one, in a time that tells nothing about it."""
    return hmac.compare_digest(
        expected.encode(), given if isinstance(given, bytes) else encode(given)
    )


def is_recent(
    timestamp: str | bytes, now: datetime, max_age: timedelta = MAX_SIGNATURE_AGE
) -> bool:
    """Return whether a signature's timestamp, in seconds since 1970, is not too old.

    `max_age` is as long as the provider repeats a call with the same timestamp.
    """
    digits = timestamp if isinstance(timestamp, bytes) else encode(timestamp)
    if not digits.isdigit() or len(digits) > MAX_TIMESTAMP_DIGITS:
        return False
    age = now.timestamp() - int(digits)
    return -MAX_SIGNATURE_AHEAD.total_seconds() <= age <= max_age.total_seconds()


def add_headers(callback: Callback, headers: dict[str, str]) -> Callback:
    """Return the call with further headers, whose names are in lower case."""
    return replace(callback, headers={**callback.headers, **headers})


def seconds(now: datetime) -> str:
    """Return a time as seconds since 1970, for a signature."""
    return str(int(now.timestamp()))


def nonce(now: datetime) -> str:
    """Return a number that differs from call to call: the time in microseconds."""
    return str(int(now.timestamp() * 1_000_000))
