"""What goes wrong in a browser while a test looks at a page: nothing, or the test fails."""

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
from tests.browser.looks import Look
from tests.patience import PATIENCE

Kind = Literal["console", "exception", "policy", "foreign", "failed", "answer"]
"""A message of console.error or console.warn; an exception that nobody caught; a violation of the
Content-Security-Policy; a request to another host; one without an answer; an answer from 400 on."""

GONE_ON_PURPOSE = ("net::ERR_ABORTED", "csp")
"""Failures of requests that are none: the page was left meanwhile or a file is downloaded instead;
the policy forbade it, which is told on its own."""
ABORTED = re.compile("htmx:(sendAbort|afterRequest),")
"""What htmx says of a request that a newer one has replaced, as on a slow machine."""
RESOURCE = "Failed to load resource:"
"""So the console repeats a failed request or an answer from 400 on."""
LISTEN = """
    addEventListener("securitypolicyviolation", event => tellOfViolation(
        `${event.effectiveDirective} forbids ${event.blockedURI} ${event.sample}`.trim()))"""
SETTLE = "() => new Promise(done => setTimeout(done))"


class Complaint(msgspec.Struct, frozen=True):
    kind: Kind
    text: str
    url: str

    def __str__(self) -> str:
        return f"{self.kind}: {self.text} at {self.url}"


class Watch:
    """Collects complaints about all pages of a context, until `verdict` judges them."""

    def __init__(self, page: Page, origin: str) -> None:
        self.page = page
        self._host = urlsplit(origin).netloc
        self._complaints: list[Complaint] = []
        self._expected: list[tuple[Kind, str]] = []

    async def begin(self) -> None:
        """Listen, before the first page is loaded."""
        context = self.page.context
        context.on("console", self._see_console)
        context.on("weberror", self._see_exception)
        context.on("request", self._see_request)
        context.on("requestfailed", self._see_failure)
        context.on("response", self._see_answer)
        await context.expose_binding(
            "tellOfViolation",
            lambda source, text: self._complain("policy", text, source["page"].url),
        )
        await context.add_init_script(LISTEN)

    def expect(self, kind: Kind, pattern: str) -> None:
        """Allow complaints of a kind in which `pattern` is found, of which one must come.

        They read as in a failure: `422 POST at http://127.0.0.1:8000/mailings`.
        """
        self._expected.append((kind, pattern))

    async def verdict(self) -> None:
        """Fail unless there were just the complaints that were expected."""
        for page in self.page.context.pages:
            with contextlib.suppress(Error):  # it may be on its way to another page
                await page.evaluate(SETTLE)  # what happened before has been told after this
        complaints = self._without_repeats()
        missed = list(self._expected)
        wrong = []
        for complaint in complaints:
            met = [expected for expected in self._expected if _meets(complaint, *expected)]
            missed = [expected for expected in missed if expected not in met]
            if not met:
                wrong.append(str(complaint))
        wrong += [f"expected, but did not come: {kind}: {pattern}" for kind, pattern in missed]
        assert not wrong, "\n".join(["in the browser:", *wrong])

    def _without_repeats(self) -> list[Complaint]:
        told = {found.url for found in self._complaints if found.kind in {"failed", "answer"}}
        return [
            found
            for found in dict.fromkeys(self._complaints)
            if not (found.text.startswith(RESOURCE) and found.url in told)
        ]

    def _complain(self, kind: Kind, text: str, url: str) -> None:
        self._complaints.append(Complaint(kind, text, url))

    def _see_console(self, message: ConsoleMessage) -> None:
        if message.type in {"error", "warning"} and not ABORTED.match(message.text):
            policy = "Content Security Policy" in message.text
            kind: Kind = "policy" if policy else "console"
            self._complain(kind, message.text, message.location["url"])

    def _see_exception(self, error: WebError) -> None:
        page = error.page
        self._complain("exception", str(error.error), page.url if page else "")

    def _see_request(self, request: Request) -> None:
        parts = urlsplit(request.url)
        if parts.scheme not in {"data", "blob"} and parts.netloc != self._host:
            self._complain("foreign", request.method, request.url)

    def _see_failure(self, request: Request) -> None:
        if request.failure not in GONE_ON_PURPOSE:
            self._complain("failed", f"{request.method} {request.failure}", request.url)

    def _see_answer(self, answer: Response) -> None:
        if answer.status >= 400:
            self._complain("answer", f"{answer.status} {answer.request.method}", answer.url)


def _meets(complaint: Complaint, kind: Kind, pattern: str) -> bool:
    return complaint.kind == kind and re.search(pattern, str(complaint)) is not None


@contextlib.asynccontextmanager
async def watched(browser: Browser, origin: str, look: Look) -> AsyncIterator[Watch]:
    """Watch a page of a new context, where paths are of `origin`; at the end comes the verdict."""
    context: BrowserContext = await browser.new_context(
        base_url=origin,
        locale=look.locale,
        timezone_id=look.time_zone,
        viewport={"width": look.width, "height": look.height},
        has_touch=look.phone,
        is_mobile=look.phone,
        color_scheme="dark" if look.dark else "light",
    )
    context.set_default_timeout(PATIENCE * 1_000)
    try:
        watch = Watch(await context.new_page(), origin)
        await watch.begin()
        yield watch
        await watch.verdict()
    finally:
        await context.close()
