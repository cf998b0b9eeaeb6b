"""What the browser tests stand on sees what it is there to see."""

import contextlib
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from playwright.async_api import Browser, Page
from tests.browser.audit import audit
from tests.browser.looks import DARK, DESK, PHONE, RUSSIAN, Look
from tests.browser.measure import overflows, wire_bytes
from tests.browser.watch import Watch, watched

STRICT = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:"
SCRIPTS = {
    "error": "console.error('it is wrong')",
    "warning": "console.warn('it is odd')",
    "throw": "throw new Error('nobody caught it')",
    "reject": "Promise.reject(new Error('nobody waited'))",
    "evaluate": "try { eval('1') } catch {}",
}
AGENT = """() => [navigator.language, Intl.DateTimeFormat().resolvedOptions().timeZone, innerWidth,
    navigator.maxTouchPoints > 0, matchMedia("(prefers-color-scheme: dark)").matches]"""
TINY = '<button style="all: unset; display: block; font-size: 5px">x</button>'
SIZE = 50_000

Visit = Callable[..., AbstractAsyncContextManager[Watch]]


def html(body: str, policy: str = "", lang: str = ' lang="en"') -> web.Response:
    head = '<title>page</title><meta name="viewport" content="width=device-width">'
    icon = '<link rel="icon" href="data:,">'
    text = f"<!DOCTYPE html><html{lang}><head>{head}{icon}</head><body>{body}</body></html>"
    headers = {"Content-Security-Policy": policy} if policy else {}
    return web.Response(text=text, content_type="text/html", headers=headers)


async def script(request: web.Request) -> web.Response:
    text = SCRIPTS[request.match_info["name"]]
    return web.Response(text=text, content_type="text/javascript")


async def cut(request: web.Request) -> web.Response:
    assert request.transport is not None
    request.transport.abort()
    return web.Response()


async def answer(request: web.Request) -> web.Response:
    return web.Response(status=int(request.match_info["status"]), text="no")


async def style(_: web.Request) -> web.Response:
    return web.Response(body=bytes(SIZE), content_type="text/css")


@pytest.fixture
async def visit(browser: Browser) -> AsyncIterator[Visit]:
    """Opens a page of a throwaway site with a given body, and watches it."""
    async with contextlib.AsyncExitStack() as stack:

        @contextlib.asynccontextmanager
        async def visit(
            body: str, policy: str = "", lang: str = ' lang="en"'
        ) -> AsyncIterator[Watch]:
            async def home(_: web.Request) -> web.Response:
                return html(body, policy, lang)

            site = web.Application()
            site.router.add_get("/", home)
            site.router.add_get("/script/{name}", script)
            site.router.add_get("/cut", cut)
            site.router.add_get("/answer/{status}", answer)
            site.router.add_get("/large.css", style)
            server = await stack.enter_async_context(TestServer(site))
            async with watched(browser, str(server.make_url("/")), DESK) as watch:
                await watch.page.goto("/")
                yield watch

        yield visit


@pytest.mark.parametrize(
    ("body", "policy", "complaint"),
    [
        ('<script src="/script/error"></script>', "", "console: it is wrong at http.*/error$"),
        ('<script src="/script/warning"></script>', "", "console: it is odd"),
        ('<script src="/script/throw"></script>', "", "exception: .*nobody caught it"),
        ('<script src="/script/reject"></script>', "", "exception: .*nobody waited"),
        ('<img src="http://other.example/a.png">', "", "foreign: GET at http://other.example/a"),
        ('<img src="http://other.example/a.png">', STRICT, "policy: img-src forbids http://other"),
        ("<script>document.title = 'x'</script>", STRICT, "policy: script-src-elem forbids inline"),
        ('<p style="color: red">x', STRICT, "policy: Applying inline style violates"),
        ('<script src="/script/evaluate"></script>', STRICT, "policy: script-src forbids eval"),
        ('<img src="/cut">', "", "failed: GET net::ERR_EMPTY_RESPONSE"),
        ('<img src="/answer/500">', "", "answer: 500 GET at http.*/answer/500$"),
        ('<img src="/answer/404">', "", "answer: 404 GET"),
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
        "no answer",
        "500",
        "404",
    ],
)
async def test_watch_fails_the_test(visit: Visit, body: str, policy: str, complaint: str) -> None:
    with pytest.raises(AssertionError, match=complaint):
        async with visit(body, policy):
            pass


async def test_watch_tells_each_thing_once(visit: Visit) -> None:
    with pytest.raises(AssertionError) as failed:
        async with visit(
            '<img src="/answer/500"><img src="/cut"><script src="/script/throw"></script>'
        ):
            pass
    told = [line.split(":")[0] for line in str(failed.value).splitlines()[1:]]
    assert sorted(told) == ["answer", "exception", "failed"]


async def test_watch_allows_what_is_expected_and_no_more(visit: Visit) -> None:
    body = '<img src="/answer/422"><script src="/script/error"></script>'
    async with visit(body) as watch:
        watch.expect("answer", "422 GET at http.*/answer/422$")
        watch.expect("console", "it is wrong")
    with pytest.raises(AssertionError, match=r"^in the browser:\nconsole: it is wrong[^\n]*$"):
        async with visit(body) as watch:
            watch.expect("answer", "422")


async def test_watch_misses_what_was_expected_and_did_not_come(visit: Visit) -> None:
    with pytest.raises(AssertionError, match="did not come: answer: 422"):
        async with visit("fine") as watch:
            watch.expect("answer", "422")


async def test_watch_minds_neither_an_audit_nor_leaving_a_page(visit: Visit) -> None:
    async with visit('<main><h1>x</h1><img alt="" src="data:,"></main>', STRICT) as watch:
        await audit(watch.page)
        await watch.page.goto("/?again")


@pytest.mark.parametrize(
    ("body", "told"),
    [
        ('<main><h1>x</h1><img src="data:,"></main>', r"image-alt .*\n  at img: <img src"),
        ('<main><h1 style="color: #aaa">Mailings</h1></main>', "color-contrast"),
        (f"<main><h1>x</h1>{TINY}{TINY}</main>", "target-size"),
        ("<h1>x</h1>", "landmark-one-main"),
    ],
    ids=["2.0 A", "2.0 AA", "2.2 AA", "good practice"],
)
async def test_audit_finds_a_defect(visit: Visit, body: str, told: str) -> None:
    async with visit(body) as watch:
        with pytest.raises(AssertionError, match=told):
            await audit(watch.page)


async def test_audit_leaves_out_what_is_known_while_it_is_so(visit: Visit) -> None:
    async with visit("<main><h1>x</h1></main>", lang="") as watch:
        await audit(watch.page, known=["html-has-lang"])
        with pytest.raises(AssertionError, match="image-alt: known, but broken no more"):
            await audit(watch.page, known=["html-has-lang", "image-alt"])


async def test_a_wide_page_overflows(visit: Visit) -> None:
    async with visit("<p>narrow") as watch:
        assert await overflows(watch.page) == []
    async with visit('<p><b style="display: block; width: 2000px">x</b>') as watch:
        told, *wide = await overflows(watch.page)
        assert told.endswith("on 1280")
        assert [element[:3] for element in wide] == ["<b "]


async def test_bytes_on_the_wire_are_of_all_that_a_page_loads_each_time(visit: Visit) -> None:
    async with visit('<link rel="stylesheet" href="/large.css">') as watch:
        first = await wire_bytes(watch.page, "/")
        assert SIZE < first < SIZE + 2000
        assert await wire_bytes(watch.page, "/") == first


@pytest.mark.parametrize(
    ("look", "agent"),
    [
        (DESK, ["en-US", "Europe/Moscow", 1280, False, False]),
        (RUSSIAN, ["ru-RU", "Europe/Moscow", 1280, False, False]),
        (PHONE, ["en-US", "Europe/Moscow", 390, True, False]),
        (DARK, ["en-US", "Europe/Moscow", 1280, False, True]),
    ],
    ids=["desk", "russian", "phone", "dark"],
)
async def test_a_page_is_looked_at_so(page: Page, look: Look, agent: list[object]) -> None:
    del look  # the page's, and given here
    await page.goto("/")
    assert await page.evaluate(AGENT) == agent


async def test_overview_is_accessible(page: Page) -> None:
    await page.goto("/")
    await audit(page)
