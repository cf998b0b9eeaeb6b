"""The requests of each provider, by the profiles that are shipped."""

import base64
import json
from datetime import UTC, datetime
from urllib.parse import parse_qsl, urlsplit

import pytest

from mailer.gateway.profile_file import load_profile, read_profile, shipped_kinds
from mailer.gateway.protocol import OutgoingMessage
from mailer.gateway.request_template import RequestTemplate
from mailer.gateway.template import Texts
from mailer.urls import read_gateway_url

ACCOUNT = {
    "account": "AC1",
    "username": "ann",
    "password": "p/ ä&",
    "token": "tok",
}
CALLBACK = "https://mailer.example/gateways/g/receipts?id=12"
LATIN = 'It is "free" & 100% off\n'
CYRILLIC = "Привет, мир & 100%"


class Sent:
    """A rendered HTTP request, parsed again."""

    def __init__(self, data: bytes) -> None:
        head, _, self.body = data.partition(b"\r\n\r\n")
        line, *headers = head.decode("latin-1").split("\r\n")
        self.method, self.target, _ = line.split(" ")
        self.headers = dict(header.split(": ", 1) for header in headers)
        self.path = urlsplit(self.target).path
        self.query = dict(parse_qsl(urlsplit(self.target).query, keep_blank_values=True))

    @property
    def json(self) -> dict[str, object]:
        """The body as a document of JSON."""
        assert self.headers["Content-Type"] == "application/json"
        document: dict[str, object] = json.loads(self.body)
        return document

    @property
    def form(self) -> dict[str, str]:
        """The body as the fields of a form, in UTF-8."""
        assert self.headers["Content-Type"] == "application/x-www-form-urlencoded"
        return dict(parse_qsl(self.body.decode(), keep_blank_values=True, strict_parsing=True))


def message(text: str, *, sender: str = "ACME", callback: str = CALLBACK) -> OutgoingMessage:
    """Return message 12, which is valid for two hours."""
    return OutgoingMessage(
        id=12,
        phone="79161234567",
        text=text,
        sender=sender,
        validity=7_200,
        valid_from=datetime(2030, 1, 2, 1, 4, 5, tzinfo=UTC),
        callback=callback,
    )


def send(
    kind: str,
    text: str = LATIN,
    *,
    url: str | None = None,
    sender: str = "ACME",
    callback: str = CALLBACK,
) -> Sent:
    """Return the request of a gateway of this kind."""
    profile = load_profile(kind)
    address = url or profile.url or "https://gateway.example"
    texts = Texts(ACCOUNT, profile.by_text, profile.with_callback)
    template = RequestTemplate(profile.request, read_gateway_url(address), texts, {"Host": "h"})
    data = template.render(message(text, sender=sender, callback=callback))
    sent = Sent(data)
    if profile.request.body != "none":
        assert sent.headers["Content-Length"] == str(len(sent.body))
    return sent


def basic(user: str, password: str) -> str:
    """Return the header of HTTP Basic authentication."""
    return f"Basic {base64.b64encode(f'{user}:{password}'.encode()).decode()}"


def test_json() -> None:
    sent = send("json", CYRILLIC, url="https://gateway.example/send")
    assert (sent.method, sent.target) == ("POST", "/send12")
    assert sent.headers["Authorization"] == "Bearer tok"
    assert sent.json == {
        "id": 12,
        "phone": 79161234567,
        "text": CYRILLIC,
        "callback": CALLBACK,
    }


def test_twilio() -> None:
    sent = send("twilio", CYRILLIC)
    assert (sent.method, sent.target) == ("POST", "/2010-04-01/Accounts/AC1/Messages.json")
    assert sent.headers["Authorization"] == basic("AC1", "tok")
    assert sent.form == {
        "To": "+79161234567",
        "From": "ACME",
        "Body": CYRILLIC,
        "ValidityPeriod": "7200",
        "StatusCallback": CALLBACK,
    }


@pytest.mark.parametrize(("text", "type_"), [(LATIN, "text"), (CYRILLIC, "unicode")])
def test_vonage(text: str, type_: str) -> None:
    sent = send("vonage", text)
    assert (sent.method, sent.target) == ("POST", "/sms/json")
    assert sent.headers["Authorization"] == basic("AC1", "tok")
    assert sent.form == {
        "from": "ACME",
        "to": "79161234567",
        "text": text,
        "type": type_,
        "ttl": "7200000",
        "client-ref": "12",
        "callback": CALLBACK,
    }


def test_infobip() -> None:
    sent = send("infobip", CYRILLIC)
    assert (sent.method, sent.target) == ("POST", "/sms/3/messages")
    assert sent.headers["Authorization"] == "App tok"
    assert sent.json == {
        "messages": [
            {
                "sender": "ACME",
                "destinations": [{"to": "79161234567", "messageId": "12"}],
                "content": {"text": CYRILLIC},
                "options": {"validityPeriod": {"amount": 120, "timeUnit": "MINUTES"}},
                "webhooks": {"delivery": {"url": CALLBACK}, "callbackData": "12"},
            }
        ]
    }


def test_sinch() -> None:
    sent = send("sinch", CYRILLIC)
    assert (sent.method, sent.target) == ("POST", "/xms/v1/AC1/batches")
    assert sent.headers["Authorization"] == "Bearer tok"
    assert sent.json == {
        "to": ["+79161234567"],
        "from": "ACME",
        "body": CYRILLIC,
        "type": "mt_text",
        "expire_at": "2030-01-02T03:04:05.000Z",
        "client_reference": "12",
        "callback_url": CALLBACK,
        "delivery_report": "per_recipient",
    }


def test_messagebird() -> None:
    sent = send("messagebird", CYRILLIC)
    assert (sent.method, sent.target) == ("POST", "/messages")
    assert sent.headers["Authorization"] == "AccessKey tok"
    assert sent.json == {
        "recipients": ["79161234567"],
        "originator": "ACME",
        "body": CYRILLIC,
        "validity": 7_200,
        "datacoding": "unicode",
        "reference": "12",
        "reportUrl": CALLBACK,
    }


def test_plivo() -> None:
    sent = send("plivo", CYRILLIC)
    assert (sent.method, sent.target) == ("POST", "/v1/Account/AC1/Message/")
    assert sent.headers["Authorization"] == basic("AC1", "tok")
    assert sent.json == {
        "src": "ACME",
        "dst": "79161234567",
        "text": CYRILLIC,
        "type": "sms",
        "message_expiry": 7_200,
        "url": CALLBACK,
        "method": "POST",
    }


def test_telnyx() -> None:
    sent = send("telnyx", CYRILLIC)
    assert (sent.method, sent.target) == ("POST", "/v2/messages")
    assert sent.headers["Authorization"] == "Bearer tok"
    assert sent.json == {
        "from": "ACME",
        "to": "+79161234567",
        "text": CYRILLIC,
        "type": "SMS",
        "messaging_profile_id": "AC1",
        "webhook_url": CALLBACK,
    }


def test_smsc() -> None:
    sent = send("smsc", CYRILLIC)
    assert (sent.method, sent.target) == ("POST", "/sys/send.php")
    assert sent.form == {
        "login": "ann",
        "psw": "p/ ä&",
        "phones": "79161234567",
        "mes": CYRILLIC,
        "sender": "ACME",
        "id": "12",
        "valid": "2",
        "charset": "utf-8",
        "fmt": "3",
    }


def test_smsru() -> None:
    sent = send("smsru", CYRILLIC)
    assert (sent.method, sent.target) == ("POST", "/sms/send")
    assert sent.form == {
        "api_id": "tok",
        "to": "79161234567",
        "msg": CYRILLIC,
        "from": "ACME",
        "ttl": "120",
        "json": "1",
    }


def test_smsaero() -> None:
    sent = send("smsaero", CYRILLIC)
    assert (sent.method, sent.target) == ("POST", "/v2/sms/send")
    assert sent.headers["Authorization"] == basic("ann", "tok")
    assert sent.json == {
        "number": 79161234567,
        "sign": "ACME",
        "text": CYRILLIC,
        "callbackUrl": CALLBACK,
    }


def test_exolve() -> None:
    sent = send("exolve", CYRILLIC)
    assert (sent.method, sent.target) == ("POST", "/messaging/v1/SendSMS")
    assert sent.headers["Authorization"] == "Bearer tok"
    assert sent.json == {"number": "ACME", "destination": "79161234567", "text": CYRILLIC}


@pytest.mark.parametrize(("text", "coding"), [(LATIN, "0"), (CYRILLIC, "2")])
def test_kannel(text: str, coding: str) -> None:
    sent = send("kannel", text)
    assert (sent.method, sent.path, sent.body) == ("GET", "/cgi-bin/sendsms", b"")
    assert sent.query == {
        "username": "ann",
        "password": "p/ ä&",
        "from": "ACME",
        "to": "+79161234567",
        "text": text,
        "charset": "UTF-8",
        "coding": coding,
        "validity": "120",
        "dlr-mask": "31",
        "dlr-url": f"{CALLBACK}&status=%d",
    }


def test_jasmin() -> None:
    sent = send("jasmin", LATIN)
    common = {
        "username": "ann",
        "password": "p/ ä&",
        "to": "79161234567",
        "from": "ACME",
        "dlr": "yes",
        "dlr-level": "3",
        "dlr-method": "POST",
        "dlr-url": CALLBACK,
    }
    assert sent.form == common | {"content": LATIN, "coding": "0"}
    hexadecimal = CYRILLIC.encode("utf-16-be").hex().upper()
    assert send("jasmin", CYRILLIC).form == common | {"hex-content": hexadecimal, "coding": "8"}


def test_android() -> None:
    sent = send("android", CYRILLIC, url="http://192.168.1.2:8080")
    assert (sent.method, sent.target) == ("POST", "/message")
    assert sent.headers["Authorization"] == basic("ann", "p/ ä&")
    assert sent.json == {
        "id": "12",
        "phoneNumbers": ["+79161234567"],
        "textMessage": {"text": CYRILLIC},
        "ttl": 7_200,
        "withDeliveryReport": True,
    }


def test_textbee() -> None:
    sent = send("textbee", CYRILLIC)
    assert (sent.method, sent.target) == ("POST", "/api/v1/gateway/devices/AC1/send-sms")
    assert sent.headers["x-api-key"] == "tok"
    assert sent.json == {"recipients": ["+79161234567"], "message": CYRILLIC}


@pytest.mark.parametrize("kind", shipped_kinds())
def test_field_without_a_value_is_left_out(kind: str) -> None:
    sent = send(kind, sender="", callback="")
    content = sent.target.encode() + sent.body
    assert b"ACME" not in content
    assert b"mailer.example" not in content
    assert not {"", "null"} & {*sent.query.values()}
    for line in (b"dlr", b'""', b"null", b"None", b"{", b"}")[: 4 if b"{" in sent.body else 6]:
        assert line not in content


@pytest.mark.parametrize("kind", ["json", "twilio", "kannel"])
def test_query_and_user_of_the_address_are_kept(kind: str) -> None:
    sent = send(kind, url="https://bob:secret@gateway.example/a/?key=1")
    assert sent.path.startswith("/a/")
    assert sent.query["key"] == "1"
    if kind == "kannel":  # it has no authentication of its own in a header
        assert sent.headers["Authorization"] == basic("bob", "secret")


PROFILE = """
title = "Test"
[request]
url = "{url}/{account}/send"
headers = { X-Key = "{token?}" }
fields = { text = "{text}" }
[[response]]
then = "accepted"
"""


def render(
    account: dict[str, str],
    *changes: tuple[str, str],
    url: str = "http://gateway.example",
    text: str = LATIN,
    callback: str = CALLBACK,
) -> Sent:
    """Return a request of `PROFILE`, in which texts are replaced by others."""
    document = PROFILE
    for old, new in changes:
        assert old in document
        document = document.replace(old, new)
    profile = read_profile(document.encode(), "test.toml")
    texts = Texts(account, profile.by_text, profile.with_callback)
    template = RequestTemplate(profile.request, read_gateway_url(url), texts, {"Host": "h"})
    return Sent(template.render(message(text, callback=callback)))


def test_account_is_escaped_in_the_path() -> None:
    assert render({"account": "a/../b?c d", "token": "t"}).target == "/a%2F..%2Fb%3Fc%20d/send"


def test_optional_key_may_be_missing() -> None:
    assert "X-Key" not in render({"account": "a"}).headers


def test_required_key_must_be_there() -> None:
    with pytest.raises(ValueError, match="needs account"):
        render({"token": "t"})


@pytest.mark.parametrize("account", [".", ".."])
def test_account_that_is_a_step_of_a_path_is_refused(account: str) -> None:
    with pytest.raises(ValueError, match=r"account: must not be \."):
        render({"account": account})


@pytest.mark.parametrize(
    ("placeholder", "text", "expected"),
    [
        ("{text}", "a/../b?c d\r\nX: ü", "a%2F..%2Fb%3Fc%20d%0D%0AX%3A%20%C3%BC"),
        ("{phone.plus}", LATIN, "%2B79161234567"),
        ("{phone.digits}-{id}", LATIN, "79161234567-12"),
        ("{type}", LATIN, "a%2Fb"),
        ("{type}", CYRILLIC, "%D0%BF"),
    ],
)
def test_value_of_the_message_is_escaped_in_the_path(
    placeholder: str, text: str, expected: str
) -> None:
    by_text = 'accepted"\n[by_text]\ntype = { gsm = "a/b", ucs2 = "п" }'
    sent = render({}, ("{account}", placeholder), ('accepted"', by_text), text=text)
    assert sent.target == f"/{expected}/send"


@pytest.mark.parametrize("token", ["a\r\nX: 1", "токен"])
def test_key_that_a_header_cannot_have_is_refused(token: str) -> None:
    with pytest.raises(ValueError, match="token: must be one line of printable ASCII"):
        render({"account": "a", "token": token}, ("{token?}", "{token?} {id}"))


def test_key_in_a_definition_that_a_header_cannot_have_is_refused() -> None:
    by_text = 'accepted"\n[by_text]\nkey = { gsm = "{token}", ucs2 = "x" }'
    with pytest.raises(ValueError, match="token: must be one line of printable ASCII"):
        render({"account": "a", "token": "a\n"}, ("{token?}", "{key}"), ('accepted"', by_text))


def test_user_with_a_colon_is_refused() -> None:
    basic_auth = 'basic_auth = { username = "{username}", password = "{password}" }'
    with pytest.raises(ValueError, match="username: must have no colon"):
        render(
            {"account": "a", "username": "a:b", "password": "c"},
            ('headers = { X-Key = "{token?}" }', basic_auth),
        )


def test_header_without_a_value_is_left_out() -> None:
    change = ("{token?}", "to {callback}")
    assert render({"account": "a"}, change).headers["X-Key"] == f"to {CALLBACK}"
    assert "X-Key" not in render({"account": "a"}, change, callback="").headers


@pytest.mark.parametrize("name", ["content-type", "authorization"])
def test_header_of_the_profile_is_the_only_one_of_its_name(name: str) -> None:
    changes = ("X-Key", name), ("{token?}", "x")
    headers = render({"account": "a"}, *changes, url="http://user:secret@h").headers
    assert headers[name] == "x"
    assert [each.lower() for each in headers].count(name) == 1


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("http://h/x?key=", "/x/a/send?key=&to=1"),
        ("http://h/x?key=1", "/x/a/send?key=1&to=1"),
        ("http://h/x?", "/x/a/send?to=1"),
    ],
)
def test_query_of_the_address_comes_after_the_path(url: str, expected: str) -> None:
    change = ("headers =", 'query = { to = "1" }\nheaders =')
    assert render({"account": "a"}, change, url=url).target == expected


def test_id_alone_is_a_value_of_the_query_that_ends_the_address() -> None:
    change = ("{url}/{account}/send", "{url}{id}")
    assert render({}, change, url="http://h/x?key=1&id=").target == "/x?key=1&id=12"


def test_entries_of_a_list_keep_their_order() -> None:
    change = ('text = "{text}"', 'params = ["{text}", "{id}", 5, "{phone.digits}"]')
    assert render({"account": "a"}, change).json["params"] == [LATIN, "12", 5, "79161234567"]


def test_secrets_are_not_in_the_text_of_an_object() -> None:
    url = read_gateway_url("https://bob:sesame@h/hook/sesame?key=sesame")
    assert "sesame" not in f"{url} {url!r} {Texts({'token': 'sesame'})!r}"
    assert repr(url) == "GatewayUrl('https://h')"
