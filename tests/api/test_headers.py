"""Headers of every response, and limits of header values in requests."""

import re
from collections.abc import AsyncIterator
from importlib.metadata import version

import httpx
import pytest
from litestar.datastructures import Headers
from litestar.routes import HTTPRoute
from sqlalchemy.ext.asyncio import AsyncEngine
from tests.api.browser_session import BROWSER
from tests.api.calls import NEW, create_mailing
from tests.api.wrapped_app import COMMON_VALUES, app_without_streams, client_of
from tests.asgi_client import inside
from tests.factories import OPEN

from mailer.settings import Settings
from mailer.web.asgi_wrappers import wrap_asgi
from mailer.web.server.header_limits import MAX_COOKIES, MAX_LIST_LENGTH

STRICTEST_POLICY = "default-src 'none'; frame-ancestors 'none'"
"""The Content-Security-Policy of responses that are not pages."""


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
        assert COMMON_VALUES.items() <= dict(answer.headers).items(), context
        assert "camera=()" in answer.headers["permissions-policy"], context
        policy = answer.headers["content-security-policy"]
        assert policy.startswith("default-src 'none'"), context
        assert "frame-ancestors 'none'" in policy, context
        assert answer.headers["cache-control"], context
        for name in (*COMMON_VALUES, "content-security-policy", "cache-control"):
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
    assert COMMON_VALUES.items() <= dict(answer.headers).items()
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

    transport = inside(wrap_asgi(record_header, trusted_proxies=[], is_auth_enabled=False))
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
