"""The pages of API keys and of the audit log in a browser."""

from collections.abc import AsyncIterator

import pytest
from playwright.async_api import Browser, Page, expect
from sqlalchemy.ext.asyncio import AsyncEngine
from tests.browser.accessibility import check_accessibility
from tests.browser.measure import overflows
from tests.browser.page_errors import PageErrors
from tests.browser.page_states import every_page_state
from tests.processes import Gateway, MailerProcess, mailers

from mailer.access import keys, sessions, users
from mailer.access.model import COMMAND_LINE
from mailer.db import database_info
from mailer.web.cookie import SESSION_COOKIE

NAME_OF_MAX_LENGTH = "a-name-that-is-as-long-as-one-may-be-without-a-single-blank-in-it"[:64]
CLIENT = {"phone": "79160000001", "tag": "vip"}
MAILING = {
    "datetime_start": "2040-01-01T09:00:00Z",
    "datetime_end": "2040-01-02T09:00:00Z",
    "text": "Your order is ready.",
}
HOSTILE = '<img src=x onerror="alert(1)">'


@pytest.fixture(scope="module")
async def mailer(
    browser: Browser, shared_database_url: str, gateway: Gateway
) -> AsyncIterator[MailerProcess]:
    """A process with authentication."""
    del browser  # requested so that without a browser no process is started
    async with mailers(shared_database_url) as start:
        yield await start(**gateway.settings, auth="required")


@pytest.fixture(autouse=True)
async def admin(engine: AsyncEngine, page: Page, mailer: MailerProcess) -> None:
    """Sign in as an admin in the browser, and authenticate API calls with a key."""
    async with engine.begin() as connection:
        user = await users.create(connection, "anna", "admin", "none fits", COMMAND_LINE)
        cookie = await sessions.create(connection, user.id, None, "")
        new = keys.NewKey(name="of the test", scope="admin")
        _, secret = await keys.create(connection, new, COMMAND_LINE)
        name = f"{SESSION_COOKIE}-{await database_info.get_fingerprint(connection)}"
    await page.context.add_cookies([{"name": name, "value": cookie, "url": mailer.address}])
    mailer.session.headers["Authorization"] = f"Bearer {secret}"


async def create_audit_entries(mailer: MailerProcess) -> None:
    """Create six audit entries, with long texts, filters, times and hostile texts."""
    client = await mailer.call("POST", "/clients", CLIENT, 201)
    await mailer.call("PATCH", f"/clients/{client['id']}", {"tag": None, "time_zone": "Asia/Omsk"})
    mailing = await mailer.call("POST", "/mailings", MAILING, 201)
    change = {
        "text": f"{HOSTILE} {'x' * 300} {'long words ' * 60}",
        "client_filter": {"tags": ["vip", "y" * 60], "operator_codes": ["916"]},
        "datetime_end": "2040-02-02T09:00:00Z",
        "on_unknown": "hold",
    }
    await mailer.call("PATCH", f"/mailings/{mailing['id']}", change)
    await mailer.call("POST", f"/mailings/{mailing['id']}/pause")
    await mailer.call("DELETE", f"/clients/{client['id']}", status=204)


@every_page_state
async def test_every_page_is_accessible_and_fits(page: Page, mailer: MailerProcess) -> None:
    async def check_page() -> None:
        await check_accessibility(page)
        assert await overflows(page) == []

    async def open_and_check(path: str) -> None:
        await page.goto(path)
        await check_page()

    await open_and_check("/keys")
    await open_and_check("/audit")

    await page.goto("/keys")
    await page.locator("#name").fill(NAME_OF_MAX_LENGTH)
    await page.locator("form[action^='/keys?once='] button").click()
    await expect(page.locator(".secret")).to_be_visible()
    await check_page()

    await create_audit_entries(mailer)
    for path in ("/keys", "/keys/1/revoke", "/audit", "/audit?action=mailing_changed"):
        await open_and_check(path)
    await open_and_check("/audit?action=none")


async def test_invalid_forms_are_accessible(page: Page, page_errors: PageErrors) -> None:
    page_errors.expect("status", "400 POST at .*/keys")
    page_errors.expect("status", "400 GET at .*/audit")
    await page.goto("/keys")
    await page.get_by_label("Name").fill(" x ")
    await page.locator("#expires-day").check()
    await page.get_by_label("Last day").fill("2020-01-01")
    await page.get_by_role("button", name="Create the key").click()
    await expect(page.get_by_role("alert")).to_be_focused()
    await expect(page.locator("#expires_on-error")).to_have_text("must be in the future")
    await check_accessibility(page)
    await page.goto("/audit?actor_id=7")
    await expect(page.locator("#actor_id-error")).to_be_visible()
    await check_accessibility(page)


async def test_a_secret_is_shown_once_even_after_reloading_or_going_back(
    page: Page, mailer: MailerProcess
) -> None:
    await page.goto("/keys")
    await page.get_by_label("Name").fill("shop")
    await page.get_by_role("button", name="Create the key").click()
    secret = await page.locator(".secret").inner_text()
    assert secret.startswith("mailer_")
    assert secret not in page.url
    assert all(secret not in str(cookie) for cookie in await page.context.cookies())
    await page.locator(".secret").click()
    assert await page.evaluate("String(getSelection())") == secret  # one click selects all of it
    await page.reload()  # sends the form again
    await expect(page.get_by_role("status").first).to_contain_text("its secret was shown then")
    assert secret not in await page.content()
    await page.get_by_role("link", name="API keys", exact=True).click()
    await expect(page.get_by_role("row", name="shop")).to_be_visible()
    await page.go_back()
    assert secret not in await page.content()
    assert await mailer.query("SELECT count(*) FROM api_key WHERE name = 'shop'") == 1


async def test_a_key_is_revoked_after_confirmation(page: Page, mailer: MailerProcess) -> None:
    await page.goto("/keys")
    await page.get_by_label("Name").fill("shop")
    await page.get_by_role("button", name="Create the key").click()
    await page.get_by_role("link", name="Go to API keys").click()
    await page.get_by_role("link", name="Revoke shop").click()
    dialog = page.get_by_role("dialog", name="Revoke the key shop?")
    await expect(dialog).to_be_visible()
    await check_accessibility(page)
    await dialog.get_by_role("link", name="Keep it as it is").click()
    await expect(dialog).to_be_hidden()
    assert await mailer.query("SELECT max(revoked_at) FROM api_key") is None
    await page.get_by_role("link", name="Revoke shop").click()
    await dialog.get_by_role("button", name="Revoke the key").click()
    await expect(page.get_by_role("status").first).to_have_text("The key is revoked.")
    await expect(page.get_by_role("row", name="shop")).to_contain_text("revoked")


async def test_the_audit_log_shows_entries_and_is_filtered(
    page: Page, mailer: MailerProcess
) -> None:
    await create_audit_entries(mailer)
    await page.goto("/audit")
    rows = page.locator(".audit tbody tr")
    await expect(rows).to_have_count(8)  # six, and those of the fixture's user and key
    await expect(rows.nth(1)).to_contain_text("Paused")
    await expect(rows.nth(2)).to_contain_text(HOSTILE)
    await rows.nth(2).locator("details").click()
    await expect(rows.nth(2).locator("details .text")).to_be_visible()
    await page.get_by_label("Action", exact=True).select_option("Mailing paused")
    await page.get_by_role("button", name="Find").click()
    await expect(rows).to_have_count(1)
    await rows.get_by_role("link", name="Mailing 1").click()
    await page.get_by_role("link", name="History of changes").click()
    await expect(rows).to_have_count(3)
    await expect(page.get_by_label("Target ID")).to_have_value("1")
