"""Lists of clients in a browser: from a file to a mailing for exactly its clients."""

import re
from typing import Any

import pytest
from playwright.async_api import Page, expect
from sqlalchemy.ext.asyncio import AsyncEngine
from tests.browser.accessibility import check_accessibility
from tests.browser.measure import overflows
from tests.browser.page_states import PageState, every_page_state
from tests.factories import add_clients, put_on_list
from tests.processes import MailerProcess

FILE = "phone,tag\n79160000001,a\n79160000002,b\nwrong,c\n79160000003,\n"
NARROWEST = PageState(width=360, height=740, phone=True)


@pytest.fixture(autouse=True)
async def other_clients(engine: AsyncEngine) -> list[int]:
    """Five clients who are not in the file, two of them on a list."""
    ids = await add_clients(engine, 5, "912")
    await put_on_list(engine, "A list with a rather long name, for regular customers", ids[:2])
    return ids


async def test_a_file_is_put_on_a_list_and_a_mailing_is_for_exactly_its_clients(
    page: Page, mailer: MailerProcess
) -> None:
    await page.goto("/clients/import")
    file: Any = {"name": "clients.csv", "mimeType": "text/csv", "buffer": FILE.encode()}
    await page.get_by_label("CSV or Excel file").set_input_files(file)
    await page.get_by_label("Put the clients on a list").fill("Spring sale")
    await page.get_by_role("button", name="Check the file").click()
    await page.get_by_role("button", name=re.compile("^Import 3")).click()
    await expect(page.get_by_text("3 clients were put on the list Spring sale.")).to_be_visible()
    await check_accessibility(page)

    await page.get_by_role("link", name="Write a mailing for this list").click()
    await expect(page.get_by_label("Lists of clients")).to_have_value("Spring sale")
    audience = page.get_by_role("region", name="Audience")
    await expect(audience.get_by_text("3 clients", exact=True)).to_be_visible()
    await page.get_by_label("Text").fill("The spring sale begins.")
    button = page.get_by_role("button", name=re.compile("for 3 clients"))
    await expect(button).to_be_visible()
    await button.click()
    await expect(page.get_by_text("they are on the list Spring sale")).to_be_visible()
    [mailing] = (await mailer.call("GET", "/mailings"))["results"]
    assert mailing["client_filter"] == {"lists": ["Spring sale"]}
    assert mailing["clients_count"] == 3


async def test_lists_are_suggested_after_each_comma(page: Page, engine: AsyncEngine) -> None:
    await put_on_list(engine, "Friends", [])
    await page.goto("/mailings/new")
    await page.get_by_label("Clients that match everything").check()
    field = page.get_by_label("Lists of clients")
    suggested = "field => Array.from(field.list.options, option => option.value)"
    await field.fill("Friends, ")
    assert "Friends, Friends" in await field.evaluate(suggested)
    await field.fill("Fr")
    assert "Friends" in await field.evaluate(suggested)


@every_page_state
async def test_the_pages_of_lists_are_accessible_and_fit(page: Page, engine: AsyncEngine) -> None:
    list_id = await put_on_list(engine, "Empty", [])
    paths = ("", "?search=x", "/new", "/1", "/1/delete", f"/{list_id}")
    for path in (*(f"/clients/lists{path}" for path in paths), "/clients/1", "/clients/import"):
        await page.goto(path)
        await check_accessibility(page)
        assert await overflows(page) == [], path


@pytest.mark.parametrize("page_state", [NARROWEST], ids=["the smallest phone"])
async def test_lists_fit_on_the_smallest_phone(page: Page) -> None:
    for path in ("/clients/lists", "/clients/lists/1", "/clients/import", "/mailings/new?list=1"):
        await page.goto(path)
        assert await overflows(page) == [], path


async def test_a_client_is_put_on_a_list_taken_off_and_the_list_deleted(page: Page) -> None:
    await page.goto("/clients")
    await page.get_by_role("link", name="Lists").click()
    await page.get_by_role("link", name="New list").click()
    await page.get_by_label("Name").fill("Autumn")
    await page.get_by_role("button", name="Create the list").click()
    await expect(page.get_by_role("status")).to_have_text("The list is created.")
    await page.goto("/clients/lists/1")
    phone = await page.locator("tbody th a").first.inner_text()
    await page.goto("/clients/lists")
    await page.get_by_role("link", name="Autumn", exact=True).click()
    await page.get_by_label("Phone of a client").fill(phone)
    await page.get_by_role("button", name="Put on the list").click()
    await expect(page.get_by_role("status")).to_have_text("The client is on the list.")
    await page.get_by_role("button", name=re.compile(f"Take off the list.*{phone}")).click()
    await expect(page.get_by_role("status")).to_have_text("The client is taken off the list.")
    await page.get_by_role("link", name="Delete").click()
    dialog = page.get_by_role("dialog", name="Delete the list Autumn?")
    await check_accessibility(page)
    await dialog.get_by_role("button", name="Delete the list").click()
    await expect(page.get_by_role("status")).to_contain_text("The list is deleted.")
