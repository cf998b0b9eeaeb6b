"""Headers of every response, trusted proxies, limits of header values, and refused hosts.

`peer` is the address from which a request comes: that of a client or of a proxy.
"""

import re
from collections.abc import AsyncIterator
from functools import lru_cache
from importlib.metadata import version

import httpx
import pytest
from litestar import Litestar
from litestar.datastructures import Headers
from litestar.routes import HTTPRoute
from litestar.types import ASGIApp
from sqlalchemy.ext.asyncio import AsyncEngine
from structlog.testing import capture_logs
from tests.api.browser_session import BROWSER, shared_app
from tests.api.calls import NEW, create_mailing
from tests.asgi_client import inside
from tests.factories import OPEN

from mailer.admin.live import LiveUpdates
from mailer.app import create_app
from mailer.settings import Settings
from mailer.web.asgi_wrappers import wrap_asgi
from mailer.web.hosts import is_loopback_host
from mailer.web.server.header_limits import MAX_COOKIES, MAX_LIST_LENGTH
from mailer.web.trusted_proxies import TrustedProxies

# the headers of every response, with the same values in all of them
COMMON = {
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
}
STRICTEST_POLICY = "default-src 'none'; frame-ancestors 'none'"
"""The Content-Security-Policy of responses that are not pages."""


@lru_cache(maxsize=1)
def app_without_streams(engine: AsyncEngine) -> Litestar:
    """Return an application that the tests share: creating one takes longer than a test."""
    live = LiveUpdates()
    live.stop()  # event streams end at once
    return create_app(engine, live=live, settings=OPEN)


def wrapped(app: Litestar, settings: Settings) -> ASGIApp:
    """Return an application inside all ASGI wrappers, as a worker serves it."""
    return wrap_asgi(app, settings.proxies, is_auth_enabled=settings.is_auth_enabled)


def client_of(
    engine: AsyncEngine, settings: Settings, peer: str = "127.0.0.1", host: str = "mailer"
) -> httpx.AsyncClient:
    """Return a client with the address `peer`. It calls the application under the name `host`."""
    transport = inside(wrapped(app_without_streams(engine), settings), client=(peer, 1234))
    return httpx.AsyncClient(transport=transport, base_url=f"http://{host}")


@pytest.fixture
async def web(engine: AsyncEngine) -> AsyncIterator[httpx.AsyncClient]:
    """A client of the application with default settings."""
    async with client_of(engine, Settings()) as client:
        yield client


async def answers(engine: AsyncEngine, web: httpx.AsyncClient) -> AsyncIterator[httpx.Response]:
    """Yield a response of every route to each of its methods, PUT and HEAD.

    Each request is sent as by a browser, as by a program that wants JSON, and CSV.
    """
    created = await create_mailing(web_api(web), NEW)
    for route in app_without_streams(engine).routes:
        if not isinstance(route, HTTPRoute):
            continue
        path = re.sub(r"{file_path:path}", "pages.css", route.path_format)
        path = re.sub(r"{\w+:int}", str(created["id"]), path)
        path = re.sub(r"{\w+}", str(created["id"]), path)
        for method in sorted(route.methods | {"PUT", "HEAD"}):
            for accept in (BROWSER, {"accept": "application/json"}, {"accept": "text/csv"}):
                yield await web.request(method, path, headers=accept)


def web_api(web: httpx.AsyncClient) -> httpx.AsyncClient:
    """Return a client of the API of the same application."""
    return httpx.AsyncClient(transport=web._transport, base_url="http://mailer/api/v1")  # noqa: SLF001  # httpx has no other way


async def test_every_response_of_every_route_has_the_common_headers(
    engine: AsyncEngine, web: httpx.AsyncClient
) -> None:
    seen_statuses = set()
    async for answer in answers(engine, web):
        context = f"{answer.request.method} {answer.request.url} {answer.status_code}"
        seen_statuses.add(answer.status_code)
        assert COMMON.items() <= dict(answer.headers).items(), context
        assert "camera=()" in answer.headers["permissions-policy"], context
        policy = answer.headers["content-security-policy"]
        assert policy.startswith("default-src 'none'"), context
        assert "frame-ancestors 'none'" in policy, context
        assert answer.headers["cache-control"], context
        for name in (*COMMON, "content-security-policy", "cache-control"):
            assert len(answer.headers.get_list(name)) == 1, (context, name)
        assert "strict-transport-security" not in answer.headers, context
        assert "server" not in answer.headers, context
        is_page = answer.headers.get("content-type", "").startswith("text/html")
        if not is_page and answer.request.url.path.startswith(("/api/", "/health/", "/metrics")):
            assert (policy, answer.headers["cache-control"]) == (STRICTEST_POLICY, "no-store"), (
                context
            )
    assert seen_statuses >= {200, 204, 303, 400, 404, 405}


@pytest.mark.parametrize(
    ("path", "status"),
    [("/nothing", 404), ("/api/v1/nothing", 404), ("/static/none.js", 404), ("/docs/x", 404)],
)
async def test_responses_to_unknown_paths_have_the_common_headers(
    web: httpx.AsyncClient, path: str, status: int
) -> None:
    answer = await web.get(path)
    assert answer.status_code == status
    assert COMMON.items() <= dict(answer.headers).items()
    assert (answer.headers["content-security-policy"], answer.headers["cache-control"]) == (
        STRICTEST_POLICY,
        "no-store",
    )


async def test_a_response_keeps_its_own_policy_and_cache_control(web: httpx.AsyncClient) -> None:
    page = await web.get("/mailings", headers=BROWSER)
    assert "script-src 'self'" in page.headers["content-security-policy"]
    assert page.headers["cache-control"] == "private, no-store"
    assert "worker-src blob:" in (await web.get("/redoc")).headers["content-security-policy"]
    static = (await web.get("/static/pages.css")).headers
    assert "immutable" in static["cache-control"]


async def test_no_response_reveals_a_version(engine: AsyncEngine, web: httpx.AsyncClient) -> None:
    versions = [
        version(name) for name in ("mailer", "litestar", "uvicorn", "aiohttp", "sqlalchemy")
    ]
    assert (await web.get("/openapi.json")).json()["info"]["version"] == "1"
    async for answer in answers(engine, web):
        path = answer.request.url.path
        text = "" if path.startswith("/static") else answer.text
        content = f"{dict(answer.headers)}{text}"
        for number in versions:
            assert f'"{number}"' not in content, path
            assert f"/{number}" not in content, path
            assert f" {number} " not in content, path


# ---- proxies --------------------------------------------------------------------------------

FORWARDED = {"x-forwarded-proto": "https", "x-forwarded-for": "evil, 203.0.113.9"}
"""Headers of a proxy that says: the request came by https from 203.0.113.9."""


async def url_of_next_page(client: httpx.AsyncClient) -> httpx.URL:
    """Return the URL in a response of the API; it has the scheme and host of the request."""
    for digit in range(2):  # two clients, one on each page
        await client.post("/api/v1/clients", json={"phone": f"7916000000{digit}"})
    answer = await client.get("/api/v1/clients?limit=1", headers=FORWARDED)
    return httpx.URL(answer.json()["next"])


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

    async def app(scope, receive, send) -> None:  # type: ignore[no-untyped-def]  # noqa: ANN001
        del receive
        addresses_of_clients.append(scope["client"][0])
        await send({"type": "http.response.start", "status": 204, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    async def send_request(peer: str) -> None:
        wrapped = wrap_asgi(app, ["10.0.0.0/8"], is_auth_enabled=True)
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


# ---- limits of header values ----------------------------------------------------------------

# values of headers that take long to parse
HOSTILE = {
    "Accept-Language": ["," * 31_000, ",".join(["ru;q=0.1"] * 3_000), "ru-" * 10_000],
    "Accept": ["," * 31_000, ",".join(["text/html;q=0.1"] * 2_000), "a/b" + ";a=b" * 7_000],
    "Accept-Encoding": [",".join(["gzip"] * 5_000)],
    "Content-Type": ["a/b" + ";a=b" * 7_000, 'a/b;a="' + '\\"' * 15_000],
    "Cookie": [
        'session="' + '\\"' * 15_000 + '"',
        ";" * 31_000,
        "; ".join(f"a{n}=b" for n in range(3_000)),
        "; ".join(['a="' + "\\101" * 200 + '"'] * 30),
    ],
}


@pytest.mark.parametrize(
    ("name", "value"), [(name, value) for name, values in HOSTILE.items() for value in values]
)
async def test_the_number_of_entries_read_from_a_header_is_limited(
    engine: AsyncEngine, name: str, value: str
) -> None:
    values_for_litestar: list[str] = []
    app = app_without_streams(engine)

    async def record_header(scope, receive, send) -> None:  # type: ignore[no-untyped-def]  # noqa: ANN001
        values_for_litestar.extend(Headers.from_scope(scope).getall(name))
        await app(scope, receive, send)

    transport = inside(wrap_asgi(record_header, [], is_auth_enabled=False))
    async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
        answer = await client.get("/clients", headers=BROWSER | {name: value})
    assert answer.status_code == 200
    [shortened] = values_for_litestar
    if name == "Cookie":
        assert shortened.count(";") < MAX_COOKIES
        assert "\\" not in shortened
    else:
        assert len(shortened) <= MAX_LIST_LENGTH


async def test_cookies_and_lists_of_real_browsers_are_read_completely(engine: AsyncEngine) -> None:
    cookies = "; ".join(f"other{n}={'x' * 50}" for n in range(60))
    headers = BROWSER | {
        "Cookie": f"{cookies}; language=ru",
        "Accept-Language": "en-US,en;q=0.9," + ",".join(f"x{n}" for n in range(10)),
    }
    async with client_of(engine, OPEN, host="localhost") as client:
        answer = await client.get("/clients", headers=headers)
    assert '<html lang="ru"' in answer.text


async def test_only_the_first_accepted_languages_are_read(engine: AsyncEngine) -> None:
    many_unknown = ",".join(["xx"] * 20)
    async with client_of(engine, OPEN, host="localhost") as client:
        for accepted, language in ((f"ru,{many_unknown}", "ru"), (f"{many_unknown},ru", "en")):
            answer = await client.get("/clients", headers=BROWSER | {"Accept-Language": accepted})
            assert f'<html lang="{language}"' in answer.text


# ---- hosts ----------------------------------------------------------------------------------


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
            assert COMMON.items() <= dict(answer.headers).items()


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
                assert COMMON.items() <= dict(answer.headers).items()
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
            assert COMMON.items() <= dict(answer.headers).items()
            assert answer.headers["x-request-id"]


async def test_a_query_that_is_not_utf_8_is_refused(engine: AsyncEngine) -> None:
    inner = wrap_asgi(shared_app(engine, Settings()), [], is_auth_enabled=True)

    async def app(scope, receive, send) -> None:  # type: ignore[no-untyped-def]  # noqa: ANN001
        await inner(scope | {"query_string": b"return_path=\xff"}, receive, send)

    transport = inside(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://mailer") as client:
        assert (await client.get("/login", headers=BROWSER)).status_code == 400


async def test_two_hosts_are_refused(web: httpx.AsyncClient) -> None:
    two_hosts = [(b"Host", b"localhost"), (b"Host", b"localhost")]
    assert (await web.get("/login", headers=two_hosts)).status_code == 400


async def test_http_1_1_without_host_is_refused(engine: AsyncEngine) -> None:
    inner = wrap_asgi(app_without_streams(engine), [], is_auth_enabled=True)

    async def app(scope, receive, send) -> None:  # type: ignore[no-untyped-def]  # noqa: ANN001
        await inner(scope | {"headers": []}, receive, send)

    async with httpx.AsyncClient(transport=inside(app), base_url="http://mailer") as client:
        for path in ("/login", "/health/live", "/api/v1/clients", "/static/pages.css", "/no"):
            assert (await client.get(path)).status_code == 400


@pytest.mark.parametrize("server", [("127.0.0.1", 8000), ("::1", 8000), ("/run/mailer", None)])
async def test_http_1_0_without_host_is_served_under_the_servers_address(
    engine: AsyncEngine, server: tuple[str, int | None]
) -> None:
    inner = wrap_asgi(app_without_streams(engine), [], is_auth_enabled=True)

    async def app(scope, receive, send) -> None:  # type: ignore[no-untyped-def]  # noqa: ANN001
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
    web: httpx.AsyncClient, origin: str
) -> None:
    for path in ("/login", "/api/v1/clients"):
        answer = await web.post(path, headers={"Origin": origin})
        assert answer.status_code == 403, answer.text


def _encoded(headers: dict[str, str]) -> list[tuple[bytes, bytes]]:
    """Return headers in bytes, so that others that are not ASCII can be added."""
    return [(name.encode(), value.encode()) for name, value in headers.items()]
