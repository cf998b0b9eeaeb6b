"""Sinch: HMAC-SHA256 of body, nonce and timestamp, joined by dots, in Base64.

Source: `validate_sinch_event_signature_with_nonce` of sinch 2.3 for Python. No document says
whether a retry has a new timestamp; Sinch retries for 22 hours and 45 minutes
(developers.sinch.com/docs/sms/api-reference/sms/tag/Webhooks).
"""

import base64
import hashlib
import hmac
from datetime import datetime, timedelta

from mailer.gateway.callback import Callback
from mailer.gateway.signatures.checks import add_headers, fits, is_recent, nonce, seconds
from mailer.gateway.signatures.fields import encode

SIGNATURE = "x-sinch-webhook-signature"
NONCE = "x-sinch-webhook-signature-nonce"
TIMESTAMP = "x-sinch-webhook-signature-timestamp"
ALGORITHM = "x-sinch-webhook-signature-algorithm"

MAX_AGE = timedelta(hours=24)


def verify(callback: Callback, secret: str, now: datetime) -> bool:
    """Return whether the signature fits, and is recent."""
    timestamp = callback.headers.get(TIMESTAMP, "")
    expected = _signature(callback, callback.headers.get(NONCE, ""), timestamp, secret)
    return is_recent(timestamp, now, MAX_AGE) and fits(
        expected, callback.headers.get(SIGNATURE, "")
    )


def sign(callback: Callback, secret: str, now: datetime) -> Callback:
    """Add the headers of Sinch."""
    headers = {NONCE: nonce(now), TIMESTAMP: seconds(now), ALGORITHM: "HmacSHA256"}
    headers[SIGNATURE] = _signature(callback, headers[NONCE], headers[TIMESTAMP], secret)
    return add_headers(callback, headers)


def _signature(callback: Callback, nonce: str, timestamp: str, secret: str) -> str:
    signed = b".".join([callback.body, encode(nonce), encode(timestamp)])
    return base64.b64encode(hmac.digest(secret.encode(), signed, hashlib.sha256)).decode()
