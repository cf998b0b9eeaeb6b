"""Vonage's SMS API: a hash of all fields, in the field `sig`.

Support enables it for an account, whose settings name the algorithm: MD5 of the fields and the
secret, or HMAC with MD5, SHA-1, SHA-256 or SHA-512. The length of `sig` tells which; who does not
have the secret gains nothing from another one. Sources: signing-messages.md of Vonage
(developer.vonage.com/getting-started/concepts/signing-messages) and `auth.py` of
vonage-http-client 1.5. `timestamp` is the time at which Vonage began to send the call, and it
repeats a call for 24 hours (developer.vonage.com/messaging/sms/guides/inbound-sms).
"""

import hashlib
import hmac
from collections.abc import Iterator
from datetime import datetime, timedelta
from typing import Any

import msgspec
from msgspec.structs import replace

from mailer.gateway.callback import MAX_DOCUMENT_BYTES, Callback
from mailer.gateway.signatures.checks import MAX_SIGNATURE_AGE, fits, is_recent, seconds
from mailer.gateway.signatures.fields import (
    Field,
    add_fields,
    body_fields,
    is_json,
    query_fields,
    single_value,
)
from mailer.json_input import read_json

VONAGE_ALGORITHMS = {32: hashlib.md5, 40: hashlib.sha1, 64: hashlib.sha256, 128: hashlib.sha512}
"""By the digits of the signature in hexadecimal."""
VONAGE_MAX_AGE = timedelta(hours=24) + MAX_SIGNATURE_AGE
OWN_QUERY_FIELDS = (b"message", b"secret")
"""Fields that mailer puts into the query of the URL. Vonage does not say whether it signs them."""


def verify(callback: Callback, secret: str, now: datetime) -> bool:
    """Return whether the signature fits, and is recent."""
    query, body = query_fields(callback.url), body_fields(callback)
    timestamp = single_value(query + body, b"timestamp")
    given = (single_value(query + body, b"sig") or b"").lower()
    if timestamp is None or not is_recent(timestamp, now, VONAGE_MAX_AGE):
        return False
    return any(
        fits(expected, given)
        for fields in (query + body, _without_own(query) + body)
        for expected in _signatures(fields, len(given), secret)
    )


def sign(callback: Callback, secret: str, now: datetime) -> Callback:
    """Add the fields of Vonage, with HMAC-SHA256."""
    callback = _add(callback, {"timestamp": seconds(now)})
    signed = _join(_without_own(query_fields(callback.url)) + body_fields(callback))
    return _add(callback, {"sig": hmac.new(secret.encode(), signed, hashlib.sha256).hexdigest()})


def _without_own(fields: list[Field]) -> list[Field]:
    return [field for field in fields if field[0] not in OWN_QUERY_FIELDS]


def _signatures(fields: list[Field], digits: int, secret: str) -> Iterator[str]:
    """Yield the signatures of this length."""
    algorithm, signed = VONAGE_ALGORITHMS.get(digits), _join(fields)
    if algorithm is not None:
        yield hmac.new(secret.encode(), signed, algorithm).hexdigest()
    if algorithm is hashlib.md5:
        yield hashlib.md5(signed + secret.encode(), usedforsecurity=False).hexdigest()


def _join(fields: list[Field]) -> bytes:
    """Return the fields as they are signed.

    Raises `ValueError` for a name with a separator, by which one field could imitate two.
    """
    if any(b"&" in name or b"=" in name for name, _ in fields):
        raise ValueError("a name contains a separator")
    signed = sorted(field for field in fields if field[0] != b"sig")
    return b"".join(b"&" + name + b"=" + _escape(value) for name, value in signed)


def _escape(value: bytes) -> bytes:
    return value.replace(b"&", b"_").replace(b"=", b"_")


def _add(callback: Callback, fields: dict[str, str]) -> Callback:
    if not is_json(callback.body):
        return add_fields(callback, fields)
    document = read_json(callback.body, dict[str, Any], limit=MAX_DOCUMENT_BYTES)
    return replace(callback, body=msgspec.json.encode(document | fields))
