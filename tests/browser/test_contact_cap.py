"""The warnings of the overlap and of the contact cap in a browser."""

from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta

import pytest
from playwright.async_api import Browser, Page, expect
from sqlalchemy.ext.asyncio import AsyncEngine
from tests.browser.accessibility import check_accessibility
from tests.browser.measure import overflows
from tests.browser.page_states import PageState, every_page_state
from tests.factories import add_clients, add_mailing, add_messages, execute
from tests.processes import Gateway, MailerProcess, mailers


@pytest.fixture(scope="module")
async def mailer(
    browser: Browser, shared_database_url: str, gateway: Gateway
) -> AsyncIterator[MailerProcess]:
    """The mailer process of the test file, with a contact cap."""
    del browser  # requested so that without a browser no process is started
    async with mailers(shared_database_url) as start:
        yield await start(**gateway.settings, contact_cap="1/7d")


@pytest.fixture(autouse=True)
async def clients(engine: AsyncEngine) -> None:
    """Create five clients, of whom three got a mailing two hours ago; another one is scheduled."""
    ids = await add_clients(engine, 5)
    now = datetime.now(UTC)
    sent_at = now - timedelta(hours=2)
    mailing_id = await add_mailing(engine, clients=3, start=sent_at)
    await add_messages(engine, mailing_id, ids[:3], "delivered", at=sent_at)
    other_id = await add_mailing(
        engine, clients=5, start=now + timedelta(days=2), status="scheduled"
    )
    await execute(
        engine,
        f"UPDATE mailing SET name = '{'Sale' * 20}' WHERE id = {other_id}",  # noqa: S608  # values of the test
    )


WARNINGS = {
    "en-US": (
        "3 of these clients got a marketing message in the last 24 hours.",
        "have reached the contact cap (1 message in 7 days) and will not get it.",
    ),
    "ru-RU": (
        "3 из этих клиентов получили рекламное сообщение за последние 24 часа.",
        "3 из этих клиентов не получат рассылку: достигнут лимит (1 сообщение за 7 дней).",
    ),
}


@every_page_state
async def test_the_form_and_the_question_warn_of_the_overlap(
    page: Page, page_state: PageState
) -> None:
    contacted, at_cap = WARNINGS[page_state.locale]
    start = datetime.now(UTC) + timedelta(days=2)
    await page.goto("/mailings/new")
    await page.locator("#text").fill("Half price.")
    await page.locator("#start").fill(start.strftime("%Y-%m-%dT10:00"))
    await page.locator("#end").fill((start + timedelta(days=1)).strftime("%Y-%m-%dT20:00"))
    await page.locator("#audience-everybody").check()

    summary = page.locator("#preview-summary")
    await expect(summary).to_contain_text(contacted)
    await expect(summary).to_contain_text(at_cap)
    await expect(page.locator("#forecast")).to_contain_text(at_cap)
    await expect(page.locator("#preview-overlap li")).to_have_count(1)
    await expect(page.locator("#preview-overlap")).to_contain_text("SaleSale")
    assert await overflows(page) == []
    await check_accessibility(page)

    await page.locator("#save-draft").click()
    await page.wait_for_url("**/mailings/*")
    await page.goto(f"{page.url}/launch")
    question = page.locator(".effects")
    await expect(question).to_contain_text(contacted)
    await expect(question).to_contain_text(at_cap)
    assert await overflows(page) == []
    await check_accessibility(page)
