"""Signatures of webhooks by the Standard Webhooks specification 1.0.0, scheme `v1` (HMAC-SHA256).

Source: https://github.com/standard-webhooks/standard-webhooks, spec/standard-webhooks.md.
"""

import base64
import hashlib
import hmac
import secrets
from collections.abc import Iterable
from datetime import datetime

SIGNING_KEY_BYTES = 32
"""Length of a secret; the specification requires 24 to 64 bytes."""
SECRET_PREFIX = "whsec_"  # noqa: S105  # marks a secret, and is none itself


def new_secret() -> bytes:
    """Return a new random secret."""
    return secrets.token_bytes(SIGNING_KEY_BYTES)


def show_secret(secret: bytes) -> str:
    """Return a secret as users get it."""
    return SECRET_PREFIX + base64.b64encode(secret).decode()


def signed_headers(
    event_id: str, at: datetime, body: bytes, keys: Iterable[bytes]
) -> dict[str, str]:
    """Return the headers of an attempt at a moment; there is a signature for each of `keys`."""
    seconds = str(int(at.timestamp()))
    content = b".".join([event_id.encode(), seconds.encode(), body])
    return {
        "webhook-id": event_id,
        "webhook-timestamp": seconds,
        "webhook-signature": " ".join(_signature(key, content) for key in keys),
    }


def _signature(key: bytes, content: bytes) -> str:
    digest = hmac.new(key, content, hashlib.sha256).digest()
    return "v1," + base64.b64encode(digest).decode()
