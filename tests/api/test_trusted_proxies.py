"""Scheme and client address of requests that come through proxies, trusted and others."""

import httpx
import pytest
from sqlalchemy.ext.asyncio import AsyncEngine
from structlog.testing import capture_logs
from tests.api.wrapped_app import (
    FORWARDED,
    client_of,
    url_of_next_page,
)
from tests.asgi_client import inside

from mailer.settings import Settings
from mailer.web.asgi_wrappers import wrap_asgi
from mailer.web.trusted_proxies import TrustedProxies


async def test_no_proxy_is_trusted_by_default(engine: AsyncEngine) -> None:
    async with client_of(engine, Settings()) as client:
        assert (await url_of_next_page(client)).scheme == "http"
        answer = await client.get("/health/live", headers=FORWARDED)
        assert "strict-transport-security" not in answer.headers


@pytest.mark.parametrize(
    ("proxies", "peer", "is_trusted"),
    [
        ("127.0.0.1", "127.0.0.1", True),
        ("10.0.0.0/8, 127.0.0.1", "10.1.2.3", True),
        ("::1", "::1", True),
        ("fd00::/8", "fd00::5", True),
        ("127.0.0.1", "127.0.0.2", False),
        ("10.0.0.0/8", "11.0.0.1", False),
        ("127.0.0.1", "::1", False),
    ],
)
async def test_the_scheme_of_a_trusted_proxy_is_used(
    engine: AsyncEngine, proxies: str, peer: str, *, is_trusted: bool
) -> None:
    async with client_of(engine, Settings(trusted_proxies=proxies), peer) as client:
        url = await url_of_next_page(client)
        assert (url.scheme, url.host) == ("https" if is_trusted else "http", "mailer")
        answer = await client.get("/health/live", headers=FORWARDED)
        assert ("strict-transport-security" in answer.headers) == is_trusted


@pytest.mark.parametrize(
    # trusted are the addresses that start with 10
    ("forwarded_for", "sender"),
    [
        ("192.0.2.1, 203.0.113.9, 10.0.0.7", "203.0.113.9"),
        ("10.0.0.7", "10.0.0.7"),
        # an invalid entry: the proxy itself counts as the sender
        *((f"192.0.2.1, {name}", "10.0.0.5") for name in ("unknown", "_hidden", "", "a" * 9_000)),
        ("[2001:db8::1]:443", "2001:db8::1"),
        ("203.0.113.9:99999999", "203.0.113.9"),
    ],
)
async def test_the_sender_is_the_last_address_that_is_no_trusted_proxy(
    forwarded_for: str, sender: str
) -> None:
    addresses_of_clients = []

    async def app(scope, receive, send) -> None:  # type: ignore[no-untyped-def]  # noqa: ANN001  # an ASGI application
        del receive
        addresses_of_clients.append(scope["client"][0])
        await send({"type": "http.response.start", "status": 204, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    async def send_request(peer: str) -> None:
        wrapped = wrap_asgi(app, trusted_proxies=["10.0.0.0/8"], is_auth_enabled=True)
        transport = inside(wrapped, client=(peer, 1))
        async with httpx.AsyncClient(transport=transport, base_url="http://mailer") as client:
            await client.get("/", headers={"x-forwarded-for": forwarded_for})

    await send_request("10.0.0.5")
    await send_request("198.51.100.1")  # not trusted: its header is ignored
    assert addresses_of_clients == [sender, "198.51.100.1"]


@pytest.mark.parametrize(
    ("proto", "is_https"),
    [
        *(("https, http", True), ("https,http", True), ("HTTPS", True), (" https ", True)),
        *(("https, https", True), ("Https,HTTP", True), ("HTTPS\t,http", True)),
        *(("http", False), ("http, https", False), ("", False), (",https", False)),
        *(("httpss", False), ("wss", False), ("https;q=1", False)),
    ],
)
async def test_the_first_of_several_forwarded_schemes_is_used(
    engine: AsyncEngine, proto: str, *, is_https: bool
) -> None:
    async with client_of(engine, Settings(trusted_proxies="127.0.0.1")) as client:
        answer = await client.get("/health/live", headers={"X-Forwarded-Proto": proto})
    assert ("strict-transport-security" in answer.headers) == is_https


async def test_schemes_in_several_headers_are_read_in_their_order(engine: AsyncEngine) -> None:
    headers = [("X-Forwarded-Proto", "https"), ("X-Forwarded-Proto", "http")]
    async with client_of(engine, Settings(trusted_proxies="127.0.0.1")) as client:
        answer = await client.get("/health/live", headers=headers)
    assert "strict-transport-security" in answer.headers


@pytest.mark.parametrize(
    ("forwarded_for", "expected_address"),
    [
        ("192.0.2.1:4711", "192.0.2.1"),
        ("[2001:db8::1]:4711, 10.0.0.1", "2001:db8::1"),
        ("2001:db8::1", "2001:db8::1"),
        ("::ffff:10.0.0.9, 192.0.2.1, ::ffff:10.0.0.1", "192.0.2.1"),
        ("10.0.0.2, 10.0.0.1", "10.0.0.2"),
        ("", ""),
    ],
)
def test_every_notation_of_a_forwarded_address_is_read(
    forwarded_for: str, expected_address: str
) -> None:
    address, _port = TrustedProxies(["10.0.0.0/8"]).sender([forwarded_for.encode()])
    assert address == expected_address


@pytest.mark.parametrize("header", ["X-Forwarded-Proto", "X-Forwarded-For", "Forwarded"])
async def test_an_untrusted_proxy_is_logged_once_as_a_warning(
    engine: AsyncEngine, header: str
) -> None:
    settings = Settings(trusted_proxies="10.0.0.1")
    with capture_logs() as logs:
        async with client_of(engine, settings) as client:
            for _ in range(3):
                await client.get("/health/live", headers={header: "https"})
            await client.get("/health/live")
    warnings = [event for event in logs if event["log_level"] == "warning"]
    assert [(event["event"], event["setting"]) for event in warnings] == [
        ("proxy_not_trusted", "MAILER_TRUSTED_PROXIES")
    ]
    assert "Secure" in warnings[0]["because"]


async def test_trusted_proxies_and_direct_clients_cause_no_warning(
    engine: AsyncEngine,
) -> None:
    with capture_logs() as logs:
        async with client_of(engine, Settings(trusted_proxies="127.0.0.1")) as client:
            await client.get("/health/live", headers=FORWARDED)
        async with client_of(engine, Settings()) as client:
            await client.get("/health/live")
    assert not [event for event in logs if event["log_level"] == "warning"]
