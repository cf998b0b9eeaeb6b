"""Telnyx: an Ed25519 signature of timestamp and body, which only Telnyx can make.

The secret that verifies it is the public key of the account. Source: `webhook_verification.py` of
telnyx 4.189 for Python, with its 5 minutes. Telnyx waits 2 seconds for an answer and makes up to
three attempts (developers.telnyx.com/docs/messaging/messages/receiving-webhooks).
"""

import base64
from datetime import datetime

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from mailer.gateway.callback import Callback
from mailer.gateway.signatures.checks import add_headers, is_recent, seconds
from mailer.gateway.signatures.fields import encode

TELNYX_SIGNATURE = "telnyx-signature-ed25519"
TELNYX_TIMESTAMP = "telnyx-timestamp"


def verify(callback: Callback, secret: str, now: datetime) -> bool:
    """Return whether the owner of the public key `secret`, in Base64, has made the call."""
    timestamp = callback.headers.get(TELNYX_TIMESTAMP, "")
    if not is_recent(timestamp, now):
        return False
    signature = _decode(callback.headers.get(TELNYX_SIGNATURE, ""))
    try:
        Ed25519PublicKey.from_public_bytes(_decode(secret)).verify(
            signature, _signed(callback, timestamp)
        )
    except InvalidSignature:
        return False
    return True


def sign(callback: Callback, secret: str, now: datetime) -> Callback:
    """Sign with the private key `secret`: 32 bytes in Base64."""
    timestamp = seconds(now)
    signature = _private_key(secret).sign(_signed(callback, timestamp))
    encoded = base64.b64encode(signature).decode()
    return add_headers(callback, {TELNYX_TIMESTAMP: timestamp, TELNYX_SIGNATURE: encoded})


def public_key(private_key: str) -> str:
    """Return the public key, in Base64, that verifies what the private key signs."""
    key = _private_key(private_key).public_key()
    return base64.b64encode(key.public_bytes_raw()).decode()


def _private_key(secret: str) -> Ed25519PrivateKey:
    return Ed25519PrivateKey.from_private_bytes(_decode(secret))


def _signed(callback: Callback, timestamp: str) -> bytes:
    return encode(timestamp) + b"|" + callback.body


def _decode(text: str) -> bytes:
    """Decode Base64. Raises `ValueError`, also for another than the usual text of the bytes."""
    decoded = base64.b64decode(encode(text), validate=True)
    if base64.b64encode(decoded) != encode(text):
        raise ValueError("is not canonical Base64")
    return decoded
