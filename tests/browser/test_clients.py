"""The pages of clients in a browser."""

from pathlib import Path

import pytest
from playwright.async_api import Browser, Page, expect
from sqlalchemy.ext.asyncio import AsyncEngine
from tests.browser.accessibility import check_accessibility
from tests.browser.measure import overflows
from tests.browser.page_errors import PageErrors
from tests.browser.page_states import PHONE, every_page_state
from tests.processes import MailerProcess

ANNA, BORIS = "79160000001", "79030000002"
HOSTILE = """"><img src=x onerror="alert('x')">"""


@pytest.fixture(autouse=True)
async def client_ids(engine: AsyncEngine, mailer: MailerProcess) -> dict[str, int]:
    """Create Anna and Boris as the only clients; return their ids by phone."""
    del engine  # requested to empty the database
    anna = {"phone": ANNA, "tag": "vip", "time_zone": "Europe/Moscow", "fields": {"name": "Anna"}}
    payloads = [anna, {"phone": BORIS}]
    clients = [await mailer.call("POST", "/clients", client, 201) for client in payloads]
    return {client["phone"]: client["id"] for client in clients}


async def press(page: Page, *keys: str) -> None:
    """Press keys one after the other."""
    for key in keys:
        await page.keyboard.press(key)


async def tab_to(page: Page, label: str) -> None:
    """Press Tab, at most 40 times, until the element with this text has the focus."""
    for _ in range(40):
        await page.keyboard.press("Tab")
        focused = page.locator(":focus")
        if await focused.count() and (await focused.inner_text()).strip() == label:
            return
    pytest.fail(f"{label} cannot be reached by Tab")


@every_page_state
async def test_every_page_is_accessible_and_fits(page: Page, client_ids: dict[str, int]) -> None:
    anna = client_ids[ANNA]
    for path in ("", "/new", f"/{anna}", f"/{anna}/delete", "/import", "?tag=nobody"):
        await page.goto(f"/clients{path}")
        await check_accessibility(page)
        assert await overflows(page) == []


async def test_a_client_is_created_found_and_changed(page: Page, mailer: MailerProcess) -> None:
    await page.goto("/clients")
    await page.get_by_role("link", name="New client").click()
    await page.get_by_label("Phone").fill("8 (999) 000-00-03")
    await page.get_by_label("Tag").fill("staff")
    time_zone = page.locator("#client").get_by_label("Time zone")
    await expect(time_zone).to_have_value("UTC")
    await time_zone.fill("Asia/Omsk")
    assert await page.locator("#zones option").count() > 300
    await page.get_by_role("button", name="Create the client").click()
    await expect(page.get_by_role("status")).to_have_text("The client is created.")
    await expect(page.get_by_role("heading", level=1)).to_have_text("Client 79990000003")
    await expect(page.get_by_label("Operator code")).to_have_value("999")

    await page.get_by_role("link", name="Clients").click()
    await expect(page.get_by_text("3 clients")).to_be_visible()
    await page.get_by_label("Phone").fill("+7 999 000-00-03")
    await page.keyboard.press("Enter")
    await expect(page.get_by_text("1 client", exact=True)).to_be_visible()
    await page.get_by_role("link", name="79990000003").click()
    await page.get_by_label("Tag").fill("")
    await page.get_by_role("button", name="Save").click()
    await expect(page.get_by_role("status")).to_have_text("The client is changed.")
    await expect(page.get_by_label("Tag")).to_have_value("")
    [changed] = (await mailer.call("GET", "/clients?time_zone=Asia/Omsk"))["results"]
    assert changed["tag"] is None

    await page.get_by_role("button", name="Save").click()
    await expect(page.get_by_role("status")).to_have_text("Nothing was changed.")
    await page.go_back()


async def change_fields(page: Page, url: str) -> None:
    """Change, add and remove fields of Anna, who has the field `name`."""
    await page.goto(url)
    await expect(page.get_by_label("Name of field 1")).to_have_value("name")
    await page.get_by_label("Value of field 1").fill("Maria")
    await page.get_by_label("Name of field 2").fill("Bonus")
    await page.get_by_label("Value of field 2").fill("250")
    await page.get_by_role("button", name="Save").click()
    await page.get_by_role("link", name="Name of field 2").click()
    await expect(page.get_by_label("Name of field 2")).to_be_focused()
    await page.get_by_label("Name of field 2").fill("bonus")
    await page.get_by_role("button", name="Save").click()
    await expect(page.get_by_role("status")).to_have_text("The client is changed.")
    await expect(page.get_by_label("Value of field 1")).to_have_value("250")  # sorted by name
    await page.get_by_label("Value of field 1").fill("")
    await page.get_by_role("button", name="Save").click()
    await expect(page.get_by_label("Value of field 1")).to_have_value("Maria")


async def test_fields_are_added_changed_and_removed(
    page: Page, client_ids: dict[str, int], mailer: MailerProcess, page_errors: PageErrors
) -> None:
    page_errors.expect("status", "400 POST at .*/clients/")
    await change_fields(page, f"/clients/{client_ids[ANNA]}")
    changed = await mailer.call("GET", f"/clients/{client_ids[ANNA]}")
    assert changed["fields"] == {"name": "Maria"}


async def test_fields_are_changed_without_scripts(
    browser: Browser, client_ids: dict[str, int], mailer: MailerProcess
) -> None:
    context = await browser.new_context(java_script_enabled=False)
    page = await context.new_page()
    await change_fields(page, f"{mailer.address}/clients/{client_ids[ANNA]}")
    await context.close()
    changed = await mailer.call("GET", f"/clients/{client_ids[ANNA]}")
    assert changed["fields"] == {"name": "Maria"}


async def test_the_filter_is_in_the_url_and_in_the_history(page: Page) -> None:
    await page.goto("/clients")
    await page.get_by_label("Tag").fill("vip")
    await page.get_by_role("button", name="Find").click()
    await expect(page.get_by_role("row")).to_have_count(2)
    assert "tag=vip" in page.url
    await page.get_by_label("Operator code").fill("903")
    await page.get_by_role("button", name="Find").click()
    await expect(page.get_by_text("No clients match.")).to_be_visible()
    await page.go_back()
    await expect(page.get_by_role("link", name=ANNA)).to_be_visible()
    await page.go_forward()
    await page.get_by_role("link", name="Clear the filter").first.click()
    await expect(page.get_by_role("row")).to_have_count(3)


async def test_an_invalid_filter_is_an_error_beside_its_field(
    page: Page, page_errors: PageErrors
) -> None:
    page_errors.expect("status", "400 GET at .*/clients")
    await page.goto("/clients")
    await page.get_by_label("Phone").fill("916")
    await page.get_by_role("button", name="Find").click()
    await expect(page.get_by_role("alert")).to_be_focused()
    phone = page.get_by_label("Phone")
    await expect(phone).to_have_value("916")
    await expect(phone).to_have_accessible_description(
        "Whole, or its last digits must be a phone, such as 79161234567, or its last 4 to 10 digits"
    )
    await check_accessibility(page)
    await page.get_by_role("alert").get_by_role("link", name="Phone").click()
    await expect(phone).to_be_focused()


@pytest.mark.parametrize("page_state", [PHONE], ids=["phone"])
async def test_typed_values_are_kept_when_fields_are_invalid(
    page: Page, page_errors: PageErrors
) -> None:
    page_errors.expect("status", "400 POST at .*/clients/new")
    await page.goto("/clients/new")
    await page.get_by_label("Phone").fill("12")
    await page.get_by_label("Tag").fill(HOSTILE)
    await page.locator("#client").get_by_label("Time zone").fill("Omsk")
    await page.get_by_role("button", name="Create the client").click()
    await expect(page.get_by_role("alert")).to_be_focused()
    await expect(page.get_by_role("alert").get_by_role("listitem")).to_have_count(2)
    await expect(page.get_by_label("Tag")).to_have_value(HOSTILE)
    await check_accessibility(page)
    assert await overflows(page) == []


async def test_a_used_phone_links_to_its_client(page: Page, page_errors: PageErrors) -> None:
    page_errors.expect("status", "409 POST at .*/clients/new")
    await page.goto("/clients/new")
    await page.get_by_label("Phone").fill("+7 916 000-00-01")
    await page.get_by_role("button", name="Create the client").click()
    phone = page.get_by_label("Phone")
    await expect(phone).to_have_value("+7 916 000-00-01")
    await expect(page.locator("#phone-error")).to_have_text("Another client has this phone.")
    await check_accessibility(page)
    await page.get_by_role("link", name="Show the client with this phone").click()
    await expect(page.get_by_role("link", name=ANNA)).to_be_visible()


async def test_a_client_is_deleted_with_the_keyboard_alone(
    page: Page, client_ids: dict[str, int], mailer: MailerProcess
) -> None:
    await page.goto(f"/clients/{client_ids[ANNA]}")
    dialog = page.get_by_role("dialog", name=f"Delete client {ANNA}?")
    await tab_to(page, "Delete")
    await press(page, "Enter")
    await expect(dialog).to_be_visible()
    await expect(dialog).to_contain_text("erased permanently")
    await check_accessibility(page)
    await press(page, "Escape")
    await expect(dialog).to_be_hidden()
    await expect(page.get_by_role("link", name="Delete")).to_be_focused()
    await press(page, "Enter")
    await expect(page.get_by_role("link", name="Keep the client")).to_be_focused()
    await press(page, "Enter")
    await expect(dialog).to_be_hidden()
    await press(page, "Enter")
    await expect(page.get_by_role("link", name="Keep the client")).to_be_focused()
    await press(page, "Shift+Tab")
    await expect(page.get_by_role("button", name="Delete the client")).to_be_focused()
    await press(page, "Enter")
    await expect(page.get_by_role("status")).to_have_text("The client is deleted.")
    await expect(page.get_by_role("row")).to_have_count(2)
    await mailer.call("GET", f"/clients/{client_ids[ANNA]}", status=404)


async def test_the_list_without_clients_links_to_form_and_import(
    page: Page, engine: AsyncEngine
) -> None:
    del engine
    await page.goto("/clients")
    for phone in (ANNA, BORIS):
        await page.get_by_role("link", name=phone).click()
        await page.get_by_role("link", name="Delete").click()
        await page.get_by_role("button", name="Delete the client").click()
    await check_accessibility(page)
    await page.get_by_role("link", name="Create one manually").click()
    await page.go_back()
    await page.get_by_role("link", name="Import a file").click()
    await expect(page.get_by_role("heading", level=1)).to_have_text("Import clients")


async def test_a_hostile_tag_is_escaped(
    page: Page, client_ids: dict[str, int], mailer: MailerProcess
) -> None:
    await mailer.call("PATCH", f"/clients/{client_ids[BORIS]}", {"tag": HOSTILE})
    await page.goto("/clients")
    await expect(page.get_by_role("cell", name=HOSTILE)).to_be_visible()
    await page.get_by_role("link", name=BORIS).click()
    await expect(page.get_by_label("Tag")).to_have_value(HOSTILE)


async def test_the_download_contains_the_filtered_clients(page: Page) -> None:
    await page.goto("/clients?tag=vip")
    async with page.expect_download() as downloading:
        await page.get_by_role("button", name="Download as CSV").click()
    download = await downloading.value
    assert download.suggested_filename == "clients.csv"
    lines = Path(await download.path()).read_text("utf-8-sig").splitlines()
    header = "phone,operator_code,tag,time_zone,name"
    assert lines == [header, f"{ANNA},916,vip,Europe/Moscow,Anna"]


async def test_pages_link_to_older_and_newer_ones(page: Page, mailer: MailerProcess) -> None:
    await mailer.call("POST", "/clients", {"phone": "79990000003"}, 201)
    await page.goto("/clients?limit=2")
    await page.get_by_role("link", name="Older").click()
    await expect(page.get_by_role("row")).to_have_count(2)
    await check_accessibility(page)
    await page.get_by_role("link", name="Newer").click()
    await expect(page.get_by_role("link", name="79990000003")).to_be_visible()
