"""Typed text survives a lost session, and actions without a response are shown as not done."""

import re
from collections.abc import AsyncIterator

import pytest
from playwright.async_api import Browser, Error, Page, Route, expect
from sqlalchemy.ext.asyncio import AsyncEngine
from tests.browser import signing_in
from tests.browser.accessibility import check_accessibility
from tests.browser.page_errors import PageErrors
from tests.browser.page_states import PHONE
from tests.browser.signing_in import mailer_with_users, wait_until_loaded
from tests.factories import execute, value
from tests.processes import Gateway, MailerProcess

from mailer.roles import Role

TEXT = "A long text that nobody wants to write twice"
TEXT_LENGTH = str(len(TEXT))
"""The number of characters as the preview shows it."""
CLIENTS = "for 0 clients"
"""The end of the text of the button, once the preview knows the audience."""
SAVED = re.compile(r"/mailings/\d+$")
READ_STORED_INPUT = "sessionStorage.getItem('unsaved-input')"


@pytest.fixture(scope="module")
async def mailer(
    browser: Browser, shared_database_url: str, gateway: Gateway, shared_engine: AsyncEngine
) -> AsyncIterator[MailerProcess]:
    """A process with two operators; mailing 1 is scheduled."""
    del browser  # requested so that without a browser no process is started
    users: dict[str, Role] = {"oleg": "operator", "olga": "operator"}
    async with mailer_with_users(shared_engine, shared_database_url, gateway, users) as mailer:
        yield mailer


async def sign_in(page: Page, name: str) -> None:
    """Sign in, and wait until the page shows the user."""
    await signing_in.sign_in(page, name)
    await expect(page.locator("header .user")).to_contain_text(name)
    await wait_until_loaded(page)


async def write_mailing(page: Page) -> None:
    """Sign in as oleg and fill in a mailing, without saving it."""
    await page.goto("/mailings/new")
    await sign_in(page, "oleg")
    await page.locator("#text").fill(TEXT)
    await page.locator("#audience-terms").check()
    await page.locator("#terms").fill("vip")
    await expect(page.locator("#preview-text")).to_contain_text(TEXT_LENGTH)
    await expect(page.locator("#save")).to_contain_text(CLIENTS)


async def end_sessions(engine: AsyncEngine) -> None:
    """End the sessions of all users."""
    await execute(engine, "DELETE FROM session")


async def lose_session(page: Page, engine: AsyncEngine) -> None:
    """Fill in a mailing, and save it after the session has ended."""
    await write_mailing(page)
    await end_sessions(engine)
    await page.locator("#save").click()
    await expect(page).to_have_title(re.compile("Sign in"))


async def test_typed_text_is_restored_after_signing_in_again(
    page: Page, shared_engine: AsyncEngine
) -> None:
    await lose_session(page, shared_engine)
    await sign_in(page, "oleg")
    await expect(page.locator("#text")).to_have_value(TEXT)
    await expect(page.locator("#terms")).to_have_value("vip")
    await expect(page.locator("#audience-terms")).to_be_checked()
    await expect(page.locator("#restored-input")).to_be_visible()
    await expect(page.locator("#preview-text")).to_contain_text(TEXT_LENGTH)
    await check_accessibility(page)
    assert await page.evaluate(READ_STORED_INPUT) is None
    await expect(page.locator("#save")).to_contain_text(CLIENTS)
    await page.locator("#save").click()
    await page.wait_for_url(SAVED)  # the page of the form shows the text, too
    await expect(page.get_by_text(TEXT).first).to_be_visible()
    assert await page.evaluate(READ_STORED_INPUT) is None


async def test_text_is_restored_when_the_session_ended_on_the_page_that_asks(
    page: Page, shared_engine: AsyncEngine
) -> None:
    await write_mailing(page)
    await page.locator("[name=shown]").evaluate("field => { field.value = '' }")
    await page.locator("#save").click()
    await expect(page.get_by_role("heading", level=1)).to_have_text(re.compile(r"clients\?$"))
    await end_sessions(shared_engine)
    await page.locator("#save").click()
    await expect(page).to_have_title(re.compile("Sign in"))
    await sign_in(page, "oleg")
    await expect(page.locator("#text")).to_have_value(TEXT)
    await expect(page.locator("#audience-terms")).to_be_checked()
    await expect(page.locator("#terms")).to_have_value("vip")
    await expect(page.locator("#restored-input")).to_be_visible()
    await expect(page.locator("#save")).to_contain_text(CLIENTS)


async def test_back_from_the_page_that_asks_shows_the_form_as_it_was(page: Page) -> None:
    await write_mailing(page)
    await page.locator("[name=shown]").evaluate("field => { field.value = '' }")
    await page.locator("#save").click()
    await expect(page.get_by_role("heading", level=1)).to_have_text(re.compile(r"clients\?$"))
    await check_accessibility(page)
    await page.get_by_role("button", name="Back to the form").click()
    await expect(page.locator("#text")).to_have_value(TEXT)
    await expect(page.locator("#terms")).to_have_value("vip")


async def test_text_is_restored_when_the_session_ended_while_typing(
    page: Page, page_errors: PageErrors, shared_engine: AsyncEngine
) -> None:
    await write_mailing(page)
    await end_sessions(shared_engine)
    page_errors.expect("status", "401 POST at .*/mailings/preview")
    await page.locator("#text").fill(TEXT + "!")  # requests a preview without a session
    await expect(page).to_have_title(re.compile("Sign in"))
    await sign_in(page, "oleg")
    await expect(page.locator("#text")).to_have_value(TEXT + "!")


async def test_another_user_does_not_get_the_text(page: Page, shared_engine: AsyncEngine) -> None:
    await lose_session(page, shared_engine)
    await sign_in(page, "olga")
    await expect(page.locator("#text")).to_have_value("")
    await expect(page.locator("#restored-input")).to_be_hidden()
    await page.wait_for_load_state()
    assert await page.evaluate(READ_STORED_INPUT) is None


async def test_signing_out_or_discarding_deletes_the_text(page: Page) -> None:
    await write_mailing(page)
    await page.get_by_role("button", name="Sign out").click()
    await expect(page).to_have_title(re.compile("Sign in"))
    assert await page.evaluate(READ_STORED_INPUT) is None
    await page.goto("/mailings/new")
    await sign_in(page, "oleg")
    await expect(page.locator("#text")).to_have_value("")
    await page.locator("#text").fill(TEXT)
    await page.get_by_role("link", name="Discard").click()
    await expect(page).to_have_url(re.compile("/mailings$"))
    await page.wait_for_load_state()
    assert await page.evaluate(READ_STORED_INPUT) is None


async def test_a_restored_change_of_a_changed_mailing_is_still_a_conflict(
    page: Page, page_errors: PageErrors, shared_engine: AsyncEngine
) -> None:
    await page.goto("/mailings/1/edit")
    await sign_in(page, "oleg")
    await page.locator("#text").fill(TEXT)
    await expect(page.locator("#preview-text")).to_contain_text(TEXT_LENGTH)
    await end_sessions(shared_engine)
    await execute(shared_engine, "UPDATE mailing SET text = 'Theirs', updated_at = now()")
    await page.locator("#save").click()
    await sign_in(page, "oleg")
    await expect(page.locator("#text")).to_have_value(TEXT)
    page_errors.expect("status", "409 POST at .*/edit")
    await page.locator("#save").click()
    heading = page.get_by_role("alert").get_by_role("heading")
    await expect(heading).to_have_text(re.compile("Another user changed this mailing"))
    await expect(page.get_by_text("Some fields are wrong")).to_have_count(0)


async def test_a_refused_sign_in_shows_the_reason_as_heading(
    page: Page, page_errors: PageErrors
) -> None:
    await page.goto("/login")
    await page.locator("[name=name]").fill("nobody")
    await page.locator("[name=password]").fill("wrong")
    page_errors.expect("status", "400 POST at .*/login")
    await page.locator("main button").click()
    heading = page.get_by_role("alert").get_by_role("heading")
    await expect(heading).to_have_text(re.compile("password"))
    await expect(page.get_by_text("Some fields are wrong")).to_have_count(0)


async def test_an_action_without_a_connection_is_shown_as_not_done(
    page: Page, page_errors: PageErrors
) -> None:
    page_errors.expect("failed", "ERR_INTERNET_DISCONNECTED")
    page_errors.expect("console", "htmx:")
    await page.goto("/mailings/1")
    await sign_in(page, "oleg")
    notice = page.locator("#request-error")
    await page.context.set_offline(True)
    await page.locator("#cancel").click()
    await expect(notice).to_have_text(re.compile("no connection"))
    await expect(notice).to_be_in_viewport()
    await expect(page.locator("#offline")).to_contain_text(re.compile(r"update: \d\d:\d\d:\d\d"))
    await page.context.set_offline(False)
    await page.locator("#cancel").click()
    await expect(notice).to_be_hidden()
    await expect(page.get_by_role("dialog")).to_be_visible()
    await page.context.set_offline(True)
    await page.get_by_role("button", name="Cancel the mailing").click()
    await expect(notice).to_have_text(re.compile("no connection"))
    await check_accessibility(page)
    await page.context.set_offline(False)
    await expect(page.locator("#offline")).to_be_hidden()


@pytest.mark.parametrize("page_state", [PHONE])
async def test_the_notice_of_a_failed_action_is_below_the_footer(page: Page) -> None:
    await page.goto("/clients")
    await sign_in(page, "oleg")
    await page.context.set_offline(True)
    await page.evaluate("scrollTo(0, document.documentElement.scrollHeight)")
    await page.get_by_role("button", name="Apply").click()
    notice = page.locator("#request-error")
    await expect(notice).to_have_text(re.compile("no connection"))
    box, footer = await notice.bounding_box(), await page.locator("footer").bounding_box()
    assert box is not None
    assert footer is not None
    assert box["y"] >= footer["y"] + footer["height"] - 1  # pixels
    await expect(notice).to_be_in_viewport(ratio=1)
    await page.context.set_offline(False)


async def drop_response(route: Route) -> None:
    """Send a request to mailer, but let the browser receive no response."""
    await route.fetch(max_redirects=0)
    await route.abort("connectionreset")


async def test_a_form_sent_again_after_a_lost_response_creates_one_mailing(
    page: Page, page_errors: PageErrors, shared_engine: AsyncEngine
) -> None:
    page_errors.expect("failed", "ERR_CONNECTION_RESET")
    await write_mailing(page)
    before = await value(shared_engine, "SELECT count(*) FROM mailing")
    await page.route("**/mailings/new?*", drop_response)
    await page.locator("#save").click()
    await expect(page).to_have_url(re.compile("chrome-error"))
    await page.unroute("**/mailings/new?*")
    await page.go_back()
    await expect(page.locator("#text")).to_have_value(TEXT)
    await expect(page.locator("#save")).to_contain_text(CLIENTS)
    await page.locator("#save").click()
    await expect(page).to_have_url(re.compile(r"/mailings/\d+"))
    assert await value(shared_engine, "SELECT count(*) FROM mailing") == before + 1


CLICK_SAVE_AT = """times => {
    const arePrevented = [];
    addEventListener("submit", event => {
        arePrevented.push(event.defaultPrevented);
        event.preventDefault();
    });
    for (const time of times) {
        performance.now = () => time;
        document.getElementById("save").click();
    }
    return arePrevented;
}"""
"""Script that clicks Save at times in milliseconds; returns whether each click had no effect."""


async def test_a_form_without_a_response_can_be_sent_again_after_some_seconds(page: Page) -> None:
    await write_mailing(page)
    first, soon, later = 1_000, 1_001, 6_001  # milliseconds
    is_prevented = await page.evaluate(CLICK_SAVE_AT, [first, soon, later])
    assert is_prevented == [False, True, False]


async def test_a_form_without_a_response_survives_a_reload(
    page: Page, page_errors: PageErrors
) -> None:
    async def refuse(route: Route) -> None:
        await route.abort("connectionrefused")

    page_errors.expect("failed", "ERR_CONNECTION_REFUSED")
    await write_mailing(page)
    await page.route("**/mailings/new*", refuse)
    await page.locator("#save").click()
    await expect(page).to_have_url(re.compile("chrome-error"))
    with pytest.raises(Error, match="ERR_CONNECTION_REFUSED"):
        await page.go_back()
    await page.unroute("**/mailings/new*")
    await page.reload()
    await expect(page.locator("#text")).to_have_value(TEXT)
    await expect(page.locator("#restored-input")).to_be_visible()


async def test_a_failed_confirmation_request_is_shown_as_not_done(
    page: Page, page_errors: PageErrors
) -> None:
    async def fail(route: Route) -> None:
        await route.fulfill(status=503, body="")

    page_errors.expect("status", "503 GET at .*/cancel")
    page_errors.expect("console", "503")
    await page.goto("/mailings/1")
    await sign_in(page, "oleg")
    await page.route("**/mailings/1/cancel", fail)
    await page.locator("#cancel").click()
    await expect(page.locator("#request-error")).to_have_text(re.compile("could not do this"))
    await expect(page).to_have_url(re.compile("/mailings/1$"))
