"""The SMS gateway for Android: HMAC-SHA256 of the body and the timestamp, in hexadecimal.

Source: `PayloadSingingPlugin.kt` of capcom6/android-sms-gateway. The app signs each attempt anew
(`SendWebhookWorker.kt`), so its retries have new timestamps.
"""

import hashlib
import hmac
from datetime import datetime

from mailer.gateway.callback import Callback
from mailer.gateway.signatures.checks import add_headers, fits, is_recent, seconds
from mailer.gateway.signatures.fields import encode


def verify(callback: Callback, secret: str, now: datetime) -> bool:
    """Return whether the signature fits, and is recent."""
    timestamp = callback.headers.get("x-timestamp", "")
    given = callback.headers.get("x-signature", "")
    return is_recent(timestamp, now) and fits(_signature(callback, timestamp, secret), given)


def sign(callback: Callback, secret: str, now: datetime) -> Callback:
    """Add the headers of the app."""
    timestamp = seconds(now)
    signature = _signature(callback, timestamp, secret)
    return add_headers(callback, {"x-timestamp": timestamp, "x-signature": signature})


def _signature(callback: Callback, timestamp: str, secret: str) -> str:
    signed = callback.body + encode(timestamp)
    return hmac.new(secret.encode(), signed, hashlib.sha256).hexdigest()
