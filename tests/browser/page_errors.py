"""Collect the errors that pages cause in the browser; an unexpected error fails the test.

A test that causes an error intentionally announces it with `PageErrors.expect`.
"""

import contextlib
import re
from collections.abc import AsyncIterator
from typing import Literal
from urllib.parse import urlsplit

import msgspec
from playwright.async_api import (
    Browser,
    BrowserContext,
    ConsoleMessage,
    Error,
    Page,
    Request,
    Response,
    WebError,
)
from tests.browser.page_states import PageState
from tests.event_timeout import EVENT_TIMEOUT

Kind = Literal["console", "exception", "policy", "foreign", "failed", "status"]
"""Kinds of errors:

- `console`: a message of console.error or console.warn
- `exception`: an exception that no script caught
- `policy`: something that the Content-Security-Policy forbids
- `foreign`: a request to another host
- `failed`: a request without a response
- `status`: a response with a status from 400 on
"""

HARMLESS_FAILURES = ("net::ERR_ABORTED", "csp")
"""Reasons of failed requests that are not reported: the page was left or a file was downloaded; the
policy forbids the request, which is reported as an error of the policy."""
ABORTED = re.compile("htmx:(sendAbort|afterRequest),")
"""Messages of htmx about a request replaced by a newer one, as on a slow machine."""
REPEATED_ERROR = "Failed to load resource:"
"""Start of console messages that repeat a failed request or a status from 400 on."""
REPORT_VIOLATIONS = """
    addEventListener("securitypolicyviolation", event => reportViolation(
        `${event.effectiveDirective} forbids ${event.blockedURI} ${event.sample}`.trim()))"""
"""Script that calls `reportViolation` for each violation of the Content-Security-Policy."""
WAIT_FOR_EVENTS = "() => new Promise(done => setTimeout(done))"
"""Script that ends when the browser has handled the events so far."""


class PageError(msgspec.Struct, frozen=True):
    """An error in the browser: what happened, and the URL of the page, script or request."""

    kind: Kind
    text: str
    url: str

    def __str__(self) -> str:
        """Return the error as `expect` compares it and as a failure shows it."""
        return f"{self.kind}: {self.text} at {self.url}"


class PageErrors:
    """Collects errors of all pages of a browser context until `check`."""

    def __init__(self, page: Page, origin: str) -> None:
        self.page = page
        self._host = urlsplit(origin).netloc
        self._errors: list[PageError] = []
        self._expected: list[tuple[Kind, str]] = []
        """Kind and pattern of each error that the test has announced."""

    async def start(self) -> None:
        """Start to collect errors; to be called before the first page is loaded."""
        context = self.page.context
        context.on("console", self._on_console)
        context.on("weberror", self._on_exception)
        context.on("request", self._on_request)
        context.on("requestfailed", self._on_failure)
        context.on("response", self._on_response)
        await context.expose_binding(
            "reportViolation",
            lambda source, text: self._record("policy", text, source["page"].url),
        )
        await context.add_init_script(REPORT_VIOLATIONS)

    def expect(self, kind: Kind, pattern: str) -> None:
        """Allow errors of a kind that match the regular expression `pattern`; one must occur.

        The errors look like `status: 422 POST at http://127.0.0.1:8000/mailings`.
        """
        self._expected.append((kind, pattern))

    async def check(self) -> None:
        """Fail if an unexpected error occurred, or an expected one did not."""
        for page in self.page.context.pages:
            with contextlib.suppress(Error):  # the page may be navigating
                await page.evaluate(WAIT_FOR_EVENTS)
        failures = []
        absent = list(self._expected)
        for error in self._without_repeats():
            matching = [
                (kind, pattern)
                for kind, pattern in self._expected
                if _matches(error, kind, pattern)
            ]
            absent = [expected for expected in absent if expected not in matching]
            if not matching:
                failures.append(str(error))
        failures += [f"expected, but did not occur: {kind}: {pattern}" for kind, pattern in absent]
        assert not failures, "\n".join(["in the browser:", *failures])

    def _without_repeats(self) -> list[PageError]:
        """Return each error once, even if the console repeats it."""
        request_errors = {"failed", "status"}
        reported_urls = {error.url for error in self._errors if error.kind in request_errors}
        return [
            error
            for error in dict.fromkeys(self._errors)
            if not (error.text.startswith(REPEATED_ERROR) and error.url in reported_urls)
        ]

    def _record(self, kind: Kind, text: str, url: str) -> None:
        self._errors.append(PageError(kind, text, url))

    def _on_console(self, message: ConsoleMessage) -> None:
        if message.type in {"error", "warning"} and not ABORTED.match(message.text):
            is_violation = "Content Security Policy" in message.text
            kind: Kind = "policy" if is_violation else "console"
            self._record(kind, message.text, message.location["url"])

    def _on_exception(self, error: WebError) -> None:
        page = error.page
        self._record("exception", str(error.error), page.url if page else "")

    def _on_request(self, request: Request) -> None:
        parts = urlsplit(request.url)
        if parts.scheme not in {"data", "blob"} and parts.netloc != self._host:
            self._record("foreign", request.method, request.url)

    def _on_failure(self, request: Request) -> None:
        if request.failure not in HARMLESS_FAILURES:
            self._record("failed", f"{request.method} {request.failure}", request.url)

    def _on_response(self, response: Response) -> None:
        if response.status >= 400:
            self._record("status", f"{response.status} {response.request.method}", response.url)


def _matches(error: PageError, kind: Kind, pattern: str) -> bool:
    return error.kind == kind and re.search(pattern, str(error)) is not None


@contextlib.asynccontextmanager
async def collecting_errors(
    browser: Browser, origin: str, page_state: PageState
) -> AsyncIterator[PageErrors]:
    """Open a new page in its own browser context, and yield the collector of its errors.

    Paths are relative to `origin`, such as `http://127.0.0.1:8000`. At the end, unexpected errors
    fail the test.
    """
    context: BrowserContext = await browser.new_context(
        base_url=origin,
        locale=page_state.locale,
        timezone_id=page_state.time_zone,
        viewport={"width": page_state.width, "height": page_state.height},
        has_touch=page_state.phone,
        is_mobile=page_state.phone,
        color_scheme="dark" if page_state.dark else "light",
    )
    context.set_default_timeout(EVENT_TIMEOUT * 1_000)
    try:
        page_errors = PageErrors(await context.new_page(), origin)
        await page_errors.start()
        yield page_errors
        await page_errors.check()
    finally:
        await context.close()
