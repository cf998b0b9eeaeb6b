"""The request of the profile `twilio`, validated against Twilio's own OpenAPI description.

`make peers` takes the description from a package on npm. The other providers publish theirs in no
package; each profile names what confirms it.
"""

import json
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

import jsonschema_rs
import pytest
from tests.peers.profile_requests import TEXTS, request_of_profile

DESCRIPTION = Path(".venv/sdks/package/src/services/twilio-api/twilio_api_v2010.json")
ACCOUNT = {"account": "AC" + "0a" * 16, "token": "t" * 32}
FORM = "application/x-www-form-urlencoded"


def read_description() -> Any:
    if not DESCRIPTION.exists():
        pytest.skip("the OpenAPI description of Twilio is not installed: make peers, with npm")
    return json.loads(DESCRIPTION.read_text())


def with_types(form: dict[str, str], fields: dict[str, Any]) -> dict[str, Any]:
    """Return the values of a form with the types that their fields have in the description."""
    return {
        name: int(value) if fields.get(name, {}).get("type") == "integer" else value
        for name, value in form.items()
    }


@pytest.mark.parametrize("text", TEXTS)
def test_request_of_twilio_is_valid(text: str) -> None:
    description = read_description()
    path = "/2010-04-01/Accounts/{AccountSid}/Messages.json"
    operation = description["paths"][path]["post"]
    schema = operation["requestBody"]["content"][FORM]["schema"]
    request = request_of_profile("twilio", text, ACCOUNT)

    assert request["path"] == path.format(AccountSid=ACCOUNT["account"])
    assert request["headers"]["content-type"] == FORM
    [scheme] = operation["security"][0]
    assert description["components"]["securitySchemes"][scheme]["scheme"] == "basic"
    assert request["headers"]["authorization"].startswith("Basic ")
    [account] = operation["parameters"]
    jsonschema_rs.validate(account["schema"], ACCOUNT["account"])
    form = dict(parse_qsl(request["body"], strict_parsing=True))
    jsonschema_rs.validate(
        {**schema, "additionalProperties": False, "components": description["components"]},
        with_types(form, schema["properties"]),
    )
