"""textbee: HMAC-SHA256 of the body, in hexadecimal, without a time.

Source: `webhook.service.ts` of vernu/textbee. A call carries an `idempotencyKey` and is repeated
with the same signature for up to 30 days.
"""

import hashlib
import hmac
from datetime import datetime

from mailer.gateway.callback import Callback
from mailer.gateway.signatures.checks import add_headers, fits


def verify(callback: Callback, secret: str, _now: datetime) -> bool:
    """Return whether the signature fits, however old it is."""
    return fits(_signature(callback, secret), callback.headers.get("x-signature", ""))


def sign(callback: Callback, secret: str, _now: datetime) -> Callback:
    """Add the header of textbee."""
    return add_headers(callback, {"x-signature": _signature(callback, secret)})


def _signature(callback: Callback, secret: str) -> str:
    return hmac.new(secret.encode(), callback.body, hashlib.sha256).hexdigest()
