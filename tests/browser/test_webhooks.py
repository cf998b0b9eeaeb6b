"""The pages of webhooks in a browser: create, test, new secret, delete."""

from collections.abc import AsyncIterator

import pytest
from playwright.async_api import Browser, Page, expect
from sqlalchemy.ext.asyncio import AsyncEngine
from standardwebhooks import Webhook as Verifier
from tests.browser.accessibility import check_accessibility
from tests.browser.measure import overflows
from tests.browser.page_errors import PageErrors
from tests.browser.page_states import every_page_state
from tests.factories import execute
from tests.fault_servers import http_response
from tests.processes import Gateway, MailerProcess, mailers
from tests.webhook_receiver import Receiver, add_webhook, receiving

LONG_NAME = "a-name-that-is-as-long-as-one-may-be-without-a-single-blank-in-it"[:64]
LONG_URL = f"https://shop.example/{'long/' * 100}?key={'k' * 200}"


@pytest.fixture(scope="module")
async def mailer(
    browser: Browser, shared_database_url: str, gateway: Gateway
) -> AsyncIterator[MailerProcess]:
    """A process whose webhooks may lead to this machine."""
    del browser  # requested so that without a browser no process is started
    async with mailers(shared_database_url) as start:
        yield await start(**gateway.settings, webhook_private_addresses="true")


@pytest.fixture
async def receiver() -> AsyncIterator[Receiver]:
    """A receiver of webhooks."""
    async with receiving() as receiver:
        yield receiver


async def fill_in(page: Page, receiver: Receiver) -> None:
    """Fill in the form of a new webhook."""
    await page.goto("/webhooks/new")
    await page.get_by_label("Name").fill("Shop")
    await page.get_by_label("URL").fill(receiver.url)
    await page.get_by_label("messages.finished").check()


@every_page_state
async def test_every_page_is_accessible_and_fits(
    page: Page, engine: AsyncEngine, mailer: MailerProcess
) -> None:
    webhook_id = await add_webhook(engine, LONG_URL)
    path = f"/webhooks/{webhook_id}"
    for _ in range(2):
        await mailer.call("POST", f"{path}/test")
    await execute(
        engine,
        f"UPDATE webhook SET name = '{LONG_NAME}', is_enabled = false, disabled_at = now(),"  # noqa: S608  # of the test
        " disabled_reason = 'failing', failures = 7, failing_since = now(), dropped = 3",
        "UPDATE webhook_delivery SET status = 'failed', error = 'unknown_host', attempts = 10",
    )
    for address in ("/webhooks", path, f"{path}/edit", f"{path}/delete", "/webhooks/new"):
        await page.goto(address)
        await check_accessibility(page)
        assert await overflows(page) == []


async def test_a_webhook_is_created_tested_and_deleted(
    page: Page, engine: AsyncEngine, mailer: MailerProcess, receiver: Receiver
) -> None:
    del engine  # its database is emptied
    await fill_in(page, receiver)
    await page.get_by_role("button", name="Create the webhook").click()
    secret = await page.locator(".secret").inner_text()
    receiver.verifier = Verifier(secret)
    await check_accessibility(page)
    await page.reload()  # sends the form again
    await expect(page.get_by_role("status").first).to_contain_text("its secret was shown then")
    assert secret not in await page.content()
    await page.get_by_role("row").get_by_role("link", name="Shop").click()
    await page.get_by_role("button", name="Send a test event").click()
    await receiver.until_received(1)
    await expect(page.locator("#deliveries")).to_contain_text("answer 204")
    await expect(page.locator("#state")).to_contain_text("It works.")

    receiver.answers = [http_response(500)]
    await page.get_by_role("button", name="Deliver test again").click()
    await expect(page.locator("#deliveries")).to_contain_text("answered with 500")
    await check_accessibility(page)

    dialog = page.get_by_role("dialog")
    await page.get_by_role("link", name="New secret").click()
    await expect(dialog).to_have_accessible_name("Create a new secret for Shop?")
    await check_accessibility(page)
    await dialog.get_by_role("button", name="Create a new secret").click()
    await expect(page.locator(".secret")).not_to_have_text(secret)
    await page.get_by_role("link", name="Go to the webhook").click()
    await page.get_by_role("link", name="Delete").click()
    await dialog.get_by_role("button", name="Delete the webhook").click()
    await expect(page.get_by_text("There are no webhooks yet.")).to_be_visible()
    assert await mailer.call("GET", "/webhooks") == []


async def test_an_invalid_form_is_accessible(page: Page, page_errors: PageErrors) -> None:
    page_errors.expect("status", "400 POST at .*/webhooks/new")
    await page.goto("/webhooks/new")
    await page.get_by_label("URL").fill("ftp://shop.example/")
    await page.get_by_role("button", name="Create the webhook").click()
    await expect(page.get_by_role("alert")).to_be_focused()
    await expect(page.locator("#url-error")).to_contain_text("must be a URL that starts with")
    await check_accessibility(page)
