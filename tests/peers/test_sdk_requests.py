"""The requests of the shipped profiles, compared with those of the providers' own SDKs.

`make peers` installs the SDKs and runs this; `make test` does not.
"""

import base64
import json
import subprocess
from datetime import datetime
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

import pytest
from tests.peers.profile_requests import TEXTS, VALID_UNTIL, message, request_of_profile

PYTHON = Path(".venv/sdks/bin/python")
SCRIPT = Path(__file__).with_name("sdk_requests.py")
ACCOUNT = {"account": "MAXXXXXXXXXXXXXXXXXX", "username": "ann@example.com", "token": "t" * 32}

SDK_DEFAULTS = {
    "plivo": {"log": "true", "trackable": False},
}
"""Fields that an SDK always adds, with the provider's default."""


def request_of_sdk(kind: str, text: str) -> dict[str, Any]:
    if not PYTHON.exists():
        pytest.skip("the SDKs are not installed: make peers")
    sent = message(text)
    fields = ACCOUNT | {
        "id": sent.id,
        "phone": sent.phone,
        "text": text,
        "sender": sent.sender,
        "validity": sent.validity,
        "valid_until": VALID_UNTIL.isoformat(),
        "callback": sent.callback,
    }
    run = subprocess.run(  # noqa: S603  # the arguments are constants
        [PYTHON, "-W", "ignore", SCRIPT, kind],
        input=json.dumps(fields),
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    request: dict[str, Any] = json.loads(run.stdout.splitlines()[-1])
    return request


def fields_of(request: dict[str, Any]) -> dict[str, Any]:
    """Return the fields of the body, without those that are null."""
    if "json" in request["headers"]["content-type"]:
        document = json.loads(request["body"])
        return {name: value for name, value in document.items() if value is not None}
    return dict(parse_qsl(request["body"], strict_parsing=True))


def credentials(request: dict[str, Any]) -> str:
    kind, _, value = request["headers"]["authorization"].partition(" ")
    return f"{kind} {base64.b64decode(value).decode() if kind == 'Basic' else value}"


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize(
    "kind",
    ["twilio", "vonage", "infobip", "sinch", "telnyx", "plivo", "messagebird", "smsaero"],
)
def test_profile_sends_what_the_sdk_sends(kind: str, text: str) -> None:
    ours, theirs = request_of_profile(kind, text, ACCOUNT), request_of_sdk(kind, text)
    assert (ours["method"], ours["path"]) == (theirs["method"], theirs["path"])
    assert credentials(ours) == credentials(theirs)
    content_type = theirs["headers"]["content-type"].partition(";")[0]
    assert ours["headers"]["content-type"] == content_type
    expected = fields_of(theirs)
    for name, default in SDK_DEFAULTS.get(kind, {}).items():
        assert expected.pop(name) == default
    fields = fields_of(ours)
    if kind == "sinch":  # the same moment, written differently
        assert datetime.fromisoformat(fields.pop("expire_at")) == VALID_UNTIL
        assert datetime.fromisoformat(expected.pop("expire_at")) == VALID_UNTIL
    if kind == "messagebird":  # a list is documented; this SDK joins the phones by commas
        assert fields.pop("recipients") == [expected.pop("recipients")]
    assert fields == expected
