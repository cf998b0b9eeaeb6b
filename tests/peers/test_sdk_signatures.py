"""The signatures of calls, compared with what the providers' own SDKs accept.

`make peers` installs the SDKs and runs this; `make test` does not.
"""

import json
import subprocess
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from urllib.parse import urlencode

import msgspec
import pytest
from msgspec.structs import replace
from tests.signature_examples import (
    FORM,
    JSON,
    OF_SDKS,
    SIGNED_AT,
    TELNYX_PRIVATE_KEY,
    TELNYX_PUBLIC_KEY,
    URL,
    Example,
    get,
    post,
)

from mailer.gateway.callback import Callback
from mailer.gateway.signatures import sign, verify

PYTHON = Path(".venv/sdks/bin/python")
SCRIPT = Path(__file__).with_name("sdk_signatures.py")

FIELDS = {"MessageSid": "SM1", "status": "delivered", "Text": "Привет, мир & 100%", "empty": ""}
CALLS = {
    "form": post(URL, urlencode(FIELDS), FORM),
    "form and query": post(f"{URL}?message=12", urlencode(FIELDS), FORM),
    "get": get(f"{URL}?{urlencode(FIELDS | {'Text': 'A & 100%'})}"),  # Plivo's SDK needs ASCII
    "json": post(URL, msgspec.json.encode(FIELDS).decode(), JSON),
}
SCHEMES = ["twilio", "plivo", "sinch", "messagebird", "telnyx", "vonage"]
SIGNED = [
    (scheme, call) for scheme in SCHEMES for call in CALLS if (scheme, call) != ("plivo", "json")
]
"""Plivo sends no JSON."""
KNOWN = [example for example in OF_SDKS if example.name != "md5hash"]
"""Vonage has this algorithm, but its SDK for Python has not."""


def accepted_by_sdk(
    scheme: str, callbacks: list[Callback], secret: str, now: datetime
) -> list[bool]:
    if not PYTHON.exists():
        pytest.skip("the SDKs are not installed: make peers")
    calls = [
        {
            "method": each.method,
            "url": each.url,
            "headers": dict(each.headers),
            "body": each.body.decode("latin-1"),
        }
        for each in callbacks
    ]
    run = subprocess.run(  # noqa: S603  # the arguments are constants
        [PYTHON, "-W", "ignore", SCRIPT, scheme],
        input=json.dumps({"secret": secret, "now": now.timestamp(), "calls": calls}),
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    results: list[bool] = json.loads(run.stdout.splitlines()[-1])
    return results


def changed_calls(callback: Callback) -> Iterator[Callback]:
    """Yield the call with each character of its URL, headers and body changed or left out."""
    for changed in changes(callback.url):
        yield replace(callback, url=changed)
    for name, value in callback.headers.items():
        for changed in changes(value):
            yield replace(callback, headers={**callback.headers, name: changed})
    for changed in changes(callback.body.decode("latin-1")):
        yield replace(callback, body=changed.encode("latin-1"))


def changes(text: str) -> Iterator[str]:
    for position, character in enumerate(text):
        for other in (chr(ord(character) ^ 1), ""):
            yield text[:position] + other + text[position + 1 :]


@pytest.mark.parametrize(("scheme", "call"), SIGNED)
def test_sdk_accepts_what_mailer_signs(scheme: str, call: str) -> None:
    secret, public = "a secret of the tests", "a secret of the tests"
    if scheme == "telnyx":
        secret, public = TELNYX_PRIVATE_KEY, TELNYX_PUBLIC_KEY
    signed = sign(scheme, CALLS[call], secret, SIGNED_AT)
    assert accepted_by_sdk(scheme, [signed, CALLS[call]], public, SIGNED_AT) == [True, False]


@pytest.mark.parametrize("example", KNOWN, ids=[f"{each.scheme}-{each.name}" for each in KNOWN])
def test_mailer_accepts_no_change_that_the_sdk_refuses(example: Example) -> None:
    calls = [example.callback, *changed_calls(example.callback)]
    by_sdk = accepted_by_sdk(example.scheme, calls, example.secret, example.now)
    by_mailer = [verify(example.scheme, each, [example.secret], example.now) for each in calls]
    assert by_sdk[0]
    assert by_mailer[0]
    assert [
        call for call, sdk, own in zip(calls, by_sdk, by_mailer, strict=True) if own and not sdk
    ] == []
