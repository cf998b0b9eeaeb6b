"""Hostile calls bring what can be stored, or are refused; nothing else happens."""

from datetime import UTC, datetime
from typing import Any
from urllib.parse import quote, urlencode

import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from tests.examples import thorough
from tests.unit.callback_examples import EXAMPLES, URL

from mailer.gateway.callback import Callback, CallbackContent, UnreadableCallbackError
from mailer.gateway.callback_receipts import entry_paths
from mailer.gateway.config import ConfiguredGateway
from mailer.gateway.config_table import GatewayConfig
from mailer.gateway.profile_file import load_profile, shipped_kinds
from mailer.urls import read_gateway_url
from mailer.validation import MAX_ID, is_storable

NOW = datetime(2026, 11, 30, tzinfo=UTC)


def gateway(kind: str) -> ConfiguredGateway:
    """Return a gateway of a kind, with secrets."""
    config = GatewayConfig(
        name="g",
        kind=kind,
        token="token-of-account",  # noqa: S106  # not a real secret
        callback_secret="secret-of-calls-1",  # noqa: S106  # not a real secret
        previous_callback_secret="secret-of-calls-0",  # noqa: S106  # not a real secret
    )
    return ConfiguredGateway(config, load_profile(kind), read_gateway_url("http://h/"))


GATEWAYS = {kind: gateway(kind) for kind in shipped_kinds() if kind != "exolve"}
RULES = {kind: gateway.callback_rules() for kind, gateway in GATEWAYS.items()}
PARTS = [part for g in GATEWAYS.values() for part in (g.profile.receipt, g.profile.reply) if part]
NAMES = sorted({name for part in PARTS for path in entry_paths(part) for name in path.split(".")})
VALUES = ["delivered", "sms:received", "mo_text", "message.received", "12", "DELIVRD", "1", "-1"]

kinds = st.sampled_from(sorted(RULES))
scalars = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.integers(min_value=10**30, max_value=10**60)
    | st.floats()
    | st.text(max_size=20)
    | st.sampled_from(VALUES)
)
documents = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.sampled_from(NAMES) | st.text(max_size=5), inner, max_size=6)
    ),
    max_leaves=30,
)
octets = st.binary(max_size=300)
content_types = st.sampled_from(
    [
        "",
        "application/json",
        "application/x-www-form-urlencoded",
        "application/json; charset=utf-16",
        "text/plain; charset=windows-1251",
        "text/plain; charset=utf-7",
        "a; charset=",
        "\xff\0",
    ]
)


def check(kind: str, callback: Callback) -> None:
    """Read a call, and check what it brings."""
    assert GATEWAYS[kind].authenticates(callback, NOW) in {True, False}
    try:
        content = RULES[kind].read(callback)
    except UnreadableCallbackError:
        return
    check_content(content)
    body, media_type = RULES[kind].response(content)
    assert isinstance(body, bytes)
    assert "/" in media_type


def check_content(content: CallbackContent) -> None:
    """Check that the database can store receipts and replies."""
    for receipt in content.receipts:
        assert receipt.message_id is None or 1 <= receipt.message_id <= MAX_ID
        texts = (receipt.gateway_message_id, receipt.code, receipt.part)
        assert all(text is None or (0 < len(text) <= 200 and is_storable(text)) for text in texts)
        assert receipt.message_id is not None or receipt.gateway_message_id is not None
    for reply in content.replies:
        assert reply.phone.isdigit()
        assert len(reply.phone) <= 15
        assert len(reply.text) <= 10_000
        assert is_storable(reply.text)
        assert 1 <= reply.part <= reply.parts <= 255
        for text in (reply.recipient, reply.id, reply.reference):
            assert text is None or (0 < len(text) <= 200 and is_storable(text))


def encode(document: object) -> bytes:
    """Return JSON; also of what JSON has no form for."""
    try:
        return msgspec.json.encode(document)
    except (UnicodeEncodeError, OverflowError, ValueError):
        return repr(document).encode(errors="replace")


@thorough
@given(kinds, octets, content_types, st.sampled_from(["GET", "POST", "PUT", ""]))
@example("twilio", b"%", "", "POST")
@example("twilio", b"{", "", "POST")
@example("smsru", b"data[]=&data[1]=%00&data[9", "", "POST")
def test_random_bytes(kind: str, body: bytes, content_type: str, method: str) -> None:
    query = quote(body[:100]) if body[:1] > b"\x80" else body[:100].decode("latin-1")
    callback = Callback(method, f"{URL}&{query}", {"content-type": content_type}, body)
    check(kind, callback)


@thorough
@given(kinds, documents, content_types)
def test_random_documents(kind: str, document: Any, content_type: str) -> None:  # any value of JSON
    check(kind, Callback("POST", URL, {"content-type": content_type}, encode(document)))


@thorough
@given(kinds, st.lists(st.tuples(st.sampled_from(NAMES), scalars), max_size=12))
def test_random_fields(kind: str, fields: list[tuple[str, object]]) -> None:
    text = urlencode([(name, str(value)) for name, value in fields], errors="replace")
    check(kind, Callback("POST", URL, {}, text.encode()))
    check(kind, Callback("GET", f"{URL}&{text}", {}, b""))


@thorough
@given(st.sampled_from(EXAMPLES), st.data())
def test_documented_calls_with_one_change(case: Any, data: st.DataObject) -> None:  # an example
    kind, callback = case.kind, case.callback
    source = callback.body or callback.url.encode()
    position = data.draw(st.integers(0, len(source) - 1))
    inserted = data.draw(octets)
    changed = source[:position] + inserted + source[position + data.draw(st.integers(0, 5)) :]
    if callback.body:
        check(kind, Callback(callback.method, callback.url, callback.headers, changed))
    else:
        check(kind, Callback("GET", changed.decode("utf-8", "replace"), {}, b""))


@pytest.mark.parametrize("kind", sorted(RULES))
@pytest.mark.parametrize(
    "body",
    [
        b"[" * 200_000,
        b'{"results":' * 50_000,
        b'{"data":{"payload":{"to":' + b"[" * 5_000 + b"]" * 5_000 + b"}}}",
        b'{"id":' + b"9" * 5_000 + b"}",
        b'{"id":1e999,"status":-1e999,"messageId":NaN}',
        b'{"results":[' + b"{}," * 60_000 + b"{}]}",
        b'{"results":[{"messageId":"\\u0000","status":{"groupId":3},"callbackData":"\\ud800"}]}',
        b"data[0]=a&" * 4_000,
        b"%00=%00&id=%00&status=%00&text=%00&from=%00",
        b"text=" + b"%D0" * 100_000 + b"&from=79161234567",
        b"Body=" + b"+" * 500_000 + b"&From=7",
        b"\xff\xfe{\x00}\x00",
    ],
    ids=range(12),
)
def test_large_and_broken_bodies(kind: str, body: bytes) -> None:
    check(kind, Callback("POST", URL, {"content-type": "application/json"}, body))
    check(kind, Callback("POST", URL, {}, body))
