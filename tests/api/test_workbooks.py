"""The downloads of the pages as Excel workbooks, read back by another library."""

import asyncio
from datetime import datetime

import httpx
import openpyxl
import pytest
from sqlalchemy.ext.asyncio import AsyncEngine
from tests.api.browser_session import BROWSER, SITE
from tests.asgi_client import inside
from tests.factories import (
    OPEN,
    UnusedGateway,
    add_mailing,
    add_messages,
    channel_of,
    execute,
    value,
)
from tests.workbook_reading import XLSX_TYPE, load, values

from mailer.app import create_app
from mailer.gateway.channel import Channels
from mailer.sample_data import TEXT
from mailer.settings import Settings

VIP = {"phone": "79160000001", "tag": "VIP;=1+1", "time_zone": "Asia/Omsk"}
PLAIN = {"phone": "79160000002"}


@pytest.fixture
async def browser(engine: AsyncEngine) -> httpx.AsyncClient:
    """A browser, and a mailing with a delivered message and one that was not sent."""
    channels = Channels([channel_of(UnusedGateway(), Settings(), name="main", price=0.035)])
    app = create_app(engine, channels, settings=OPEN)
    client = httpx.AsyncClient(transport=inside(app), base_url="http://mailer/api/v1")
    for each in (VIP, PLAIN):
        assert (await client.post("/clients", json=each)).status_code == 201
    mailing_id = await add_mailing(engine, clients=2)
    await add_messages(engine, mailing_id, [1], "delivered")
    await add_messages(engine, mailing_id, [2], "cancelled", "expired")
    await execute(
        engine,
        "UPDATE message SET gateway = 'main', parts = 2, sent_at = '2030-01-15 20:30:05.6Z'"
        " WHERE id = 1",
    )
    return client


async def download(
    browser: httpx.AsyncClient, path: str, language: str = "en"
) -> openpyxl.workbook.Workbook:
    """Return the workbook at the path of a page."""
    headers = {**BROWSER, "Accept-Language": language}
    return load(await browser.get(f"{SITE}{path}", headers=headers))


async def test_messages_have_phones_as_text_real_times_and_numbers(
    browser: httpx.AsyncClient,
) -> None:
    workbook = await download(browser, "/mailings/1/messages.xlsx")
    assert values(workbook) == [
        (
            *("Phone", "Tag", "Time zone", "Sent at, local time", "Status", "Reason"),
            *("Gateway", "Parts", "Cost", "Text"),
        ),
        (
            *("79160000001", "VIP;=1+1", "Asia/Omsk", datetime(2030, 1, 16, 2, 30, 5)),  # noqa: DTZ001
            *("delivered", None, "main", 2, 0.07, TEXT),
        ),
        (
            *("79160000002", None, "UTC", None, "cancelled"),
            *("the mailing ended before it was sent", None, None, None, TEXT),
        ),
    ]
    [sheet] = workbook.worksheets
    assert (sheet.title, sheet.freeze_panes, sheet["A1"].font.bold) == ("Messages", "A2", True)
    assert sheet["D2"].number_format == "yyyy-mm-dd hh:mm:ss"
    assert all(sheet.column_dimensions[column].width > 8 for column in "ABCDEFGHIJ")


async def test_a_workbook_is_in_the_language_of_the_page(browser: httpx.AsyncClient) -> None:
    workbook = await download(browser, "/mailings/1/messages.xlsx?status=delivered", "ru")
    header, first = values(workbook)
    assert header[:2] == ("Телефон", "Метка")
    assert first[4] == "доставлено"
    assert workbook.sheetnames == ["Сообщения"]


async def test_no_text_becomes_a_formula(browser: httpx.AsyncClient, engine: AsyncEngine) -> None:
    formulas = ["=1+1", "+1", "-1", "@x", "\t=1", "=HYPERLINK(0)", "http://example.com", "'=1"]
    for number, tag in enumerate(formulas):
        client = {"phone": f"7903000000{number}", "tag": tag}
        assert (await browser.post("/clients", json=client)).status_code == 201
    [sheet] = (await download(browser, "/clients.xlsx?operator_code=903")).worksheets
    cells = [row[2] for row in sheet.iter_rows(min_row=2)]
    assert {cell.data_type for cell in cells} == {"s"}
    assert [cell.hyperlink for cell in cells] == [None] * len(formulas)
    written = await value(
        engine,
        "SELECT array_agg(coalesce(tag_written, tag) ORDER BY id) FROM client"
        " WHERE operator_code = '903'",
    )
    # an import removes an apostrophe before a formula, so one that the tag has gets another
    assert [cell.value for cell in cells] == [*written[:-1], "''=1"]


@pytest.mark.parametrize("language", ["en", "ru"])
async def test_the_workbook_of_clients_is_imported_unchanged(
    browser: httpx.AsyncClient, language: str
) -> None:
    for phone, tag in (("79030000001", "'=1"), ("79030000002", "=1"), ("79030000003", "ab  c")):
        assert (await browser.post("/clients", json={"phone": phone, "tag": tag})).is_success
    headers = {**BROWSER, "Accept-Language": language}
    exported = await browser.get(f"{SITE}/clients.xlsx", headers=headers)
    imported = await browser.post(
        "/clients/import", content=exported.content, headers={"Content-Type": XLSX_TYPE}
    )
    counts = {"created": 0, "updated": 0, "unchanged": 5, "rejected": 0}
    assert imported.json() == counts | {"errors": [], "ignored_columns": []}


async def test_the_filters_of_the_page_apply_to_its_workbook(browser: httpx.AsyncClient) -> None:
    page = (await browser.get(f"{SITE}/clients?phone=0001", headers=BROWSER)).text
    assert 'formaction="/clients.xlsx"' in page
    assert '<input type="hidden" name="phone" value="0001">' in page
    [_, only] = values(await download(browser, "/clients.xlsx?phone=0001&separator=comma"))
    assert only == ("79160000001", "916", "VIP;=1+1", "Asia/Omsk")
    wrong = await browser.get(f"{SITE}/clients.xlsx?operator_code=9", headers=BROWSER)
    assert wrong.status_code == 400


async def test_opt_outs_have_the_local_time_of_the_client(
    browser: httpx.AsyncClient, engine: AsyncEngine
) -> None:
    assert (await browser.post("/opt-outs", json={"phone": VIP["phone"]})).status_code == 201
    await execute(engine, "UPDATE opt_out SET opted_out_at = '2025-01-15 20:30:05Z'")
    page = (await browser.get(f"{SITE}/opt-outs", headers=BROWSER)).text
    assert "/opt-outs/export.xlsx" in page
    assert values(await download(browser, "/opt-outs/export.xlsx")) == [
        ("Phone", "Time zone", "Opted out at, local time"),
        ("79160000001", "Asia/Omsk", datetime(2025, 1, 16, 2, 30, 5)),  # noqa: DTZ001
    ]


@pytest.mark.parametrize("language", ["en", "ru"])
async def test_the_workbook_of_opt_outs_is_imported_with_its_times(
    browser: httpx.AsyncClient, engine: AsyncEngine, language: str
) -> None:
    assert (await browser.post("/opt-outs", json={"phone": VIP["phone"]})).status_code == 201
    await execute(engine, "UPDATE opt_out SET opted_out_at = '2025-01-15 20:30:05Z'")
    headers = {**BROWSER, "Accept-Language": language}
    exported = await browser.get(f"{SITE}/opt-outs/export.xlsx", headers=headers)
    await browser.post("/opt-outs/delete", json={"phone": VIP["phone"]})
    imported = await browser.post(
        "/opt-outs/import", content=exported.content, headers={"Content-Type": XLSX_TYPE}
    )
    assert (imported.json()["created"], imported.json()["ignored_columns"]) == (1, [])
    [again] = (await browser.get("/opt-outs")).json()["results"]
    assert again["opted_out_at"] == "2025-01-15T20:30:05Z"


async def test_a_workbook_without_rows_has_its_header(browser: httpx.AsyncClient) -> None:
    assert len(values(await download(browser, "/mailings/1/messages.xlsx?status=sent"))) == 1
    wrong = await browser.get(f"{SITE}/mailings/9/messages.xlsx", headers=BROWSER)
    assert wrong.status_code == 404


async def test_several_workbooks_are_written_at_the_same_time(browser: httpx.AsyncClient) -> None:
    path = "/mailings/1/messages.xlsx"
    books = await asyncio.gather(*(download(browser, path) for _ in range(6)))
    assert [len(values(book)) for book in books] == [3] * 6
