"""A call is accepted as its provider signs it, and refused after any change."""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from urllib.parse import parse_qsl, urlencode

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace
from tests.signature_examples import (
    EXAMPLES,
    FORM,
    JSON,
    SIGNED_AT,
    TELNYX_PRIVATE_KEY,
    URL,
    Example,
    get,
    post,
)

from mailer.gateway.callback import Callback
from mailer.gateway.config_table import GatewayConfig
from mailer.gateway.profile_file import load_profile
from mailer.gateway.signatures import SIGNATURE_SCHEMES, sign, telnyx, verify

PROFILES = Path("src/mailer/gateway/profiles")
SIGNED_URL = {"twilio", "plivo", "messagebird"}
"""Schemes that sign the URL."""
SIGNED_HEADERS = {
    "twilio": ["x-twilio-signature"],
    "plivo": ["x-plivo-signature-v3", "x-plivo-signature-ma-v3", "x-plivo-signature-v3-nonce"],
    "sinch": [
        "x-sinch-webhook-signature",
        "x-sinch-webhook-signature-nonce",
        "x-sinch-webhook-signature-timestamp",
    ],
    "messagebird": ["messagebird-signature-jwt"],
    "telnyx": ["telnyx-signature-ed25519", "telnyx-timestamp"],
    "android": ["x-signature", "x-timestamp"],
    "textbee": ["x-signature"],
}
MAX_AGES = {
    "android": timedelta(minutes=5),
    "messagebird": timedelta(minutes=2),
    "sinch": timedelta(hours=24),
    "telnyx": timedelta(minutes=5),
    "vonage": timedelta(hours=24, minutes=5),
}
"""How long after the signature a call is accepted; the other schemes sign no time."""
SECRETS = dict.fromkeys(SIGNATURE_SCHEMES, "a secret of the tests") | {"telnyx": TELNYX_PRIVATE_KEY}

each_example = pytest.mark.parametrize(
    "example", EXAMPLES, ids=[f"{each.scheme}-{each.name}" for each in EXAMPLES]
)


def is_accepted(example: Example, callback: Callback) -> bool:
    return verify(example.scheme, callback, [example.secret], example.now)


def verifying_secret(scheme: str) -> str:
    return telnyx.public_key(TELNYX_PRIVATE_KEY) if scheme == "telnyx" else SECRETS[scheme]


def changes(text: bytes) -> Iterator[bytes]:
    """Yield the text with each byte changed, left out, or written twice."""
    for position in range(len(text)):
        before, byte, after = text[:position], text[position], text[position + 1 :]
        yield before + bytes([byte ^ 1]) + after
        yield before + after
        yield before + bytes([byte, byte]) + after


def values(callback: Callback) -> list[str]:
    """Return the values of the fields of the query and of the body."""
    query = callback.url.partition("?")[2]
    return [value for text in (query, callback.body.decode("latin-1")) for _, value in fields(text)]


def fields(text: str) -> list[tuple[str, str]]:
    return parse_qsl(text, keep_blank_values=True, encoding="latin-1")


def assert_is_refused(example: Example, callback: Callback) -> None:
    """Assert that the call is refused, or brings the same fields, written differently."""
    if is_accepted(example, callback):
        assert example.callback.headers.get("content-type") != JSON["content-type"]
        assert values(callback) == values(example.callback)


@each_example
def test_a_call_that_a_provider_has_signed_is_accepted(example: Example) -> None:
    assert is_accepted(example, example.callback)


@each_example
def test_each_change_of_the_body_is_refused(example: Example) -> None:
    for body in changes(example.callback.body):
        assert_is_refused(example, replace(example.callback, body=body))
    if example.callback.body:
        assert not is_accepted(example, replace(example.callback, body=b""))


@each_example
def test_each_change_of_a_signed_url_is_refused(example: Example) -> None:
    url = example.callback.url
    if example.scheme not in SIGNED_URL and example.callback.method == "POST":
        assert is_accepted(example, replace(example.callback, url=f"{url}/other"))
        return
    signed = url if example.scheme in SIGNED_URL else url.partition("?")[2]
    unsigned = url.removesuffix(signed)
    for changed in changes(signed.encode()):
        text = unsigned + changed.decode("latin-1")
        if text.replace(":443", "") != url:
            assert_is_refused(example, replace(example.callback, url=text))


@each_example
def test_each_change_of_a_signed_header_is_refused(example: Example) -> None:
    for name in SIGNED_HEADERS.get(example.scheme, []):
        value = example.callback.headers.get(name, "")
        for changed in ["", "Ы", "\udc80", *(text.decode() for text in changes(value.encode()))]:
            headers = {**example.callback.headers, name: changed}
            if value and changed != value:
                assert not is_accepted(example, replace(example.callback, headers=headers)), changed
        headers = {each: example.callback.headers[each] for each in example.callback.headers}
        if headers.pop(name, None):
            assert not is_accepted(example, replace(example.callback, headers=headers))


@each_example
def test_each_change_of_the_secret_is_refused(example: Example) -> None:
    for secret in changes(example.secret.encode()):
        if secret != example.secret.encode():
            assert not verify(example.scheme, example.callback, [secret.decode()], example.now)


@each_example
def test_while_a_secret_is_replaced_both_are_accepted(example: Example) -> None:
    for secrets in (["другой", example.secret], ["other", "", example.secret]):
        assert verify(example.scheme, example.callback, secrets, example.now)
        assert verify(example.scheme, example.callback, secrets[::-1], example.now)
        assert not verify(example.scheme, example.callback, secrets[:-1], example.now)
    assert not verify(example.scheme, example.callback, [], example.now)


@pytest.mark.parametrize("scheme", sorted(SIGNATURE_SCHEMES))
def test_an_empty_secret_never_fits(scheme: str) -> None:
    callback = post(URL, urlencode({"id": 1, "phone": 7, "status": 1, "data[0]": "x"}), FORM)
    if scheme != "telnyx":
        callback = sign(scheme, callback, "", SIGNED_AT)
    assert not verify(scheme, callback, ["", ""], SIGNED_AT)


@pytest.mark.parametrize("scheme", sorted(SIGNATURE_SCHEMES))
def test_an_old_call_is_refused_if_its_time_is_signed(scheme: str) -> None:
    callback = post(URL, urlencode({"id": 1, "phone": 7, "status": 1, "data[0]": "x"}), FORM)
    signed = sign(scheme, callback, SECRETS[scheme], SIGNED_AT)

    def is_accepted_at(time: datetime) -> bool:
        return verify(scheme, signed, [verifying_secret(scheme)], time)

    max_age = MAX_AGES.get(scheme)
    if max_age is None:
        assert is_accepted_at(SIGNED_AT - timedelta(days=365))
        assert is_accepted_at(SIGNED_AT + timedelta(days=365))
        return
    second, minute = timedelta(seconds=1), timedelta(minutes=1)
    assert is_accepted_at(SIGNED_AT + max_age)
    assert not is_accepted_at(SIGNED_AT + max_age + second)
    assert is_accepted_at(SIGNED_AT - minute)
    assert not is_accepted_at(SIGNED_AT - minute - second)


names = st.text("abcdefghijklmnopqrstuvwxyz-", min_size=1, max_size=8)
texts = st.text(st.characters(codec="utf-8"), max_size=20)
forms = st.dictionaries(names, texts, max_size=5).map(
    lambda extra: extra | {"id": "1", "phone": "7", "status": "1", "data[0]": "Привет"}
)


def has_no_field_of_its_own(form: dict[str, str]) -> bool:
    reserved = {"hash", "md5", "mes", "nonce", "sha", "sig", "timestamp", "message", "secret"}
    return not any(
        name in reserved or name.startswith("data") for name in form if name != "data[0]"
    )


@pytest.mark.parametrize("scheme", sorted(SIGNATURE_SCHEMES))
@given(form=forms.filter(has_no_field_of_its_own))
def test_what_mailer_signs_is_accepted(scheme: str, form: dict[str, str]) -> None:
    secret = verifying_secret(scheme)
    calls = [
        get(f"{URL}?{urlencode(form)}"),
        post(URL, urlencode(form), FORM),
        post(f"{URL}?message=12", urlencode(form), FORM),
    ]
    if scheme not in {"plivo", "smsc", "smsru"}:  # which only send forms
        calls.append(post(URL, msgspec.json.encode(form).decode(), JSON))
    for callback in calls:
        signed = sign(scheme, callback, SECRETS[scheme], SIGNED_AT)
        assert verify(scheme, signed, [secret], SIGNED_AT)
        assert not verify(scheme, callback, [secret], SIGNED_AT)


hostile_texts = st.one_of(
    st.text(max_size=50),
    st.sampled_from(["\udc80", "a.b.c", "eyJhbGciOiJub25lIn0.e30.", "1" * 400, "१७६७", "²", "="]),
)
headers = st.dictionaries(
    st.sampled_from(
        [
            "content-type",
            "x-twilio-webhooks-signature-settings",
            *(name for each in SIGNED_HEADERS.values() for name in each),
        ]
    ),
    st.one_of(hostile_texts, st.sampled_from(["1767225600", FORM["content-type"]])),
)
bodies = st.one_of(
    st.binary(max_size=100),
    st.sampled_from(
        [
            b"[" * 100_000,
            b'{"a":' * 100_000,
            b'{"sig":"a","timestamp":1767225600,"x":1e999}',
            b'{"timestamp":' + b"9" * 5_000 + b"}",
            b'{"sig":{"a":1},"timestamp":true}',
            b"sig=%FF&timestamp=1767225600&%26=1&id=%00&phone=&status=&md5=%D1",
            b"data[0]=%FF%00&hash=1",
            b"\xff\xfe{\x00}\x00",
        ]
    ),
)
hostile_calls = st.builds(
    Callback,
    method=st.sampled_from(["GET", "POST", "\udc80"]),
    url=st.one_of(
        hostile_texts,
        hostile_texts.map(lambda text: f"{URL}?{text}"),
        st.sampled_from(["http://[::1", "https://a:99999999/?bodySHA256=&bodySHA256=1", "?", "//"]),
    ),
    headers=headers,
    body=bodies,
)


@pytest.mark.parametrize("scheme", sorted(SIGNATURE_SCHEMES))
@given(callback=hostile_calls, secret=st.sampled_from(["a secret", "Ы", "\udc80", "A6EHv/POEL4="]))
def test_no_call_raises_an_error(scheme: str, callback: Callback, secret: str) -> None:
    assert verify(scheme, callback, [secret], datetime(2026, 1, 1, tzinfo=UTC)) is False


def test_each_signature_of_a_profile_has_a_scheme() -> None:
    profiles = [load_profile(file.stem) for file in sorted(PROFILES.glob("*.toml"))]
    named = {profile.receipt.signature for profile in profiles if profile.receipt is not None}
    assert named - {None} == set(SIGNATURE_SCHEMES)


@pytest.mark.parametrize("scheme", sorted(SIGNATURE_SCHEMES))
def test_the_key_of_each_secret_exists(scheme: str) -> None:
    keys = set(GatewayConfig.__struct_fields__)
    assert {SIGNATURE_SCHEMES[scheme].account_key or "callback_secret", "callback_secret"} <= keys
    key, profile = SIGNATURE_SCHEMES[scheme].account_key, (PROFILES / f"{scheme}.toml").read_text()
    assert key is None or f"{{{key}}}" in profile
