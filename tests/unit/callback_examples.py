"""Calls of providers, as their documents and the programs of others show them."""

from typing import Any, NamedTuple
from urllib.parse import quote, urlencode

import msgspec

from mailer.gateway.callback import Callback, Receipt, Reply

URL = "https://mailer.example/gateways/g/receipts?message=12"
FORM = "application/x-www-form-urlencoded"
JSON = "application/json"
CYRILLIC = "Привет, мир"


class Example(NamedTuple):
    """A call to a gateway of a kind, and what it brings."""

    kind: str
    callback: Callback
    receipts: list[Receipt]
    replies: list[Reply]


def get(fields: dict[str, str], url: str = URL) -> Callback:
    """Return a call by GET, with fields in the query."""
    return Callback("GET", f"{url}&{urlencode(fields)}", {}, b"")


def form(fields: dict[str, str] | str) -> Callback:
    """Return a call with a form."""
    body = fields if isinstance(fields, str) else urlencode(fields)
    return Callback("POST", URL, {"content-type": FORM}, body.encode())


def json(document: Any, content_type: str = JSON) -> Callback:  # any value of JSON
    """Return a call with a JSON document."""
    return Callback("POST", URL, {"content-type": content_type}, msgspec.json.encode(document))


TWILIO_RECEIPT = {
    "SmsSid": "SM1a2b",
    "SmsStatus": "delivered",
    "MessageStatus": "delivered",
    "To": "+15558675310",
    "MessageSid": "SM1a2b",
    "AccountSid": "AC1",
    "From": "+15017122661",
    "ApiVersion": "2010-04-01",
}
TWILIO_REPLY = {
    "ToCountry": "US",
    "SmsMessageSid": "SM9f",
    "NumMedia": "0",
    "SmsSid": "SM9f",
    "SmsStatus": "received",
    "Body": CYRILLIC,
    "To": "+15017122661",
    "NumSegments": "1",
    "MessageSid": "SM9f",
    "AccountSid": "AC1",
    "From": "+79161234567",
    "ApiVersion": "2010-04-01",
}
VONAGE_RECEIPT = {
    "msisdn": "447700900000",
    "to": "AcmeInc",
    "network-code": "12345",
    "messageId": "0A0000001234567B",
    "price": "0.03330000",
    "status": "delivered",
    "scts": "2001011400",
    "err-code": "0",
    "api-key": "abcd1234",
    "client-ref": "12",
    "message-timestamp": "2020-01-01 12:00:00 +0000",
}
VONAGE_REPLY = {
    "msisdn": "447700900001",
    "to": "447700900000",
    "messageId": "0A0000000123ABCD1",
    "text": "Hello world",
    "type": "text",
    "keyword": "HELLO",
    "message-timestamp": "2020-01-01T12:00:00.000+00:00",
}
VONAGE_PART = {"concat": "true", "concat-ref": "1", "concat-total": "3", "concat-part": "2"}
INFOBIP_RECEIPT = {
    "bulkId": "BULK-1",
    "price": {"pricePerMessage": 0.0, "currency": "EUR"},
    "status": {
        "id": 5,
        "groupId": 3,
        "groupName": "DELIVERED",
        "name": "DELIVERED_TO_HANDSET",
        "description": "Message delivered to handset",
    },
    "error": {"id": 0, "groupId": 0, "name": "NO_ERROR", "permanent": False},
    "messageId": "12",
    "doneAt": "2019-11-09T17:00:00.000+0000",
    "smsCount": 1,
    "sentAt": "2019-11-09T17:00:00.000+0000",
    "to": "41793026727",
    "callbackData": "12",
}
INFOBIP_OPERATOR = INFOBIP_RECEIPT | {
    "status": {"id": 2, "groupId": 3, "groupName": "DELIVERED", "name": "DELIVERED_TO_OPERATOR"}
}
INFOBIP_REFUSED = INFOBIP_RECEIPT | {
    "status": {"id": 12, "groupId": 5, "groupName": "REJECTED", "name": "REJECTED_NOT_ENOUGH"},
    "error": {"id": 27, "name": "EC_ABSENT_SUBSCRIBER", "permanent": False},
    "callbackData": "13",
    "messageId": "13",
}
INFOBIP_REPLY = {
    "messageId": "817790313235066447",
    "from": "385916242493",
    "to": "385921004026",
    "text": "QUIZ Correct answer is Paris",
    "cleanText": "Correct answer is Paris",
    "keyword": "QUIZ",
    "receivedAt": "2016-10-06T09:28:39.220Z",
    "smsCount": 1,
    "price": {"pricePerMessage": 0, "currency": "EUR"},
    "callbackData": "callbackData",
}
SINCH_RECEIPT = {
    "type": "recipient_delivery_report_sms",
    "at": "2022-08-30T08:16:08.930Z",
    "batch_id": "01FC66621XXXXX119Z8PMV1QPQ",
    "client_reference": "12",
    "code": 401,
    "recipient": "15551231234",
    "status": "Dispatched",
}
SINCH_REPLY = {
    "type": "mo_text",
    "body": "This is a test message.",
    "from": "16051234567",
    "id": "01XXXXX21XXXXX119Z8P1XXXXX",
    "operator_id": "string",
    "received_at": "2022-08-24T14:15:22Z",
    "to": "13185551234",
}
TELNYX_RECEIPT = {
    "data": {
        "event_type": "message.finalized",
        "id": "4ee8c3a6-4995-4309-a3c6-38e3db9ea4be",
        "payload": {
            "direction": "outbound",
            "errors": [],
            "from": {"phone_number": "+13125000000"},
            "id": "ac012cbf-5e09-46af-a69a-7c0e2d90993c",
            "text": "Hello there!",
            "to": [{"phone_number": "+13125000000", "status": "delivered"}],
        },
        "record_type": "event",
    },
    "meta": {"attempt": 1},
}
TELNYX_FAILED = {
    "data": {
        "event_type": "message.finalized",
        "payload": {
            "errors": [{"code": "40001", "title": "Not routable"}],
            "id": "ac01",
            "to": [{"phone_number": "+13125000000", "status": "delivery_failed"}],
        },
    }
}
TELNYX_REPLY = {
    "data": {
        "event_type": "message.received",
        "payload": {
            "direction": "inbound",
            "from": {"phone_number": "+79161234567", "status": "webhook_delivered"},
            "id": "84cca175-9755-4859-b67f-4730d7f58aa3",
            "text": "Hello from Telnyx!",
            "to": [{"phone_number": "+17735550002", "status": "webhook_delivered"}],
        },
    }
}
PLIVO_RECEIPT = {
    "Status": "delivered",
    "From": "13342031111",
    "ParentMessageUUID": "83876bdb-2033-4876-bfaf-0ff8693705af",
    "TotalRate": "0.0025",
    "PartInfo": "1 of 2",
    "ErrorCode": "000",
    "To": "918553651111",
    "MessageUUID": "93876bdb",
}
PLIVO_REPLY = {
    "To": "4759440448",
    "From": "4795961111",
    "TotalRate": "0",
    "Units": "1",
    "Text": "Msg",
    "Type": "sms",
    "MessageUUID": "7a242edc-2f57-11e7-98c9-06ab0bf64327",
}
MESSAGEBIRD_RECEIPT = {
    "id": "e8077d803532c0b5937c639b60216938",
    "reference": "12",
    "recipient": "31612345678",
    "status": "delivery_failed",
    "statusReason": "unknown subscriber",
    "statusErrorCode": "1",
    "statusDatetime": "2017-09-01T10:00:05+00:00",
}
MESSAGEBIRD_REPLY = {
    "id": "b2a9",
    "recipient": "31612345678",
    "originator": "31687654321",
    "body": "Yes",
    "createdDatetime": "2017-09-01T10:00:05+00:00",
}
ANDROID_RECEIPT = {
    "deviceId": "ffffffffceb0b1db0000018e937c815b",
    "event": "sms:failed",
    "id": "Ey6ECgOkVVFjz3CL48B8C",
    "payload": {
        "messageId": "12",
        "phoneNumber": "+79161234567",
        "simNumber": None,
        "failedAt": "2024-06-22T15:46:11.000+07:00",
        "reason": "Generic failure",
    },
    "webhookId": "<unique-id>",
}
ANDROID_REPLY = {
    "deviceId": "ffffffffceb0b1db0000018e937c815b",
    "event": "sms:received",
    "id": "Ey6ECgOkVVFjz3CL48B8C",
    "payload": {
        "messageId": "abc123",
        "message": "Android is always a sweet treat!",
        "phoneNumber": "+79161234567",
        "simNumber": 1,
        "receivedAt": "2024-06-22T15:46:11.000+07:00",
    },
    "webhookId": "<unique-id>",
}
TEXTBEE_RECEIPT = {
    "smsId": "66f0",
    "message": "Hello",
    "deviceId": "d1",
    "webhookSubscriptionId": "w1",
    "webhookEvent": "MESSAGE_FAILED",
    "idempotencyKey": "k1",
    "smsBatchId": "66b0",
    "status": "failed",
    "recipient": "+79161234567",
    "errorCode": "RESULT_ERROR_NO_SERVICE",
    "errorMessage": "No service",
}
TEXTBEE_REPLY = {
    "smsId": "66f1",
    "message": "Hi",
    "deviceId": "d1",
    "webhookEvent": "MESSAGE_RECEIVED",
    "idempotencyKey": "k2",
    "sender": "+79161234567",
    "receivedAt": "2025-01-01T00:00:00.000Z",
}
SMSC_REPLY = {"phone": "79161234567", "to": "79990000000", "id": "77", "md5": "0"}
SMSRU_ENTRIES = {
    "data[0]": "sms_status\n000000-10000000\n103\n1577836800",
    "data[1]": "sms_status\n000000-10000001\n104\n1577836800",
    "data[2]": "callcheck_status\n1234\n401\n1577836800",
    "hash": "0",
}
JASMIN_REPLY = {
    "id": "c1f2",
    "from": "+79161234567",
    "to": "79990000000",
    "origin-connector": "smsc",
}

EXAMPLES = [
    Example("twilio", form(TWILIO_RECEIPT), [Receipt("delivered", 12, "SM1a2b")], []),
    Example(
        "twilio",
        form(TWILIO_RECEIPT | {"MessageStatus": "undelivered", "ErrorCode": "30003"}),
        [Receipt("failed", 12, "SM1a2b", "30003")],
        [],
    ),
    Example(
        "twilio",
        form(TWILIO_REPLY),
        [],
        [Reply("79161234567", CYRILLIC, "+15017122661", "SM9f")],
    ),
    *(
        Example(
            "vonage",
            callback,
            [Receipt("delivered", 12, "0A0000001234567B", None, "0A0000001234567B")],
            [],
        )
        for callback in (
            get(VONAGE_RECEIPT),
            form(VONAGE_RECEIPT),
            json(VONAGE_RECEIPT),
            json(VONAGE_RECEIPT, FORM),
        )
    ),
    Example(
        "vonage",
        get(VONAGE_REPLY),
        [],
        [Reply("447700900001", "Hello world", "447700900000", "0A0000000123ABCD1")],
    ),
    Example(
        "vonage",
        json(VONAGE_REPLY | VONAGE_PART),
        [],
        [Reply("447700900001", "Hello world", "447700900000", "0A0000000123ABCD1", "1", 2, 3)],
    ),
    Example(
        "infobip",
        json({"results": [INFOBIP_RECEIPT, INFOBIP_OPERATOR, INFOBIP_REFUSED]}),
        [
            Receipt("delivered", 12, "12"),
            Receipt("sent", 12, "12"),
            Receipt("failed", 13, "13", "27"),
        ],
        [],
    ),
    Example(
        "infobip",
        json({"results": [INFOBIP_REPLY], "messageCount": 1, "pendingMessageCount": 0}),
        [],
        [
            Reply(
                "385916242493",
                "QUIZ Correct answer is Paris",
                "385921004026",
                "817790313235066447",
            )
        ],
    ),
    Example(
        "sinch",
        json(SINCH_RECEIPT),
        [Receipt("sent", 12, "01FC66621XXXXX119Z8PMV1QPQ")],
        [],
    ),
    Example(
        "sinch",
        json(SINCH_RECEIPT | {"status": "DELIVERED", "code": 0}),
        [Receipt("delivered", 12, "01FC66621XXXXX119Z8PMV1QPQ")],
        [],
    ),
    Example(
        "sinch",
        json(SINCH_REPLY),
        [],
        [
            Reply(
                "16051234567",
                "This is a test message.",
                "13185551234",
                "01XXXXX21XXXXX119Z8P1XXXXX",
            )
        ],
    ),
    Example("sinch", json(SINCH_REPLY | {"type": "mo_binary", "udh": "10010203040506"}), [], []),
    Example(
        "telnyx",
        json(TELNYX_RECEIPT),
        [Receipt("delivered", 12, "ac012cbf-5e09-46af-a69a-7c0e2d90993c")],
        [],
    ),
    Example("telnyx", json(TELNYX_FAILED), [Receipt("failed", 12, "ac01", "40001")], []),
    Example(
        "telnyx",
        json(TELNYX_REPLY),
        [],
        [
            Reply(
                "79161234567",
                "Hello from Telnyx!",
                "+17735550002",
                "84cca175-9755-4859-b67f-4730d7f58aa3",
            )
        ],
    ),
    Example(
        "plivo",
        form(PLIVO_RECEIPT),
        [Receipt("delivered", 12, "83876bdb-2033-4876-bfaf-0ff8693705af", None, "93876bdb")],
        [],
    ),
    Example(
        "plivo",
        form(PLIVO_REPLY),
        [],
        [Reply("4795961111", "Msg", "4759440448", "7a242edc-2f57-11e7-98c9-06ab0bf64327")],
    ),
    Example(
        "messagebird",
        get(MESSAGEBIRD_RECEIPT),
        [Receipt("failed", 12, "e8077d803532c0b5937c639b60216938", "1")],
        [],
    ),
    Example(
        "messagebird",
        form(MESSAGEBIRD_REPLY),
        [],
        [Reply("31687654321", "Yes", "31612345678", "b2a9")],
    ),
    Example(
        "messagebird",
        form({"mid": "m1", "shortcode": "1008", "originator": "31687654321", "message": "Yes"}),
        [],
        [Reply("31687654321", "Yes", "1008", "m1")],
    ),
    Example(
        "smsc",
        form({"id": "12", "phone": "79161234567", "status": "1", "time": "01.01.2026", "err": "0"}),
        [Receipt("delivered", 12, "12")],
        [],
    ),
    Example(
        "smsc",
        form({"id": "12", "phone": "79161234567", "status": "20", "err": "1", "md5": "0"}),
        [Receipt("failed", 12, "12", "1")],
        [],
    ),
    *(
        Example(
            "smsc",
            form(f"{urlencode(SMSC_REPLY)}&status=1&mes={quote(CYRILLIC, encoding=encoding)}"),
            [],
            [Reply("79161234567", CYRILLIC, "79990000000", "77")],
        )
        for encoding in ("utf-8", "windows-1251")
    ),
    Example(
        "smsru",
        form(SMSRU_ENTRIES),
        [
            Receipt("delivered", None, "000000-10000000"),
            Receipt("expired", None, "000000-10000001", "104"),
        ],
        [],
    ),
    Example("smsaero", form({"id": "5", "status": "1"}), [Receipt("delivered", 12, "5")], []),
    Example("kannel", get({"status": "8"}), [Receipt("sent", 12)], []),
    Example("kannel", get({"status": "1"}), [Receipt("delivered", 12)], []),
    Example("kannel", get({"status": "16"}), [Receipt("failed", 12)], []),
    *(
        Example(
            "kannel",
            Callback(
                "GET",
                f"{URL}&id=9a&from=%2B79161234567&to=79990000000&charset={charset}"
                f"&text={quote(CYRILLIC.encode(encoding), safe='')}",
                {},
                b"",
            ),
            [],
            [Reply("79161234567", CYRILLIC, "79990000000", "9a")],
        )
        for charset, encoding in (("UTF-16BE", "utf-16be"), ("GSM", "utf-8"), ("UTF-8", "utf-8"))
    ),
    Example(
        "jasmin",
        form({"id": "07033084-5cfd", "message_status": "ESME_ROK", "level": "1"}),
        [Receipt("sent", 12, "07033084-5cfd")],
        [],
    ),
    Example(
        "jasmin",
        form({"id": "07033084-5cfd", "message_status": "ESME_RINVDSTADR", "level": "1"}),
        [Receipt("failed", 12, "07033084-5cfd")],
        [],
    ),
    Example(
        "jasmin",
        form({"id": "0703", "message_status": "UNDELIV", "level": "2", "err": "045"}),
        [Receipt("failed", 12, "0703", "045")],
        [],
    ),
    *(
        Example(
            "jasmin",
            form(f"{urlencode(JASMIN_REPLY)}&coding={coding}&content={quote(text.encode(codec))}"),
            [],
            [Reply("79161234567", text, "79990000000", "c1f2")],
        )
        for coding, text, codec in ((8, CYRILLIC, "utf-16be"), (0, "STOP", "ascii"))
    ),
    Example("android", json(ANDROID_RECEIPT), [Receipt("failed", 12, "12", "Generic failure")], []),
    *(
        Example(
            "android",
            json(ANDROID_REPLY | {"payload": ANDROID_REPLY["payload"] | phones}),  # type: ignore[operator]  # a dict
            [],
            [
                Reply(
                    "79161234567",
                    "Android is always a sweet treat!",
                    phones.get("recipient"),
                    "Ey6ECgOkVVFjz3CL48B8C",
                )
            ],
        )
        for phones in ({}, {"sender": "+79161234567", "recipient": "+79990000000"})
    ),
    Example("android", json({"event": "system:ping", "payload": {"health": {}}}), [], []),
    Example(
        "textbee",
        json(TEXTBEE_RECEIPT),
        [Receipt("failed", None, "66b0", "RESULT_ERROR_NO_SERVICE")],
        [],
    ),
    Example("textbee", json(TEXTBEE_REPLY), [], [Reply("79161234567", "Hi", None, "66f1")]),
    Example("json", json({"id": 12, "status": "delivered"}), [Receipt("delivered", 12)], []),
    Example(
        "json",
        json({"reply_id": "r1", "from": "+7 916 123-45-67", "to": "1008", "text": "STOP"}),
        [],
        [Reply("79161234567", "STOP", "1008", "r1")],
    ),
]
