"""What the settings keep secret is in no log line, page, answer or figure of the real process."""

import asyncio
from datetime import UTC, datetime

from tests.acceptance.test_main_job import a_mailing, add_clients
from tests.processes import MailerProcess, Mailers, until
from tests.wire import answer, request_of, served

SHOWN = (
    *("/", "/system", "/mailings", "/mailings/1", "/metrics", "/openapi.json", "/docs"),
    *("/health/ready", "/api/v1/gateway", "/api/v1/mailings/1", "/api/v1/mailings/1/messages"),
    *("/api/v1/mailings/1/statistics", "/nothing"),
)
SECRETS = ("hush-user", "hush-password", "hush-key", "hush-mail", "aHVzaC")
"""The last is how Basic authentication begins to write them."""


async def told_by(mailer: MailerProcess) -> str:
    """Return all that the process shows."""
    told = ""
    for path in SHOWN:
        for accept in ("text/html", "application/json"):
            async with mailer.session.get(path, headers={"Accept": accept}) as shown:
                assert shown.status in {200, 404}, path
                told += await shown.text() + str(shown.headers)
    return told


async def check(mailer: MailerProcess, reason: str) -> None:
    """Send messages that fail for a reason, and look at all that is said meanwhile."""
    await add_clients(mailer, 5)
    await mailer.call("POST", "/mailings", a_mailing(), 201)

    async def failed() -> bool | None:
        found = await mailer.call("GET", "/mailings/1/messages")
        return any(each["reason"] == reason for each in found["results"]) or None

    await until(failed)
    told = await told_by(mailer)
    assert await mailer.stop() == 0
    for secret in SECRETS:
        assert secret not in told
        assert secret not in str(mailer.events)


def settings(gateway_url: str) -> dict[str, str]:
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


async def test_a_gateway_that_is_away_brings_no_secret_to_light(start_mailer: Mailers) -> None:
    await check(
        await start_mailer(**settings("http://127.0.0.1:1/send/")), reason="connection_failed"
    )


async def test_a_gateway_that_redirects_brings_no_secret_to_light(start_mailer: Mailers) -> None:
    asked: list[str] = []

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        asked.append((await request_of(reader))[0])
        writer.write(answer(307, b"", "Location: http://127.0.0.1:1/", "Connection: close"))

    async with served(talk) as url:
        await check(await start_mailer(**settings(url)), reason="http_307")
    assert "key=hush-key" in asked[0]
