"""Secrets of the settings are in no log line, page, response or metric of the real process.

The gateway's URL contains a user, a password and a key, the mail server's URL a password.
"""

import asyncio
from datetime import UTC, datetime

from tests.fault_servers import http_response, read_request, served
from tests.processes import MailerProcess, Mailers, until_true

from mailer.sample_data import new_mailing

PATHS = (
    *("/", "/system", "/mailings", "/mailings/1", "/metrics", "/openapi.json", "/docs"),
    *("/health/ready", "/api/v1/gateways", "/api/v1/mailings/1", "/api/v1/mailings/1/messages"),
    *("/api/v1/mailings/1/statistics", "/nothing"),
)
SECRETS = ("hush-user", "hush-password", "hush-key", "hush-mail", "aHVzaC")
"""The last one is the beginning of user and password as Basic authentication encodes them."""


async def read_all(mailer: MailerProcess) -> str:
    """Return the texts and headers of all responses."""
    text = ""
    for path in PATHS:
        for accept in ("text/html", "application/json"):
            async with mailer.session.get(path, headers={"Accept": accept}) as response:
                assert response.status in {200, 404}, path
                text += await response.text() + str(response.headers)
    return text


async def assert_no_secret_is_shown(mailer: MailerProcess, reason: str) -> None:
    """Send messages that fail for `reason`; then assert that no secret is shown or logged."""
    await mailer.create_clients(5)
    await mailer.call("POST", "/mailings", new_mailing(), 201)

    async def have_failed() -> bool:
        page = await mailer.call("GET", "/mailings/1/messages")
        return any(message["reason"] == reason for message in page["results"])

    await until_true(have_failed)
    text = await read_all(mailer)
    assert await mailer.stop() == 0
    for secret in SECRETS:
        assert secret not in text
        assert secret not in str(mailer.events)


def settings(gateway_url: str) -> dict[str, str]:
    """Return settings with secrets, under which failed messages and a report are sent at once."""
    scheme, _, rest = gateway_url.partition("://")
    return {
        "gateway_url": f"{scheme}://hush-user:hush-password@{rest}?key=hush-key&id=",
        "smtp_url": "smtp://ops:hush-mail@127.0.0.1:1",
        "report_recipients": "ops@example.org",
        "report_at": f"{datetime.now(UTC):%H}:00",
        "log_level": "debug",
        "breaker_failures": "1000",
        "retry_base": "0.1",
        "retry_cap": "0.1",
    }


async def test_no_secret_is_shown_while_the_gateway_is_down(start_mailer: Mailers) -> None:
    mailer = await start_mailer(**settings("http://127.0.0.1:1/send/"))
    await assert_no_secret_is_shown(mailer, reason="connection_failed")


async def test_no_secret_is_shown_when_the_gateway_redirects(start_mailer: Mailers) -> None:
    request_lines: list[str] = []

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        request_lines.append((await read_request(reader))[0])
        writer.write(http_response(307, b"", "Location: http://127.0.0.1:1/", "Connection: close"))

    async with served(talk) as url:
        mailer = await start_mailer(**settings(url))
        await assert_no_secret_is_shown(mailer, reason="http_307")
    assert "key=hush-key" in request_lines[0]  # so the gateway did get the secrets
