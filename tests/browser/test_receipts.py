"""Receipts on the pages: accepted messages, a finished mailing that goes on changing, rates."""

from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest
from playwright.async_api import Browser, Page, expect
from tests.browser.accessibility import check_accessibility
from tests.browser.api_data import add_mailing
from tests.browser.measure import overflows
from tests.browser.page_states import every_page_state
from tests.processes import Gateway, MailerProcess, mailers

SECRET = "a-secret-of-this-test"  # noqa: S105  # of a test
GATEWAYS = """
[[gateway]]
name = "main"
kind = "json"
url = "{url}"
token = "secret"
callback_secret = "{secret}"
"""


@pytest.fixture(scope="module")
async def mailer(
    browser: Browser,
    shared_database_url: str,
    gateway: Gateway,
    tmp_path_factory: pytest.TempPathFactory,
) -> AsyncIterator[MailerProcess]:
    """A mailer process whose gateway `main` sends receipts."""
    del browser  # requested so that without a browser no process is started
    file: Path = tmp_path_factory.mktemp("gateways") / "gateways.toml"
    file.write_text(GATEWAYS.format(url=gateway.url, secret=SECRET))
    async with mailers(shared_database_url) as start:
        yield await start(gateways=str(file), public_url="http://127.0.0.1:1")


async def send_to(mailer: MailerProcess, tag: str, clients: int) -> tuple[int, list[int]]:
    """Send a mailing to new clients; return its id, and those of its messages."""
    await mailer.create_clients(clients, tags=(tag,))
    mailing_id = await add_mailing(mailer, starts_in=-1, client_filter=tag)
    await mailer.finished(mailing_id)
    page = await mailer.call("GET", f"/mailings/{mailing_id}/messages")
    return mailing_id, sorted(message["id"] for message in page["results"])


async def report(mailer: MailerProcess, message_id: int, status: str, code: str = "") -> None:
    """Send a receipt, as a provider does."""
    async with httpx.AsyncClient(base_url=mailer.address) as provider:
        answer = await provider.post(
            f"/gateways/main/receipts?secret={SECRET}",
            json={"id": message_id, "status": status} | ({"code": code} if code else {}),
        )
    assert answer.status_code == 200, answer.text


@every_page_state
async def test_pages_of_accepted_messages_are_accessible_and_fit(
    page: Page, mailer: MailerProcess
) -> None:
    tag = "wide" if page.viewport_size and page.viewport_size["width"] > 1000 else "narrow"
    mailing_id, (first, *_) = await send_to(mailer, tag, 3)
    await report(mailer, first, "failed", "30003")
    for path in (
        f"/mailings/{mailing_id}",
        f"/mailings/{mailing_id}/messages",
        f"/mailings/{mailing_id}/messages/{first}",
        f"/mailings/{mailing_id}/messages/{first + 1}",
        "/gateways",
        "/gateways/main",
        "/",
    ):
        await page.goto(path)
        await check_accessibility(page)
        assert await overflows(page) == [], path


async def test_the_page_of_a_finished_mailing_follows_its_receipts(
    page: Page, mailer: MailerProcess
) -> None:
    mailing_id, (first, second) = await send_to(mailer, "followed", 2)
    await page.goto(f"/mailings/{mailing_id}")
    counts, state = page.locator("#counts"), page.locator("#state")
    await expect(counts).to_contain_text("2 messages await a receipt")
    await expect(state).to_contain_text("Receipts still come in.")

    await report(mailer, first, "delivered")

    await expect(counts).to_contain_text("1 message awaits a receipt")

    await report(mailer, second, "failed", "30003")

    await expect(counts).not_to_contain_text("receipt")
    await expect(state).not_to_contain_text("Receipts")
    await expect(counts.locator(".delivered dd")).to_contain_text("1")
    await expect(page.locator("#reasons")).to_contain_text(
        "not delivered, with the code 30003 in the receipt"
    )


async def test_the_page_of_a_message_shows_its_receipt(page: Page, mailer: MailerProcess) -> None:
    mailing_id, (message_id,) = await send_to(mailer, "single", 1)
    await page.goto(f"/mailings/{mailing_id}/messages/{message_id}")
    await expect(page.get_by_text("Its receipt is awaited until")).to_be_visible()

    await report(mailer, message_id, "delivered")

    await page.reload()
    await expect(page.get_by_text("Receipt from main: delivered.")).to_be_visible()
    await expect(page.get_by_text("Nothing: this status is final.")).to_be_visible()
