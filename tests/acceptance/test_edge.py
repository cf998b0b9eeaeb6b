"""What the real process does with any HTTP request: limits, proxies, and security headers."""

from typing import Any

import pytest
from tests.processes import MailerProcess, Mailers
from tests.served import served_normally, talk, talks

FORWARDED = {"X-Forwarded-Proto": "https", "X-Forwarded-For": "203.0.113.9"}
"""Headers of a proxy that receives requests by https."""


def port_of(mailer: MailerProcess) -> int:
    return int(mailer.address.rpartition(":")[2])


async def first_page(mailer: MailerProcess) -> tuple[dict[str, Any], dict[str, str]]:
    """Create two clients and list one of them, so that the page has a URL of the next one.

    Return the JSON and the headers of the response.
    """
    for n in range(2):
        await mailer.call("POST", "/clients", {"phone": f"7916000000{n}"}, 201)
    url = "/api/v1/clients?limit=1"
    async with mailer.session.get(url, headers=FORWARDED) as response:
        return await response.json(), dict(response.headers)


async def test_by_default_proxies_are_not_trusted_and_unknown_hosts_and_long_heads_are_refused(
    start_mailer: Mailers,
) -> None:
    mailer = await start_mailer()
    clients, headers = await first_page(mailer)
    assert clients["next"].startswith(mailer.address)
    assert "Strict-Transport-Security" not in headers
    assert "Server" not in headers
    assert headers["X-Frame-Options"] == "DENY"

    async def status(request: bytes) -> int:
        """Send a request and return the status of the response."""
        async with talk(port_of(mailer)) as client:
            await client.say(request)
            return (await client.answer()).status

    assert await status(b"GET / HTTP/1.1\r\nHost: evil.example\r\n\r\n") == 421
    assert await status(b"GET /health/live HTTP/1.0\r\n\r\n") == 200
    assert await status(b"GET / HTTP/1.1\r\nX: " + b"x" * 100_000) == 431
    warnings = [event["event"] for event in mailer.events if event["level"] == "warning"]
    # the first warning is that no gateway is configured; invalid requests are not logged
    assert warnings[1:] == ["proxy_not_trusted"]


async def test_urls_are_https_behind_a_trusted_proxy(start_mailer: Mailers) -> None:
    mailer = await start_mailer(trusted_proxies="127.0.0.1")
    clients, headers = await first_page(mailer)
    assert clients["next"].startswith("https://")
    assert headers["Strict-Transport-Security"] == "max-age=31536000"


@pytest.mark.parametrize(
    "beginning", [b"", b"GET / HTTP/1.1\r\nHost: "], ids=["silent", "half a head"]
)
async def test_six_hundred_slow_connections_do_not_prevent_other_requests(
    start_mailer: Mailers, beginning: bytes
) -> None:
    mailer = await start_mailer()
    async with talks(port_of(mailer), 600) as slow_connections:
        for connection in slow_connections:
            await connection.say(beginning)
        await served_normally(port_of(mailer), path="/api/v1/clients")
        open_connections = [each for each in slow_connections if not each.is_ended]
        assert len(open_connections) <= 500  # the limit, for which slow ones are evicted
