"""The calendar of mailings in a browser."""

from datetime import UTC, datetime, timedelta

import pytest
from playwright.async_api import Page, expect
from sqlalchemy.ext.asyncio import AsyncEngine
from tests.browser.accessibility import check_accessibility
from tests.browser.measure import overflows
from tests.browser.page_states import NARROW, PageState, every_page_state
from tests.factories import add_clients, add_mailings
from tests.processes import MailerProcess

from mailer.sample_data import SampleMailing

MONDAY = datetime(2031, 1, 13, 9, tzinfo=UTC)
PAGE = "/calendar?date=2031-01-13"
A_DAY = timedelta(days=1)


@pytest.fixture(autouse=True)
async def _mailings(engine: AsyncEngine, mailer: MailerProcess) -> None:
    """Create mailings on Monday and Tuesday, eleven of them at the same time, and one later."""
    del mailer  # requested so that the process is started
    await add_clients(engine, 1_500)
    same = SampleMailing(
        start=MONDAY, lasts=A_DAY, status="scheduled", clients=1_500, text="Spring sale " * 20
    )
    later = SampleMailing(start=MONDAY + 14 * A_DAY, status="scheduled", clients=3, text="Later")
    await add_mailings(engine, *[same] * 11, later)


@every_page_state
@pytest.mark.parametrize("view", ["week", "month"])
async def test_the_calendar_is_accessible_and_fits(
    page: Page, page_state: PageState, view: str
) -> None:
    await page.goto(f"{PAGE}&view={view}&overlaps=yes")
    await expect(page.locator("html")).to_have_attribute("lang", page_state.locale[:2])
    await check_accessibility(page)
    assert await overflows(page) == []
    days = page.locator(".calendar h3:visible")
    if page_state == NARROW:  # a list of the days that have mailings
        await expect(days).to_have_count({"week": 2, "month": 3}[view])
        await expect(page.locator(".calendar thead")).to_be_hidden()
    else:
        await expect(days).to_have_count({"week": 7, "month": 35}[view])


async def test_shared_clients_are_counted_by_keyboard(page: Page) -> None:
    await page.goto(PAGE)
    button = page.get_by_role("button", name="Count the clients whom they share")
    await button.focus()
    await page.keyboard.press("Enter")
    shared = page.get_by_role("table", name="Pairs of mailings that share clients")
    await expect(shared.get_by_role("row")).to_have_count(51)  # with the heading
    await expect(shared.get_by_role("cell", name="1,500").first).to_be_visible()
    await expect(page.get_by_text("Of 55 pairs, the 50 with the largest")).to_be_visible()


async def test_the_calendar_leads_to_other_days_and_to_a_mailing(page: Page) -> None:
    await page.goto("/mailings")
    await page.get_by_role("main").get_by_role("link", name="Calendar").click()
    await page.get_by_label("Day", exact=True).fill("2031-01-06")
    await page.get_by_role("button", name="Show").click()
    await expect(page.get_by_text("No mailing is scheduled or running")).to_be_visible()
    await page.get_by_role("link", name="Week after").click()
    calendar = page.get_by_role("table").first
    await expect(calendar.get_by_role("link", name="and 3 more")).to_have_count(2)
    await calendar.get_by_role("link", name="Spring sale").first.click()
    await expect(page).to_have_url(f"{page.url.split('/mailings')[0]}/mailings/1")
