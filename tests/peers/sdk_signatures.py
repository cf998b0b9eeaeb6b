"""Check signed calls with the SDK of an SMS provider, and sign calls with it.

Runs in a virtual environment of its own, which has the SDKs and nothing of mailer:
`python sdk_signatures.py SCHEME`, with JSON on the standard input: `secret`, `now` in seconds since
1970, and `calls`. Prints for each call whether the SDK accepts it. `make peers` does it.
"""

import datetime as dt
import json
import sys
import time
from typing import Any
from urllib.parse import parse_qsl

Call = dict[str, Any]
"""A call of a provider: its method, URL, headers, and body in Latin-1."""


def fields_of(text: str) -> dict[str, str]:
    return dict(parse_qsl(text, keep_blank_values=True))


def is_form(call: Call) -> bool:
    return "form" in call["headers"].get("content-type", "")


def body_of(call: Call) -> bytes:
    return bytes(call["body"], "latin-1")


def twilio(call: Call, secret: str) -> bool:
    from twilio.request_validator import RequestValidator, get_signature_algorithm

    body = body_of(call).decode()
    settings = call["headers"].get("x-twilio-webhooks-signature-settings")
    result = RequestValidator(secret).validate(
        call["url"],
        fields_of(body) if is_form(call) or not body else body,
        call["headers"].get("x-twilio-signature", ""),
        get_signature_algorithm(settings),
    )
    return bool(result)


def plivo(call: Call, secret: str) -> bool:
    from plivo.utils import validate_v3_signature

    nonce = call["headers"].get("x-plivo-signature-v3-nonce", "")
    return any(
        validate_v3_signature(
            call["method"], call["url"], nonce, secret, signature, fields_of(body_of(call).decode())
        )
        for name in ("x-plivo-signature-v3", "x-plivo-signature-ma-v3")
        if (signature := call["headers"].get(name))
    )


def sinch(call: Call, secret: str) -> bool:
    from sinch.domains.sms.sinch_events.v1.sms_sinch_event import SmsSinchEvent

    event = SmsSinchEvent(secret)
    return bool(event.validate_authentication_header(call["headers"], body_of(call)))


def messagebird(call: Call, secret: str) -> bool:
    from messagebird.error import ValidationError
    from messagebird.request_validator import RequestValidator

    token = call["headers"].get("messagebird-signature-jwt", "")
    try:
        RequestValidator(secret).validate_signature(token, call["url"], body_of(call))
    except ValidationError:
        return False
    return True


def telnyx(call: Call, secret: str) -> bool:
    from telnyx.lib.webhook_verification import WebhookVerificationError, verify_webhook_signature

    try:
        verify_webhook_signature(body_of(call), call["headers"], secret)
    except WebhookVerificationError:
        return False
    return True


def vonage(call: Call, secret: str) -> bool:
    """Return whether the SDK accepts the call with one of its algorithms."""
    from vonage_http_client import Auth

    if body_of(call).startswith(b"{"):
        fields = json.loads(body_of(call))
    else:
        text = call["url"].partition("?")[2] if call["method"] == "GET" else body_of(call).decode()
        fields = fields_of(text)
    return any(
        Auth(api_key="key", signature_secret=secret, signature_method=method).check_signature(
            dict(fields)
        )
        for method in ("md5", "sha1", "sha256", "sha512")
    )


def is_accepted(call: Call, scheme: str, secret: str) -> bool:
    """Return whether the SDK accepts a call; it refuses some by an error of any class."""
    try:
        return bool(globals()[scheme](call, secret))
    except Exception:  # noqa: BLE001  # each SDK has its own
        return False


def set_clock(now: float) -> None:
    """Let the SDKs see this time: some of the calls are years old."""

    class Clock(dt.datetime):
        @classmethod
        def now(cls, tz: dt.tzinfo | None = None) -> "Clock":
            return cls.fromtimestamp(now, tz)

    time.time = lambda: now
    from jwt import api_jwt

    api_jwt.datetime = Clock  # the SDK of MessageBird reads it


def main() -> None:
    """Print for each call whether the SDK of the scheme accepts it."""
    task = json.load(sys.stdin)
    set_clock(task["now"])
    print(json.dumps([is_accepted(call, sys.argv[1], task["secret"]) for call in task["calls"]]))


if __name__ == "__main__":
    main()
