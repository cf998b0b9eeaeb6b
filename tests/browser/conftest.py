"""Fixtures for tests of pages: a real mailer process, and a page in a real browser.

The browser is Debian's package `chromium`. A test uses the fixture `page`, and also `page_errors`
if it causes errors intentionally. A test that runs in several page states (languages, screens) is
parametrized by `page_state`, for example with `page_states.every_page_state`.
"""

from collections.abc import AsyncIterator

import pytest
from playwright.async_api import Browser, Page, async_playwright, expect
from tests.browser.page_errors import PageErrors, collecting_errors
from tests.browser.page_states import DESK, PageState
from tests.event_timeout import EVENT_TIMEOUT
from tests.processes import Gateway, MailerProcess, gateways, mailers
from tests.programs import find_program

BROWSER_ARGUMENTS = [
    "--no-sandbox",  # not available for root
    "--disable-dev-shm-usage",  # /dev/shm is small in containers
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",  # no requests to other machines
]


@pytest.fixture(scope="session")
async def browser() -> AsyncIterator[Browser]:
    """The browser of all tests; without it the tests are skipped."""
    program = find_program("chromium")
    expect.set_options(timeout=EVENT_TIMEOUT * 1_000)
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=program, args=BROWSER_ARGUMENTS)
        yield browser
        await browser.close()


@pytest.fixture(scope="module")
async def gateway() -> AsyncIterator[Gateway]:
    """The sandbox gateway of the test file; it accepts every message."""
    async with gateways() as start:
        yield await start()


@pytest.fixture(scope="module")
async def mailer(
    browser: Browser, shared_database_url: str, gateway: Gateway
) -> AsyncIterator[MailerProcess]:
    """The mailer process of the test file; its database is also that of `shared_engine`."""
    del browser  # requested so that without a browser no process is started
    async with mailers(shared_database_url) as start:
        yield await start(**gateway.settings)


@pytest.fixture
def page_state() -> PageState:
    """The state in which `page` is opened, unless a test is parametrized with others."""
    return DESK


@pytest.fixture
async def page_errors(
    browser: Browser, mailer: MailerProcess, page_state: PageState
) -> AsyncIterator[PageErrors]:
    """The errors of the test's page; unexpected ones fail the test at its end."""
    async with collecting_errors(browser, mailer.address, page_state) as page_errors:
        yield page_errors


@pytest.fixture
def page(page_errors: PageErrors) -> Page:
    """A page in a new browser context, without cookies; paths are relative to mailer."""
    return page_errors.page
