"""The pages of gateways in a browser: live state, pause with a question, test message."""

from playwright.async_api import Page, expect
from tests.browser.accessibility import check_accessibility
from tests.browser.api_data import add_mailing
from tests.browser.measure import overflows
from tests.browser.page_errors import PageErrors
from tests.browser.page_states import every_page_state
from tests.processes import Gateway, MailerProcess


@every_page_state
async def test_the_list_and_the_page_of_a_gateway_are_accessible_and_fit(
    page: Page, mailer: MailerProcess
) -> None:
    await mailer.create_clients(3, tags=("sent",))
    await mailer.finished(await add_mailing(mailer, starts_in=-1, client_filter="sent"))
    await page.goto("/gateways")
    await check_accessibility(page)
    assert await overflows(page) == []
    await page.locator("main a[href='/gateways/default']").first.click()
    await expect(page.locator("#state")).to_be_visible()
    await check_accessibility(page)
    assert await overflows(page) == []


async def test_a_gateway_is_paused_after_a_question_and_resumed(
    page: Page, mailer: MailerProcess
) -> None:
    await page.goto("/gateways")
    await page.get_by_role("link", name="default").click()
    state, dialog = page.locator("#state"), page.get_by_role("dialog")
    await expect(state).to_contain_text("In use")
    pause = page.get_by_role("link", name="Pause")
    await pause.click()
    await expect(dialog).to_have_accessible_name("Pause the gateway default?")
    await check_accessibility(page)
    await page.keyboard.press("Escape")
    await expect(dialog).to_be_hidden()
    await expect(pause).to_be_focused()
    await page.keyboard.press("Enter")
    await dialog.get_by_role("button", name="Pause it").dblclick()
    await expect(page.get_by_text("The gateway is paused.", exact=True)).to_be_visible()
    await expect(state).to_contain_text("a user has paused the gateway")
    await check_accessibility(page)

    await page.get_by_role("link", name="Resume").click()
    await dialog.get_by_role("button", name="Resume it").click()
    await expect(page.get_by_text("The gateway is resumed.")).to_be_visible()
    await expect(state).to_contain_text("Messages are sent through it.")
    assert await mailer.query("SELECT count(*) FROM audit WHERE target_kind = 'gateway'") == 2


async def test_open_pages_show_a_pause_and_its_end(page: Page, mailer: MailerProcess) -> None:
    for path, section in (
        ("/gateways", "#table"),
        ("/gateways/default", "#state"),
        ("/", "#gateway"),
        (f"/mailings/{await add_mailing(mailer)}", "#gateway-notice"),
    ):
        await page.goto(path)
        shown = page.locator(section)
        await expect(shown).not_to_contain_text("a user has paused the gateway")
        await mailer.call("POST", "/gateways/default/pause")
        await expect(shown).to_contain_text("a user has paused the gateway")
        await mailer.call("POST", "/gateways/default/resume")
        await expect(shown).not_to_contain_text("a user has paused the gateway")


async def test_a_test_message_is_sent_once_and_its_result_shown(
    page: Page, gateway: Gateway
) -> None:
    received = len(gateway.received)
    await page.goto("/gateways/default")
    await page.get_by_label("Phone").fill("8 916 123-45-67")
    await page.get_by_role("button", name="Send", exact=True).dblclick()
    await expect(page.get_by_text("The gateway accepted the message.")).to_be_visible()
    await check_accessibility(page)
    assert len(gateway.received) == received + 1
    await page.get_by_label("Text").fill("Another one")
    await page.get_by_role("button", name="Send", exact=True).click()
    await expect(page.get_by_text("The gateway accepted the message.")).to_be_visible()
    await gateway.until_received(received + 2)


async def test_a_wrong_phone_is_shown_beside_its_field(
    page: Page, page_errors: PageErrors, gateway: Gateway
) -> None:
    page_errors.expect("status", "400 POST at .*/test")
    received = len(gateway.received)
    await page.goto("/gateways/default")
    await page.get_by_label("Phone").fill("12")
    await page.get_by_role("button", name="Send", exact=True).click()
    await expect(page.get_by_label("Phone")).to_have_attribute("aria-invalid", "true")
    await check_accessibility(page)
    assert len(gateway.received) == received
