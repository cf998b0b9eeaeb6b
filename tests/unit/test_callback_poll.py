"""Requests for receipts, and their responses, by the profiles."""

from urllib.parse import parse_qsl

import msgspec
import pytest

from mailer.gateway.callback import Receipt, UnreadableCallbackError
from mailer.gateway.config import ConfiguredGateway
from mailer.gateway.config_table import GatewayConfig
from mailer.gateway.poll_rules import PolledMessage, PollRules
from mailer.gateway.profile_file import load_profile, read_profile, shipped_kinds
from mailer.urls import read_gateway_url

FIRST = PolledMessage(12, "000000-10000000", "79161234567")
SECOND = PolledMessage(13, "000000-10000001", "79161234568")


def rules(kind: str) -> PollRules:
    """Return the rules of a gateway of a shipped kind."""
    profile = load_profile(kind)
    config = GatewayConfig(name="g", kind=kind, username="u", password="p w", token="t&t")  # noqa: S106  # not real secrets
    url = read_gateway_url(profile.url or "http://phone.example:8080")
    found = ConfiguredGateway(config, profile, url).poll_rules({"Host": "h"})
    assert found is not None
    return found


def test_kinds_that_can_be_asked() -> None:
    kinds = [kind for kind in shipped_kinds() if load_profile(kind).poll is not None]
    assert kinds == ["android", "smsaero", "smsc", "smsru"]


@pytest.mark.parametrize(
    ("kind", "method", "path", "fields"),
    [
        ("android", "GET", "/message/12", {}),
        ("smsaero", "POST", "/v2/sms/status", {"id": "000000-10000000"}),
        (
            "smsc",
            "GET",
            "/sys/status.php",
            {"login": "u", "psw": "p w", "fmt": "3", "id": "12", "phone": "79161234567"},
        ),
        (
            "smsru",
            "POST",
            "/sms/status",
            {"api_id": "t&t", "json": "1", "sms_id": "000000-10000000"},
        ),
    ],
)
def test_request_asks_for_a_message(
    kind: str, method: str, path: str, fields: dict[str, str]
) -> None:
    head, _, body = rules(kind).request([FIRST]).decode().partition("\r\n\r\n")
    sent_method, target, _ = head.split("\r\n", maxsplit=1)[0].split(" ")
    sent_path, _, query = target.partition("?")
    assert (sent_method, sent_path) == (method, path)
    assert dict(parse_qsl(query or body)) == fields


def test_request_asks_for_several_messages() -> None:
    assert rules("smsru").batch == 100
    request = rules("smsru").request([FIRST, SECOND])
    assert b"sms_id=000000-10000000%2C000000-10000001" in request


@pytest.mark.parametrize(
    ("kind", "document", "receipt"),
    [
        (
            "android",
            {"id": "12", "state": "Delivered", "recipients": [{"state": "Delivered"}]},
            Receipt("delivered", 12, "12"),
        ),
        ("android", {"id": "12", "state": "Failed"}, Receipt("failed", 12, "12")),
        (
            "smsaero",
            {"success": True, "data": {"id": 10000000, "status": 1, "extendStatus": "delivery"}},
            Receipt("delivered", 12, "10000000"),
        ),
        (
            "smsc",
            {"status": 1, "last_date": "03.03.2018 15:47:14", "last_timestamp": 1520070434},
            Receipt("delivered", 12),
        ),
        ("smsc", {"status": 20, "err": 6}, Receipt("failed", 12, None, "6")),
    ],
)
def test_response_about_one_message_is_read(kind: str, document: object, receipt: Receipt) -> None:
    asked = PolledMessage(12, receipt.gateway_message_id or "", "79161234567")
    assert rules(kind).read(msgspec.json.encode(document), [asked]) == [receipt]


def test_response_about_several_messages_is_read() -> None:
    document = {
        "status": "OK",
        "status_code": 100,
        "sms": {
            "000000-10000000": {"status": "OK", "status_code": 103, "status_text": "x"},
            "000000-10000001": {"status": "ERROR", "status_code": 105},
            "000000-10000002": {"status": "OK", "status_code": 103},  # nobody has asked
        },
    }
    receipts = rules("smsru").read(msgspec.json.encode(document), [FIRST, SECOND])
    assert receipts == [
        Receipt("delivered", 12, "000000-10000000"),
        Receipt("failed", 13, "000000-10000001", "105"),
    ]


@pytest.mark.parametrize(
    ("kind", "document"),
    [
        ("smsc", {"error": "authorise error", "error_code": 2}),
        ("smsaero", {"success": False, "data": None, "message": "Not found"}),
        ("smsru", {"status": "ERROR", "status_code": 200}),
        ("smsru", {"status": "OK", "sms": []}),
        ("android", {"message": "not found"}),
        ("android", []),
    ],
)
def test_response_without_a_status_brings_nothing(kind: str, document: object) -> None:
    assert rules(kind).read(msgspec.json.encode(document), [FIRST]) == []


def test_response_that_is_not_json_is_refused() -> None:
    with pytest.raises(UnreadableCallbackError):
        rules("smsc").read(b"<html>", [FIRST])


def test_profile_without_a_poll_asks_nothing() -> None:
    config = GatewayConfig(name="g", kind="json")
    gateway = ConfiguredGateway(config, load_profile("json"), read_gateway_url("http://h/"))
    assert gateway.poll_rules({}) is None


def test_ids_may_be_in_a_path_and_in_json() -> None:
    text = """
    title = "Test"
    [request]
    url = "{url}/send"
    [[response]]
    then = "accepted"
    [poll]
    method = "POST"
    url = "{url}/status/{ids}"
    body = "json"
    fields = { ids = ["{ids}"], key = "{token}" }
    id = "id"
    status = "status"
    statuses = { delivered = [1] }
    """
    profile = read_profile(text.encode(), "my.toml")
    config = GatewayConfig(name="g", kind="my.toml", token="t")  # noqa: S106  # not a real secret
    gateway = ConfiguredGateway(config, profile, read_gateway_url("http://h/"))
    found = gateway.poll_rules({})
    assert found is not None
    request = found.request([PolledMessage(1, 'a/"b', "7")]).decode()
    assert request.startswith("POST /status/a%2F%22b HTTP/1.1\r\n")
    assert '"ids":["a/\\"b"]' in request
