"""Plivo, version 3: HMAC-SHA256 of the URL, the fields and a nonce, in Base64, without a time.

Source: `signature_v3.py` of plivo 4.63 for Python. The header `...-V3` is made with the token of
the account or subaccount, `...-Ma-V3` with that of the main account. Each may hold several
signatures, while the token is replaced (plivo.com/docs/voice/concepts/signature-validation).

Plivo's pages on messages name only version 2. It does not cover the fields: who has seen one call
could make others, so it is not accepted. Public integrations found version 3 in calls about
messages, in the header `...-Ma-V3`.
"""

import base64
import hashlib
import hmac
from datetime import datetime

from mailer.gateway.callback import Callback
from mailer.gateway.signatures.checks import add_headers, fits, nonce
from mailer.gateway.signatures.fields import Field, encode, form_fields, query_fields

PLIVO_SIGNATURES = ("x-plivo-signature-v3", "x-plivo-signature-ma-v3")
PLIVO_NONCE = "x-plivo-signature-v3-nonce"


def verify(callback: Callback, secret: str, _now: datetime) -> bool:
    """Return whether the signature fits, however old it is."""
    expected = _signature(callback, callback.headers.get(PLIVO_NONCE, ""), secret)
    return any(
        fits(expected, given.strip())
        for header in PLIVO_SIGNATURES
        for given in callback.headers.get(header, "").split(",")
    )


def sign(callback: Callback, secret: str, now: datetime) -> Callback:
    """Add the headers of Plivo, as for a call of a main account."""
    number = nonce(now)
    signature = _signature(callback, number, secret)
    return add_headers(callback, {PLIVO_NONCE: number} | dict.fromkeys(PLIVO_SIGNATURES, signature))


def _signature(callback: Callback, nonce: str, secret: str) -> str:
    signed = _signed(callback) + b"." + encode(nonce)
    return base64.b64encode(hmac.digest(secret.encode(), signed, hashlib.sha256)).decode()


def _signed(callback: Callback) -> bytes:
    """Return the URL with its query sorted, and the sorted fields of a form."""
    url, query = encode(callback.url.partition("?")[0]), query_fields(callback.url)
    fields = form_fields(callback.body)
    if callback.method == "GET":
        query, fields = query + fields, []
    if not query and not fields:
        return url
    dot = b"." if query and fields else b""
    return url + b"?" + _join(query, b"=", b"&") + dot + _join(fields, b"", b"")


def _join(fields: list[Field], equals: bytes, separator: bytes) -> bytes:
    return separator.join(name + equals + value for name, value in sorted(fields))
