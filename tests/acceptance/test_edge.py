"""The real process at its edge: its server has the limits, believes nobody, and says no version."""

from typing import Any

import pytest
from tests.processes import MailerProcess, Mailers
from tests.served import Talk, served_normally, talk, talks

FORWARDED = {"X-Forwarded-Proto": "https", "X-Forwarded-For": "203.0.113.9"}


def port_of(mailer: MailerProcess) -> int:
    return int(mailer.address.rpartition(":")[2])


async def page(mailer: MailerProcess) -> tuple[dict[str, Any], dict[str, str]]:
    for n in range(2):
        await mailer.call("POST", "/clients", {"phone": f"7916000000{n}"}, 201)
    url = "/api/v1/clients?limit=1"
    async with mailer.session.get(url, headers=FORWARDED) as answer:
        return await answer.json(), dict(answer.headers)


async def test_process_believes_nobody_answers_local_names_and_bounds_heads(
    start_mailer: Mailers,
) -> None:
    mailer = await start_mailer()
    found, headers = await page(mailer)
    assert found["next"].startswith(mailer.address)
    assert "Strict-Transport-Security" not in headers
    assert "Server" not in headers
    assert headers["X-Frame-Options"] == "DENY"

    async def status(request: bytes) -> int:
        async with talk(port_of(mailer)) as client:
            await client.say(request)
            return (await client.answer())[0]

    assert await status(b"GET / HTTP/1.1\r\nHost: evil.example\r\n\r\n") == 421
    assert await status(b"GET /health/live HTTP/1.0\r\n\r\n") == 200
    assert await status(b"GET / HTTP/1.1\r\nX: " + b"x" * 100_000) == 431
    warnings = [event["event"] for event in mailer.events if event["level"] == "warning"]
    assert warnings[1:] == ["proxy_not_trusted"]  # the first: nothing is sent; whoever sends
    # nonsense does not fill the log


async def test_addresses_are_https_behind_a_trusted_proxy(start_mailer: Mailers) -> None:
    mailer = await start_mailer(trusted_proxies="127.0.0.1")
    found, headers = await page(mailer)
    assert found["next"].startswith("https://")
    assert headers["Strict-Transport-Security"] == "max-age=31536000"


@pytest.mark.parametrize("begun", [b"", b"GET / HTTP/1.1\r\nHost: "], ids=["silent", "half"])
async def test_six_hundred_who_dawdle_hold_nobody_up(start_mailer: Mailers, begun: bytes) -> None:
    mailer = await start_mailer()
    async with talks(port_of(mailer), 600) as slow:
        for each in slow:
            await each.say(begun)
        await served_normally(port_of(mailer), path="/api/v1/clients")
        assert sum(map(is_open, slow)) <= 500


def is_open(slow: Talk) -> bool:
    return not slow.is_ended
