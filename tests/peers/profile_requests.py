"""The requests of shipped profiles, for comparison with what the providers publish."""

from datetime import UTC, datetime, timedelta
from typing import Any

from mailer.gateway.profile_file import load_profile
from mailer.gateway.protocol import OutgoingMessage
from mailer.gateway.request_template import RequestTemplate
from mailer.gateway.template import Texts
from mailer.urls import read_gateway_url

TEXTS = ["Hello & 100%", "Привет, мир & 100%", "Привет! " * 30]
VALID_UNTIL = datetime(2030, 1, 2, 3, 4, 5, tzinfo=UTC)


def message(text: str) -> OutgoingMessage:
    """Return a message with every value that a profile can send."""
    return OutgoingMessage(
        id=12,
        phone="79161234567",
        text=text,
        sender="ACME",
        validity=7_200,
        valid_from=VALID_UNTIL - timedelta(seconds=7_200),
        callback="https://mailer.example/gateways/g/receipts?id=12",
    )


def request_of_profile(kind: str, text: str, account: dict[str, str]) -> dict[str, Any]:
    """Return the request that a shipped profile makes: method, path, headers and body."""
    profile = load_profile(kind)
    url = read_gateway_url(profile.url or "https://gateway.example")
    texts = Texts(account, profile.by_text, profile.with_callback)
    data = RequestTemplate(profile.request, url, texts, {}).render(message(text))
    head, _, body = data.partition(b"\r\n\r\n")
    line, *headers = head.decode().split("\r\n")
    method, path, _ = line.split(" ")
    named = {name.lower(): value for name, value in (header.split(": ", 1) for header in headers)}
    return {"method": method, "path": path, "headers": named, "body": body.decode()}
