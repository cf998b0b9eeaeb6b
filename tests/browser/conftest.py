"""The pages of a real process in a real browser.

The browser is Debian's package `chromium`. A test takes `page`, and `watch` too if it makes
something go wrong on purpose; `look` is what `looks.every_look` and its like set.
"""

from collections.abc import AsyncIterator

import pytest
from playwright.async_api import Browser, Page, async_playwright, expect
from tests.browser.looks import DESK, Look
from tests.browser.watch import Watch, watched
from tests.patience import PATIENCE
from tests.processes import Gateway, MailerProcess, gateways, mailers
from tests.programs import needed

ARGUMENTS = [
    "--no-sandbox",  # which root cannot have
    "--disable-dev-shm-usage",  # /dev/shm is small in containers
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",  # nothing leaves this machine
]


@pytest.fixture(scope="session")
async def browser() -> AsyncIterator[Browser]:
    program = needed("chromium")
    expect.set_options(timeout=PATIENCE * 1_000)
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=program, args=ARGUMENTS)
        yield browser
        await browser.close()


@pytest.fixture(scope="module")
async def gateway() -> AsyncIterator[Gateway]:
    """The file's sandbox gateway, without faults."""
    async with gateways() as start:
        yield await start()


@pytest.fixture(scope="module")
async def mailer(
    browser: Browser, shared_database_url: str, gateway: Gateway
) -> AsyncIterator[MailerProcess]:
    """The file's mailer process; its database is `shared_engine`'s too."""
    del browser  # without one there is no need to start
    async with mailers(shared_database_url) as start:
        yield await start(**gateway.settings)


@pytest.fixture
def look() -> Look:
    return DESK


@pytest.fixture
async def watch(browser: Browser, mailer: MailerProcess, look: Look) -> AsyncIterator[Watch]:
    """What goes wrong on the test's page; what is not expected fails the test at its end."""
    async with watched(browser, mailer.address, look) as watch:
        yield watch


@pytest.fixture
def page(watch: Watch) -> Page:
    """A page of a browser that has never been here, where paths are mailer's."""
    return watch.page
