"""Calls of providers are read by the profiles, whatever is in them."""

from urllib.parse import quote

import msgspec
import pytest
from tests.unit.callback_examples import (
    ANDROID_RECEIPT,
    EXAMPLES,
    INFOBIP_RECEIPT,
    TELNYX_RECEIPT,
    TWILIO_RECEIPT,
    TWILIO_REPLY,
    URL,
    VONAGE_RECEIPT,
    VONAGE_REPLY,
    Example,
    form,
    get,
    json,
)

from mailer.gateway.callback import (
    Callback,
    CallbackContent,
    Receipt,
    Reply,
    UnreadableCallbackError,
)
from mailer.gateway.callback_rules import CallbackRules
from mailer.gateway.config import ConfiguredGateway
from mailer.gateway.config_table import GatewayConfig
from mailer.gateway.profile import ReceiptPart, ReplyPart
from mailer.gateway.profile_file import load_profile, shipped_kinds
from mailer.urls import read_gateway_url


def rules(kind: str) -> CallbackRules:
    """Return the rules of a shipped profile, as the gateway has them."""
    config = GatewayConfig(name="g", kind=kind)
    gateway = ConfiguredGateway(config, load_profile(kind), read_gateway_url("http://h/"))
    return gateway.callback_rules()


def read(kind: str, callback: Callback) -> CallbackContent:
    """Return what a call to a gateway of this kind brings."""
    return rules(kind).read(callback)


def reason(kind: str, callback: Callback) -> str:
    """Return why a call cannot be read."""
    with pytest.raises(UnreadableCallbackError) as error:
        read(kind, callback)
    return str(error.value)


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda example: example.kind)
def test_documented_call_is_read(example: Example) -> None:
    content = read(example.kind, example.callback)
    assert content.receipts == example.receipts
    assert content.replies == example.replies


def test_each_profile_with_receipts_or_replies_has_examples() -> None:
    profiles = {kind: load_profile(kind) for kind in shipped_kinds()}
    with_receipts = {kind for kind, profile in profiles.items() if profile.receipt}
    with_replies = {kind for kind, profile in profiles.items() if profile.reply}
    assert with_receipts == {example.kind for example in EXAMPLES if example.receipts}
    assert with_replies == {example.kind for example in EXAMPLES if example.replies}


@pytest.mark.parametrize("kind", [kind for kind in shipped_kinds() if load_profile(kind).receipt])
def test_all_statuses_of_a_profile_are_different(kind: str) -> None:
    receipt = load_profile(kind).receipt
    assert receipt is not None
    values = [str(value).lower() for each in receipt.statuses.values() for value in each]
    assert len(values) == len(set(values))


@pytest.mark.parametrize(
    ("kind", "callback"),
    [
        ("twilio", form(TWILIO_RECEIPT | {"MessageStatus": "pondered"})),
        ("twilio", form("")),
        ("twilio", form("%FF%00=%&&&=")),
        ("android", json({"event": "system:ping"})),
        ("telnyx", json({"data": {"event_type": "10dlc.update"}})),
        ("infobip", json({"results": []})),
        ("infobip", json({"results": 5})),
        ("infobip", json([])),
        ("smsru", form({"data[0]": "sms_status"})),
    ],
)
def test_call_about_something_else_brings_nothing(kind: str, callback: Callback) -> None:
    assert read(kind, callback) == CallbackContent([], [])


@pytest.mark.parametrize(
    ("kind", "callback", "expected"),
    [
        ("twilio", get(TWILIO_RECEIPT), "the method is not one that the provider uses"),
        ("kannel", form({"status": "1"}), "the method is not one that the provider uses"),
        ("infobip", Callback("POST", URL, {}, b'{"results": ['), "the body is not JSON"),
        ("infobip", Callback("POST", URL, {}, b"[" * 100_000), "the body is not JSON"),
        ("twilio", form("MessageSid=1&MessageSid=2"), "a field is there twice"),
        ("twilio", form("MessageSid=1&Message%53id=2"), "a field is there twice"),
        ("twilio", form("a&" * 6_000), "there are too many fields"),
        ("kannel", get({"status": "1", "message": "13"}), "a field is there twice"),
        ("infobip", json({"results": [{}] * 1_001}), "there are more than 1,000 entries"),
        ("twilio", form(b"a".decode() * (1024 * 1024 + 1)), "the body is too long"),
        ("twilio", form(TWILIO_REPLY | {"From": "Beeline"}), "the reply has no phone"),
        ("twilio", form(TWILIO_REPLY | {"From": "1" * 16}), "the reply has no phone"),
        ("vonage", json({"status": "delivered", "client-ref": "x"}), "the receipt has no id"),
    ],
)
def test_unreadable_call_is_refused_with_a_reason(
    kind: str, callback: Callback, expected: str
) -> None:
    assert reason(kind, callback).startswith(expected)


def test_reason_has_nothing_of_the_call() -> None:
    text = reason("twilio", form(TWILIO_REPLY | {"From": "Anna 79161234567x" * 9, "Body": "key"}))
    assert text == "the reply has no phone"


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("1", 1),
        (str(2**53 - 1), 2**53 - 1),
        (str(2**53), None),
        ("0", None),
        ("-1", None),
        ("+1", None),
        ("01", None),
        ("1.5", None),
        ("٣", None),
        ("9" * 5_000, None),
        ("", None),
    ],
)
def test_message_id_is_a_number_that_mailer_could_have_given(
    value: str, expected: int | None
) -> None:
    url = f"https://mailer.example/gateways/g/receipts?message={quote(value)}"
    by_url = Callback("POST", url, {}, b"MessageSid=SM1&MessageStatus=sent")
    assert read("twilio", by_url).receipts == [Receipt("sent", expected, "SM1")]
    by_field = form(VONAGE_RECEIPT | {"client-ref": value})
    assert [receipt.message_id for receipt in read("vonage", by_field).receipts] == [expected]


def test_message_id_in_the_url_counts_only_if_mailer_has_put_it_there() -> None:
    of_account = form({"data[0]": "sms_status\n1-1\n103\n1"})  # the URL has message=12
    assert read("smsru", of_account).receipts == [Receipt("delivered", None, "1-1")]
    own = form(VONAGE_RECEIPT | {"client-ref": "13"})
    assert read("vonage", own).receipts[0].message_id == 13


def test_code_of_a_receipt_is_that_of_an_error() -> None:
    entry = "sms_status\n1-1\n{}\n1"
    for status, code in (("103", None), ("102", None), ("105", "105"), ("-1", "-1")):
        [receipt] = read("smsru", form({"data[]": entry.format(status)})).receipts
        assert receipt.code == code


def test_fields_are_in_the_query_or_in_the_body_but_not_in_both() -> None:
    signed_reply = "phone=79161234567&mes=hi&to=1&md5=0"
    call = Callback("POST", f"{URL}&{signed_reply}", {}, b"id=12&status=1")
    assert reason("smsc", call) == "there are fields in the query and in the body"
    [receipt] = read("smsc", Callback("POST", f"{URL}&id=12&status=1", {}, b"")).receipts
    assert receipt == Receipt("delivered", 12, "12")


def test_receipt_is_not_read_from_a_signed_reply() -> None:
    fields = {"phone": "79161234567", "mes": "hi", "to": "1", "id": "12", "status": "1"}
    content = read("smsc", form(fields))
    assert (len(content.receipts), len(content.replies)) == (0, 1)


@pytest.mark.parametrize(
    ("body", "content_type"),
    [
        (msgspec.json.encode(VONAGE_REPLY | {"text": "Да"}), "text/plain"),
        (msgspec.json.encode(VONAGE_REPLY | {"text": "Да"}), ""),
        (b"\xef\xbb\xbf" + msgspec.json.encode(VONAGE_REPLY | {"text": "Да"}), "application/json"),
        (
            msgspec.json.encode(VONAGE_REPLY | {"text": "Да"}).decode().encode("windows-1251"),
            "application/json; charset=windows-1251",
        ),
        (
            msgspec.json.encode(VONAGE_REPLY | {"text": "Да"}).decode().encode("utf-16"),
            "application/json",
        ),
        (
            ("msisdn=447700900001&to=447700900000&messageId=0A0000000123ABCD1&text=Да").encode(
                "windows-1251"
            ),
            "application/x-www-form-urlencoded; charset=windows-1251",
        ),
    ],
)
def test_text_is_read_in_each_encoding(body: bytes, content_type: str) -> None:
    [reply] = read("vonage", Callback("POST", URL, {"content-type": content_type}, body)).replies
    assert reply.text == "Да"


@pytest.mark.parametrize(
    ("written", "phone"),
    [
        ("+79161234567", "79161234567"),
        ("79161234567", "79161234567"),
        ("89161234567", "79161234567"),
        ("0079161234567", "79161234567"),
        (" +7 (916) 123-45-67 ", "79161234567"),
        ("+8613812345678", "8613812345678"),
        ("+81312345678", "81312345678"),
        ("1008", "1008"),
    ],
)
def test_phone_of_a_reply_is_written_as_in_the_directory(written: str, phone: str) -> None:
    [reply] = read("twilio", form(TWILIO_REPLY | {"From": written})).replies
    assert reply.phone == phone


def test_long_values_are_limited() -> None:
    [reply] = read("twilio", form(TWILIO_REPLY | {"Body": "я" * 11_000})).replies
    assert reply.text == "я" * 10_000
    document = ANDROID_RECEIPT | {"payload": {"messageId": "12", "reason": "r" * 999}}
    assert read("android", json(document)).receipts == [Receipt("failed", 12, "12", "r" * 64)]
    too_long = form(TWILIO_RECEIPT | {"MessageSid": "S" * 201})
    assert read("twilio", too_long).receipts == [Receipt("delivered", 12, None)]


def test_what_the_database_cannot_store_is_removed() -> None:
    text = b'"x\\u0000\\ud800y\\ud83d\\ude00"'
    body = b'{"msisdn": "7", "messageId": "a\\u0000b\\ud800", "text": ' + text + b"}"
    [reply] = read("vonage", Callback("POST", URL, {}, body)).replies
    assert (reply.id, reply.text) == ("ab", "x?y😀")


@pytest.mark.parametrize(
    "numbers",
    [
        {"concat-ref": "1", "concat-part": "2"},
        {"concat-ref": "1", "concat-part": "4", "concat-total": "3"},
        {"concat-ref": "1", "concat-part": "0", "concat-total": "3"},
        {"concat-ref": "1", "concat-part": "1", "concat-total": "256"},
        {"concat-ref": "1", "concat-part": "1", "concat-total": "1"},
        {"concat-ref": "", "concat-part": "1", "concat-total": "2"},
    ],
)
def test_reply_with_impossible_numbers_of_parts_is_whole(numbers: dict[str, str]) -> None:
    [reply] = read("vonage", json(VONAGE_REPLY | numbers)).replies
    assert (reply.reference, reply.part, reply.parts) == (None, 1, 1)


def test_thousand_receipts_in_one_call_are_read() -> None:
    receipts = read("infobip", json({"results": [INFOBIP_RECEIPT] * 1_000})).receipts
    assert receipts == [Receipt("delivered", 12, "12")] * 1_000


def test_one_unusable_receipt_of_several_loses_no_other() -> None:
    without_id = {"status": INFOBIP_RECEIPT["status"]}
    content = read("infobip", json({"results": [without_id, 5, None, INFOBIP_RECEIPT]}))
    assert content.receipts == [Receipt("delivered", 12, "12")]


def test_value_of_another_shape_is_none() -> None:
    document = {"data": TELNYX_RECEIPT["data"] | {"payload": {"id": ["x"], "to": {"0": 1}}}}  # type: ignore[operator]  # a dict
    assert read("telnyx", json(document)) == CallbackContent([], [])


@pytest.mark.parametrize(
    ("kind", "callback", "expected"),
    [
        ("twilio", form(TWILIO_RECEIPT), (b"", "text/plain")),
        ("twilio", form(TWILIO_REPLY), (b"<Response/>", "text/xml")),
        ("smsru", form({"data[0]": "callcheck_status\n1"}), (b"100", "text/plain")),
        ("jasmin", form({"id": "1", "message_status": "DELIVRD"}), (b"ACK/Jasmin", "text/plain")),
        (
            "jasmin",
            form({"id": "1", "from": "79161234567", "content": "x"}),
            (b"ACK/Jasmin", "text/plain"),
        ),
    ],
)
def test_call_is_answered_as_the_provider_expects(
    kind: str, callback: Callback, expected: tuple[bytes, str]
) -> None:
    assert rules(kind).response(read(kind, callback)) == expected


def test_profile_of_replies_alone_reads_no_receipts() -> None:
    only_replies = CallbackRules(None, ReplyPart(sender="from", text="text"))
    content = only_replies.read(form({"from": "79161234567", "text": "Да", "status": "1"}))
    assert content == CallbackContent([], [Reply("79161234567", "Да")])
    assert only_replies.response(content) == (b"", "text/plain")


def test_document_that_is_a_list_is_read() -> None:
    part = ReceiptPart(each="[*]", id="id", status="state.name", statuses={"delivered": ["ok"]})
    document = [{"id": 5, "state": {"name": "OK"}}, {"id": 6, "state": {"name": "no"}}]
    assert CallbackRules(part, None).read(json(document)).receipts == [
        Receipt("delivered", 12, "5")
    ]
