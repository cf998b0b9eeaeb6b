"""The list of mailings and the page of a mailing in a browser."""

from datetime import UTC, datetime, timedelta

import pytest
from playwright.async_api import Browser, Page, expect
from tests.browser.accessibility import check_accessibility
from tests.browser.api_data import add_finished_with_failure, add_mailing, start_now
from tests.browser.measure import overflows
from tests.browser.page_errors import PageErrors
from tests.browser.page_states import PHONE, PageState, every_page_state
from tests.processes import MailerProcess, until

MARK_DOCUMENT = "window.isMarked = true"
"""Script that marks the document, so that a test sees whether the page was loaded again."""


async def expect_count(page: Page, status: str, count: int) -> None:
    """Wait until the page of a mailing shows `count` messages with a status."""
    figure = page.locator(f"#counts .count-figures > .{status} > dd")
    await expect(figure).to_contain_text(f"{count}")


@every_page_state
async def test_the_list_and_the_page_of_a_mailing_are_accessible_and_fit(
    page: Page, mailer: MailerProcess
) -> None:
    await mailer.create_clients(2, tags=("checked",))
    mailing_id = await add_mailing(
        mailer,
        starts_in=-1,
        text=f"Two lines,\nand a long word: {'x' * 100}",
        client_filter={"tags": ["checked"], "operator_codes": ["916", "912"]},
    )
    await mailer.finished(mailing_id)
    await page.goto("/mailings")
    assert await overflows(page) == []
    await check_accessibility(page)
    await page.goto(f"/mailings/{mailing_id}")
    for section_id in ("time-zones", "operator-codes"):
        await page.locator(f"#{section_id} > summary").click()  # expands its table
    assert await overflows(page) == []
    await check_accessibility(page)


async def test_the_rate_of_a_running_mailing_is_changed_on_its_page(
    page: Page, mailer: MailerProcess
) -> None:
    await mailer.create_clients(300, tags=("paced",))
    # one message now, and the next one in 100 seconds
    mailing_id = await add_mailing(
        mailer, starts_in=-1, client_filter="paced", rate=0.01, priority="low"
    )
    await page.goto(f"/mailings/{mailing_id}")
    await expect_count(page, "delivered", 1)
    await expect(page.locator("#details")).to_contain_text("at most 0.01 a second")
    await page.goto(f"/mailings/{mailing_id}/edit")
    await page.get_by_label("Priority").select_option("High")
    await page.get_by_label("Messages a second").fill("500")
    await check_accessibility(page)
    await page.get_by_role("button", name="Save changes").click()
    await expect(page.locator("#details")).to_contain_text("at most 500 a second")
    await expect_count(page, "delivered", 300)
    await expect(page.locator("#state")).to_contain_text("Finished")


async def test_the_page_of_a_mailing_is_updated_until_it_is_finished(
    page: Page, mailer: MailerProcess
) -> None:
    await mailer.create_clients(5, tags=("watched",))
    mailing_id = await add_mailing(mailer, client_filter="watched")
    await page.goto(f"/mailings/{mailing_id}")
    await page.evaluate(MARK_DOCUMENT)
    await expect(page.locator("#state")).to_contain_text("Scheduled")
    await expect(page.get_by_role("button", name="Pause")).to_be_visible()
    await expect_count(page, "scheduled", 5)
    await start_now(mailer, mailing_id)
    await expect_count(page, "delivered", 5)
    await expect(page.get_by_role("img", name="5 of 5 delivered")).to_be_visible()
    await expect(page.locator("#state")).to_contain_text("Finished")
    await expect(page.get_by_role("button", name="Pause")).to_have_count(0)
    await expect(page.get_by_role("link", name="Duplicate")).to_be_visible()
    await expect(page.locator("#over-time canvas")).to_be_visible()
    assert await page.evaluate("window.isMarked")


async def test_the_list_is_updated_live(page: Page, mailer: MailerProcess) -> None:
    await mailer.create_clients(3, tags=("listed",))
    mailing_id = await add_mailing(mailer, client_filter="listed")
    await page.goto("/mailings?status=scheduled")
    await page.evaluate(MARK_DOCUMENT)
    row = page.locator(f"#mailing-{mailing_id}")
    await expect(row).to_contain_text("Scheduled")
    await start_now(mailer, mailing_id)
    await expect(row).to_contain_text("Finished")
    await expect(row.get_by_role("img", name="3 of 3 delivered")).to_be_visible()
    assert await page.evaluate("window.isMarked")


SEARCH = "Name, text, label or ID"
"""The label of the search field."""


@every_page_state
async def test_mailings_are_found_by_name_label_and_days(
    page: Page, mailer: MailerProcess, page_state: PageState
) -> None:
    name = f"Raspberries {page_state.locale}"
    await add_mailing(mailer, name=name, labels=["Fruit, red", "x" * 32], text="Offers")
    await add_mailing(mailer, labels=["vegetables"], text="Cucumbers")
    await page.goto(
        f"/mailings?search=raspb+{page_state.locale}&status=scheduled&from=2020-01-01&label=fruit,+red"
    )
    await expect(page.get_by_role("link", name=name)).to_have_count(1)
    assert await overflows(page) == []
    await check_accessibility(page)
    await page.get_by_role("link", name=name).click()
    await expect(page.get_by_role("heading", level=1)).to_have_text(name)
    await expect(page).to_have_title(f"{name} - mailer")
    assert await overflows(page) == []
    await check_accessibility(page)


async def test_a_label_of_a_row_filters_the_list_and_reset_shows_all(
    page: Page, mailer: MailerProcess
) -> None:
    await add_mailing(mailer, name="Melons", labels=["Garden", "summer"])
    await add_mailing(mailer, name="Snow")
    await page.goto("/mailings")
    melons = page.get_by_role("row", name="Melons")
    await melons.get_by_role("link", name="Garden").click()
    await expect(page).to_have_url(f"{mailer.address}/mailings?label=Garden")
    await expect(page.get_by_label("Label", exact=True)).to_have_value("Garden")
    await expect(page.get_by_text("1 mailing", exact=True)).to_be_visible()
    await page.get_by_label(SEARCH).fill("melo")
    await page.get_by_label("Active from").fill("2020-01-01")
    await page.get_by_role("button", name="Find").click()
    await expect(melons).to_be_visible()
    await page.get_by_role("link", name="Reset").click()
    await expect(page).to_have_url(f"{mailer.address}/mailings")
    await expect(page.get_by_role("row", name="Snow")).to_be_visible()
    await page.get_by_label("Order").select_option("Largest audience first")
    await page.get_by_role("button", name="Find").click()
    await expect(page.get_by_label("Order")).to_have_value("audience")
    await check_accessibility(page)


async def test_mailings_are_found_by_text_id_and_status(page: Page, mailer: MailerProcess) -> None:
    mailing_id = await add_mailing(mailer, text="Strawberries are here")
    await page.goto("/mailings")
    await page.get_by_label(SEARCH).fill("strawb")
    await page.get_by_label("Scheduled").check()
    await page.get_by_label("Paused").check()
    await page.get_by_role("button", name="Find").click()
    await expect(page.get_by_role("link", name="Strawberries are here")).to_be_visible()
    await expect(page.get_by_text("1 mailing", exact=True)).to_be_visible()
    await page.get_by_label("Scheduled").uncheck()
    await page.get_by_role("button", name="Find").click()
    await expect(page.get_by_text("No mailings match.")).to_be_visible()
    await check_accessibility(page)
    await page.go_back()
    await expect(page.get_by_label("Scheduled")).to_be_checked()
    await expect(page.get_by_label("Cancelled")).not_to_be_checked()
    await page.get_by_role("link", name="Reset").click()
    await page.get_by_label(SEARCH).fill(f"#{mailing_id}")
    await page.keyboard.press("Enter")
    await page.get_by_role("link", name="Strawberries are here").click()
    await expect(page.get_by_role("heading", level=1)).to_have_text(f"Mailing {mailing_id}")
    await page.get_by_role("link", name="← Mailings").click()
    await expect(page.get_by_role("heading", level=1)).to_have_text("Mailings")


async def test_an_invalid_filter_is_an_error_at_its_field(
    page: Page, page_errors: PageErrors
) -> None:
    page_errors.expect("status", "400 GET at .*/mailings")
    await page.goto("/mailings?status=odd")
    await expect(page.get_by_role("alert")).to_be_focused()
    await expect(page.locator("#status")).to_have_accessible_description(
        "must be one or more statuses of mailings"
    )
    await check_accessibility(page)


async def test_a_mailing_is_paused_resumed_cancelled_and_deleted(
    page: Page, mailer: MailerProcess
) -> None:
    await mailer.create_clients(4, tags=("steered",))
    mailing_id = await add_mailing(mailer, client_filter="steered")
    await page.goto(f"/mailings/{mailing_id}")
    dialog = page.get_by_role("dialog")
    paused = page.get_by_text(f"Mailing {mailing_id} is paused.")
    resumed = page.get_by_text(f"Mailing {mailing_id} is resumed.")

    await page.get_by_role("button", name="Pause").dblclick()
    await expect(paused).to_be_visible()
    await expect(page.locator("#state")).to_contain_text("Paused")
    await check_accessibility(page)
    await page.get_by_role("button", name="Undo").click()
    await expect(resumed).to_be_visible()
    await expect(page.locator("#state")).to_contain_text("Scheduled")
    await page.get_by_role("button", name="Pause").click()
    await expect(paused).to_be_visible()
    await page.locator("#resume button").click()
    await expect(resumed).to_be_visible()
    await page.reload()
    await expect(resumed).to_have_count(0)  # shown once

    await page.get_by_role("link", name="Cancel").click()
    await expect(dialog).to_have_accessible_name("Cancel this mailing?")
    await page.keyboard.press("Escape")
    await expect(dialog).to_be_hidden()
    await expect(page.get_by_role("link", name="Cancel")).to_be_focused()
    await page.keyboard.press("Enter")
    await expect(dialog).to_contain_text("The mailing will not start: 4 clients will not get it.")
    await dialog.get_by_role("link", name="Keep it as it is").click()
    await expect(dialog).to_be_hidden()
    await page.get_by_role("link", name="Cancel").click()
    await dialog.get_by_role("button", name="Cancel the mailing").click()
    await expect(page.get_by_text("The mailing is cancelled.")).to_be_visible()
    await expect(page.locator("#state")).to_contain_text("Nothing more will be sent.")
    await expect(page.get_by_role("link", name="Edit")).to_have_count(0)
    duplicate = page.get_by_role("link", name="Duplicate")
    await expect(duplicate).to_have_attribute("href", f"/mailings/new?from={mailing_id}")

    await page.get_by_role("link", name="Delete").click()
    await dialog.get_by_role("button", name="Delete the mailing").click()
    await expect(page.get_by_text("The mailing is deleted.")).to_be_visible()
    await expect(page).to_have_url(f"{mailer.address}/mailings")


async def add_running(mailer: MailerProcess, tag: str) -> int:
    """Create a mailing that runs and waits for its sending window; return its id."""
    await mailer.create_clients(2, tags=(tag,))
    opens = datetime.now(UTC) + timedelta(hours=2)
    window = {
        "send_interval_time_start": f"{opens:%H:%M}",
        "send_interval_time_end": f"{opens + timedelta(hours=1):%H:%M}",
    }
    mailing_id = await add_mailing(
        mailer, starts_in=-1, lasts=86_400, client_filter=tag, text=f"To {tag}", **window
    )
    await until_status(mailer, mailing_id, "running")
    return mailing_id


async def until_status(mailer: MailerProcess, mailing_id: int, status: str) -> None:
    """Wait until a mailing has a status."""

    async def has_status() -> bool | None:
        return True if (await mailer.mailing(mailing_id))["status"] == status else None

    await until(has_status)


@every_page_state
async def test_a_running_mailing_is_paused_in_the_list_and_the_pause_is_undone(
    page: Page, mailer: MailerProcess, page_state: PageState
) -> None:
    mailing_id = await add_running(mailer, f"paused-{page_state.locale.lower()}")
    address = f"/mailings?status=running%2Cpaused&search=%23{mailing_id}"
    await page.goto(address)
    row = page.locator(f"#mailing-{mailing_id}")
    await row.get_by_role("button").click()
    undo = page.locator("#undo button")
    await expect(undo).to_be_visible()
    await expect(page).to_have_url(f"{mailer.address}{address}")
    assert (await mailer.mailing(mailing_id))["status"] == "paused"
    assert await overflows(page) == []
    await check_accessibility(page)
    await undo.click()
    await expect(undo).to_have_count(0)
    assert (await mailer.mailing(mailing_id))["status"] == "running"
    await expect(page).to_have_url(f"{mailer.address}{address}")


@pytest.mark.parametrize("is_known", [True, False], ids=["known", "unknown"])
async def test_an_action_without_connection_says_that_it_was_not_done_and_can_be_repeated(
    page: Page,
    mailer: MailerProcess,
    page_errors: PageErrors,
    is_known: bool,  # noqa: FBT001  # a parameter of the test
) -> None:
    mailing_id = await add_running(mailer, f"offline-{is_known}".lower())
    await page.goto(f"/mailings?search=%23{mailing_id}")
    await page.evaluate(MARK_DOCUMENT)
    pause = page.locator(f"#mailing-{mailing_id}").get_by_role("button", name="Pause")
    if not is_known:  # the network is up, but the server cannot be reached
        page_errors.expect("failed", "POST net::ERR_INTERNET_DISCONNECTED")
        await page.evaluate("Object.defineProperty(navigator, 'onLine', {get: () => true})")
    await page.context.set_offline(True)
    await pause.click()
    alert = page.get_by_role("alert").filter(has_text="Not done")
    await expect(alert).to_be_visible()
    assert await page.evaluate("window.isMarked")
    assert (await mailer.mailing(mailing_id))["status"] == "running"
    await page.context.set_offline(False)
    await pause.click()
    await expect(page.get_by_text(f"Mailing {mailing_id} is paused.")).to_be_visible()
    await expect(alert).to_be_hidden()


async def test_pause_and_undo_work_without_scripts(browser: Browser, mailer: MailerProcess) -> None:
    mailing_id = await add_running(mailer, "scriptless")
    address = f"{mailer.address}/mailings?search=%23{mailing_id}"
    context = await browser.new_context(java_script_enabled=False)
    page = await context.new_page()
    await page.goto(address)
    await page.get_by_role("button", name="Pause").click()
    await expect(page.get_by_text(f"Mailing {mailing_id} is paused.")).to_be_visible()
    await expect(page).to_have_url(address)
    await page.get_by_role("button", name="Undo").click()
    await expect(page.get_by_text(f"Mailing {mailing_id} is resumed.")).to_be_visible()
    assert (await mailer.mailing(mailing_id))["status"] == "running"
    await context.close()


@every_page_state
async def test_a_mailing_is_sent_as_a_test(
    page: Page, page_errors: PageErrors, page_state: PageState, mailer: MailerProcess
) -> None:
    page_errors.expect("status", "400 POST at .*/test")
    mailing_id = await add_mailing(mailer)
    await page.goto(f"/mailings/{mailing_id}")
    await expect(page.locator("html")).to_have_attribute("lang", page_state.locale[:2])
    section = page.locator("#test")
    phones = section.get_by_role("textbox")

    await phones.fill("12")
    await section.get_by_role("button").click()
    await expect(phones).to_have_attribute("aria-invalid", "true")
    await check_accessibility(page)
    await phones.fill("+7 (916) 123-45-67, 8 903 123-45-68")
    await section.get_by_role("button").click()
    results = page.get_by_role("status").get_by_role("listitem")
    await expect(results).to_have_count(2)
    await check_accessibility(page)
    assert await overflows(page) == []


async def test_failed_messages_are_retried(page: Page, mailer: MailerProcess) -> None:
    mailing_id = await add_finished_with_failure(mailer, "retried", 2)
    await page.goto(f"/mailings/{mailing_id}")
    await expect(page.locator("#reasons")).to_contain_text("the gateway rejected it with 400")
    await page.get_by_role("link", name="Send again").click()
    dialog = page.get_by_role("dialog")
    await expect(dialog).to_contain_text("1 undelivered message will be sent again.")
    await check_accessibility(page)
    await dialog.get_by_role("button", name="Send again").click()
    await expect(page.get_by_text("Undelivered messages will be sent again.")).to_be_visible()
    await expect_count(page, "delivered", 2)
    await expect(page.locator("#state")).to_contain_text("Finished")


async def test_an_action_on_a_mailing_that_has_ended_links_back(
    page: Page, page_errors: PageErrors, mailer: MailerProcess
) -> None:
    mailing_id = await add_mailing(mailer)
    await page.route("**/live/**", lambda _: None)  # no live update removes the button
    await page.goto(f"/mailings/{mailing_id}")
    await mailer.call("POST", f"/mailings/{mailing_id}/cancel")
    page_errors.expect("status", "409 POST at .*/pause")
    await page.get_by_role("button", name="Pause").click()
    await expect(page.get_by_role("heading", level=1)).to_have_text("This cannot be done now")
    await check_accessibility(page)
    await page.get_by_role("link", name="Back").click()
    await expect(page.locator("#state")).to_contain_text("Cancelled")


async def test_an_open_page_shows_that_its_mailing_was_deleted(
    page: Page, mailer: MailerProcess
) -> None:
    mailing_id = await add_mailing(mailer)
    await page.goto(f"/mailings/{mailing_id}")
    await expect(page.get_by_role("link", name="Edit")).to_be_visible()
    await mailer.call("DELETE", f"/mailings/{mailing_id}", status=204)
    await expect(page.get_by_text("This mailing has been deleted.")).to_be_visible()
    await expect(page.get_by_role("link", name="Edit")).to_have_count(0)


@pytest.mark.parametrize("page_state", [PHONE], ids=["phone"])
async def test_confirmations_fit_a_phone(page: Page, mailer: MailerProcess) -> None:
    mailing_id = await add_mailing(mailer)
    await page.goto(f"/mailings/{mailing_id}/delete")
    assert await overflows(page) == []
    await check_accessibility(page)
    await page.goto(f"/mailings/{mailing_id}")
    await page.get_by_role("link", name="Cancel").tap()
    await expect(page.get_by_role("dialog")).to_be_visible()
    assert await overflows(page) == []
    await check_accessibility(page)
