"""Responses to an uploaded file of clients: a part of a page, which a script shows."""

import re
from typing import Any

import httpx
import pytest
from litestar.testing import RequestFactory
from sqlalchemy.ext.asyncio import AsyncEngine
from tests.api.browser_session import BROWSER
from tests.factories import OPEN
from tests.workbooks import XLSX, by_openpyxl

from mailer.admin.clients.importing import UPLOAD_OPTIONS
from mailer.app import create_app
from mailer.client.api import MAX_IMPORT_BYTES
from mailer.limits import BusyError
from mailer.web.body import LongUploadError, StalledUploadError

UPLOAD_URL = "http://mailer/clients/import"
UPLOAD_HEADERS = BROWSER | {"Content-Type": "text/csv"}
ANNA, BORIS = "79160000001", "79030000002"


async def send(
    api: httpx.AsyncClient, content: bytes, status: int = 200, path: str = "", **headers: str
) -> str:
    """Upload a file; return the HTML of the response, which is no whole page."""
    response = await api.post(UPLOAD_URL + path, content=content, headers=UPLOAD_HEADERS | headers)
    assert response.status_code == status
    assert response.headers["Content-Type"].startswith("text/html")
    assert "<html" not in response.text
    return response.text


async def test_the_report_counts_lines_and_lists_wrong_ones(api: httpx.AsyncClient) -> None:
    page = await send(api, f"phone,tag\n{ANNA},vip\n8916,vip\n{BORIS},{'x' * 65}\n".encode())
    assert "2 lines have errors" in page
    created, updated, unchanged, rejected = re.findall(r"<dd>(\d+)</dd>", page)
    assert (created, updated, unchanged, rejected) == ("1", "0", "0", "2")
    listed_lines = re.findall(r'<th scope="row"[^>]*>(\d+)</th>', page)
    assert listed_lines == ["3", "4"]
    assert "must be 7 and ten more digits" in page
    assert [client["phone"] for client in (await api.get("/clients")).json()["results"]] == [ANNA]


@pytest.mark.parametrize(
    ("content", "title"),
    [
        ("phone\n1\n2\n", "Nothing was imported: 2 lines have errors"),
        ("phone\n", "Nothing was imported: the file has no clients"),
        (f"phone\n{ANNA}\n", ">Imported<"),
        (f"phone\n{ANNA}\n1\n", "Imported, but 1 line has errors"),
    ],
)
async def test_the_title_says_whether_anything_was_imported(
    api: httpx.AsyncClient, content: str, title: str
) -> None:
    assert title in await send(api, content.encode())


async def test_wrong_values_are_shown_escaped(api: httpx.AsyncClient) -> None:
    page = await send(api, "phone;tag\n7,91612E+10;да\n<b>;\n".encode("cp1251"))
    assert "<bdi>7,91612E+10</bdi>" in page
    assert "was rounded by a spreadsheet" in page
    assert "<bdi>&lt;b&gt;</bdi>" in page
    assert "read as windows-1251" in page


async def test_the_number_of_listed_wrong_lines_is_limited(api: httpx.AsyncClient) -> None:
    page = await send(api, b"phone\n" + b"1\n" * 1200)
    assert "1,100 more lines with errors are not listed." in page
    assert page.count('<th scope="row"') == 100


FILE = """Клиент;Абонент;Группа;Часовой пояс
Анна;+7 (916) 000-00-01;VIP;Europe/Moscow
Борис;8916;;
""".encode("cp1251")
"""A file whose header names no phone and no tag."""


async def test_the_preview_shows_how_the_file_is_understood_and_stores_nothing(
    api: httpx.AsyncClient,
) -> None:
    page = await send(api, FILE, path="/preview")
    assert "CSV in windows-1251 with semicolons between the columns." in page
    assert re.findall(r'<option value="(\w+)" selected>', page) == ["phone", "time_zone"]
    assert page.count('<select name="column"') == 4
    assert re.findall(r"<dd>(\d+)</dd>", page) == ["1", "1"]  # good and wrong lines
    first_client = re.findall(r'<td data-label="(?:Operator code|Tag|Time zone)">(.*?)</td>', page)
    assert first_client == ["916", "", "Europe/Moscow"]
    assert "Import 1 client<" in page
    assert "must be 7 and ten more digits" in page
    assert (await api.get("/clients")).json()["count"] == 0


async def test_the_columns_can_be_chosen(api: httpx.AsyncClient) -> None:
    query = "?columns=,phone,tag,"
    page = await send(api, FILE, path=f"/preview{query}")
    assert re.findall(r'<option value="(\w+)" selected>', page) == ["phone", "tag"]
    assert "<bdi>VIP</bdi>" in page
    report = await send(api, FILE, path=query)
    assert "Imported, but 1 line has errors" in report
    [client] = (await api.get("/clients")).json()["results"]
    assert (client["tag"], client["time_zone"]) == ("VIP", "UTC")


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        (",,tag,", "Phone is required"),
        ("tag,phone,tag,", "Tag appears more than once"),
        ("phone", "columns must name a field for each column"),
    ],
)
async def test_a_preview_with_wrong_columns_asks_for_others(
    api: httpx.AsyncClient, columns: str, message: str
) -> None:
    page = await send(api, FILE, path=f"/preview?columns={columns}")
    assert f"<li>{message}</li>" in page
    assert page.count('<select name="column"') == 4
    assert 'data-action="import"' not in page
    await send(api, FILE, 400, path=f"?columns={columns}")


FILE_WITH_FIELDS = f"Имя;phone;city;Любимый цвет\nЮлия;{ANNA};<b>Тверь;синий\n".encode()
"""A file with columns that may become fields."""


def shown_columns(page: str) -> list[str]:
    """Return what each column is imported as in a preview, with the name of the field."""
    columns = []
    cells = re.findall(r'<select name="column".*?<input name="field_name"[^>]*>', page, re.DOTALL)
    for cell in cells:
        [chosen] = re.findall(r'<option value="([^"]*)" selected>', cell) or [""]
        [name] = re.findall(r'<input name="field_name" value="([^"]*)"', cell)
        assert ("hidden>" in cell) == (chosen != "fields.")
        columns.append(chosen + name if chosen == "fields." else chosen or f"({name})")
    return columns


async def test_the_preview_proposes_fields_for_the_other_columns(api: httpx.AsyncClient) -> None:
    page = await send(api, FILE_WITH_FIELDS, path="/preview")
    assert shown_columns(page) == ["fields.name", "phone", "fields.city", "(lyubimyy_tsvet)"]
    assert '<td data-label="name"><bdi>Юлия</bdi></td>' in page
    assert '<td data-label="city"><bdi>&lt;b&gt;Тверь</bdi></td>' in page


async def test_the_fields_can_be_chosen_in_the_preview(api: httpx.AsyncClient) -> None:
    query = "?columns=,phone,fields.town,fields.tag"
    page = await send(api, FILE_WITH_FIELDS, path=f"/preview{query}")
    assert shown_columns(page) == ["(name)", "phone", "fields.town", "fields.tag"]
    report = await send(api, FILE_WITH_FIELDS, path=query)
    assert "Imported fields: <code>town</code>, <code>tag</code>" in report
    [client] = (await api.get("/clients")).json()["results"]
    assert client["fields"] == {"town": "<b>Тверь", "tag": "синий"}

    again = await send(api, f"Tag,phone,Town\n,{ANNA},\n".encode(), path="/preview")
    assert shown_columns(again) == ["tag", "phone", "fields.town"]  # clients have this field
    assert '<option value="town">' in again


async def test_a_wrong_name_of_a_field_is_shown_in_the_preview(api: httpx.AsyncClient) -> None:
    query = "?columns=fields.%D0%98%D0%BC%D1%8F,phone,fields.a,fields.a"
    page = await send(api, FILE_WITH_FIELDS, path=f"/preview{query}")
    assert shown_columns(page) == ["fields.Имя", "phone", "fields.a", "fields.a"]
    assert "<li>Имя must be named with 1 to 32 of a-z, 0-9 and _" in page
    assert "<li>a appears more than once</li>" in page
    assert 'data-action="import"' not in page


async def test_the_preview_of_a_workbook_in_russian(api: httpx.AsyncClient) -> None:
    content = by_openpyxl([[79160000001, "vip"], [79160000002, None]])
    russian: dict[str, Any] = XLSX | {"Accept-Language": "ru"}
    page = await send(api, content, path="/preview", **russian)
    assert "Первый лист книги Excel." in page
    assert "первой строке нет названий столбцов" in page
    assert "Импортировать 2 клиентов" in page


async def test_a_preview_of_hostile_names_and_values_is_escaped(api: httpx.AsyncClient) -> None:
    content = f"<b>,phone,tag\n<i>,{ANNA},<u>\n".encode()
    page = await send(api, content, path="/preview")
    assert not re.search("<[biu]>", page)
    assert page.count("&lt;b&gt;") == 3  # as a name, and in the labels of its fields


async def test_lines_with_errors_are_downloaded_in_the_language_of_the_page(
    api: httpx.AsyncClient,
) -> None:
    headers = UPLOAD_HEADERS | {"Accept-Language": "ru"}
    url = f"{UPLOAD_URL}/rejected?columns=,phone,tag,"
    response = await api.post(url, content=FILE, headers=headers)
    assert response.headers["Content-Disposition"] == 'attachment; filename="rejected.csv"'
    header, line = response.content.decode("utf-8-sig").splitlines()
    assert header == "Клиент;phone;tag;Часовой пояс;rejected_reason"
    assert line.startswith("Борис;8916;;;phone: нужны 7")
    assert (await api.get("/clients")).json()["count"] == 0


async def test_a_refused_file_has_no_rejected_lines(api: httpx.AsyncClient) -> None:
    page = await send(api, b"PK\x03\x04", 400, path="/rejected")
    assert "the file is not an Excel workbook" in page


@pytest.mark.parametrize(
    ("content", "status", "headers", "message"),
    [
        (b"", 400, {}, "<code>phone</code> is required"),
        (b"name\n", 400, {}, "<code>phone</code> is required"),
        (b'"><b>,phone\n', 400, {}, "is not well-formed CSV"),
        (b"x" * 19_000, 400, {}, "the header is longer than 16000 characters"),
        (b"PK\x03\x04" + bytes(9000), 400, {}, "the file is not an Excel workbook"),
        (b"\xd0\xcf\x11\xe0" + bytes(9000), 400, {}, "with a password, or of the old format"),
        (b"phone\n", 415, {"Content-Type": "text/plain"}, "Send CSV (UTF-8, UTF-16"),
        (b"phone\n", 413, {"Content-Length": str(MAX_IMPORT_BYTES + 1)}, "larger than 1 GB"),
        (b"phone\n", 403, {"Sec-Fetch-Site": "cross-site"}, "another website"),
    ],
    ids=["empty", "column", "quote", "long", "zip", "xls", "type", "size", "site"],
)
async def test_an_unusable_file_is_refused_with_the_reason(
    api: httpx.AsyncClient, content: bytes, status: int, headers: dict[str, str], message: str
) -> None:
    page = await send(api, content, status, **headers)
    assert message in page
    assert "Nothing was stored." in page


async def test_every_failure_of_an_upload_has_its_own_message(engine: AsyncEngine) -> None:
    request: Any = RequestFactory(create_app(engine, settings=OPEN)).post("/clients/import")
    render_refusal = UPLOAD_OPTIONS["exception_handlers"][Exception]

    stalled = render_refusal(request, StalledUploadError())
    assert stalled.status_code == 408
    assert "within a minute; nothing was stored." in stalled.content
    assert "Nothing was stored." not in stalled.content  # not stated twice

    too_long = render_refusal(request, LongUploadError())
    assert "within an hour; nothing was stored." in too_long.content
    assert "minute" not in too_long.content

    unavailable = render_refusal(request, ConnectionRefusedError())
    assert unavailable.status_code == 503
    assert "The database is unavailable; try again" in unavailable.content
    assert "Nothing was stored." not in unavailable.content  # unknown after a lost connection

    busy = render_refusal(request, BusyError())
    assert busy.status_code == 503
    assert "Too many imports or downloads are running" in busy.content
    assert "database" not in busy.content
