"""What the sandbox gateway requires of a request, by the profile of its kind."""

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from http import HTTPStatus
from typing import Any
from urllib.parse import parse_qsl, quote, urlencode

import pytest
from httpx import Headers
from msgspec.structs import asdict, replace

from mailer.gateway.placeholders import MESSAGE_PLACEHOLDERS
from mailer.gateway.profile_file import load_profile, shipped_kinds
from mailer.gateway.profile_mistakes import account_keys
from mailer.gateway.protocol import OutgoingMessage
from mailer.gateway.request_template import RequestTemplate
from mailer.gateway.sandbox_patterns import MESSAGE_VALUES
from mailer.gateway.sandbox_records import PollRequest, SandboxMessage
from mailer.gateway.sandbox_requests import JsonReader, ProfileReader
from mailer.gateway.sandbox_values import HttpRequest, base_path
from mailer.gateway.template import Texts
from mailer.urls import read_gateway_url

ACCOUNT = {"account": "AC1", "username": "ann@x", "password": "p/ ä&", "token": "tok"}
TEXTS = {
    "Latin": 'It is "free" & 100% off\r\n{text} €',
    "Cyrillic": "Привет, мир & 100%",
    "emoji": "👍🏽 thanks 👩‍👩‍👧 +1=2",
    "several parts": "Скидка до 50%. " * 100,
}
WITH_ID = {"android", "infobip", "json", "messagebird", "sinch", "smsc", "vonage"}
"""Kinds whose requests contain mailer's id of the message."""
WITHOUT_SENDER = {"android", "json", "textbee"}
WITHOUT_URL = {"android", "exolve", "smsc", "smsru", "textbee"}
"""Kinds that have the URL for receipts as a setting of the account, or no receipts."""


def account_of(kind: str) -> dict[str, str]:
    """Return the keys of the account that a kind uses."""
    return {key: ACCOUNT[key] for key in account_keys(load_profile(kind))}


def request_of(
    kind: str,
    text: str = TEXTS["Latin"],
    *,
    callback: str = "",
    sender: str = "ACME",
    account: Mapping[str, str] | None = None,
) -> HttpRequest:
    """Return the request that mailer sends to a gateway of this kind."""
    profile = load_profile(kind)
    texts = Texts(account or account_of(kind), profile.by_text, profile.with_callback)
    url = read_gateway_url(f"http://sandbox{base_path(profile.request)}")
    message = OutgoingMessage(
        id=12,
        phone="79161234567",
        text=text,
        sender=sender,
        validity=7_200,
        valid_from=datetime(2030, 1, 2, 1, 4, 5, tzinfo=UTC),
        callback=callback,
    )
    head, _, body = (
        RequestTemplate(profile.request, url, texts, {}).render(message).partition(b"\r\n\r\n")
    )
    line, *headers = head.decode().split("\r\n")
    method, target, _ = line.split(" ")
    pairs = dict(header.split(": ", 1) for header in headers)
    return HttpRequest(method, target, Headers(pairs), body)


def read(kind: str, request: HttpRequest) -> SandboxMessage | PollRequest | HTTPStatus:
    return ProfileReader(load_profile(kind), account_of(kind)).read(request)


def is_refused(kind: str, request: HttpRequest) -> bool:
    return isinstance(read(kind, request), HTTPStatus)


@pytest.mark.parametrize("kind", shipped_kinds())
@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS)
@pytest.mark.parametrize("callback", ["", "https://mailer.example/receipts?id=12"])
@pytest.mark.parametrize("sender", ["", "ACME"])
def test_message_of_a_request_is_read_as_it_was_written(
    kind: str, text: str, callback: str, sender: str
) -> None:
    message = SandboxMessage(
        id=12 if kind in WITH_ID else None,
        phone=79161234567,
        text=text,
        sender="" if kind in WITHOUT_SENDER else sender,
        callback="" if kind in WITHOUT_URL else callback,
    )
    found = read(kind, request_of(kind, text, callback=callback, sender=sender))
    assert found == message


@pytest.mark.parametrize("kind", shipped_kinds())
def test_account_that_is_not_given_may_be_any(kind: str) -> None:
    assert isinstance(ProfileReader(load_profile(kind), {}).read(request_of(kind)), SandboxMessage)


@pytest.mark.parametrize(
    ("kind", "key"), [(kind, key) for kind in shipped_kinds() for key in account_of(kind)]
)
@pytest.mark.parametrize("value", ["wrong", "TOK", "tokk"])
def test_each_wrong_key_of_the_account_is_unauthorized(kind: str, key: str, value: str) -> None:
    request = request_of(kind, account=account_of(kind) | {key: value})
    assert read(kind, request) == HTTPStatus.UNAUTHORIZED


@pytest.mark.parametrize("kind", sorted({*shipped_kinds()} - {"smsc", "smsru", "kannel", "jasmin"}))
def test_request_without_its_header_of_authentication_is_unauthorized(kind: str) -> None:
    request = request_of(kind)
    headers = Headers({"Content-Type": request.headers["Content-Type"]})
    assert read(kind, replace(request, headers=headers)) == HTTPStatus.UNAUTHORIZED


@pytest.mark.parametrize("header", ["Basic", "Basic ?", "Basic dG9r", "Basic /w==", "Bearer tok"])
def test_header_that_is_no_basic_authentication_is_unauthorized(header: str) -> None:
    request = request_of("twilio")
    headers = Headers(request.headers)
    headers["Authorization"] = header
    assert read("twilio", replace(request, headers=headers)) == HTTPStatus.UNAUTHORIZED


@pytest.mark.parametrize("kind", shipped_kinds())
def test_other_method_path_query_or_content_type_is_refused(kind: str) -> None:
    request = request_of(kind)
    mark = "&" if "?" in request.target else "?"
    headers = Headers(request.headers)
    headers["Content-Type"] = "text/plain"
    path, _, query = request.target.partition("?")
    for changed in (
        replace(request, method="PUT"),
        replace(request, target=f"{path}/x?{query}"),
        replace(request, target=f"/x{request.target}"),
        replace(request, target="/"),
        replace(request, target=f"{request.target}{mark}more=1"),
        replace(request, target=f"{request.target}{mark}more"),
        replace(request, target=f"{path}%FF?{query}"),
    ):
        assert is_refused(kind, changed)
    if kind == "kannel":
        assert is_refused(kind, replace(request, body=b"x"))
    else:
        assert is_refused(kind, replace(request, headers=headers))
        assert is_refused(kind, replace(request, body=b""))
        assert is_refused(kind, replace(request, body=b"\xff" + request.body))


def variants(kind: str) -> list[tuple[str, HttpRequest]]:
    """Return requests with one value missing, wrong or too much, each with a description."""
    request = request_of(kind)
    if kind in {"jasmin", "smsc", "smsru", "twilio", "vonage"}:
        pairs = dict(parse_qsl(request.body.decode()))
        return [
            (name, replace(request, body=urlencode(changed, quote_via=quote).encode()))
            for name, changed in changed_mappings(pairs)
        ] + [("twice", replace(request, body=request.body + b"&" + request.body))]
    if kind == "kannel":
        path, _, query = request.target.partition("?")
        return [
            (name, replace(request, target=f"{path}?{urlencode(changed, quote_via=quote)}"))
            for name, changed in changed_mappings(dict(parse_qsl(query)))
        ]
    return [
        (name, replace(request, body=json.dumps(changed).encode()))
        for name, changed in changed_documents(json.loads(request.body))
    ]


def changed_mappings(pairs: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    changes = [("more", pairs | {"more": "1"})]
    for name, value in pairs.items():
        if value in FREE:
            continue
        changes += [
            (f"{name} missing", {each: pairs[each] for each in pairs if each != name}),
            (f"{name} wrong", pairs | {name: "Ω"}),
            (f"{name} empty", pairs | {name: ""}),
            (f"{name} longer", pairs | {name: f"{value}0000000000000000000"}),
        ]
    return changes


FREE = ("ACME", TEXTS["Latin"])
"""Values of a request that may be others."""


def changed_documents(document: Any) -> list[tuple[str, Any]]:
    """Return copies of a JSON document, each with one change."""
    match document:
        case dict():
            changes: list[tuple[str, Any]] = [("more", document | {"more": 1})]
            for name, entry in document.items():
                nested = changed_documents(entry)
                changes += [(f"{name}.{each}", document | {name: new}) for each, new in nested]
                if entry not in FREE:
                    rest = {each: document[each] for each in document if each != name}
                    changes.append((f"{name} missing", rest))
            return changes
        case list():
            nested = changed_documents(document[0])
            more = [("twice", document * 2), ("none", []), ("no list", document[0])]
            return more + [(f"0.{each}", [new]) for each, new in nested]
        case str() if document in FREE:
            return [("null", None), ("number", 1), ("list", [document]), ("empty", "")]
        case bool():
            return [("other", not document), ("number", int(document)), ("text", "true")]
        case int():
            return [("text", str(document)), ("null", None), ("float", float(document))]
        case _:
            return [("wrong", "Ω"), ("null", None), ("number", 12), ("longer", f"{document}\n")]


VARIANTS = [
    pytest.param(kind, request, id=f"{kind} {name}")
    for kind in shipped_kinds()
    for name, request in variants(kind)
]


@pytest.mark.parametrize(("kind", "request_"), VARIANTS)
def test_request_with_a_missing_wrong_or_unknown_value_is_refused(
    kind: str, request_: HttpRequest
) -> None:
    assert is_refused(kind, request_)


@pytest.mark.parametrize(
    ("kind", "old", "new"),
    [
        ("jasmin", "coding=0", "coding=8"),
        ("smsru", "ttl=120", "ttl=1441"),
        ("vonage", "type=text", "type=unicode"),
        ("plivo", '"message_expiry":7200', '"message_expiry":10801'),
        ("infobip", '"messageId":"12"', '"messageId":"13"'),  # not the id of the callback
        ("twilio", "To=%2B79161234567", "To=79161234567"),
        ("smsc", "phones=79161234567", "phones=%2B79161234567"),
    ],
)
def test_value_that_does_not_fit_the_others_is_refused(kind: str, old: str, new: str) -> None:
    request = request_of(kind)
    assert old.encode() in request.body
    changed = replace(request, body=request.body.replace(old.encode(), new.encode()))
    assert read(kind, changed) == HTTPStatus.BAD_REQUEST


def test_hexadecimal_text_that_is_no_utf_16_is_refused() -> None:
    request = request_of("jasmin", "Ж")
    changed = replace(request, body=request.body.replace(b"0416", b"D800"))
    assert changed != request
    assert read("jasmin", changed) == HTTPStatus.BAD_REQUEST


def test_deeply_nested_body_is_refused() -> None:
    request = request_of("sinch")
    assert is_refused("sinch", replace(request, body=b"[" * 4_000 + b"]" * 4_000))


def test_each_placeholder_of_the_message_can_be_read() -> None:
    assert MESSAGE_VALUES.keys() == MESSAGE_PLACEHOLDERS.keys()


@pytest.mark.parametrize(
    "request_",
    [request_of("json"), request_of("json", TEXTS["emoji"])]
    + [request for _, request in variants("json")],
)
def test_reader_of_kind_json_agrees_with_its_profile(request_: HttpRequest) -> None:
    by_reader, by_profile = JsonReader("tok").read(request_), read("json", request_)
    if isinstance(by_profile, SandboxMessage):
        assert isinstance(by_reader, SandboxMessage)
        assert asdict(by_reader) == asdict(by_profile)
    else:
        assert by_reader == by_profile


def test_text_form_of_a_message_shows_neither_phone_nor_text() -> None:
    message = SandboxMessage(id=12, phone=79161234567, text="secret")
    assert f"{message} {message!r}" == "SandboxMessage(id=12) SandboxMessage(id=12)"
