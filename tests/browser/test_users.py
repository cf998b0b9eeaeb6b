"""Signing in and out, and what a user sees by role, in a browser."""

import re
from collections.abc import AsyncIterator

import pytest
from playwright.async_api import Browser, Page, expect
from sqlalchemy.ext.asyncio import AsyncEngine
from tests.browser import signing_in
from tests.browser.accessibility import check_accessibility
from tests.browser.measure import overflows
from tests.browser.page_errors import PageErrors, collecting_errors
from tests.browser.page_states import DESK, NARROW, PageState, every_page_state
from tests.browser.signing_in import PASSWORD, mailer_with_users, wait_until_loaded
from tests.processes import Gateway, MailerProcess, until

from mailer.roles import Role

ROLES_BY_NAME: dict[str, Role] = {"vera": "viewer", "oleg": "operator", "anna": "admin"}
USER_PAGES = ("/users", "/users/new", "/users/1", "/users/3", "/users/3/notices")
RECONNECT = "dispatchEvent(new PageTransitionEvent('pageshow', {persisted: true}))"
"""Script that makes a live page open a new stream, as if the user had gone back to it."""


@pytest.fixture(scope="module")
async def mailer(
    browser: Browser, shared_database_url: str, gateway: Gateway, shared_engine: AsyncEngine
) -> AsyncIterator[MailerProcess]:
    """A process with a user of each role; mailing 1 is scheduled."""
    del browser  # requested so that without a browser no process is started
    async with mailer_with_users(
        shared_engine, shared_database_url, gateway, ROLES_BY_NAME
    ) as mailer:
        yield mailer


async def sign_in(page: Page, name: str, path: str = "/", password: str = PASSWORD) -> None:
    """Open a page, which redirects to the sign-in form, and sign in."""
    await page.goto(path)
    await signing_in.sign_in(page, name, password)


async def test_a_user_signs_in_on_the_way_to_a_page_and_signs_out(
    page: Page, mailer: MailerProcess
) -> None:
    await page.goto("/mailings?status=scheduled")
    await expect(page).to_have_title("Sign in - mailer")
    await expect(page.get_by_label("Name")).to_have_attribute("autocomplete", "username")
    password = page.get_by_label("Password")
    await expect(password).to_have_attribute("autocomplete", "current-password")
    await page.get_by_label("Name").fill("Anna")
    await password.fill(PASSWORD)
    await page.keyboard.press("Enter")
    await expect(page).to_have_url(f"{mailer.address}/mailings?status=scheduled")
    await expect(page.get_by_role("link", name="anna")).to_be_visible()
    await page.get_by_role("button", name="Sign out").click()
    await expect(page.get_by_text("You are signed out.")).to_be_visible()
    await page.goto("/mailings")
    await expect(page).to_have_url(f"{mailer.address}/login?return_path=/mailings")


async def test_a_wrong_password_is_an_error_and_not_shown_again(
    page: Page, page_errors: PageErrors
) -> None:
    page_errors.expect("status", "400 POST at .*/login")
    await sign_in(page, "vera", password="nothing like it")  # noqa: S106  # used in tests alone
    await expect(page.get_by_role("alert")).to_contain_text("The name or the password is wrong.")
    await expect(page.get_by_label("Name", exact=True)).to_have_value("vera")
    await expect(page.get_by_label("Password", exact=True)).to_have_value("")
    await check_accessibility(page)


async def test_a_viewer_can_only_read(page: Page, page_errors: PageErrors) -> None:
    await sign_in(page, "vera", "/mailings/1")
    await expect(page.get_by_text("It starts automatically")).to_be_visible()
    await page.wait_for_timeout(2_500)  # milliseconds: live sections were received at least once
    await expect(page.locator("#controls > *")).to_have_count(0)
    await page.goto("/clients")
    await expect(page.get_by_role("link", name="Import")).to_have_count(0)
    await page.get_by_role("link", name="79160000001").click()
    await expect(page.get_by_role("term").first).to_be_visible()
    await expect(page.get_by_role("button", name="Save")).to_have_count(0)
    await check_accessibility(page)
    await expect(page.get_by_role("link", name="System")).to_have_count(0)
    page_errors.expect("status", "403 GET at .*/mailings/new")
    await page.goto("/mailings/new")
    await expect(page.get_by_role("heading", name="You are not allowed to do this")).to_be_visible()
    await check_accessibility(page)


@every_page_state
async def test_pages_of_users_are_accessible_and_fit(page: Page, page_state: PageState) -> None:
    await page.goto("/")  # redirects to the sign-in form
    await expect(page.locator("html")).to_have_attribute("lang", page_state.locale[:2])
    problems = await overflows(page)
    await check_accessibility(page)
    await sign_in(page, "anna", "/profile")
    await expect(page.locator("html")).to_have_attribute("data-zone", page_state.time_zone)
    for path in ("/profile", "/profile/notices", *USER_PAGES):
        await page.goto(path)
        problems += [f"{path}: {wide}" for wide in await overflows(page)]
        assert await page.locator("h1:visible").count() == 1
        await check_accessibility(page)
    assert problems == []


async def test_an_open_page_whose_session_ended_elsewhere_shows_the_sign_in_form(
    page: Page, browser: Browser, page_errors: PageErrors, mailer: MailerProcess
) -> None:
    await sign_in(page, "oleg", "/mailings/1")
    await wait_until_loaded(page)
    await expect(page.locator("#pause")).to_be_visible()
    async with collecting_errors(browser, mailer.address, DESK) as elsewhere:
        await sign_in(elsewhere.page, "oleg", "/profile")
        end_button = elsewhere.page.get_by_role("button", name="End session")
        await expect(end_button).to_have_count(1)
        await end_button.click()
        await expect(elsewhere.page.get_by_text("The session has ended.")).to_be_visible()
        await expect(end_button).to_have_count(0)
    page_errors.expect("status", "401 GET at .*/live/mailings/1")
    await page.evaluate(RECONNECT)  # a page reconnects every minute
    await expect(page).to_have_url(f"{mailer.address}/login?return_path=/mailings/1")


async def test_a_confirmation_without_a_session_leads_to_the_sign_in_form(
    page: Page, page_errors: PageErrors, mailer: MailerProcess
) -> None:
    await sign_in(page, "oleg", "/mailings/1")
    await wait_until_loaded(page)
    await page.context.clear_cookies(name=re.compile("session"))
    page_errors.expect("status", "401 GET at .*/mailings/1/cancel")
    await page.locator("#cancel").click()
    await expect(page).to_have_url(f"{mailer.address}/login?return_path=/mailings/1")


async def test_a_pause_without_a_session_leads_to_the_sign_in_form_and_pauses_nothing(
    page: Page, page_errors: PageErrors, mailer: MailerProcess
) -> None:
    await sign_in(page, "oleg", "/mailings/1")
    await wait_until_loaded(page)
    await page.context.clear_cookies(name=re.compile("session"))
    page_errors.expect("status", "401 POST at .*/mailings/1/pause")
    await page.get_by_role("button", name="Pause").click()
    await expect(page).to_have_url(f"{mailer.address}/login?return_path=/mailings/1")
    await sign_in(page, "oleg", "/mailings/1")
    await expect(page.get_by_role("button", name="Pause")).to_be_visible()


OPEN, CLOSED = 1, 2
"""States of an EventSource, the browser's end of a stream of events."""
RECORD_STREAMS = """() => {
    window.noticesShown = 0;
    new MutationObserver(() => { window.noticesShown += !offline.hidden; })
        .observe(document.getElementById("offline"), {attributes: true});
    const OriginalEventSource = EventSource;
    window.streams = [];
    window.EventSource = function (address) {
        const source = new OriginalEventSource(address);
        window.streams.push(source);
        return source;
    };
    window.EventSource.CLOSED = OriginalEventSource.CLOSED;
}"""
"""Script that records new streams, and how often the notice of a lost connection was shown."""


async def test_reconnecting_a_stream_shows_no_notice(page: Page) -> None:
    await sign_in(page, "vera", "/mailings/1")
    await wait_until_loaded(page)
    await page.evaluate(RECORD_STREAMS)
    await page.evaluate(RECONNECT)

    async def has_opened(count: int) -> bool | None:
        states = await page.evaluate("streams.map(source => source.readyState)")
        is_opened = len(states) == count and states[-1] == OPEN
        return True if is_opened else None  # None: `until` asks again

    await until(lambda: has_opened(1))
    await page.evaluate("streams[0].dispatchEvent(new MessageEvent('reconnect', {data: '-'}))")
    await until(lambda: has_opened(2))
    assert await page.evaluate("streams[0].readyState") == CLOSED
    assert await page.evaluate("noticesShown") == 0


@pytest.mark.parametrize("page_state", [NARROW], ids=["russian on a phone, dark"])
async def test_an_admin_creates_a_user_who_then_signs_in(
    page: Page, browser: Browser, page_state: PageState, mailer: MailerProcess
) -> None:
    name = f"new {page_state.locale} {page_state.width}"
    await sign_in(page, "anna", "/users/new")
    await page.locator("[name=name]").fill(name)
    await page.locator("#role-operator").check()
    await page.locator("[name=password]").fill(PASSWORD)
    await page.locator("[name=repeated_password]").fill(PASSWORD)
    await page.locator("main button.primary").click()
    await expect(page.get_by_role("heading", name=name)).to_be_visible()
    await check_accessibility(page)
    async with collecting_errors(browser, mailer.address, DESK) as elsewhere:
        await sign_in(elsewhere.page, name, "/mailings/new")
        await expect(elsewhere.page.get_by_role("heading", name="New mailing")).to_be_visible()
    await page.reload()
    await page.locator("button.danger").click()  # disables the user
    await expect(page.locator(".notice.done")).to_be_visible()
    await check_accessibility(page)


async def test_a_user_chooses_notices_by_mail(page: Page, page_errors: PageErrors) -> None:
    await sign_in(page, "vera", "/profile")
    await page.get_by_role("link", name="Choose the notices").click()
    await expect(page.get_by_text("no mail server is configured")).to_be_visible()
    page_errors.expect("status", "400 POST at .*/profile/notices")
    await page.get_by_label("A gateway is in trouble").check()
    await page.get_by_role("button", name="Save").click()
    await expect(page.get_by_role("alert")).to_contain_text("is required for the notices")
    await check_accessibility(page)
    await page.get_by_label("Mail address").fill("vera@example.org")
    await page.get_by_role("button", name="Save").click()
    await expect(page.get_by_text("The notices are saved.")).to_be_visible()
    await expect(page.get_by_label("A gateway is in trouble")).to_be_checked()
    await expect(page.get_by_text("No mail has been sent yet.")).to_be_visible()
    await check_accessibility(page)
