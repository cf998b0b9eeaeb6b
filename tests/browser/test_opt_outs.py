"""The pages of opt-outs in a browser."""

from pathlib import Path
from typing import Any

import pytest
from playwright.async_api import Page, expect
from sqlalchemy.ext.asyncio import AsyncEngine
from tests.browser.accessibility import check_accessibility
from tests.browser.measure import overflows
from tests.browser.page_errors import PageErrors
from tests.browser.page_states import every_page_state
from tests.processes import MailerProcess

ANNA, BORIS = "79160000001", "79030000002"


@pytest.fixture(autouse=True)
async def anna_id(engine: AsyncEngine, mailer: MailerProcess) -> int:
    """Create Anna, who has opted out, and the opt-out of a phone without a client."""
    del engine  # requested to empty the database
    anna = await mailer.call("POST", "/clients", {"phone": ANNA}, 201)
    for phone in (ANNA, BORIS):
        await mailer.call("POST", "/opt-outs", {"phone": phone}, 201)
    return int(anna["id"])


@every_page_state
async def test_every_page_is_accessible_and_fits(
    page: Page, anna_id: int, mailer: MailerProcess
) -> None:
    [newest, _] = (await mailer.call("GET", "/opt-outs"))["results"]
    paths = (
        "",
        "/new",
        "/import",
        f"/{newest['id']}/delete",
        f"?phone={BORIS}",
        "?phone=79990000003",
    )
    for path in (*(f"/opt-outs{path}" for path in paths), f"/clients/{anna_id}", "/clients"):
        await page.goto(path)
        await check_accessibility(page)
        assert await overflows(page) == []


async def test_a_phone_is_added_found_and_opted_in_again(page: Page) -> None:
    await page.goto("/opt-outs")
    await page.get_by_role("link", name="Add a phone").click()
    await page.get_by_label("Phone").fill("8 (999) 000-00-03")
    await page.get_by_role("button", name="Opt out").click()
    await expect(page.get_by_role("status")).to_have_text("The phone has opted out.")
    await expect(page.get_by_text("3 opt-outs")).to_be_visible()
    await page.get_by_label("Phone").fill("+7 999 000-00-03")
    await page.keyboard.press("Enter")
    await expect(page.get_by_text("1 opt-out", exact=True)).to_be_visible()
    await page.get_by_role("link", name="Opt in again").click()
    dialog = page.get_by_role("dialog", name="Send marketing messages to this phone again?")
    await expect(dialog).to_be_visible()
    await check_accessibility(page)
    await dialog.get_by_role("button", name="Opt in again").click()
    await expect(page.get_by_role("status")).to_have_text("The phone is opted in again.")
    await expect(page.get_by_text("2 opt-outs")).to_be_visible()


async def test_a_client_is_opted_in_and_out(page: Page, anna_id: int) -> None:
    await page.goto(f"/clients/{anna_id}")
    await page.get_by_role("link", name="Opt in again").click()
    await page.get_by_role("dialog").get_by_role("button", name="Opt in again").click()
    await expect(page.get_by_role("status")).to_have_text("The client is opted in again.")
    await expect(page.get_by_text("This client opted out on")).to_be_hidden()
    await page.get_by_role("link", name="Opt out", exact=True).click()
    dialog = page.get_by_role("dialog", name=f"Opt client {ANNA} out?")
    await check_accessibility(page)
    await dialog.get_by_role("link", name="Keep it as it is").click()
    await expect(dialog).to_be_hidden()
    await page.get_by_role("link", name="Opt out", exact=True).click()
    await dialog.get_by_role("button", name="Opt out").click()
    await expect(page.get_by_role("status")).to_have_text("The client has opted out.")
    await expect(page.get_by_text("This client opted out on")).to_be_visible()


async def test_a_file_is_imported(page: Page, page_errors: PageErrors) -> None:
    page_errors.expect("status", "400 POST at .*/opt-outs/import")
    await page.goto("/opt-outs/import")

    async def check_file(content: bytes) -> None:
        file: Any = {"name": "phones.csv", "mimeType": "text/csv", "buffer": content}
        await page.get_by_label("CSV or Excel file").set_input_files(file)
        await page.get_by_role("button", name="Check the file").click()

    await check_file(b"PK\x03\x04 is no workbook")
    await expect(page.get_by_role("heading", name="The file was not imported")).to_be_focused()
    await check_accessibility(page)
    await check_file(b"phone\n79990000003\n79030000002\n916\n")
    await expect(page.get_by_role("heading", name="Check the file")).to_be_focused()
    await check_accessibility(page)
    async with page.expect_download() as download:
        await page.get_by_role("button", name="Download the lines with errors").click()
    assert "916" in Path(await (await download.value).path()).read_text(encoding="utf-8")
    await page.get_by_role("button", name="Opt 2 phones out").click()
    title = page.get_by_role("heading", name="Imported, but 1 line has errors")
    await expect(title).to_be_focused()
    assert await page.locator("#report dd").all_inner_texts() == ["1", "1", "1"]
    await check_accessibility(page)
    await page.get_by_role("link", name="Go to opt-outs").click()
    await expect(page.get_by_text("3 opt-outs")).to_be_visible()


async def test_the_preview_follows_the_purpose(page: Page) -> None:
    await page.goto("/mailings/new")
    await page.get_by_label("Text").fill("Hello")
    await page.get_by_label("All clients").check()
    everybody = "All clients of the audience have opted out: nobody will get this mailing."
    await expect(page.get_by_text(everybody)).to_be_visible()
    await page.get_by_label("Service").check()
    await expect(page.get_by_text("1 client will get it.")).to_be_visible()
