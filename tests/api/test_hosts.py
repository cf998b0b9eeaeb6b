"""Hosts and origins that are served, and those that are refused."""

import httpx
import pytest
from sqlalchemy.ext.asyncio import AsyncEngine
from tests.api.browser_session import BROWSER, shared_app
from tests.api.wrapped_app import (
    COMMON_VALUES,
    app_without_streams,
    client_of,
    url_of_next_page,
    wrapped,
)
from tests.asgi_client import inside
from tests.factories import OPEN

from mailer.settings import Settings
from mailer.web.asgi_wrappers import wrap_asgi
from mailer.web.hosts import is_loopback_host


@pytest.mark.parametrize(
    "host",
    [
        *("localhost", "localhost:8000", "LOCALHOST", "a.localhost:1", "127.0.0.1", "127.9.8.7:80"),
        *("[::1]", "[::1]:8000"),
    ],
)
def test_loopback_names_are_local(host: str) -> None:
    assert is_loopback_host(host)


@pytest.mark.parametrize(
    "host",
    [
        *("evil.example", "localhost.evil.example", "127.0.0.1.evil.example", "evillocalhost", ""),
        *(
            "10.0.0.1",
            "0.0.0.0",  # noqa: S104  # a name to refuse
            "128.0.0.1",
            "[::2]",
            "::1",
            "[::]",
            "[fe80::1]",
            "[::ffff:a00:1]",
        ),
        *("localhost:x", "localhost:", "localhost@evil", "localhost/evil", "a b.localhost:1:2"),
    ],
)
def test_other_names_are_not_local(host: str) -> None:
    assert not is_loopback_host(host)


async def test_without_auth_only_loopback_names_are_served(engine: AsyncEngine) -> None:
    without_auth = Settings(auth="none")
    async with client_of(engine, without_auth, host="127.0.0.1:8000") as client:
        assert (await client.get("/api/v1/clients")).status_code == 200
    async with client_of(engine, without_auth, host="evil.example") as client:
        for method, path in (("GET", "/"), ("POST", "/api/v1/clients"), ("GET", "/metrics")):
            answer = await client.request(method, path)
            assert answer.status_code == 421
            assert answer.headers["content-type"] == "application/problem+json"
            assert "MAILER_TRUSTED_PROXIES" in answer.json()["detail"]
            assert COMMON_VALUES.items() <= dict(answer.headers).items()


async def test_without_auth_a_request_around_the_trusted_proxy_needs_a_loopback_name(
    engine: AsyncEngine,
) -> None:
    settings = Settings(auth="none", trusted_proxies="10.0.0.1")
    for peer, status in (("127.0.0.1", 421), ("10.0.0.1", 200)):
        async with client_of(engine, settings, peer, host="evil.example") as client:
            for forwarded_for in ("10.0.0.1", "192.0.2.7"):
                headers = {"x-forwarded-for": forwarded_for}
                answer = await client.get("/api/v1/clients", headers=headers)
                assert answer.status_code == status
                assert COMMON_VALUES.items() <= dict(answer.headers).items()
    async with client_of(engine, settings, host="localhost") as client:
        assert (await client.get("/api/v1/clients")).status_code == 200


async def test_with_auth_or_behind_a_trusted_proxy_any_name_is_served(engine: AsyncEngine) -> None:
    for settings in (Settings(), Settings(auth="none", trusted_proxies="127.0.0.1")):
        async with client_of(engine, settings, host="mailer.example") as client:
            assert (await client.get("/health/live")).status_code == 200


@pytest.mark.parametrize(
    "host",
    [
        *(b"localhost:abc", b":999999", b"localhost:99999", b"a b", b"[", b"[::1", b"::1", b""),
        *(b"a@b", b"a/b", b"a?b", b"\xff", b"a\\b", b"[x]", b"<b>", b"localhost:-1"),
    ],
)
@pytest.mark.parametrize("path", ["/", "/login", "/api/v1/clients?limit=1", "/nothing"])
async def test_an_invalid_host_is_refused(engine: AsyncEngine, host: bytes, path: str) -> None:
    for settings in (Settings(), OPEN, Settings(trusted_proxies="127.0.0.1")):
        transport = inside(wrapped(shared_app(engine, settings), settings))
        async with httpx.AsyncClient(transport=transport, base_url="http://mailer") as client:
            answer = await client.get(path, headers=[(b"Host", host), *_encoded(BROWSER)])
            assert answer.status_code == 400, answer.text
            assert answer.json()["detail"].startswith("Host must be one name")
            assert COMMON_VALUES.items() <= dict(answer.headers).items()
            assert answer.headers["x-request-id"]


async def test_a_query_that_is_not_utf_8_is_refused(engine: AsyncEngine) -> None:
    inner = wrap_asgi(shared_app(engine, Settings()), trusted_proxies=[], is_auth_enabled=True)

    async def app(scope, receive, send) -> None:  # type: ignore[no-untyped-def]  # noqa: ANN001  # an ASGI application
        await inner(scope | {"query_string": b"return_path=\xff"}, receive, send)

    transport = inside(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://mailer") as client:
        assert (await client.get("/login", headers=BROWSER)).status_code == 400


async def test_two_hosts_are_refused(engine: AsyncEngine) -> None:
    two_hosts = [(b"Host", b"localhost"), (b"Host", b"localhost")]
    async with client_of(engine, Settings()) as client:
        assert (await client.get("/login", headers=two_hosts)).status_code == 400


async def test_http_1_1_without_host_is_refused(engine: AsyncEngine) -> None:
    inner = wrap_asgi(app_without_streams(engine), trusted_proxies=[], is_auth_enabled=True)

    async def app(scope, receive, send) -> None:  # type: ignore[no-untyped-def]  # noqa: ANN001  # an ASGI application
        await inner(scope | {"headers": []}, receive, send)

    async with httpx.AsyncClient(transport=inside(app), base_url="http://mailer") as client:
        for path in ("/login", "/health/live", "/api/v1/clients", "/static/pages.css", "/no"):
            assert (await client.get(path)).status_code == 400


@pytest.mark.parametrize("server", [("127.0.0.1", 8000), ("::1", 8000), ("/run/mailer", None)])
async def test_http_1_0_without_host_is_served_under_the_servers_address(
    engine: AsyncEngine, server: tuple[str, int | None]
) -> None:
    inner = wrap_asgi(app_without_streams(engine), trusted_proxies=[], is_auth_enabled=True)

    async def app(scope, receive, send) -> None:  # type: ignore[no-untyped-def]  # noqa: ANN001  # an ASGI application
        headers = [(name, value) for name, value in scope["headers"] if name != b"host"]
        old_request = {"headers": headers, "server": server, "http_version": "1.0"}
        await inner(scope | old_request, receive, send)

    async with httpx.AsyncClient(transport=inside(app), base_url="http://mailer") as client:
        assert (await client.get("/login", headers=BROWSER)).status_code in {200, 303}
        url = await url_of_next_page(client)
        _address, port = server  # no port: a Unix socket
        assert url.port == port


@pytest.mark.parametrize("origin", ["http://[", "http://[x]", "null", "//", "", "http://a:b:c"])
async def test_an_origin_without_a_valid_host_is_cross_site(
    engine: AsyncEngine, origin: str
) -> None:
    async with client_of(engine, Settings()) as client:
        for path in ("/login", "/api/v1/clients"):
            answer = await client.post(path, headers={"Origin": origin})
            assert answer.status_code == 403, answer.text


def _encoded(headers: dict[str, str]) -> list[tuple[bytes, bytes]]:
    """Return headers in bytes, so that others that are not ASCII can be added."""
    return [(name.encode(), value.encode()) for name, value in headers.items()]
