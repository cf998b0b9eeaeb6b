"""Importing a file of clients in a browser."""

import contextlib
import os
import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from playwright.async_api import Page, expect
from sqlalchemy.ext.asyncio import AsyncEngine
from tests.browser.accessibility import check_accessibility
from tests.browser.measure import overflows
from tests.browser.page_errors import PageErrors
from tests.browser.page_states import DESK, NARROW, PageState
from tests.processes import MailerProcess
from tests.workbooks import by_openpyxl

LINES = 100_000
"""Number of clients in a large file: 1.6 MB."""
FILE_WITH_ERRORS = """phone;operator_code;tag;time_zone
79160000001;916;vip;Europe/Moscow
+7 916;916;;
79160000002;x;"<img src=x onerror=""alert('x')"">";Moscow
79160000003
"""
REFUSED_FILES: list[tuple[bytes, str]] = [
    (b"PK\x03\x04 is no workbook", "is not an Excel workbook"),
    (b"\xd0\xcf\x11\xe0" + bytes(99), "with a password, or of the old format"),
    (b'"phone\n79160000001\n', "is not well-formed CSV"),
    (b"", "is required"),
]
"""Content of a file, and the reason that is shown."""

RECORD_IMPORT = """() => {
    window.progressShares = [];
    window.statusTexts = [];
    window.longestFrame = 0;
    const bar = document.getElementById("progress");
    const status = document.getElementById("import-status");
    const recordShare = () => progressShares.push(bar.hasAttribute("value") ? bar.position : -1);
    new MutationObserver(recordShare).observe(bar, {attributes: true});
    const recordText = () => statusTexts.push(status.textContent);
    new MutationObserver(recordText).observe(status, {childList: true});
    let lastFrame = performance.now();
    const recordFrame = () => {
        const now = performance.now();
        longestFrame = Math.max(longestFrame, now - lastFrame);
        lastFrame = now;
        requestAnimationFrame(recordFrame);
    };
    recordFrame();
}"""
"""Script that records the shares of the progress bar (0 to 1; -1: unknown), the status texts, and
the longest time between two frames, in milliseconds."""


@pytest.fixture(autouse=True)
async def import_page(page: Page, engine: AsyncEngine) -> None:
    """Open the import page, without any clients in the database."""
    del engine  # requested to empty the database
    await page.goto("/clients/import")


async def choose_file(page: Page, content: bytes, name: str = "clients.csv") -> None:
    file: Any = {"name": name, "mimeType": "text/csv", "buffer": content}
    await page.get_by_label("CSV or Excel file").set_input_files(file)


async def choose_file_by_id(page: Page, content: bytes, name: str) -> None:
    """Choose a file on a page in any language."""
    file: Any = {"name": name, "mimeType": "", "buffer": content}
    await page.locator("#file").set_input_files(file)


async def check_file(page: Page, content: bytes, name: str = "clients.csv") -> None:
    """Choose a file and show its preview."""
    await choose_file(page, content, name)
    await page.get_by_role("button", name="Check the file").click()


async def confirm(page: Page) -> None:
    """Import the file of the preview."""
    await page.get_by_role("button", name=re.compile("^Import [0-9]")).click()


async def import_file(page: Page, content: bytes) -> None:
    await check_file(page, content)
    await confirm(page)


async def report_figures(page: Page) -> list[str]:
    """Return the numbers of created, updated, unchanged and rejected clients in the report."""
    return await page.locator("#report dd").all_inner_texts()


@contextlib.asynccontextmanager
async def throttled_upload(page: Page, bytes_per_second: int) -> AsyncIterator[None]:
    """Limit the upload of the browser inside the `async with` block."""
    session = await page.context.new_cdp_session(page)
    await session.send("Network.enable")
    limits = {"downloadThroughput": -1, "uploadThroughput": bytes_per_second}
    await session.send(
        "Network.emulateNetworkConditions", {"offline": False, "latency": 0} | limits
    )
    yield
    await session.detach()


@pytest.mark.parametrize(
    "page_state", [PageState(width=390, height=844, phone=True, dark=True)], ids=["phone, dark"]
)
async def test_the_report_lists_wrong_lines(page: Page) -> None:
    await import_file(page, FILE_WITH_ERRORS.encode())
    title = page.get_by_role("heading", name="Imported, but 3 lines have errors")
    await expect(title).to_be_focused()
    await expect(page.get_by_role("status").last).to_have_text("The import is finished.")
    assert await report_figures(page) == ["1", "0", "0", "3"]
    rows = [
        " ".join(row.split()) for row in await page.locator("#report tbody tr").all_inner_texts()
    ]
    assert rows == [
        "3 phone +7 916 must be 7 and ten more digits, such as 79161234567",
        "4 operator_code x must be three digits, such as 916",
        "4 time_zone Moscow must be a time zone such as Europe/Moscow",
        "5 the whole line 79160000003 has 1 fields, but the header has 4",
    ]
    await check_accessibility(page)
    assert await overflows(page) == []
    await page.get_by_role("link", name="Go to clients").click()
    await expect(page.get_by_role("link", name="79160000001")).to_be_visible()


async def test_a_second_import_counts_unchanged_clients(page: Page) -> None:
    await import_file(page, b"phone,tag\n79160000001,vip\n79160000002,\n")
    await expect(page.get_by_role("heading", name="Imported", exact=True)).to_be_focused()
    assert await report_figures(page) == ["2", "0", "0", "0"]
    await import_file(page, b"phone,tag\n79160000001,new\n79160000002,\n")
    await expect(page.locator("#report dd").nth(1)).to_have_text("1")
    assert await report_figures(page) == ["0", "1", "1", "0"]


async def test_an_unusable_file_is_refused_with_the_reason(
    page: Page, page_errors: PageErrors
) -> None:
    page_errors.expect("status", "400 POST at .*/clients/import/preview")
    for content, reason in REFUSED_FILES:
        await check_file(page, content)
        title = page.get_by_role("heading", name="The file was not imported")
        await expect(title).to_be_focused()
        await expect(page.locator("#report")).to_contain_text(reason)
        await expect(page.locator("#report")).to_contain_text("Nothing was stored.")
        await check_accessibility(page)
        assert await overflows(page) == []
        await page.reload()


async def test_a_large_file_shows_progress_and_the_page_stays_responsive(
    page: Page, mailer: MailerProcess
) -> None:
    content = b"phone,tag\n" + b"".join(b"7916%07d,vip\n" % n for n in range(LINES))
    await choose_file(page, content)
    await page.evaluate(RECORD_IMPORT)
    async with throttled_upload(page, 1_500_000):
        await page.get_by_role("button", name="Check the file").click()
        await confirm(page)
        await expect(page.get_by_role("progressbar")).to_be_visible()
        await expect(page.locator("#upload-amount")).to_contain_text("of 1.6 MB")
        await expect(page.get_by_role("button", name="Cancel")).to_be_focused()
        title = page.get_by_role("heading", name="Imported", exact=True)
        await expect(title).to_be_focused()
    assert await report_figures(page) == [f"{LINES:,}", "0", "0", "0"]
    shares = await page.evaluate("progressShares")
    assert any(0 < share < 1 for share in shares)
    assert shares[-1] == -1  # storing takes an unknown time
    assert await page.evaluate("statusTexts") == [
        "Uploading the file",
        "The file is uploaded. Its lines are being checked.",
        "The file is checked.",
        "Uploading the file",
        "The file is uploaded. Its clients are being stored.",
        "The import is finished.",
    ]
    assert await page.evaluate("longestFrame") < 500  # milliseconds
    assert (await mailer.call("GET", "/clients?limit=1"))["count"] == LINES


async def test_a_cancelled_import_stores_nothing(page: Page, mailer: MailerProcess) -> None:
    await choose_file(page, b"phone\n" + b"".join(b"7916%07d\n" % n for n in range(LINES)))
    await page.get_by_role("button", name="Check the file").click()
    await expect(page.get_by_role("heading", name="Check the file before")).to_be_focused()
    async with throttled_upload(page, 100_000):
        await confirm(page)
        await expect(page.get_by_role("progressbar")).to_be_visible()
        await check_accessibility(page)
        await page.get_by_role("button", name="Cancel").click()
        status = page.get_by_role("status").last
        await expect(status).to_have_text("Cancelled. Nothing was stored.")
    await expect(page.get_by_label("CSV or Excel file")).to_be_focused()
    await check_accessibility(page)
    assert (await mailer.call("GET", "/clients"))["count"] == 0
    await page.get_by_role("button", name="Check the file").click()
    await confirm(page)
    title = page.get_by_role("heading", name="Imported", exact=True)
    await expect(title).to_be_focused()


async def test_a_too_large_file_is_not_uploaded(page: Page, tmp_path: Path) -> None:
    path = tmp_path / "large.csv"
    with path.open("wb") as file:
        file.truncate(1024**3 + 1)  # bytes: one more than allowed
    await page.get_by_label("CSV or Excel file").set_input_files(path)
    await page.get_by_role("button", name="Check the file").click()
    await expect(page.get_by_role("status").last).to_contain_text("larger than 1 GB")


async def test_a_file_that_changed_after_it_was_chosen_must_be_chosen_again(
    page: Page, page_errors: PageErrors, tmp_path: Path
) -> None:
    page_errors.expect("failed", "POST net::ERR_UPLOAD_FILE_CHANGED at .*/clients/import/preview")
    path = tmp_path / "clients.csv"
    path.write_text("phone\n7916\n")
    field = page.get_by_label("CSV or Excel file")
    await field.set_input_files(path)
    assert (
        await field.evaluate("field => field.files[0].lastModified") > 0
    )  # the browser has read it
    path.write_text("phone\n79160000001\n")
    os.utime(path, (0, 0))  # surely another time of change
    await page.get_by_role("button", name="Check the file").click()
    await expect(page.get_by_role("status").last).to_contain_text("Choose it again.")
    await field.set_input_files(path)
    await page.get_by_role("button", name="Check the file").click()
    await confirm(page)
    await expect(page.get_by_role("heading", name="Imported", exact=True)).to_be_focused()


async def test_a_lost_connection_is_shown(page: Page, page_errors: PageErrors) -> None:
    page_errors.expect("failed", "POST net::ERR_CONNECTION_FAILED at .*/clients/import/preview")
    await page.route("**/clients/import/preview", lambda route: route.abort("connectionfailed"))
    await check_file(page, b"phone\n79160000001\n")
    await expect(page.get_by_role("status").last).to_contain_text("The connection was lost.")


async def test_without_scripts_the_page_shows_the_command(
    page: Page, mailer: MailerProcess
) -> None:
    assert page.context.browser is not None
    context = await page.context.browser.new_context(java_script_enabled=False)
    page_without_scripts = await context.new_page()
    await page_without_scripts.goto(f"{mailer.address}/clients/import")
    await expect(page_without_scripts.get_by_text("mailer clients import FILE")).to_be_visible()
    await expect(page_without_scripts.get_by_label("CSV or Excel file")).to_be_hidden()
    await context.close()


async def test_a_file_can_be_dropped_on_the_field(page: Page) -> None:
    # as the browser itself does with a dropped file: put it into the field
    data = await page.evaluate_handle("""() => {
        const data = new DataTransfer();
        data.items.add(new File(["phone\\n79160000001\\n"], "dropped.csv", {type: "text/csv"}));
        return data; }""")
    await page.get_by_label("CSV or Excel file").evaluate(
        "(field, data) => field.files = data.files", data
    )
    await page.get_by_role("button", name="Check the file").click()
    await confirm(page)
    await expect(page.get_by_role("heading", name="Imported", exact=True)).to_be_focused()


WORKBOOK = by_openpyxl(
    [
        ["Клиент", "Абонент", "Группа"],
        ["Анна", 79160000001, "vip"],
        ["Борис", "8 (916) 000-00-02", "vip"],
        ["Глеб", "8916", None],
    ]
)
"""A workbook whose phones are found, but not its tags."""


async def test_columns_are_chosen_in_the_preview_before_anything_is_stored(
    page: Page, mailer: MailerProcess
) -> None:
    await check_file(page, WORKBOOK, "clients.xlsx")
    await expect(page.get_by_role("heading", name="Check the file before")).to_be_focused()
    await expect(page.get_by_label("Import the column Абонент as")).to_have_value("phone")
    tags = page.get_by_label("Import the column Группа as")
    await expect(tags).to_have_value("")
    await tags.select_option("Tag")
    confirmation = page.get_by_role("button", name="Import 2 clients")
    await expect(confirmation).to_be_disabled()  # the preview was of other columns
    await page.get_by_role("button", name="Check again with these columns").click()
    await expect(page.get_by_role("cell", name="vip")).to_have_count(3)  # an example and two tags
    assert (await mailer.call("GET", "/clients"))["count"] == 0
    await confirmation.click()
    await expect(page.get_by_role("heading", name="Imported, but 1 line")).to_be_focused()
    await expect(page.locator("#report")).to_contain_text("Ignored columns: Клиент")
    assert (await mailer.call("GET", "/clients?tag=vip"))["count"] == 2


async def test_other_columns_become_fields_with_proposed_and_chosen_names(
    page: Page, mailer: MailerProcess
) -> None:
    rows: list[list[Any]] = [["Имя", "Телефон", "Цвет"], ["Anna", 79160000001, "red"]]
    await check_file(page, by_openpyxl(rows), "clients.xlsx")
    await expect(page.get_by_label("Field for the column Имя")).to_have_value("name")
    name = page.get_by_label("Field for the column Цвет")
    await expect(name).to_be_hidden()
    await page.get_by_label("Import the column Цвет as").select_option("a field with this name:")
    await expect(name).to_have_value("tsvet")
    await name.fill("Цвет, red")
    check = page.get_by_role("button", name="Check again with these columns")
    await check.click()
    await expect(page.get_by_role("heading", name="Choose the columns")).to_be_focused()
    await expect(page.locator("#report .error")).to_contain_text("must be named with 1 to 32")
    await name.fill("colour")
    await check.click()
    await page.get_by_role("button", name="Import 1 client").click()
    await expect(page.locator("#report")).to_contain_text("Imported fields: name, colour")
    [client] = (await mailer.call("GET", "/clients"))["results"]
    assert client["fields"] == {"name": "Anna", "colour": "red"}


async def test_a_file_without_a_column_of_phones_can_be_imported_after_a_choice(page: Page) -> None:
    await check_file(page, b"name,number\nAnna,8916\nBoris,+79160000001\nOlga,8917\nIvan,8918\n")
    await expect(page.get_by_role("heading", name="Choose the columns")).to_be_focused()
    await expect(page.get_by_role("button", name=re.compile("^Import [0-9]"))).to_be_hidden()
    await page.get_by_label("Import the column number as").select_option("Phone")
    await page.get_by_role("button", name="Check again with these columns").click()
    await page.get_by_role("button", name="Import 1 client").click()
    await expect(page.get_by_role("heading", name="Imported, but 3 lines")).to_be_focused()


async def test_lines_with_errors_are_downloaded_corrected_and_imported(
    page: Page, mailer: MailerProcess
) -> None:
    await import_file(page, b"phone;tag\n79160000001;vip\n8916;vip\n")
    await expect(page.get_by_role("heading", name="Imported, but 1 line")).to_be_focused()
    async with page.expect_download() as download:
        await page.get_by_role("button", name="Download the lines with errors").click()
    path = await (await download.value).path()
    content = path.read_bytes()
    assert content.decode("utf-8-sig").startswith("phone;tag;rejected_reason\n8916;vip;")
    await expect(page.get_by_role("heading", name="Imported, but 1 line")).to_be_visible()
    await import_file(page, content.replace(b"8916;", b"8 916 000-00-02;"))
    await expect(page.get_by_role("heading", name="Imported", exact=True)).to_be_focused()
    assert (await mailer.call("GET", "/clients?tag=vip"))["count"] == 2


@pytest.mark.parametrize(
    "page_state",
    [DESK, NARROW, PageState(width=360, height=800, phone=True)],
    ids=["desktop", "russian on a phone, dark", "360 pixels"],
)
async def test_the_preview_is_accessible_and_fits_the_screen(page: Page) -> None:
    long = ["Очень длинное название столбца " * 3, "x" * 32, "телефон", "Населённый_пункт"]
    rows: list[list[Any]] = [
        long,
        ["я" * 70, "w" * 100, 79160000001, ""],
        ["", "", "8916", "Томск"],
    ]
    for content in (by_openpyxl(rows), "a;b\nc;d\n".encode("cp1251")):
        name = "clients.xlsx" if content.startswith(b"PK") else "clients.csv"
        await choose_file_by_id(page, content, name)
        await page.locator("#import button").click()
        await expect(page.locator("#report-title")).to_be_focused()
        await check_accessibility(page)
        assert await overflows(page) == []
