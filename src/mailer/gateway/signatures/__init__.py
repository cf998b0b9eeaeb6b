"""Signatures of providers' calls: each scheme that a profile can name in `signature`.

`verify` and `sign` depend on nothing but their arguments.
"""

from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Literal

import msgspec

from mailer.gateway.callback import Callback
from mailer.gateway.signatures import (
    android,
    messagebird,
    plivo,
    sinch,
    smsc,
    smsru,
    telnyx,
    textbee,
    twilio,
    vonage,
)


class SignatureScheme(msgspec.Struct, frozen=True):
    """How one provider signs, and with which secret."""

    verify: Callable[[Callback, str, datetime], bool]
    """Raises `ValueError` for a call that cannot be read."""
    sign: Callable[[Callback, str, datetime], Callback]
    secret: str
    """The provider's name for the secret."""
    account_key: Literal["token"] | None = None
    """Key of `[[gateway]]` that holds the secret if there is no `callback_secret`; None if
    `callback_secret` must be there."""


SIGNATURE_SCHEMES = {
    "android": SignatureScheme(android.verify, android.sign, "signing key of the app's webhooks"),
    "messagebird": SignatureScheme(messagebird.verify, messagebird.sign, "signing key"),
    "plivo": SignatureScheme(plivo.verify, plivo.sign, "auth token", account_key="token"),
    "sinch": SignatureScheme(sinch.verify, sinch.sign, "secret of the callback"),
    "smsc": SignatureScheme(smsc.verify, smsc.sign, "secret word of the callback"),
    "smsru": SignatureScheme(smsru.verify, smsru.sign, "api_id", account_key="token"),
    "telnyx": SignatureScheme(telnyx.verify, telnyx.sign, "public key"),
    "textbee": SignatureScheme(textbee.verify, textbee.sign, "signing secret of the webhook"),
    "twilio": SignatureScheme(
        twilio.verify,
        twilio.sign,
        "auth token, or the secret of the shared key that a webhooks rule names",
        account_key="token",
    ),
    "vonage": SignatureScheme(vonage.verify, vonage.sign, "signature secret"),
}


def verify(scheme: str, callback: Callback, secrets: Sequence[str], now: datetime) -> bool:
    """Return whether a provider that has one of `secrets` has made the call, and recently.

    While a secret is replaced, there are two. An empty one never fits. `scheme` is one of
    `SIGNATURE_SCHEMES`; no content of the call raises an error.
    """
    return any(
        secret and _fits(SIGNATURE_SCHEMES[scheme], callback, secret, now) for secret in secrets
    )


def sign(scheme: str, callback: Callback, secret: str, now: datetime) -> Callback:
    """Return the call with the signature that the provider would add.

    For `telnyx`, `secret` is the private key (see `telnyx.public_key`).
    """
    return SIGNATURE_SCHEMES[scheme].sign(callback, secret, now)


def _fits(scheme: SignatureScheme, callback: Callback, secret: str, now: datetime) -> bool:
    try:
        return scheme.verify(callback, secret, now)
    except ValueError:
        return False
