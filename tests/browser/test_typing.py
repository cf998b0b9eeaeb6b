"""What was typed outlives a lost session, and what is not done for want of an answer says so."""

import re
from collections.abc import AsyncIterator

import pytest
from playwright.async_api import Browser, Error, Page, Route, expect
from sqlalchemy.ext.asyncio import AsyncEngine
from tests.browser import signing_in
from tests.browser.audit import audit
from tests.browser.looks import PHONE
from tests.browser.signing_in import mailer_with_users
from tests.browser.watch import Watch
from tests.processes import Gateway, MailerProcess
from tests.sample import execute, value

from mailer.settings import Role

TEXT = "A long text that nobody wants to write twice"
SAVED = re.compile(r"/mailings/\d+$")
KEPT = "sessionStorage.getItem('kept')"


@pytest.fixture(scope="module")
async def mailer(
    browser: Browser, shared_database_url: str, gateway: Gateway, shared_engine: AsyncEngine
) -> AsyncIterator[MailerProcess]:
    """A process with two operators; mailing 1 is for later."""
    del browser  # without one there is no need to start
    users: dict[str, Role] = {"oleg": "operator", "olga": "operator"}
    async with mailer_with_users(shared_engine, shared_database_url, gateway, users) as mailer:
        yield mailer


async def sign_in(page: Page, name: str) -> None:
    """Sign in, and wait until the page says so."""
    await signing_in.sign_in(page, name)
    await expect(page.locator("header .person")).to_contain_text(name)


async def write(page: Page) -> None:
    """Write a mailing as oleg, until just before it is saved."""
    await page.goto("/mailings/new")
    await sign_in(page, "oleg")
    await page.locator("#text").fill(TEXT)
    await page.locator("#audience-terms").check()
    await page.locator("#terms").fill("vip")
    await expect(page.locator("#preview-text")).to_contain_text("44")


async def end_session(engine: AsyncEngine) -> None:
    await execute(engine, "DELETE FROM session")


async def lose_session(page: Page, engine: AsyncEngine) -> None:
    """Write a mailing, and be signed out while saving it."""
    await write(page)
    await end_session(engine)
    await page.locator("#save").click()
    await expect(page).to_have_title(re.compile("Sign in"))


async def test_text_is_there_again_after_signing_in_again(
    page: Page, shared_engine: AsyncEngine
) -> None:
    await lose_session(page, shared_engine)
    await sign_in(page, "oleg")
    await expect(page.locator("#text")).to_have_value(TEXT)
    await expect(page.locator("#terms")).to_have_value("vip")
    await expect(page.locator("#audience-terms")).to_be_checked()
    await expect(page.locator("#brought-back")).to_be_visible()
    await expect(page.locator("#preview-text")).to_contain_text("44")
    await audit(page)
    assert await page.evaluate(KEPT) is None
    await page.locator("#save").click()
    await page.wait_for_url(SAVED)  # and until it has loaded: the form's page shows the text too
    await expect(page.get_by_text(TEXT).first).to_be_visible()
    assert await page.evaluate(KEPT) is None


async def test_text_is_there_again_when_the_session_was_lost_while_typing(
    page: Page, watch: Watch, shared_engine: AsyncEngine
) -> None:
    await write(page)
    await end_session(shared_engine)
    watch.expect("answer", "401 POST at .*/mailings/preview")
    await page.locator("#text").fill(TEXT + "!")  # its preview finds nobody signed in
    await expect(page).to_have_title(re.compile("Sign in"))
    await sign_in(page, "oleg")
    await expect(page.locator("#text")).to_have_value(TEXT + "!")


async def test_nobody_else_finds_the_text(page: Page, shared_engine: AsyncEngine) -> None:
    await lose_session(page, shared_engine)
    await sign_in(page, "olga")
    await expect(page.locator("#text")).to_have_value("")
    await expect(page.locator("#brought-back")).to_be_hidden()
    await page.wait_for_load_state()
    assert await page.evaluate(KEPT) is None


async def test_who_signs_out_or_goes_elsewhere_leaves_no_text_behind(page: Page) -> None:
    await write(page)
    await page.get_by_role("button", name="Sign out").click()
    await expect(page).to_have_title(re.compile("Sign in"))
    assert await page.evaluate(KEPT) is None
    await page.goto("/mailings/new")
    await sign_in(page, "oleg")
    await expect(page.locator("#text")).to_have_value("")
    await page.locator("#text").fill(TEXT)
    await page.get_by_role("link", name="Do not save").click()
    await expect(page).to_have_url(re.compile("/mailings$"))
    await page.wait_for_load_state()
    assert await page.evaluate(KEPT) is None


async def test_change_of_a_mailing_that_was_changed_meanwhile_is_still_a_conflict(
    page: Page, watch: Watch, shared_engine: AsyncEngine
) -> None:
    await page.goto("/mailings/1/edit")
    await sign_in(page, "oleg")
    await page.locator("#text").fill(TEXT)
    await end_session(shared_engine)
    await execute(shared_engine, "UPDATE mailing SET text = 'Theirs', updated_at = now()")
    await page.locator("#save").click()
    await sign_in(page, "oleg")
    await expect(page.locator("#text")).to_have_value(TEXT)
    watch.expect("answer", "409 POST at .*/edit")
    await page.locator("#save").click()
    heading = page.get_by_role("alert").get_by_role("heading")
    await expect(heading).to_have_text(re.compile("Somebody else changed this mailing"))
    await expect(page.get_by_text("Some fields are wrong")).to_have_count(0)


async def test_sign_in_that_is_refused_is_headed_by_the_reason(page: Page, watch: Watch) -> None:
    await page.goto("/login")
    await page.locator("[name=name]").fill("nobody")
    await page.locator("[name=password]").fill("wrong")
    watch.expect("answer", "400 POST at .*/login")
    await page.locator("main button").click()
    heading = page.get_by_role("alert").get_by_role("heading")
    await expect(heading).to_have_text(re.compile("password"))
    await expect(page.get_by_text("Some fields are wrong")).to_have_count(0)


async def test_action_without_a_connection_says_that_it_was_not_done(
    page: Page, watch: Watch
) -> None:
    watch.expect("failed", "ERR_INTERNET_DISCONNECTED")
    watch.expect("console", "htmx:")
    await page.goto("/mailings/1")
    await sign_in(page, "oleg")
    said = page.locator("#unanswered")
    await page.context.set_offline(True)
    await page.locator("#pause").click()
    await expect(said).to_have_text(re.compile("no connection"))
    await expect(said).to_be_in_viewport()
    await expect(page.locator("#offline")).to_contain_text(re.compile(r"update: \d\d:\d\d:\d\d"))
    await page.context.set_offline(False)
    await page.locator("#pause").click()
    await expect(said).to_be_hidden()
    await expect(page.get_by_role("dialog")).to_be_visible()
    await page.context.set_offline(True)
    await page.get_by_role("button", name="Pause it").click()
    await expect(said).to_have_text(re.compile("no connection"))
    await audit(page)
    await page.context.set_offline(False)
    await expect(page.locator("#offline")).to_be_hidden()


@pytest.mark.parametrize("look", [PHONE])
async def test_what_was_not_done_is_said_below_the_footer(page: Page) -> None:
    await page.goto("/clients")
    await sign_in(page, "oleg")
    await page.context.set_offline(True)
    await page.evaluate("scrollTo(0, document.documentElement.scrollHeight)")
    await page.get_by_role("button", name="Apply").click()
    said = page.locator("#unanswered")
    await expect(said).to_have_text(re.compile("no connection"))
    bar, footer = await said.bounding_box(), await page.locator("footer").bounding_box()
    assert bar is not None
    assert footer is not None
    assert bar["y"] >= footer["y"] + footer["height"] - 1
    await expect(said).to_be_in_viewport(ratio=1)
    await page.context.set_offline(False)


async def lose_answer(route: Route) -> None:
    """Let a request reach mailer, and its answer no one."""
    await route.fetch(max_redirects=0)
    await route.abort("connectionreset")


async def test_form_whose_answer_was_lost_is_sent_again_and_makes_one_mailing(
    page: Page, watch: Watch, shared_engine: AsyncEngine
) -> None:
    watch.expect("failed", "ERR_CONNECTION_RESET")
    await write(page)
    before = await value(shared_engine, "SELECT count(*) FROM mailing")
    await page.route("**/mailings/new?*", lose_answer)
    await page.locator("#save").click()
    await expect(page).to_have_url(re.compile("chrome-error"))
    await page.unroute("**/mailings/new?*")
    await page.go_back()
    await expect(page.locator("#text")).to_have_value(TEXT)
    await page.locator("#save").click()
    await expect(page).to_have_url(re.compile(r"/mailings/\d+"))
    assert await value(shared_engine, "SELECT count(*) FROM mailing") == before + 1


CLICK_AT = """times => {
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


async def test_form_that_gets_no_answer_can_be_sent_again_after_a_while(page: Page) -> None:
    await write(page)
    soon, later = 1_001, 6_001  # milliseconds
    assert await page.evaluate(CLICK_AT, [1_000, soon, later]) == [False, True, False]


async def test_form_that_was_never_answered_outlives_a_reload(page: Page, watch: Watch) -> None:
    async def refuse(route: Route) -> None:
        await route.abort("connectionrefused")

    watch.expect("failed", "ERR_CONNECTION_REFUSED")
    await write(page)
    await page.route("**/mailings/new*", refuse)
    await page.locator("#save").click()
    await expect(page).to_have_url(re.compile("chrome-error"))
    with pytest.raises(Error, match="ERR_CONNECTION_REFUSED"):
        await page.go_back()
    await page.unroute("**/mailings/new*")
    await page.reload()
    await expect(page.locator("#text")).to_have_value(TEXT)
    await expect(page.locator("#brought-back")).to_be_visible()


async def test_question_that_mailer_cannot_answer_says_that_it_was_not_done(
    page: Page, watch: Watch
) -> None:
    async def fail(route: Route) -> None:
        await route.fulfill(status=503, body="")

    watch.expect("answer", "503 GET at .*/cancel")
    watch.expect("console", "503")
    await page.goto("/mailings/1")
    await sign_in(page, "oleg")
    await page.route("**/mailings/1/cancel", fail)
    await page.locator("#cancel").click()
    await expect(page.locator("#unanswered")).to_have_text(re.compile("could not do this"))
    await expect(page).to_have_url(re.compile("/mailings/1$"))
