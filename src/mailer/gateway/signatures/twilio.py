"""Twilio: HMAC of the URL and of the fields of the form, in Base64, without a time.

A JSON body is in the signature by its hash: the URL then has the field `bodySHA256`. HMAC-SHA1 with
the account's auth token, unless a webhooks rule of the account names a shared key and HMAC-SHA256.
Source: `request_validator.py` of twilio 9.13 for Python, and
`examples/WebhookSignatureValidation.md` of twilio/twilio-node.
"""

import base64
import hashlib
import hmac
import re
from collections.abc import Iterator
from datetime import datetime

from msgspec.structs import replace

from mailer.gateway.callback import Callback
from mailer.gateway.signatures.checks import add_headers, fits
from mailer.gateway.signatures.fields import encode, form_fields, query_fields, single_value

TWILIO_SIGNATURE = "x-twilio-signature"
TWILIO_SETTINGS = "x-twilio-webhooks-signature-settings"
"""Says how the call is signed: `key=...,algorithm=HMAC_SHA256`. Without it: HMAC_SHA1."""
TWILIO_ALGORITHMS = {"HMAC_SHA1": hashlib.sha1, "HMAC_SHA256": hashlib.sha256}
DEFAULT_PORTS = {"http": 80, "https": 443}
_URL_WITH_PORT = re.compile(
    r"(https?)(://(?:[^/?#]*@)?(?:\[[^]/?#]*\]|[^:/?#]*))(?::(\d+))?([/?#].*|)", re.DOTALL
)


def verify(callback: Callback, secret: str, _now: datetime) -> bool:
    """Return whether the signature fits, however old it is."""
    algorithm = _algorithm(callback)
    if algorithm not in TWILIO_ALGORITHMS:
        return False
    fields = _signed_fields(callback)
    given = callback.headers.get(TWILIO_SIGNATURE, "")
    return any(
        fits(_signature(url, fields, algorithm, secret), given) for url in _urls(callback.url)
    )


def sign(callback: Callback, secret: str, _now: datetime) -> Callback:
    """Add the header of Twilio, and the hash of a body that is no form to the URL."""
    if callback.body and not _is_form(callback):
        separator = "&" if "?" in callback.url else "?"
        body_hash = hashlib.sha256(callback.body).hexdigest()
        callback = replace(callback, url=f"{callback.url}{separator}bodySHA256={body_hash}")
    fields = _signed_fields(callback)
    signature = _signature(callback.url, fields, _algorithm(callback), secret)
    return add_headers(callback, {TWILIO_SIGNATURE: signature})


def _algorithm(callback: Callback) -> str:
    for setting in callback.headers.get(TWILIO_SETTINGS, "").split(","):
        name, _, value = setting.partition("=")
        if name.strip() == "algorithm" and value.strip():
            return value.strip().upper()
    return "HMAC_SHA1"


def _signed_fields(callback: Callback) -> bytes:
    """Return the fields of the body as they are signed: sorted, and without repetitions.

    A body that is no form must have its hash in the URL, which is signed itself: otherwise raises
    `ValueError`.
    """
    if _is_form(callback):
        return b"".join(name + value for name, value in sorted(set(form_fields(callback.body))))
    body_hash = single_value(query_fields(callback.url), b"bodySHA256")
    if body_hash is None and not callback.body:
        return b""
    if not fits(hashlib.sha256(callback.body).hexdigest(), body_hash or b""):
        raise ValueError("the body is not signed")
    return b""


def _is_form(callback: Callback) -> bool:
    content_type = callback.headers.get("content-type", "").strip().lower()
    return content_type.startswith("application/x-www-form-urlencoded")


def _urls(url: str) -> Iterator[str]:
    """Yield the URL without and with a port: like Twilio's SDK, as Twilio signs either."""
    match = _URL_WITH_PORT.fullmatch(url)
    if match is None:
        yield url
        return
    scheme, host, port, rest = match.groups()
    yield f"{scheme}{host}{rest}"
    yield f"{scheme}{host}:{port or DEFAULT_PORTS[scheme]}{rest}"


def _signature(url: str, fields: bytes, algorithm: str, secret: str) -> str:
    digest = hmac.digest(secret.encode(), encode(url) + fields, TWILIO_ALGORITHMS[algorithm])
    return base64.b64encode(digest).decode()
