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

SINCH_SIGNATURE = "x-sinch-webhook-signature"
SINCH_NONCE = "x-sinch-webhook-signature-nonce"
SINCH_TIMESTAMP = "x-sinch-webhook-signature-timestamp"
SINCH_ALGORITHM = "x-sinch-webhook-signature-algorithm"

SINCH_MAX_AGE = timedelta(hours=24)


def verify(callback: Callback, secret: str, now: datetime) -> bool:
    """Return whether the signature fits, and is recent."""
    timestamp = callback.headers.get(SINCH_TIMESTAMP, "")
    expected = _signature(callback, callback.headers.get(SINCH_NONCE, ""), timestamp, secret)
    return is_recent(timestamp, now, SINCH_MAX_AGE) and fits(
        expected, callback.headers.get(SINCH_SIGNATURE, "")
    )


def sign(callback: Callback, secret: str, now: datetime) -> Callback:
    """Add the headers of Sinch."""
    headers = {
        SINCH_NONCE: nonce(now),
        SINCH_TIMESTAMP: seconds(now),
        SINCH_ALGORITHM: "HmacSHA256",
    }
    headers[SINCH_SIGNATURE] = _signature(
        callback, headers[SINCH_NONCE], headers[SINCH_TIMESTAMP], secret
    )
    return add_headers(callback, headers)


def _signature(callback: Callback, nonce: str, timestamp: str, secret: str) -> str:
    signed = b".".join([callback.body, encode(nonce), encode(timestamp)])
    return base64.b64encode(hmac.digest(secret.encode(), signed, hashlib.sha256)).decode()
