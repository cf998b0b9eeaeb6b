"""The page of the daily report in a browser."""

import pytest
from playwright.async_api import Page, expect
from sqlalchemy.ext.asyncio import AsyncEngine
from tests.browser.accessibility import check_accessibility
from tests.browser.measure import overflows
from tests.browser.page_states import NARROW, PageState, every_page_state
from tests.factories import HOUR, NOON, add_clients, add_mailing, add_messages, execute
from tests.processes import MailerProcess

PAGE = "/reports?date=2020-01-15"
WIDTH_OF_BAR = "bar => bar.getBoundingClientRect().width"


@pytest.fixture(autouse=True)
async def _day(engine: AsyncEngine, mailer: MailerProcess) -> None:
    """Create a mailing whose messages have every outcome, in two hours and through two gateways."""
    del mailer  # requested so that the process is started
    clients = iter(await add_clients(engine, 60))
    mailing_id = await add_mailing(engine, clients=60)

    async def add(count: int, status: str, reason: str | None, at_hour: int) -> None:
        ids = [next(clients) for _ in range(count)]
        await add_messages(engine, mailing_id, ids, status, reason, NOON + at_hour * HOUR)

    await add(40, "delivered", None, 0)
    await add(5, "undelivered", "not_delivered_30003", 0)
    await add(5, "delivered", None, 1)
    await add(3, "unknown", "timeout", 1)
    await add(3, "cancelled", "expired", 1)
    await add(4, "sent", None, 1)
    await execute(
        engine,
        "UPDATE message SET gateway = CASE WHEN id % 2 = 0 THEN 'main' ELSE 'spare' END",
    )


@every_page_state
async def test_the_report_is_accessible_and_fits(page: Page, page_state: PageState) -> None:
    await page.goto(PAGE)
    await expect(page.locator("html")).to_have_attribute("lang", page_state.locale[:2])
    await check_accessibility(page)
    assert await overflows(page) == []
    by_hour = page.locator(".by-hour > tbody > tr")
    await expect(by_hour).to_have_count(24)
    bar = by_hour.nth(12).locator("td.delivered")
    assert await bar.evaluate(WIDTH_OF_BAR) > 20 * (page_state != NARROW)
    assert await bar.evaluate("bar => getComputedStyle(bar).backgroundColor") != "rgba(0, 0, 0, 0)"
    mailing_bar = page.locator(".mailings td.delivered")
    assert await mailing_bar.evaluate(WIDTH_OF_BAR) > 20


async def test_another_day_is_chosen(page: Page) -> None:
    await page.goto("/reports")
    await expect(page.get_by_text("Today so far")).to_be_visible()
    await page.get_by_label("Day", exact=True).fill("2020-01-14")
    await page.get_by_role("button", name="Show").click()
    await expect(page.get_by_text("No message got an outcome on this day.")).to_be_visible()
    await page.get_by_role("link", name="Day after").click()
    await expect(
        page.get_by_role("heading", name="Wednesday, 15 January 2020", exact=True)
    ).to_be_visible()
    await expect(page.get_by_label("Day", exact=True)).to_have_value("2020-01-15")


async def test_the_report_is_printed_without_navigation(page: Page) -> None:
    await page.goto(PAGE)
    await page.evaluate("window.print = () => { window.isPrinted = true; }")
    await page.get_by_role("button", name="Print").click()
    assert await page.evaluate("window.isPrinted")
    await page.emulate_media(media="print")
    for hidden in ("body > header", "form.filters", ".actions >> nth=0"):
        await expect(page.locator(hidden)).to_be_hidden()
    await expect(page.get_by_role("heading", level=1)).to_be_visible()
