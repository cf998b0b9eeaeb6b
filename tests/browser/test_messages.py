"""The messages of a mailing and the history of a message in a browser."""

import pytest
from playwright.async_api import Page, expect
from tests.browser.accessibility import check_accessibility
from tests.browser.api_data import add_finished_with_failure, add_mailing
from tests.browser.measure import overflows
from tests.browser.page_errors import PageErrors
from tests.browser.page_states import every_page_state
from tests.processes import MailerProcess

CLIENTS = 4
"""Number of clients of the mailing: it has a message for each."""


@pytest.fixture(scope="module")
async def mailing_id(mailer: MailerProcess) -> int:
    """A finished mailing whose first message was rejected."""
    return await add_finished_with_failure(mailer, "of messages", CLIENTS)


@every_page_state
async def test_messages_and_a_history_are_accessible_and_fit(page: Page, mailing_id: int) -> None:
    await page.goto(f"/mailings/{mailing_id}/messages")
    assert await overflows(page) == []
    await check_accessibility(page)
    await page.goto(f"/mailings/{mailing_id}/messages?status=undelivered")
    await page.locator("tbody th a").click()
    await page.wait_for_url("**/messages/*")
    assert await overflows(page) == []
    await check_accessibility(page)


async def test_a_reason_links_to_its_messages_and_their_history(
    page: Page, mailing_id: int
) -> None:
    await page.goto(f"/mailings/{mailing_id}")
    await page.locator("#reasons").get_by_role("link", name="1").click()  # the number of messages
    await expect(page.get_by_label("Status")).to_have_value("undelivered")
    await expect(page.get_by_label("Reason")).to_have_value("rejected_400")
    await expect(page.get_by_text("1 message", exact=True)).to_be_visible()
    await page.locator("tbody th").get_by_role("link").click()
    history = page.get_by_role("region", name="History")
    items = history.get_by_role("listitem")
    await expect(items).to_have_count(3)  # created, attempt 1, failed permanently
    await expect(items.nth(1)).to_contain_text("15 Jan 2020, 09:00:10")  # 06:00:10 UTC
    await expect(items.nth(1)).to_contain_text(
        "Attempt 1 failed: the gateway rejected it with 400."
    )
    await expect(items.nth(2)).to_contain_text("It failed permanently")
    await expect(page.get_by_role("link", name="79160000001")).to_have_attribute(
        "href", "/clients/1"
    )
    await page.get_by_role("link", name=f"← Messages of mailing {mailing_id}").click()
    await expect(page.locator("tbody tr")).to_have_count(CLIENTS)


async def test_messages_are_paginated_and_found_by_phone(page: Page, mailing_id: int) -> None:
    await page.goto(f"/mailings/{mailing_id}/messages?limit=3")
    rows = page.locator("tbody tr")
    await expect(rows).to_have_count(3)
    await page.get_by_role("link", name="Older →").click()
    await expect(rows).to_have_count(1)
    await page.get_by_role("link", name="← Newer").click()
    await expect(rows).to_have_count(3)
    await page.get_by_label("Phone").fill("79160000002")
    await page.get_by_role("button", name="Find").click()
    await expect(rows).to_have_count(1)
    await expect(rows).to_contain_text("79160000002")
    await page.get_by_label("Status").select_option("cancelled (0)")
    await page.get_by_role("button", name="Find").click()
    await expect(page.get_by_text("No messages match.")).to_be_visible()
    await check_accessibility(page)
    await page.get_by_role("link", name="Show all", exact=True).click()
    await expect(rows).to_have_count(CLIENTS)


async def test_an_invalid_phone_stays_in_its_field(
    page: Page, page_errors: PageErrors, mailing_id: int
) -> None:
    await page.goto(f"/mailings/{mailing_id}/messages")
    page_errors.expect("status", "400 GET at .*/messages")
    await page.get_by_label("Phone").fill("123")
    await page.keyboard.press("Enter")
    await expect(page.get_by_role("alert")).to_be_focused()
    await expect(page.get_by_label("Phone")).to_have_value("123")
    await expect(page.get_by_label("Phone")).to_have_attribute("aria-invalid", "true")
    await check_accessibility(page)


async def test_the_download_contains_the_filtered_messages(page: Page, mailing_id: int) -> None:
    await page.goto(f"/mailings/{mailing_id}/messages?status=undelivered")
    await page.get_by_label("Separator").select_option("semicolon")
    async with page.expect_download() as downloading:
        await page.get_by_role("button", name="Download as CSV").click()
    download = await downloading.value
    assert download.suggested_filename == f"mailing-{mailing_id}.csv"
    header, line = (await download.path()).read_text().splitlines()
    assert header.startswith("\ufeffPhone;Tag;")
    assert line.startswith(
        "79160000001;of messages;UTC;;undelivered;the gateway rejected it with 400"
    )


@every_page_state
async def test_a_client_is_found_by_last_digits_and_shows_messages_of_two_mailings(
    page: Page, mailing_id: int, mailer: MailerProcess
) -> None:
    text = "Your order is ready.\n" + "Come to the shop at any time today. " * 5
    second_id = await add_mailing(mailer, starts_in=0, client_filter="of messages", text=text)
    await mailer.finished(second_id)
    await page.goto("/clients")
    await page.locator("#phone").fill("00-02")  # in both languages
    await page.keyboard.press("Enter")
    await page.get_by_role("link", name="79160000002").click()
    rows = page.locator("section[aria-labelledby=messages] tbody tr")
    newest = rows.first
    await expect(newest.get_by_role("link", name=f"#{second_id}", exact=True)).to_be_visible()
    await expect(rows.last.get_by_role("link", name=f"#{mailing_id}", exact=True)).to_be_visible()
    await newest.locator("summary").click()
    await expect(newest.locator("details p")).to_be_visible()
    assert await overflows(page) == []
    await check_accessibility(page)
    message = newest.locator("th a")
    number = await message.inner_text()
    await message.click()
    await expect(page.get_by_role("heading", level=1)).to_contain_text(number.removeprefix("#"))
