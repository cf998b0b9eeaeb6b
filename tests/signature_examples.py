"""Signed calls of providers: documented examples, and calls that a provider's SDK has signed.

None was made by mailer. The peers of `make peers` accept those for which a provider has an SDK.
"""

from datetime import UTC, datetime
from typing import NamedTuple

from mailer.gateway.callback import Callback

HOST = "https://mailer.example"
URL = f"{HOST}/gateways/g/receipts"
SIGNED_AT = datetime(2026, 1, 1, tzinfo=UTC)
TIMESTAMP = "1767225600"
"""`SIGNED_AT`, in seconds since 1970."""
FORM = {"content-type": "application/x-www-form-urlencoded"}
JSON = {"content-type": "application/json"}


class Example(NamedTuple):
    """A signed call."""

    name: str
    scheme: str
    secret: str
    callback: Callback
    now: datetime = SIGNED_AT


def get(url: str, headers: dict[str, str] | None = None) -> Callback:
    return Callback(method="GET", url=url, headers=headers or {}, body=b"")


def post(url: str, body: str, headers: dict[str, str]) -> Callback:
    return Callback(method="POST", url=url, headers=headers, body=body.encode())


# RequestValidator of twilio 9.13; the first is in Twilio's documentation
TWILIO_FORM = (
    "MessageSid=SM0123456789abcdef0123456789abcdef&MessageStatus=delivered&To=%2B79161234567"
    "&From=ACME&Body=%D0%9F%D1%80%D0%B8%D0%B2%D0%B5%D1%82%2C+%D0%BC%D0%B8%D1%80+%26+100%25"
)
TWILIO_HASH = "ce8c3c8da52a17f7dd3e526b3b67d41402b438513f6b2faf55189573f2873f02"


def twilio_form(signature: str, settings: str | None = None) -> Callback:
    headers = FORM | {"x-twilio-signature": signature}
    if settings is not None:
        headers["x-twilio-webhooks-signature-settings"] = settings
    return post(f"{URL}?message=12", TWILIO_FORM, headers)


TWILIO = [
    Example(
        "documented",
        "twilio",
        "12345",
        post(
            "https://mycompany.com/myapp.php?foo=1&bar=2",
            "CallSid=CA1234567890ABCDE&Digits=1234&From=%2B14158675309&To=%2B18005551212"
            "&Caller=%2B14158675309",
            FORM | {"x-twilio-signature": "RSOYDt4T1cUTdK1PDd93/VVr8B8="},
        ),
    ),
    Example("form", "twilio", "12345", twilio_form("PVV09ew9RrkUM0q79qjeBbj0zJc=")),
    Example("port", "twilio", "12345", twilio_form("bLl/QmGUvkd7YkB9Qr691SnwmIg=")),
    Example(
        "sha256",
        "twilio",
        "12345",
        twilio_form(
            "Pb1DVrpoLIgk/xos8Sbrrc4ZRIf+LObRvovO7EbIT2s=",
            "key=webhooks_sharedkey_1,algorithm=HMAC_SHA256",
        ),
    ),
    Example(
        "json",
        "twilio",
        "12345",
        post(
            f"{URL}?message=12&bodySHA256={TWILIO_HASH}",
            '{"MessageSid":"SM1","MessageStatus":"delivered"}',
            JSON | {"x-twilio-signature": "jJTnNq6jLrF72FVwH88uqMNbtYY="},
        ),
    ),
    Example(
        "get",
        "twilio",
        "12345",
        get(
            f"{URL}?MessageSid=SM1&MessageStatus=sent",
            {"x-twilio-signature": "ivWHf93H7kia46CW2jq1iYEqQtE="},
        ),
    ),
]

# signature_v3 of plivo 4.63
PLIVO_FORM = (
    "MessageUUID=b7c1&ParentMessageUUID=a001&Status=delivered&To=79161234567"
    "&Text=%D0%9F%D1%80%D0%B8%D0%B2%D0%B5%D1%82+%26+%D0%BF%D0%BE%D0%BA%D0%B0"
)


def plivo_headers(signature: str, header: str = "x-plivo-signature-ma-v3") -> dict[str, str]:
    return {"x-plivo-signature-v3-nonce": "12345678901234567890", header: signature}


PLIVO = [
    Example(
        "form",
        "plivo",
        "plivo-token",
        post(
            f"{URL}?message=12",
            PLIVO_FORM,
            FORM | plivo_headers("a4gKjWysG+vkD0z+6nQsf1X4hI92lMn9XRm7OfD/eAw="),
        ),
    ),
    Example(
        "without a query",
        "plivo",
        "plivo-token",
        post(URL, PLIVO_FORM, FORM | plivo_headers("vVD5/VUV4ZV5yV3olU2EPwnJK+sQbv4TxzKrc6hsWCI=")),
    ),
    Example(
        "get",
        "plivo",
        "plivo-token",
        get(
            f"{URL}?Status=sent&ParentMessageUUID=a001&ErrorCode=",
            plivo_headers("IQODzGLLKOeB+60R1OB3380hnqEy7zeWLSbSOxvE3Vg=", "x-plivo-signature-v3"),
        ),
    ),
]

# Auth of vonage-http-client 1.5; the first by md5sum, as its documentation says
VONAGE_FIELDS = (
    "msisdn=79161234567&to=ACME&messageId=0A0000001234567B&status=delivered&err-code=0"
    "&client-ref=12&price=0.0333&message-timestamp=2026-01-01+00%3A00%3A00&timestamp=1767225600"
    "&nonce=b1&text=%D0%9F%D1%80%D0%B8%D0%B2%D0%B5%D1%82+%26+1%3D1"
)
VONAGE_SIGNATURES = {
    "md5hash": "83d614459817d2fd9facea1761b016a8",
    "md5": "0a1feca00756ca45e439489474356892",
    "sha1": "8e9c3067415f96b99f1af7dab0ab4815c79da980",
    "sha256": "5c57a515788e60d9dc9cd4258c3746fccb91ab1c9ff5706c6bb87da33fdc9132",
    "sha512": "bee782a248468f8063645bcecc49a6220f1f8298a3f2c80dcab57949a2b11b31"
    "314fff3e3e729b8116ec90a66ccb42bc5784775af1825c278c2bb5704f5faaf5",
}
VONAGE_JSON = (
    '{"msisdn":"79161234567","to":"ACME","messageId":"0A0000001234567B","status":"delivered",'
    '"err-code":"0","client-ref":"12","price":"0.0333",'
    '"message-timestamp":"2026-01-01 00:00:00","timestamp":1767225600,"nonce":"b1",'
    '"text":"Привет & 1=1","sig":"%s"}'
)
VONAGE = [
    *(
        Example(method, "vonage", "vonage-secret", get(f"{URL}?{VONAGE_FIELDS}&sig={signature}"))
        for method, signature in VONAGE_SIGNATURES.items()
    ),
    Example(
        "form",
        "vonage",
        "vonage-secret",
        post(URL, f"{VONAGE_FIELDS}&sig={VONAGE_SIGNATURES['sha256']}", FORM),
    ),
    Example(
        "json",
        "vonage",
        "vonage-secret",
        post(URL, VONAGE_JSON % VONAGE_SIGNATURES["sha256"].upper(), JSON),
    ),
]

# the first is in the tests of sinch for Python, the other by sinch 2.3
SINCH_NONCE = "01FJA8B4A7BM43YGWSG9GBV067"


def sinch_headers(signature: str, timestamp: str) -> dict[str, str]:
    return JSON | {
        "x-sinch-webhook-signature": signature,
        "x-sinch-webhook-signature-nonce": SINCH_NONCE,
        "x-sinch-webhook-signature-timestamp": timestamp,
    }


SINCH = [
    Example(
        "documented",
        "sinch",
        "foo_secret1234",
        post(
            URL,
            '{"app_id":"01EB37HMH1M6SV18BSNS3G135H","accepted_time":"2020-11-17T15:09:11.659Z",'
            '"project_id":"c36f3d3d-1513-2edd-ae42-11995557ff61",'
            '"message_delivery_report":{"message_id":"01EQBC1A3BEK731GY4YXEN0C2R",'
            '"conversation_id":"01EPYATA64TMNZ1FV02JKF12JF","status":"QUEUED_ON_CHANNEL",'
            '"contact_id":"01EXA07N79THJ20WSN6AS30TMW"}}',
            sinch_headers("Yc+3R1pIS78xLASybulhs8BsSo9BPB3Pr92QCUoczfk=", "1634579353"),
        ),
        datetime(2021, 10, 18, 17, 49, 13, tzinfo=UTC),
    ),
    Example(
        "receipt",
        "sinch",
        "foo_secret1234",
        post(
            URL,
            '{"type":"recipient_delivery_report_sms","batch_id":"01FC66621XXXXX119Z8PMV1QPQ",'
            '"recipient":"79161234567","code":0,"status":"Delivered","client_reference":"12"}',
            sinch_headers("FcU7k1/qrGrQtRY28GFRwVJLpgX1ofKlze4Q3kl30eg=", TIMESTAMP),
        ),
    ),
]

# from tests/test_request_validator of messagebird/python-rest-api
MESSAGEBIRD_KEY = "36efdd1aace2e26cd490f0d951138253bef2f7c6d34d18981da781555cc4cebb"
MESSAGEBIRD_URL = "https://example.com/path?bar=1&foo=2"
MESSAGEBIRD_TIME = datetime(2021, 7, 5, 10, tzinfo=UTC)
MESSAGEBIRD = [
    Example(
        "get",
        "messagebird",
        MESSAGEBIRD_KEY,
        get(
            MESSAGEBIRD_URL,
            {
                "messagebird-signature-jwt": "eyJhbGciOiJIUzI1NiIsInR5cCI6IkpXVCJ9.eyJpc3MiOiJNZXNz"
                "YWdlQmlyZCIsIm5iZiI6MTYyNTQ3OTIwMCwiZXhwIjoxNjI1NDc5MjYwLCJqdGkiOiJjOTQ2YWY3Ny1lM"
                "TgyLTRlYWEtYjJmZi0xYTU0NWI1ZTk5MWEiLCJ1cmxfaGFzaCI6IjQxZjA1ZjBkZGQwYTIyYWIyMDlhYz"
                "Q2ZjQ3YzQ1NzJkOWNlZmEyNTdlZDc0YjI0MDA0YmFlNzUzZWNlNmMyNjAifQ.huo2ou6JDoDc7sV25d75"
                "UMWeYhBeavQlLsqIibSZuac"
            },
        ),
        MESSAGEBIRD_TIME,
    ),
    Example(
        "post",
        "messagebird",
        MESSAGEBIRD_KEY,
        post(
            MESSAGEBIRD_URL,
            "Hello, World!",
            {
                "messagebird-signature-jwt": "eyJhbGciOiJIUzI1NiIsInR5cCI6IkpXVCJ9.eyJpc3MiOiJNZXNz"
                "YWdlQmlyZCIsIm5iZiI6MTYyNTQ3OTIwMCwiZXhwIjoxNjI1NDc5MjYwLCJqdGkiOiI5M2U1NTAwNi1hM"
                "GU4LTQ1MjYtYTE5MC1mYTVmZjAwZWExMTYiLCJ1cmxfaGFzaCI6IjQxZjA1ZjBkZGQwYTIyYWIyMDlhYz"
                "Q2ZjQ3YzQ1NzJkOWNlZmEyNTdlZDc0YjI0MDA0YmFlNzUzZWNlNmMyNjAiLCJwYXlsb2FkX2hhc2giOiJ"
                "kZmZkNjAyMWJiMmJkNWIwYWY2NzYyOTA4MDllYzNhNTMxOTFkZDgxYzdmNzBhNGIyODY4OGEzNjIxODI5"
                "ODZmIn0._H--TOuYFLpeEH39-rg5E3IHVkjHozBcaKVWPRC5m9I"
            },
        ),
        MESSAGEBIRD_TIME,
    ),
]

# PyNaCl, with which telnyx 4.189 verifies
TELNYX_PRIVATE_KEY = "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8="
TELNYX_PUBLIC_KEY = "A6EHv/POEL4dcN0Y50vAmWfk1jCbpQ1fHdyGZBJVMbg="
TELNYX = [
    Example(
        "receipt",
        "telnyx",
        TELNYX_PUBLIC_KEY,
        post(
            URL,
            '{"data":{"event_type":"message.finalized","payload":{"id":"40385f64",'
            '"to":[{"status":"delivered"}]}}}',
            JSON
            | {
                "telnyx-timestamp": TIMESTAMP,
                "telnyx-signature-ed25519": "5NyJMdQFHVZmnTJSHuSGWEjG6VR/v9ZdyuvJgc80U3fLlaoEbIUlH8"
                "TvZp4r/yoeoud0ywADqgBM4fFK0kHRAQ==",
            },
        ),
    ),
]

# md5sum, sha1sum, sha256sum and openssl, as the sources that each module names say
SMSC = [
    Example(
        "md5",
        "smsc",
        "sms-word",
        post(URL, "id=12&phone=79161234567&status=1&md5=9b355d5ee05a664a22e8a7e3f8db9493", FORM),
    ),
    Example(
        "sha1",
        "smsc",
        "sms-word",
        post(
            URL,
            "id=12&phone=79161234567&status=1&sha1=e13606f168ba0f302915cc7a59466d1490afce2b",
            FORM,
        ),
    ),
    Example(
        "reply",
        "smsc",
        "sms-word",
        post(
            URL,
            "phone=79161234567&mes=%D0%A1%D1%82%D0%BE%D0%BF%3A+%D0%B4%D0%B0+%26+%D0%BD%D0%B5%D1%82"
            "&to=79990000000&md5=2f55f717cb3368071f0018f08b41744c",
            FORM,
        ),
    ),
]
SMSRU = [
    Example(
        "receipts",
        "smsru",
        "F2D79B58-A5A2-2F9E-91C8-73D12CE2E102",
        post(
            URL,
            "data%5B0%5D=sms_status%0A000000-10000000%0A103%0A1767225600"
            "&data%5B1%5D=sms_status%0A000000-10000001%0A104%0A1767225601"
            "&hash=bdf7d300073b5484b67b40569db90bc839d9407d98cc4455861dd818ff223188",
            FORM,
        ),
    ),
]
ANDROID = [
    Example(
        "reply",
        "android",
        "android-key",
        post(
            URL,
            '{"deviceId":"ffffffffceb0b1db00000193991c27e5","event":"sms:received",'
            '"id":"-9qZ4oiiZZRm-h_A3mrp2","payload":{"message":"Android is always a sweet treat!",'
            '"receivedAt":"2025-03-14T07:29:55.000+07:00","messageId":"69bde8d0",'
            '"phoneNumber":"6505551212","simNumber":1},"webhookId":"LreFUt-Z3sSq0JufY9uWB"}',
            JSON
            | {
                "x-timestamp": "1741912196",
                "x-signature": "4a9b451417e06da66cff2c716cf5c4ab247dee9583f0ad5fe64ccee4d0b1c1f8",
            },
        ),
        datetime(2025, 3, 14, 0, 29, 56, tzinfo=UTC),
    ),
]
TEXTBEE = [
    Example(
        "receipt",
        "textbee",
        "textbee-signing-secret",
        post(
            URL,
            '{"smsId":"65f0","smsBatchId":"65e9","status":"delivered",'
            '"webhookEvent":"MESSAGE_DELIVERED","idempotencyKey":"0b6d"}',
            JSON
            | {"x-signature": "98725f96f79555fcbacc43e77f990f156cc461524a16517972d4c7d3bf23f14b"},
        ),
    ),
]

OF_SDKS = [*TWILIO, *PLIVO, *VONAGE, *SINCH, *MESSAGEBIRD, *TELNYX]
"""Of providers that have an SDK."""
EXAMPLES = [*OF_SDKS, *SMSC, *SMSRU, *ANDROID, *TEXTBEE]
