"""Details of single providers: what they leave unsigned is not accepted where it matters."""

import base64
import hashlib
import hmac
from urllib.parse import urlencode

import pytest
from msgspec.structs import replace
from tests.signature_examples import (
    FORM,
    JSON,
    MESSAGEBIRD,
    PLIVO,
    SIGNED_AT,
    SMSC,
    TELNYX,
    TWILIO,
    URL,
    VONAGE,
    Example,
    get,
    post,
    twilio_form,
)

from mailer.gateway.callback import Callback
from mailer.gateway.signatures import sign, verify


def is_accepted(example: Example, callback: Callback) -> bool:
    return verify(example.scheme, callback, [example.secret], example.now)


def example_of(examples: list[Example], name: str) -> Example:
    return next(each for each in examples if each.name == name)


def with_header(callback: Callback, name: str, value: str) -> Callback:
    return replace(callback, headers={**callback.headers, name: value})


@pytest.mark.parametrize("body", ['{"MessageStatus":"delivered"}', "MessageStatus=delivered"])
def test_twilio_signs_json_by_its_hash_alone(body: str) -> None:
    url_only = get(URL, {"x-twilio-signature": ""})
    signature = sign("twilio", url_only, "12345", SIGNED_AT).headers["x-twilio-signature"]
    headers = {"x-twilio-signature": signature}
    assert verify("twilio", post(URL, "", headers), ["12345"], SIGNED_AT)
    for content_type in ({}, JSON, {"content-type": "text/plain"}):
        assert not verify("twilio", post(URL, body, headers | content_type), ["12345"], SIGNED_AT)


def test_twilio_names_the_algorithm() -> None:
    signature = example_of(TWILIO, "sha256").callback.headers["x-twilio-signature"]
    for settings in ("algorithm=HMAC_SHA256", "key=k, algorithm = hmac_sha256 "):
        assert verify("twilio", twilio_form(signature, settings), ["12345"], SIGNED_AT)
    for settings in ("", "algorithm=", "algorithm=HMAC_SHA512", "algorithm=HMAC_SHA1"):
        assert not verify("twilio", twilio_form(signature, settings), ["12345"], SIGNED_AT)
    old = example_of(TWILIO, "form").callback.headers["x-twilio-signature"]
    assert verify("twilio", twilio_form(old, "algorithm="), ["12345"], SIGNED_AT)
    assert not verify("twilio", twilio_form(old, "algorithm=HMAC_SHA256"), ["12345"], SIGNED_AT)


@pytest.mark.parametrize(
    ("signed", "called"),
    [
        ("https://mailer.example:443/r?a=1", "https://mailer.example/r?a=1"),
        ("https://mailer.example/r?a=1", "https://mailer.example:8443/r?a=1"),
        ("http://mailer.example:80/r", "http://mailer.example/r"),
        ("https://[2001:db8::1]:443/r", "https://[2001:db8::1]/r"),
        ("https://user:word@mailer.example/r", "https://user:word@mailer.example:8443/r"),
    ],
)
def test_twilio_signs_the_url_with_or_without_a_port(signed: str, called: str) -> None:
    signature = sign("twilio", get(signed), "12345", SIGNED_AT).headers["x-twilio-signature"]
    headers = {"x-twilio-signature": signature}
    assert verify("twilio", get(called, headers), ["12345"], SIGNED_AT)
    assert not verify("twilio", get(called.replace("/r", ":1/r"), headers), ["12345"], SIGNED_AT)


def test_twilio_signs_a_repeated_field_once() -> None:
    signature = sign("twilio", post(URL, "A=1&B=2", FORM), "12345", SIGNED_AT)
    for body, expected in [(b"B=2&A=1&A=1", True), (b"A=1&A=2&B=2", False)]:
        callback = replace(signature, body=body)
        assert verify("twilio", callback, ["12345"], SIGNED_AT) is expected


def test_plivo_may_send_several_signatures() -> None:
    example = example_of(PLIVO, "form")
    signature = example.callback.headers["x-plivo-signature-ma-v3"]
    for header in ("x-plivo-signature-ma-v3", "x-plivo-signature-v3"):
        for value in (f"other,{signature}", f"{signature}, other"):
            assert is_accepted(example, with_header(example.callback, header, value))
    other = with_header(example.callback, "x-plivo-signature-ma-v3", "other,,")
    assert not is_accepted(example, other)


def test_version_2_of_plivo_is_refused_as_it_does_not_sign_the_fields() -> None:
    digest = hmac.digest(b"plivo-token", f"{URL}1".encode(), hashlib.sha256)
    signature = base64.b64encode(digest).decode()
    headers = {f"x-plivo-signature{name}-v2": signature for name in ("", "-ma")}
    callback = post(URL, "Status=delivered", FORM | headers | {"x-plivo-signature-v2-nonce": "1"})
    assert not verify("plivo", callback, ["plivo-token"], SIGNED_AT)


def test_vonage_may_sign_with_or_without_the_fields_of_mailer() -> None:
    example = example_of(VONAGE, "form")
    assert is_accepted(example, replace(example.callback, url=f"{URL}?secret=abc&message=12"))
    fields = "message=12&status=delivered&timestamp=1767225600"
    text = "".join(f"&{field}" for field in sorted(fields.split("&"))).encode()
    signature = hmac.digest(b"vonage-secret", text, hashlib.sha256).hex()
    assert is_accepted(example, get(f"{URL}?{fields}&sig={signature}"))
    assert not is_accepted(example, get(f"{URL}?{fields}&sig={signature}&secret=abc&message=13"))


@pytest.mark.parametrize("added", ["message=13", "secret=1", "status=failed", "sig=0", "x="])
def test_vonage_signs_all_fields_of_the_body(added: str) -> None:
    example = example_of(VONAGE, "form")
    body = example.callback.body + f"&{added}".encode()
    assert not is_accepted(example, replace(example.callback, body=body))


@pytest.mark.parametrize("added", ["status=failed", "sig=0", "x="])
def test_no_unsigned_field_of_vonage_hides_in_the_url(added: str) -> None:
    example = example_of(VONAGE, "form")
    assert not is_accepted(example, replace(example.callback, url=f"{URL}?{added}"))


def test_a_name_of_a_field_of_vonage_cannot_imitate_two_fields() -> None:
    text = b"&messageId=1&status=delivered&timestamp=1767225600"
    signature = hmac.digest(b"vonage-secret", text, hashlib.sha256).hex()
    for fields, expected in [
        ("messageId=1&status=delivered", True),
        ("messageId=1%26status%3Ddelivered", False),
        ("messageId%3D1%26status=delivered", False),
    ]:
        callback = get(f"{URL}?{fields}&timestamp=1767225600&sig={signature}")
        assert verify("vonage", callback, ["vonage-secret"], SIGNED_AT) is expected


@pytest.mark.parametrize(
    ("value", "expected"), [("1", True), ('"1"', True), ("true", False), ("null", False)]
)
def test_a_value_of_vonage_must_be_a_text_or_a_number(value: str, *, expected: bool) -> None:
    python_value = {"true": "True", "null": "None"}.get(value, "1")
    text = f"&nonce={python_value}&timestamp=1767225600".encode()
    signature = hmac.digest(b"vonage-secret", text, hashlib.sha256).hex()
    body = f'{{"nonce":{value},"timestamp":"1767225600","sig":"{signature}"}}'
    assert verify("vonage", post(URL, body, JSON), ["vonage-secret"], SIGNED_AT) is expected


def token(header: str, claims: str, key: str) -> str:
    parts = [
        base64.urlsafe_b64encode(part.encode()).decode().rstrip("=") for part in (header, claims)
    ]
    digest = hmac.digest(key.encode(), ".".join(parts).encode(), hashlib.sha256)
    return ".".join([*parts, base64.urlsafe_b64encode(digest).decode().rstrip("=")])


URL_HASH = "41f05f0ddd0a22ab209ac46f47c4572d9cefa257ed74b24004bae753ece6c260"
CLAIMS = f'"nbf":1625479200,"exp":1625479260,"url_hash":"{URL_HASH}"'


def is_accepted_token(header: str, claims: str) -> bool:
    example = example_of(MESSAGEBIRD, "get")
    text = token(header, claims, example.secret)
    return is_accepted(example, with_header(example.callback, "messagebird-signature-jwt", text))


def test_a_token_of_messagebird_needs_only_some_claims() -> None:
    assert is_accepted_token('{"alg":"HS256"}', f'{{"iss":"MessageBird",{CLAIMS}}}')


@pytest.mark.parametrize(
    "header", ['{"alg":"none"}', '{"alg":"HS384"}', '{"alg":["HS256"]}', "{}", "[]", ""]
)
def test_a_token_of_messagebird_with_another_algorithm_is_refused(header: str) -> None:
    assert not is_accepted_token(header, f'{{"iss":"MessageBird",{CLAIMS}}}')


@pytest.mark.parametrize(
    "claims",
    [
        f'{{"iss":"Other",{CLAIMS}}}',
        f"{{{CLAIMS}}}",
        f'{{"iss":"MessageBird",{CLAIMS},"payload_hash":"{URL_HASH}"}}',
        f'{{"iss":"MessageBird","nbf":1625479200,"exp":1e999,"url_hash":"{URL_HASH}"}}',
        f'{{"iss":"MessageBird","nbf":1625479200,"exp":1625479260,"url_hash":"{"0" * 64}"}}',
        '{"iss":"MessageBird"}',
        "[]",
        "",
    ],
)
def test_a_token_of_messagebird_with_other_claims_is_refused(claims: str) -> None:
    assert not is_accepted_token('{"alg":"HS256"}', claims)


def test_a_signature_of_telnyx_has_one_text() -> None:
    [example] = TELNYX
    signature = example.callback.headers["telnyx-signature-ed25519"]
    assert base64.b64decode(signature) == base64.b64decode(signature.replace("AQ==", "AR=="))
    for text in (signature.replace("AQ==", "AR=="), f"{signature}\n", signature.rstrip("=")):
        assert not is_accepted(
            example, with_header(example.callback, "telnyx-signature-ed25519", text)
        )


@pytest.mark.parametrize(
    "timestamp",
    ["", "+1767225600", " 1767225600", "1_767225600", "1767225600.0", "01767225600000", "²", "१"],
)
def test_a_timestamp_is_made_of_digits(timestamp: str) -> None:
    text = f"{{}}{timestamp}".encode()
    signature = hmac.digest(b"android-key", text, hashlib.sha256).hex()
    headers = {"x-timestamp": timestamp, "x-signature": signature}
    assert not verify("android", post(URL, "{}", headers), ["android-key"], SIGNED_AT)


def smsc_hash(text: str) -> str:
    return hashlib.md5(f"{text}:sms-word".encode(), usedforsecurity=False).hexdigest()


def test_smsc_needs_each_signature_that_a_call_has_and_at_least_one() -> None:
    md5, sha1 = (example_of(SMSC, name) for name in ("md5", "sha1"))
    field = sha1.callback.body.rpartition(b"&")[2]
    both = md5.callback.body + b"&" + field
    assert is_accepted(md5, replace(md5.callback, body=both))
    assert not is_accepted(md5, replace(md5.callback, body=both[:-1] + b"0"))
    assert not is_accepted(md5, post(URL, "id=12&phone=79161234567&status=1&crc=1", FORM))


@pytest.mark.parametrize(
    "fields",
    [
        {"id": "1:79161234567", "phone": "2", "status": "1"},
        {"id": "1", "phone": "79161234567:2", "status": "1"},
        {"phone": "1:79161234567", "mes": "2", "to": "1"},
    ],
)
def test_the_border_between_fields_of_smsc_cannot_move(fields: dict[str, str]) -> None:
    text = ":".join(fields.values())
    callback = post(URL, urlencode(fields | {"md5": smsc_hash(text)}), FORM)
    assert not verify("smsc", callback, ["sms-word"], SIGNED_AT)


@pytest.mark.parametrize(
    ("query", "body"),
    [
        ("status=20", None),
        ("id=13", None),
        ("mes=STOP&to=1", None),
        (None, '{"id":"13","phone":"79161234567","status":"1"}'),
        (None, '\ufeff{"id":"13","phone":"79161234567","status":"1"}'),
        (None, '\ufeff{"id":"13","phone":"79161234567","status":"1","x":"="}'),
        (None, '{"receipts":[{"id":"13","phone":"79161234567","status":"1"}]}'),
    ],
)
def test_fields_beside_the_signed_ones_of_smsc_are_refused(
    query: str | None, body: str | None
) -> None:
    example = example_of(SMSC, "md5")
    signed = example.callback.body.decode()
    url = f"{URL}?{signed if body else query}"
    assert is_accepted(example, get(f"{URL}?{signed}"))
    assert not is_accepted(example, post(url, body or signed, FORM))


def smsru_call(entries: list[tuple[str, bytes]], extra: str = "") -> Callback:
    digest = hashlib.sha256(b"api-id" + b"".join(value for _, value in entries)).hexdigest()
    return post(URL, urlencode([*entries, ("hash", digest)]) + extra, FORM)


def test_smsru_signs_the_entries_in_their_order() -> None:
    entries = [("data[1]", b"sms_status\n1\n103\n9"), ("data[0]", b"sms\n" + "Привет".encode())]
    assert verify("smsru", smsru_call(entries), ["api-id"], SIGNED_AT)
    body = smsru_call(entries).body.split(b"&")
    swapped = replace(smsru_call(entries), body=b"&".join([body[1], body[0], body[2]]))
    assert not verify("smsru", swapped, ["api-id"], SIGNED_AT)


@pytest.mark.parametrize(
    "entries",
    [
        [],
        [("data[]", b"sms_status\n1\n103\n9\x80\0\0\0")],
        [("data[]", b"sms_status\n1\n103\n9"), ("data[]", b"\x80\0\0\0\0sms_status\n2\n103\n9")],
    ],
)
def test_an_extended_hash_of_smsru_is_refused(entries: list[tuple[str, bytes]]) -> None:
    assert not verify("smsru", smsru_call(entries), ["api-id"], SIGNED_AT)


@pytest.mark.parametrize("extra", ["&data=x", "&data[a]=x", "&data[0][1]=x", "&data%5B9%5D=x"])
def test_a_field_of_smsru_that_looks_like_an_entry_is_refused(extra: str) -> None:
    entries = [("data[0]", b"sms_status\n1\n103\n9")]
    assert verify("smsru", smsru_call(entries, "&other=1"), ["api-id"], SIGNED_AT)
    assert not verify("smsru", smsru_call(entries, extra), ["api-id"], SIGNED_AT)
    with_query = replace(smsru_call(entries), url=f"{URL}?{extra[1:]}")
    assert not verify("smsru", with_query, ["api-id"], SIGNED_AT)
