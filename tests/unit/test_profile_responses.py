"""What the responses of each provider mean, by the profiles that are shipped.

The samples follow the providers' documentation and client libraries; a profile names its sources.
"""

import json

import pytest

from mailer.gateway.profile import ResponsePart, WaitPart
from mailer.gateway.profile_file import load_profile, shipped_kinds
from mailer.gateway.protocol import (
    Accepted,
    AccountTrouble,
    Outcome,
    Rejected,
    TemporaryFailure,
    Unknown,
)
from mailer.gateway.response_rule import Response
from mailer.gateway.response_rules import ResponseRules

OPTED_OUT = Rejected("opted_out", is_opt_out=True)
BAD_RESPONSE = TemporaryFailure("bad_response")


def outcome(kind: str, status: int, body: object, retry_after: float | None = None) -> Outcome:
    """Return the outcome of a response. `body` is a text, bytes, or a document of JSON."""
    if isinstance(body, str):
        body = body.encode()
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    profile = load_profile(kind)
    rules = ResponseRules(profile.response, recognizes_repeats=profile.limits.recognizes_repeats)
    return rules.outcome(Response(status, content, retry_after))


def account(reason: str, trouble: AccountTrouble) -> TemporaryFailure:
    """Return the outcome of a response that says that the account cannot send."""
    return TemporaryFailure(reason, affects_all=True, trouble=trouble)


def vonage(*statuses: object, text: str = "") -> object:
    """Return a response of Vonage, with one entry for each part of the text."""
    return {
        "message-count": str(len(statuses)),
        "messages": [
            {"status": status, "message-id": f"id{number}", "error-text": text}
            for number, status in enumerate(statuses, start=1)
        ],
    }


def infobip(group: int, name: str) -> object:
    """Return a response of Infobip."""
    status = {"groupId": group, "groupName": "any", "id": 7, "name": name}
    return {"bulkId": "b", "messages": [{"messageId": "12", "status": status}]}


def smsru(status_code: int, code: int) -> object:
    """Return a response of SMS.ru: the code of the request, and the code of the message."""
    message = {"status": "OK", "status_code": code, "sms_id": "000-10000000"}
    return {"status": "OK", "status_code": status_code, "sms": {"79161234567": message}}


def errors(*codes: object) -> object:
    """Return a response with a list of errors, as Telnyx and MessageBird send it."""
    return {"errors": [{"code": code, "title": "any"} for code in codes]}


VONAGE_TROUBLES: dict[str, AccountTrouble] = {
    "4": "bad_credentials",
    "8": "account_blocked",
    "9": "no_credit",
    "11": "account_blocked",
    "14": "bad_credentials",
    "15": "sender_refused",
    "32": "bad_credentials",
}
INFOBIP_TROUBLES: dict[str, AccountTrouble] = {
    "NOT_ENOUGH_CREDITS": "no_credit",
    "PREPAID_PACKAGE_EXPIRED": "no_credit",
    "SENDER": "sender_refused",
    "SOURCE": "sender_refused",
    "ROUTE_NOT_AVAILABLE": "account_blocked",
}
SMSRU_TROUBLES: dict[int, AccountTrouble] = {
    200: "bad_credentials",
    201: "no_credit",
    300: "bad_credentials",
    301: "bad_credentials",
    302: "account_blocked",
}

CASES = [
    # json
    ("json", 200, {"code": 0}, Accepted()),
    ("json", 200, {"code": 0.0, "message": "OK"}, Accepted()),
    ("json", 200, {"code": "0"}, BAD_RESPONSE),
    ("json", 200, {"code": False}, BAD_RESPONSE),
    ("json", 200, {"code": 1}, BAD_RESPONSE),
    ("json", 200, "OK", BAD_RESPONSE),
    ("json", 400, {"code": 0}, Rejected("rejected_400")),
    ("json", 415, "", Rejected("rejected_415")),
    ("json", 401, "", account("http_401", "bad_credentials")),
    ("json", 403, "", account("http_403", "bad_credentials")),
    # twilio
    ("twilio", 201, {"sid": "SM1", "status": "queued"}, Accepted("SM1")),
    ("twilio", 400, {"code": 21211, "status": 400}, Rejected("rejected_21211")),
    ("twilio", 400, {"code": 21612}, Rejected("rejected_21612")),
    ("twilio", 400, {"code": 21614}, Rejected("rejected_21614")),
    ("twilio", 400, {"code": 21610}, OPTED_OUT),
    ("twilio", 401, {"code": 20003}, account("bad_credentials", "bad_credentials")),
    *(
        ("twilio", 400, {"code": code}, account("sender_refused", "sender_refused"))
        for code in (21601, 21603, 21606, 21659, 21660, 21661)
    ),
    *(
        ("twilio", 401, {"code": code}, account("account_blocked", "account_blocked"))
        for code in (10001, 20005, 90010)
    ),
    ("twilio", 400, {"code": 21608}, Rejected("rejected_21608")),
    (
        "twilio",
        400,
        {"code": 21617, "message": "The concatenated message body exceeds", "status": 400},
        Rejected("rejected_400"),
    ),
    *(
        ("twilio", 429, {"code": code}, TemporaryFailure(f"code_{code}", affects_all=True))
        for code in (20429, 21611, 63038)
    ),
    ("twilio", 500, {"code": 20500}, TemporaryFailure("http_500")),
    # vonage, where the status is always 200
    ("vonage", 200, vonage("0"), Accepted("id1")),
    ("vonage", 200, vonage(0), Accepted("id1")),
    ("vonage", 200, vonage("0", "0", "0"), Accepted("id1,id2,id3")),
    ("vonage", 200, vonage("0", "5"), Unknown("partly_accepted", is_final=True)),
    (
        "vonage",
        200,
        vonage("1", text="Throughput Rate Exceeded - please wait [ 250 ] and retry"),
        TemporaryFailure("code_1", 0.25, affects_all=True),
    ),
    ("vonage", 200, vonage("5"), TemporaryFailure("code_5")),
    ("vonage", 200, vonage("10"), TemporaryFailure("code_10", affects_all=True)),
    *(
        ("vonage", 200, vonage(code), Rejected(f"rejected_{code}"))
        for code in ("2", "3", "6", "7", "12", "29", "33")
    ),
    *(
        ("vonage", 200, vonage(code), account(trouble, trouble))
        for code, trouble in VONAGE_TROUBLES.items()
    ),
    # infobip
    ("infobip", 200, infobip(1, "PENDING_ACCEPTED"), Accepted("12")),
    ("infobip", 200, infobip(5, "REJECTED_DUPLICATE_MESSAGE_ID"), Accepted("12")),
    ("infobip", 401, {}, account("http_401", "bad_credentials")),
    ("infobip", 403, {}, TemporaryFailure("http_403")),
    *(
        ("infobip", 200, infobip(5, f"REJECTED_{name}"), account(trouble, trouble))
        for name, trouble in INFOBIP_TROUBLES.items()
    ),
    *(
        ("infobip", 200, infobip(5, name), Rejected(f"rejected_{name}"))
        for name in ("REJECTED_DND", "REJECTED_MESSAGE_TOO_LONG", "REJECTED_FLOODING_FILTER")
    ),
    ("infobip", 200, infobip(5, "SIGNALS_BLOCKED"), Rejected("rejected_5")),
    ("infobip", 200, "<html>", Unknown("bad_response")),  # it may not recognize the repeat
    (
        "infobip",
        200,
        infobip(5, "REJECTED_SYSTEM_ERROR"),
        TemporaryFailure("code_REJECTED_SYSTEM_ERROR"),
    ),
    ("infobip", 502, "<html>", TemporaryFailure("http_502")),
    # sinch
    ("sinch", 201, {"id": "01FC66621XXXXX119Z8PMV1QPQ"}, Accepted("01FC66621XXXXX119Z8PMV1QPQ")),
    ("sinch", 400, {"code": "syntax_invalid_json"}, Rejected("rejected_400")),
    ("sinch", 401, "", account("http_401", "bad_credentials")),
    (
        "sinch",
        403,
        {"code": "illegal_number_type", "text": "any"},
        Rejected("rejected_illegal_number_type"),
    ),
    (
        "sinch",
        403,
        {"code": "blocked_account", "text": "any"},
        account("account_blocked", "account_blocked"),
    ),
    ("sinch", 403, {"code": "missing_callback_url"}, TemporaryFailure("http_403")),
    ("sinch", 403, "", TemporaryFailure("http_403")),
    ("sinch", 429, "", TemporaryFailure("http_429")),
    ("sinch", 500, "", TemporaryFailure("http_500")),
    # messagebird
    (
        "messagebird",
        201,
        {"id": "e8077d803532c0b5937c639b60216938"},
        Accepted("e8077d803532c0b5937c639b60216938"),
    ),
    ("messagebird", 422, errors(9), Rejected("rejected_9")),
    ("messagebird", 422, errors(10), Rejected("rejected_10")),
    ("messagebird", 401, errors(2), account("bad_credentials", "bad_credentials")),
    ("messagebird", 422, errors(25), account("no_credit", "no_credit")),
    # plivo
    ("plivo", 202, {"message_uuid": ["db3ce55a", "ff3ce55b"]}, Accepted("db3ce55a,ff3ce55b")),
    ("plivo", 400, {"error": "invalid dst"}, Rejected("rejected_400")),
    ("plivo", 401, "", account("http_401", "bad_credentials")),
    ("plivo", 402, "", account("http_402", "no_credit")),
    ("plivo", 429, "", TemporaryFailure("http_429")),
    # telnyx
    ("telnyx", 200, {"data": {"id": "40385f64"}}, Accepted("40385f64")),
    ("telnyx", 400, errors(10016), Rejected("rejected_10016")),
    *(
        ("telnyx", 400, errors(code), Rejected(f"rejected_{code}"))
        for code in ("10002", "10016", "40001", "40012", "40310")
    ),
    *(
        ("telnyx", 400, errors(code), account("account_blocked", "account_blocked"))
        for code in ("20012", "20013", "20014", "40312", "40314")
    ),
    *(
        ("telnyx", 400, errors(code), account("sender_refused", "sender_refused"))
        for code in ("40013", "40100", "40305", "40306", "40315", "40320")
    ),
    ("telnyx", 429, errors("40318"), TemporaryFailure("code_40318", affects_all=True)),
    ("telnyx", 400, errors("40300"), OPTED_OUT),
    ("telnyx", 400, errors("40006"), TemporaryFailure("code_40006")),
    ("telnyx", 403, errors("10009"), account("bad_credentials", "bad_credentials")),
    ("telnyx", 403, errors("10010"), account("bad_credentials", "bad_credentials")),
    ("telnyx", 429, errors("10011"), TemporaryFailure("code_10011", affects_all=True)),
    ("telnyx", 429, errors("40011"), TemporaryFailure("code_40011", affects_all=True)),
    ("telnyx", 402, errors("20100"), account("no_credit", "no_credit")),
    ("telnyx", 403, errors("99999"), TemporaryFailure("http_403")),
    ("telnyx", 400, errors("40009"), Rejected("rejected_400")),
    ("telnyx", 422, errors("10015"), Rejected("rejected_422")),
    ("telnyx", 401, "", account("http_401", "bad_credentials")),
    # smsc, where the status is always 200
    ("smsc", 200, {"id": 12, "cnt": 1}, Accepted("12")),
    ("smsc", 200, {"id": "12", "cnt": 1}, Accepted("12")),
    *(
        ("smsc", 200, {"error": "any", "error_code": code}, Rejected(f"rejected_{code}"))
        for code in (1, 5, 6, 7, 8)
    ),
    ("smsc", 200, {"error": "any", "error_code": 2}, account("bad_credentials", "bad_credentials")),
    ("smsc", 200, {"error": "any", "error_code": 3}, account("no_credit", "no_credit")),
    ("smsc", 200, {"error": "any", "error_code": 4}, account("account_blocked", "account_blocked")),
    ("smsc", 200, {"error": "any", "error_code": 99}, TemporaryFailure("code_99")),
    *(  # with an id, and refused all the same
        ("smsc", 200, {"error": "any", "error_code": code, "id": 12}, Rejected(f"rejected_{code}"))
        for code in (6, 7, 8)
    ),
    (
        "smsc",
        200,
        {"error": "no money", "error_code": 3, "id": 12},
        account("no_credit", "no_credit"),
    ),
    *(
        (
            "smsc",
            200,
            {"error": text, "error_code": 9},
            TemporaryFailure("too_many_requests", affects_all=True),
        )
        for text in ("too many concurrent requests", "слишком много параллельных запросов")
    ),
    ("smsc", 200, {"error": "any", "error_code": 9}, Unknown("repeated_too_soon")),
    ("smsc", 200, {"id": 12}, BAD_RESPONSE),
    ("smsc", 502, {"id": 12, "cnt": 1}, TemporaryFailure("http_502")),
    # smsru, where the status is always 200
    ("smsru", 200, smsru(100, 100), Accepted("000-10000000")),
    *(
        ("smsru", 200, smsru(100, code), Rejected(f"rejected_{code}"))
        for code in (150, 202, 203, 205, 207, 214, 216, 217, 233)
    ),
    *(
        ("smsru", 200, smsru(100, code), TemporaryFailure(f"code_{code}"))
        for code in (220, 230, 231, 232, 500)
    ),
    ("smsru", 200, smsru(100, 209), OPTED_OUT),
    ("smsru", 200, smsru(100, 215), OPTED_OUT),
    ("smsru", 200, smsru(100, 201), account("no_credit", "no_credit")),
    ("smsru", 200, smsru(100, 204), account("sender_refused", "sender_refused")),
    ("smsru", 200, smsru(100, 221), account("sender_refused", "sender_refused")),
    ("smsru", 200, smsru(100, 206), TemporaryFailure("code_206", affects_all=True)),
    *(
        ("smsru", 200, {"status": "ERROR", "status_code": code}, account(trouble, trouble))
        for code, trouble in SMSRU_TROUBLES.items()
    ),
    (
        "smsru",
        200,
        {"status": "ERROR", "status_code": 206},
        TemporaryFailure("code_206", affects_all=True),
    ),
    # smsaero
    ("smsaero", 200, {"success": True, "data": {"id": 1, "status": 0}}, Accepted("1")),
    ("smsaero", 200, {"result": "no credits"}, account("no_credit", "no_credit")),
    ("smsaero", 200, {"result": "reject"}, Rejected("rejected")),
    ("smsaero", 401, "", account("http_401", "bad_credentials")),
    ("smsaero", 403, "", TemporaryFailure("http_403")),
    # exolve
    ("exolve", 200, {"message_id": "439166538"}, Accepted("439166538")),
    ("exolve", 401, "", account("http_401", "bad_credentials")),
    ("exolve", 403, "", TemporaryFailure("http_403")),
    # kannel answers in text, without an id
    ("kannel", 202, "0: Accepted for delivery", Accepted()),
    ("kannel", 202, "3: Queued for later delivery", Accepted()),
    ("kannel", 202, "Sent.", Accepted()),
    (
        "kannel",
        403,
        "Authorization failed for sendsms",
        account("bad_credentials", "bad_credentials"),
    ),
    (
        "kannel",
        403,
        "Not routable. Do not try again.",
        Rejected("rejected_403", other_gateways=True),
    ),
    ("kannel", 403, "Forbidden", TemporaryFailure("http_403")),
    ("kannel", 404, "", TemporaryFailure("http_404")),
    ("kannel", 405, "", TemporaryFailure("http_405")),
    ("kannel", 400, "Missing receiver number, rejected", Rejected("rejected_400")),
    ("kannel", 503, "Temporal failure, try again later.", TemporaryFailure("http_503")),
    # jasmin answers in text
    (
        "jasmin",
        200,
        'Success "07033084-5cfd-4812-90a4-e4d24ffb6e3d"',
        Accepted("07033084-5cfd-4812-90a4-e4d24ffb6e3d"),
    ),
    (
        "jasmin",
        400,
        'Error "Argument [to] has an invalid value: [+]."',
        Rejected("rejected_400"),
    ),
    (
        "jasmin",
        403,
        'Error "Authentication failure for username:recharge"',
        account("bad_credentials", "bad_credentials"),
    ),
    (
        "jasmin",
        400,
        'Error "Argument [password] has an invalid value: [longer than 16 characters]."',
        account("bad_credentials", "bad_credentials"),
    ),
    (
        "jasmin",
        400,
        'Error "Authorization failed for user [x] (Setting source address not authorized)."',
        account("sender_refused", "sender_refused"),
    ),
    *(  # 400 in the code, 403 in the documentation
        (
            "jasmin",
            status,
            'Error "Authorization failed for user [throughput] (Cannot send MT messages)."',
            account("bad_credentials", "bad_credentials"),
        )
        for status in (400, 403)
    ),
    *(
        (
            "jasmin",
            status,
            'Error "Value filter failed for user [recharge] (content filter mismatch)."',
            Rejected(f"rejected_{status}", other_gateways=True),
        )
        for status in (400, 403)
    ),
    (
        "jasmin",
        403,
        'Error "Cannot charge submit_sm, check RouterPB log file for details"',
        account("no_credit", "no_credit"),
    ),
    (
        "jasmin",
        403,
        'Error "User throughput exceeded"',
        TemporaryFailure("http_403", affects_all=True),
    ),
    ("jasmin", 403, 'Error "Interception specific"', TemporaryFailure("http_403")),
    ("jasmin", 412, 'Error "No route found"', account("no_route", "account_blocked")),
    (
        "jasmin",
        412,
        'Error "Failover route has no bound connectors"',
        TemporaryFailure("no_bound_connector", affects_all=True),
    ),
    ("jasmin", 500, 'Error "Cannot send submit_sm"', TemporaryFailure("http_500")),
    (
        "jasmin",
        400,
        'Error "Authorization failed for username [x] (Long content is not authorized)."',
        Rejected("content_not_allowed", other_gateways=True),
    ),
    # android
    ("android", 202, {"id": "12", "state": "Pending"}, Accepted("12")),
    ("android", 409, {"message": "duplicate"}, Accepted()),
    ("android", 400, {"message": "invalid phone"}, Rejected("rejected_400")),
    ("android", 401, "", account("http_401", "bad_credentials")),
    ("android", 500, "", TemporaryFailure("http_500")),
    # textbee
    ("textbee", 201, {"data": {"smsBatchId": "65f", "success": True}}, Accepted("65f")),
    ("textbee", 401, "", account("http_401", "bad_credentials")),
    ("textbee", 403, "", TemporaryFailure("http_403")),
]


@pytest.mark.parametrize(("kind", "status", "body", "expected"), CASES)
def test_response_has_the_documented_outcome(
    kind: str, status: int, body: object, expected: Outcome
) -> None:
    assert outcome(kind, status, body) == expected


def test_each_kind_has_cases() -> None:
    assert {kind for kind, *_ in CASES} == set(shipped_kinds())


@pytest.mark.parametrize("kind", shipped_kinds())
def test_retry_after_of_a_busy_gateway_concerns_all_messages(kind: str) -> None:
    assert outcome(kind, 503, "", 20) == TemporaryFailure("http_503", 20, affects_all=True)
    assert outcome(kind, 503, "") == TemporaryFailure("http_503")


@pytest.mark.parametrize("kind", shipped_kinds())
@pytest.mark.parametrize(
    "body", [b"", b"\xff\xfe", b"[" * 60_000, b"{}", b"[]", b"null", b'"text"', b"<html></html>"]
)
@pytest.mark.parametrize("status", [200, 202, 302, 404, 500, 599])
def test_strange_body_is_never_accepted(kind: str, status: int, body: bytes) -> None:
    if (kind, status) == ("kannel", 202):  # the status alone accepts the message
        return
    assert not isinstance(outcome(kind, status, body), Accepted)


@pytest.mark.parametrize(
    ("kind", "status", "body"),
    [
        ("twilio", 201, b""),
        ("twilio", 201, b'{"sid":'),
        ("messagebird", 201, b"{}"),
        ("plivo", 202, b'{"message_uuid": "not in a list"}'),
        ("vonage", 200, b"<html>"),
    ],
)
def test_success_that_cannot_be_read_may_be_an_acceptance(
    kind: str, status: int, body: bytes
) -> None:
    assert outcome(kind, status, body) == Unknown("bad_response")


def test_unreadable_success_of_a_gateway_that_recognizes_repeats_is_tried_again() -> None:
    assert outcome("android", 202, b"") == BAD_RESPONSE


def test_unknown_refusal_in_a_document_is_tried_again() -> None:
    assert outcome("smsc", 200, {"error": "new", "error_code": 777}) == BAD_RESPONSE


@pytest.mark.parametrize(
    "charset",
    [
        *("idna", "undefined", "punycode", "zlib_codec", "no-such"),
        *("iso-8859-99", "iso-8859-12", "cp1259", "utf-8le", "utf16le"),
    ],
)
def test_charset_that_is_none_of_texts_counts_as_utf_8(charset: str) -> None:
    rules = ResponseRules(load_profile("kannel").response)
    content_type = f"text/plain; charset={charset}"
    response = Response(202, b"0: Accepted for delivery", content_type=content_type)
    assert rules.outcome(response) == Accepted()


def test_entries_beyond_the_limit_are_not_read() -> None:
    many = {"messages": [{"status": "0", "message-id": "a"}] * 1_000}
    found = outcome("vonage", 200, many)
    assert isinstance(found, Accepted)
    assert found.gateway_message_id is not None
    assert len(found.gateway_message_id) <= 128


@pytest.mark.parametrize(
    ("body", "message_id"),
    [
        (rb'{"id": "a\u0000b"}', "ab"),
        (rb'{"id": "\ud800a\udfff"}', "a"),
        (rb'{"id": "\ud83d\ude00"}', "\N{GRINNING FACE}"),
        (rb'{"id": "\u001b[2Ja\r\n\u0085\u202e"}', "[2Ja"),
        (rb'{"id": "\u0000"}', None),
        (rb'{"id": "\u0000", "other": NaN}', None),
        (b'{"id": "a\x00b"}', "ab"),
        (b'{"id": 1' + b"0" * 1_000 + b"}", "1" + "0" * 127),
        (b'{"id": 1' + b"0" * 10_000 + b"}", None),
        (b'{"id": "' + b"a" * 60_000 + b'"}', "a" * 128),
    ],
    ids=range(10),
)
def test_id_of_a_gateway_is_short_and_can_be_stored_as_text(
    body: bytes, message_id: str | None
) -> None:
    by_path = ResponsePart(status=200, then="accepted", id="id")
    assert ResponseRules([by_path]).outcome(Response(200, body)) == Accepted(message_id)


@pytest.mark.parametrize(
    ("text", "message_id"),
    [
        (b"id=a\x00b", "ab"),
        (b"id=\xed\xa0\x80a", "\ufffd" * 3 + "a"),
        (b"id=" + b"a" * 200, "a" * 128),
    ],
)
def test_id_that_a_pattern_finds_is_short_and_can_be_stored_as_text(
    text: bytes, message_id: str
) -> None:
    by_pattern = ResponsePart(status=200, then="accepted", id_pattern="(?s)id=(.*)")
    assert ResponseRules([by_pattern]).outcome(Response(200, text)) == Accepted(message_id)


def test_pause_in_a_body_is_limited() -> None:
    hours = "Throughput Rate Exceeded - please wait [ 999999999999 ] and retry"
    assert outcome("vonage", 200, vonage("1", text=hours)) == TemporaryFailure(
        "code_1", 900, affects_all=True
    )


@pytest.mark.parametrize("number", ["nan", "inf", "-5", "0", "x", ""])
def test_pause_that_is_no_positive_number_is_ignored(number: str) -> None:
    wait = WaitPart(pattern="wait(.*)", unit="s")
    rules = ResponseRules([ResponsePart(status=429, then="temporary", wait=wait)])
    found = rules.outcome(Response(429, f"wait{number}".encode()))
    assert isinstance(found, TemporaryFailure)
    assert found.retry_after in {None, 900}


def test_reason_never_contains_free_text_of_a_response() -> None:
    rule = ResponsePart(status=400, path="message", pattern="phone", then="rejected")
    response = Response(400, b'{"message": "the phone 79161234567 is not valid"}')
    assert ResponseRules([rule]).outcome(response) == Rejected("rejected_400")


def test_text_in_another_charset_is_read() -> None:
    rules = ResponseRules(load_profile("kannel").response)
    response = Response(
        202, "0: Accepted for delivery".encode("utf-16"), content_type="text/plain; charset=utf-16"
    )
    assert rules.outcome(response) == Accepted()
