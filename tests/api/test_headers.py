"""Headers of every answer, hosts that are refused, and proxies whose word counts."""

import re
from collections.abc import AsyncIterator
from functools import lru_cache
from importlib.metadata import version

import httpx
import pytest
from litestar import Litestar
from litestar.datastructures import Headers
from litestar.routes import HTTPRoute
from sqlalchemy.ext.asyncio import AsyncEngine
from structlog.testing import capture_logs
from tests.api.calls import NEW, create
from tests.api.visits import BROWSER, app_of
from tests.asked import inside
from tests.sample import OPEN

from mailer.admin.live import Live
from mailer.app import create_app
from mailer.settings import Settings
from mailer.web.edge import served
from mailer.web.hosts import is_local
from mailer.web.proxies import TrustedProxies

EVERYWHERE = {
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
}
NOTHING = "default-src 'none'; frame-ancestors 'none'"


@lru_cache(maxsize=1)
def app_without_streams(engine: AsyncEngine) -> Litestar:
    """Return an application that the tests share: to make one takes longer than a test."""
    live = Live()
    live.stop()  # streams of events end at once
    return create_app(engine, live=live, settings=OPEN)


def client_of(
    engine: AsyncEngine, settings: Settings, peer: str = "127.0.0.1", host: str = "mailer"
) -> httpx.AsyncClient:
    """A client of the application as it is served, from an address."""
    transport = inside(served(app_without_streams(engine), settings), client=(peer, 1234))
    return httpx.AsyncClient(transport=transport, base_url=f"http://{host}")


@pytest.fixture
async def web(engine: AsyncEngine) -> AsyncIterator[httpx.AsyncClient]:
    async with client_of(engine, Settings()) as client:
        yield client


async def answers(engine: AsyncEngine, web: httpx.AsyncClient) -> AsyncIterator[httpx.Response]:
    """Give an answer of every route by every method, to a person and to a program."""
    created = await create(web_api(web), NEW)
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
    return httpx.AsyncClient(transport=web._transport, base_url="http://mailer/api/v1")  # noqa: SLF001  # the same application


async def test_every_answer_of_every_route_carries_the_headers(
    engine: AsyncEngine, web: httpx.AsyncClient
) -> None:
    seen = set()
    async for answer in answers(engine, web):
        told = f"{answer.request.method} {answer.request.url} {answer.status_code}"
        seen.add(answer.status_code)
        assert EVERYWHERE.items() <= dict(answer.headers).items(), told
        assert "camera=()" in answer.headers["permissions-policy"], told
        policy = answer.headers["content-security-policy"]
        assert policy.startswith("default-src 'none'"), told
        assert "frame-ancestors 'none'" in policy, told
        assert answer.headers["cache-control"], told
        for name in (*EVERYWHERE, "content-security-policy", "cache-control"):
            assert len(answer.headers.get_list(name)) == 1, (told, name)
        assert "strict-transport-security" not in answer.headers, told
        assert "server" not in answer.headers, told
        is_page = answer.headers.get("content-type", "").startswith("text/html")
        if not is_page and answer.request.url.path.startswith(("/api/", "/health/", "/metrics")):
            assert (policy, answer.headers["cache-control"]) == (NOTHING, "no-store"), told
    assert seen >= {200, 204, 303, 400, 404, 405}, seen


@pytest.mark.parametrize(
    ("path", "status"),
    [("/nothing", 404), ("/api/v1/nothing", 404), ("/static/none.js", 404), ("/docs/x", 404)],
)
async def test_what_no_route_knows_carries_them_too(
    web: httpx.AsyncClient, path: str, status: int
) -> None:
    answer = await web.get(path)
    assert answer.status_code == status
    assert EVERYWHERE.items() <= dict(answer.headers).items()
    assert (answer.headers["content-security-policy"], answer.headers["cache-control"]) == (
        NOTHING,
        "no-store",
    )


async def test_what_has_a_policy_of_its_own_keeps_it(web: httpx.AsyncClient) -> None:
    page = await web.get("/mailings", headers=BROWSER)
    assert "script-src 'self'" in page.headers["content-security-policy"]
    assert page.headers["cache-control"] == "private, no-store"
    assert "worker-src blob:" in (await web.get("/redoc")).headers["content-security-policy"]
    static = (await web.get("/static/pages.css")).headers
    assert "immutable" in static["cache-control"]


async def test_no_version_is_given_away(engine: AsyncEngine, web: httpx.AsyncClient) -> None:
    own = [version(name) for name in ("mailer", "litestar", "uvicorn", "aiohttp", "sqlalchemy")]
    assert (await web.get("/openapi.json")).json()["info"]["version"] == "1"
    async for answer in answers(engine, web):
        path = answer.request.url.path
        said = str(dict(answer.headers)) + ("" if path.startswith("/static") else answer.text)
        for number in own:
            assert f'"{number}"' not in said, path
            assert f"/{number}" not in said, path
            assert f" {number} " not in said, path


# ---- proxies --------------------------------------------------------------------------------

FORWARDED = {"x-forwarded-proto": "https", "x-forwarded-for": "evil, 203.0.113.9"}


async def next_page(client: httpx.AsyncClient) -> httpx.URL:
    for n in range(2):
        await client.post("/api/v1/clients", json={"phone": f"7916000000{n}"})
    answer = await client.get("/api/v1/clients?limit=1", headers=FORWARDED)
    return httpx.URL(answer.json()["next"])


async def test_nobody_is_believed_unless_a_setting_says_so(engine: AsyncEngine) -> None:
    async with client_of(engine, Settings()) as client:
        assert (await next_page(client)).scheme == "http"
        answer = await client.get("/health/live", headers=FORWARDED)
        assert "strict-transport-security" not in answer.headers


@pytest.mark.parametrize(
    ("proxies", "peer", "is_believed"),
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
async def test_a_proxy_that_is_trusted_says_who_asks_and_how(
    engine: AsyncEngine, proxies: str, peer: str, *, is_believed: bool
) -> None:
    async with client_of(engine, Settings(trusted_proxies=proxies), peer) as client:
        found = await next_page(client)
        assert (found.scheme, found.host) == ("https" if is_believed else "http", "mailer")
        answer = await client.get("/health/live", headers=FORWARDED)
        assert ("strict-transport-security" in answer.headers) == is_believed


@pytest.mark.parametrize(
    ("said", "sender"),
    [
        ("192.0.2.1, 203.0.113.9, 10.0.0.7", "203.0.113.9"),
        ("10.0.0.7", "10.0.0.7"),
        *((f"192.0.2.1, {said}", "10.0.0.5") for said in ("unknown", "_hidden", "", "a" * 9_000)),
        ("[2001:db8::1]:443", "2001:db8::1"),
        ("203.0.113.9:99999999", "203.0.113.9"),
    ],
)
async def test_who_asks_is_the_last_address_that_no_trusted_proxy_is(
    said: str, sender: str
) -> None:
    seen = []

    async def app(scope, receive, send) -> None:  # type: ignore[no-untyped-def]  # noqa: ANN001
        del receive
        seen.append(scope["client"][0])
        await send({"type": "http.response.start", "status": 204, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    async def ask(peer: str) -> None:
        wrapped = served(app, Settings(trusted_proxies="10.0.0.0/8"))
        transport = inside(wrapped, client=(peer, 1))
        async with httpx.AsyncClient(transport=transport, base_url="http://mailer") as client:
            await client.get("/", headers={"x-forwarded-for": said})

    await ask("10.0.0.5")
    await ask("198.51.100.1")
    assert seen == [sender, "198.51.100.1"]


@pytest.mark.parametrize(
    ("proto", "is_https"),
    [
        *(("https, http", True), ("https,http", True), ("HTTPS", True), (" https ", True)),
        *(("https, https", True), ("Https,HTTP", True), ("HTTPS\t,http", True)),
        *(("http", False), ("http, https", False), ("", False), (",https", False)),
        *(("httpss", False), ("wss", False), ("https;q=1", False)),
    ],
)
async def test_the_first_scheme_of_several_is_how_the_sender_came(
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
    ("given", "sender"),
    [
        ("192.0.2.1:4711", "192.0.2.1"),
        ("[2001:db8::1]:4711, 10.0.0.1", "2001:db8::1"),
        ("2001:db8::1", "2001:db8::1"),
        ("::ffff:10.0.0.9, 192.0.2.1, ::ffff:10.0.0.1", "192.0.2.1"),
        ("10.0.0.2, 10.0.0.1", "10.0.0.2"),
        ("", "10.0.0.5"),
    ],
)
async def test_every_way_of_writing_an_address_is_read(given: str, sender: str) -> None:
    proxies = TrustedProxies(["10.0.0.0/8"])
    found = proxies.sender([given.encode()])
    assert found is not None
    assert (found[0] or "10.0.0.5") == sender


@pytest.mark.parametrize("header", ["X-Forwarded-Proto", "X-Forwarded-For", "Forwarded"])
async def test_a_proxy_that_is_not_trusted_is_warned_of_once(
    engine: AsyncEngine, header: str
) -> None:
    settings = Settings(trusted_proxies="10.0.0.1")
    with capture_logs() as logs:
        async with client_of(engine, settings) as client:
            for _ in range(3):
                await client.get("/health/live", headers={header: "https"})
            await client.get("/health/live")
    warnings = [each for each in logs if each["log_level"] == "warning"]
    assert [(each["event"], each["setting"]) for each in warnings] == [
        ("proxy_not_trusted", "MAILER_TRUSTED_PROXIES")
    ]
    assert "Secure" in warnings[0]["because"]


async def test_a_trusted_proxy_and_who_comes_without_one_are_not_warned_of(
    engine: AsyncEngine,
) -> None:
    with capture_logs() as logs:
        async with client_of(engine, Settings(trusted_proxies="127.0.0.1")) as client:
            await client.get("/health/live", headers=FORWARDED)
        async with client_of(engine, Settings()) as client:
            await client.get("/health/live")
    assert not [each for each in logs if each["log_level"] == "warning"]


# ---- how much of a header is read -----------------------------------------------------------

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
async def test_entries_of_a_header_that_are_read_are_bounded(
    engine: AsyncEngine, name: str, value: str
) -> None:
    seen: list[str] = []
    app = app_without_streams(engine)

    async def look(scope, receive, send) -> None:  # type: ignore[no-untyped-def]  # noqa: ANN001
        seen.extend(Headers.from_scope(scope).getall(name))  # as Litestar sees them
        await app(scope, receive, send)

    transport = inside(served(look, OPEN))
    async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
        answer = await client.get("/clients", headers=BROWSER | {name: value})
    assert answer.status_code == 200
    [read] = seen
    assert sum(read.count(separator) for separator in ",;") <= 1_000
    assert name != "Cookie" or (read.count(";") < 100 and "\\" not in read)
    assert name == "Cookie" or len(read) <= 1_000


async def test_cookies_and_lists_as_browsers_send_them_are_read_whole(engine: AsyncEngine) -> None:
    cookies = "; ".join(f"other{n}={'x' * 50}" for n in range(60))
    headers = BROWSER | {
        "Cookie": f"{cookies}; language=ru",
        "Accept-Language": "en-US,en;q=0.9," + ",".join(f"x{n}" for n in range(10)),
    }
    async with client_of(engine, OPEN, host="localhost") as client:
        answer = await client.get("/clients", headers=headers)
    assert '<html lang="ru"' in answer.text


async def test_of_languages_the_wanted_are_taken_among_the_first_only(engine: AsyncEngine) -> None:
    many = ",".join(["xx"] * 20)
    async with client_of(engine, OPEN, host="localhost") as client:
        for given, spoken in ((f"ru,{many}", "ru"), (f"{many},ru", "en")):
            answer = await client.get("/clients", headers=BROWSER | {"Accept-Language": given})
            assert f'<html lang="{spoken}"' in answer.text


# ---- hosts ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "host",
    [
        *("localhost", "localhost:8000", "LOCALHOST", "a.localhost:1", "127.0.0.1", "127.9.8.7:80"),
        *("[::1]", "[::1]:8000"),
    ],
)
def test_loopback_names_are_local(host: str) -> None:
    assert is_local(host)


@pytest.mark.parametrize(
    "host",
    [
        *("evil.example", "localhost.evil.example", "127.0.0.1.evil.example", "evillocalhost", ""),
        *(
            "10.0.0.1",
            "0.0.0.0",  # noqa: S104  # what is refused
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
def test_other_names_are_not(host: str) -> None:
    assert not is_local(host)


async def test_without_auth_only_loopback_names_are_answered(engine: AsyncEngine) -> None:
    open_to_all = Settings(auth="none")
    async with client_of(engine, open_to_all, host="127.0.0.1:8000") as client:
        assert (await client.get("/api/v1/clients")).status_code == 200
    async with client_of(engine, open_to_all, host="evil.example") as client:
        for method, path in (("GET", "/"), ("POST", "/api/v1/clients"), ("GET", "/metrics")):
            answer = await client.request(method, path)
            assert answer.status_code == 421
            assert answer.headers["content-type"] == "application/problem+json"
            assert "MAILER_TRUSTED_PROXIES" in answer.json()["detail"]
            assert EVERYWHERE.items() <= dict(answer.headers).items()


async def test_without_auth_a_request_past_the_trusted_proxy_needs_a_loopback_name(
    engine: AsyncEngine,
) -> None:
    settings = Settings(auth="none", trusted_proxies="10.0.0.1")
    for peer, status in (("127.0.0.1", 421), ("10.0.0.1", 200)):
        async with client_of(engine, settings, peer, host="evil.example") as client:
            for said in ("10.0.0.1", "192.0.2.7"):
                headers = {"x-forwarded-for": said}
                answer = await client.get("/api/v1/clients", headers=headers)
                assert answer.status_code == status
                assert EVERYWHERE.items() <= dict(answer.headers).items()
    async with client_of(engine, settings, host="localhost") as client:
        assert (await client.get("/api/v1/clients")).status_code == 200


async def test_with_keys_or_behind_a_trusted_proxy_any_name_will_do(engine: AsyncEngine) -> None:
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
async def test_host_that_names_nothing_is_refused(
    engine: AsyncEngine, host: bytes, path: str
) -> None:
    for settings in (Settings(), OPEN, Settings(trusted_proxies="127.0.0.1")):
        transport = inside(served(app_of(engine, settings), settings))
        async with httpx.AsyncClient(transport=transport, base_url="http://mailer") as client:
            answer = await client.get(path, headers=[(b"Host", host), *_encoded(BROWSER)])
            assert answer.status_code == 400, answer.text
            assert answer.json()["detail"].startswith("Host must be one name")
            assert EVERYWHERE.items() <= dict(answer.headers).items()
            assert answer.headers["x-request-id"]


async def test_query_that_is_no_text_is_refused(engine: AsyncEngine) -> None:
    inner = served(app_of(engine, Settings()), Settings())

    async def app(scope, receive, send) -> None:  # type: ignore[no-untyped-def]  # noqa: ANN001
        await inner(scope | {"query_string": b"back=\xff"}, receive, send)

    transport = inside(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://mailer") as client:
        assert (await client.get("/login", headers=BROWSER)).status_code == 400


async def test_two_hosts_are_refused(web: httpx.AsyncClient) -> None:
    two = [(b"Host", b"localhost"), (b"Host", b"localhost")]
    assert (await web.get("/login", headers=two)).status_code == 400


async def test_http_1_1_without_host_is_refused(engine: AsyncEngine) -> None:
    inner = served(app_without_streams(engine), Settings())

    async def app(scope, receive, send) -> None:  # type: ignore[no-untyped-def]  # noqa: ANN001
        await inner(scope | {"headers": []}, receive, send)

    async with httpx.AsyncClient(transport=inside(app), base_url="http://mailer") as client:
        for path in ("/login", "/health/live", "/api/v1/clients", "/static/pages.css", "/no"):
            assert (await client.get(path)).status_code == 400


@pytest.mark.parametrize("server", [("127.0.0.1", 8000), ("::1", 8000), ("/run/mailer", None)])
async def test_without_host_an_old_request_is_for_the_address_that_it_came_to(
    engine: AsyncEngine, server: tuple[str, int | None]
) -> None:
    inner = served(app_without_streams(engine), Settings())

    async def app(scope, receive, send) -> None:  # type: ignore[no-untyped-def]  # noqa: ANN001
        headers = [pair for pair in scope["headers"] if pair[0] != b"host"]
        old = {"headers": headers, "server": server, "http_version": "1.0"}
        await inner(scope | old, receive, send)

    async with httpx.AsyncClient(transport=inside(app), base_url="http://mailer") as client:
        assert (await client.get("/login", headers=BROWSER)).status_code in {200, 303}
        found = await next_page(client)
        assert found.port == (8000 if server[1] else None)


@pytest.mark.parametrize("origin", ["http://[", "http://[x]", "null", "//", "", "http://a:b:c"])
async def test_origin_that_names_no_host_is_another_site(
    web: httpx.AsyncClient, origin: str
) -> None:
    for path in ("/login", "/api/v1/clients"):
        answer = await web.post(path, headers={"Origin": origin})
        assert answer.status_code == 403, answer.text


def _encoded(headers: dict[str, str]) -> list[tuple[bytes, bytes]]:
    return [(name.encode(), value.encode()) for name, value in headers.items()]
