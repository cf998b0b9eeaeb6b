"""SMSC.ru: MD5 or SHA-1 of three fields and the secret, joined by colons, without a time.

A receipt is signed by `id`, `phone` and `status`, a reply by `phone`, `mes` and `to`; who has seen
a call can change its other fields, such as the time and the error. Source: `webhookStatus` of
C0deWiser/laravel-smscenter-mailer (`src/SmsCenterService.php`); for SHA-1, other public code.
"""

import hashlib
from datetime import datetime

from mailer.gateway.callback import Callback
from mailer.gateway.signatures.checks import fits
from mailer.gateway.signatures.fields import Field, add_fields, all_fields, single_value

SMSC_ALGORITHMS = {b"md5": hashlib.md5, b"sha1": hashlib.sha1}
"""By the name of the field with the signature."""


def verify(callback: Callback, secret: str, _now: datetime) -> bool:
    """Return whether all signatures of the call are right, and there is one."""
    fields = all_fields(callback)
    signed = _signed(fields, secret)
    given = {name: single_value(fields, name) for name in SMSC_ALGORITHMS}
    results = [
        fits(SMSC_ALGORITHMS[name](signed).hexdigest(), value)
        for name, value in given.items()
        if value is not None
    ]
    return bool(results) and all(results)


def sign(callback: Callback, secret: str, _now: datetime) -> Callback:
    """Add both signatures."""
    signed = _signed(all_fields(callback), secret)
    return add_fields(
        callback, {name.decode(): new(signed).hexdigest() for name, new in SMSC_ALGORITHMS.items()}
    )


def _signed(fields: list[Field], secret: str) -> bytes:
    """Return what is hashed. Raises `ValueError` for a field that is missing or repeated."""
    is_reply = single_value(fields, b"mes") is not None
    names = (b"phone", b"mes", b"to") if is_reply else (b"id", b"phone", b"status")
    values = [single_value(fields, name) for name in names]
    parts = [value for value in values if value is not None]
    if len(parts) != len(names):
        raise ValueError("a signed field is missing")
    if any(b":" in part for name, part in zip(names, parts, strict=True) if name != b"mes"):
        raise ValueError("a colon would move the border between two fields")
    return b":".join([*parts, secret.encode()])
