"""The helpers of the browser tests detect what they should."""

import contextlib
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from playwright.async_api import Browser, Page
from tests.browser.accessibility import check_accessibility
from tests.browser.measure import overflows, wire_bytes
from tests.browser.page_errors import PageErrors, collecting_errors
from tests.browser.page_states import DARK, DESK, PHONE, RUSSIAN, PageState

STRICT_POLICY = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:"
SCRIPTS = {
    "error": "console.error('it is wrong')",
    "warning": "console.warn('it is odd')",
    "throw": "throw new Error('nobody caught it')",
    "reject": "Promise.reject(new Error('nobody waited'))",
    "evaluate": "try { eval('1') } catch {}",
}
"""Scripts at `/script/{name}`, each of which causes an error."""
READ_STATE = """() => [
    navigator.language, Intl.DateTimeFormat().resolvedOptions().timeZone, innerWidth,
    navigator.maxTouchPoints > 0, matchMedia("(prefers-color-scheme: dark)").matches]"""
TINY_BUTTON = '<button style="all: unset; display: block; font-size: 5px">x</button>'
STYLE_BYTES = 50_000

Visit = Callable[..., AbstractAsyncContextManager[PageErrors]]
"""Opens a page with a given body, and optionally a policy and the attribute `lang`."""


def html(body: str, policy: str = "", lang: str = ' lang="en"') -> web.Response:
    """Return a page with this body, Content-Security-Policy and attribute `lang`."""
    head = '<title>page</title><meta name="viewport" content="width=device-width">'
    icon = '<link rel="icon" href="data:,">'
    text = f"<!DOCTYPE html><html{lang}><head>{head}{icon}</head><body>{body}</body></html>"
    headers = {"Content-Security-Policy": policy} if policy else {}
    return web.Response(text=text, content_type="text/html", headers=headers)


async def script(request: web.Request) -> web.Response:
    """Return the script with the name in the path."""
    text = SCRIPTS[request.match_info["name"]]
    return web.Response(text=text, content_type="text/javascript")


async def abort(request: web.Request) -> web.Response:
    """Close the connection without a response."""
    assert request.transport is not None
    request.transport.abort()
    return web.Response()


async def respond_with_status(request: web.Request) -> web.Response:
    return web.Response(status=int(request.match_info["status"]), text="no")


async def style(_: web.Request) -> web.Response:
    return web.Response(body=bytes(STYLE_BYTES), content_type="text/css")


@pytest.fixture
async def visit(browser: Browser) -> AsyncIterator[Visit]:
    """Opens a page with a given body on a temporary server, and collects its errors."""
    async with contextlib.AsyncExitStack() as stack:

        @contextlib.asynccontextmanager
        async def visit(
            body: str, policy: str = "", lang: str = ' lang="en"'
        ) -> AsyncIterator[PageErrors]:
            async def home(_: web.Request) -> web.Response:
                return html(body, policy, lang)

            site = web.Application()
            site.router.add_get("/", home)
            site.router.add_get("/script/{name}", script)
            site.router.add_get("/abort", abort)
            site.router.add_get("/status/{status}", respond_with_status)
            site.router.add_get("/large.css", style)
            server = await stack.enter_async_context(TestServer(site))
            async with collecting_errors(browser, str(server.make_url("/")), DESK) as page_errors:
                await page_errors.page.goto("/")
                yield page_errors

        yield visit


@pytest.mark.parametrize(
    ("body", "policy", "error"),
    [
        ('<script src="/script/error"></script>', "", "console: it is wrong at http.*/error$"),
        ('<script src="/script/warning"></script>', "", "console: it is odd"),
        ('<script src="/script/throw"></script>', "", "exception: .*nobody caught it"),
        ('<script src="/script/reject"></script>', "", "exception: .*nobody waited"),
        ('<img src="http://other.example/a.png">', "", "foreign: GET at http://other.example/a"),
        (
            '<img src="http://other.example/a.png">',
            STRICT_POLICY,
            "policy: img-src forbids http://other",
        ),
        (
            "<script>document.title = 'x'</script>",
            STRICT_POLICY,
            "policy: script-src-elem forbids inline",
        ),
        ('<p style="color: red">x', STRICT_POLICY, "policy: Applying inline style violates"),
        (
            '<script src="/script/evaluate"></script>',
            STRICT_POLICY,
            "policy: script-src forbids eval",
        ),
        ('<img src="/abort">', "", "failed: GET net::ERR_EMPTY_RESPONSE"),
        ('<img src="/status/500">', "", "status: 500 GET at http.*/status/500$"),
        ('<img src="/status/404">', "", "status: 404 GET"),
    ],
    ids=[
        "error",
        "warning",
        "exception",
        "rejection",
        "another host",
        "policy, image",
        "policy, inline script",
        "policy, inline style",
        "policy, eval",
        "no response",
        "500",
        "404",
    ],
)
async def test_errors_in_the_browser_fail_the_test(
    visit: Visit, body: str, policy: str, error: str
) -> None:
    with pytest.raises(AssertionError, match=error):
        async with visit(body, policy):
            pass


async def test_each_error_is_reported_once(visit: Visit) -> None:
    with pytest.raises(AssertionError) as failure:
        async with visit(
            '<img src="/status/500"><img src="/abort"><script src="/script/throw"></script>'
        ):
            pass
    _heading, *errors = str(failure.value).splitlines()
    kinds = [error.split(":")[0] for error in errors]
    assert sorted(kinds) == ["exception", "failed", "status"]


async def test_expected_errors_are_allowed_and_no_others(visit: Visit) -> None:
    body = '<img src="/status/422"><script src="/script/error"></script>'
    async with visit(body) as page_errors:
        page_errors.expect("status", "422 GET at http.*/status/422$")
        page_errors.expect("console", "it is wrong")
    with pytest.raises(AssertionError, match=r"^in the browser:\nconsole: it is wrong[^\n]*$"):
        async with visit(body) as page_errors:
            page_errors.expect("status", "422")


async def test_an_expected_error_that_does_not_occur_fails_the_test(visit: Visit) -> None:
    with pytest.raises(AssertionError, match="did not occur: status: 422"):
        async with visit("fine") as page_errors:
            page_errors.expect("status", "422")


async def test_accessibility_checks_and_navigation_cause_no_errors(visit: Visit) -> None:
    async with visit(
        '<main><h1>x</h1><img alt="" src="data:,"></main>', STRICT_POLICY
    ) as page_errors:
        await check_accessibility(page_errors.page)
        await page_errors.page.goto("/?again")


@pytest.mark.parametrize(
    ("body", "defect"),
    [
        ('<main><h1>x</h1><img src="data:,"></main>', r"image-alt .*\n  at img: <img src"),
        ('<main><h1 style="color: #aaa">Mailings</h1></main>', "color-contrast"),
        (f"<main><h1>x</h1>{TINY_BUTTON}{TINY_BUTTON}</main>", "target-size"),
        ("<h1>x</h1>", "landmark-one-main"),
    ],
    ids=["2.0 A", "2.0 AA", "2.2 AA", "good practice"],
)
async def test_the_accessibility_check_finds_a_defect(visit: Visit, body: str, defect: str) -> None:
    async with visit(body) as page_errors:
        with pytest.raises(AssertionError, match=defect):
            await check_accessibility(page_errors.page)


async def test_allowed_defects_must_exist(visit: Visit) -> None:
    async with visit("<main><h1>x</h1></main>", lang="") as page_errors:
        await check_accessibility(page_errors.page, allowed_violations=["html-has-lang"])
        with pytest.raises(AssertionError, match="image-alt: allowed, but not violated any more"):
            await check_accessibility(
                page_errors.page, allowed_violations=["html-has-lang", "image-alt"]
            )


async def test_a_wide_page_overflows(visit: Visit) -> None:
    async with visit("<p>narrow") as page_errors:
        assert await overflows(page_errors.page) == []
    async with visit('<p><b style="display: block; width: 2000px">x</b>') as page_errors:
        summary, *wide = await overflows(page_errors.page)
        assert summary.endswith("on 1280")
        assert [element[:3] for element in wide] == ["<b "]


async def test_transferred_bytes_include_all_resources_at_each_load(visit: Visit) -> None:
    async with visit('<link rel="stylesheet" href="/large.css">') as page_errors:
        first = await wire_bytes(page_errors.page, "/")
        assert STYLE_BYTES < first < STYLE_BYTES + 2000  # the page and all headers are short
        assert await wire_bytes(page_errors.page, "/") == first


@pytest.mark.parametrize(
    ("page_state", "properties"),
    [
        (DESK, ["en-US", "Europe/Moscow", 1280, False, False]),
        (RUSSIAN, ["ru-RU", "Europe/Moscow", 1280, False, False]),
        (PHONE, ["en-US", "Europe/Moscow", 390, True, False]),
        (DARK, ["en-US", "Europe/Moscow", 1280, False, True]),
    ],
    ids=["desktop", "russian", "phone", "dark"],
)
async def test_a_page_has_the_given_state(
    page: Page, page_state: PageState, properties: list[object]
) -> None:
    del page_state  # used by the fixture `page`
    await page.goto("/")
    assert await page.evaluate(READ_STATE) == properties


async def test_the_overview_is_accessible(page: Page) -> None:
    await page.goto("/")
    await check_accessibility(page)
