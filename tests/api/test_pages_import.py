"""Responses to an uploaded file of clients: a part of a page, which a script shows."""

import re
from typing import Any

import httpx
import pytest
from litestar.testing import RequestFactory
from sqlalchemy.ext.asyncio import AsyncEngine
from tests.api.browser_session import BROWSER
from tests.factories import OPEN

from mailer.admin.clients.importing import render_refusal
from mailer.app import create_app
from mailer.client.api import MAX_IMPORT_BYTES
from mailer.limits import BusyError
from mailer.web.body import LongUploadError, StalledUploadError

UPLOAD_URL = "http://mailer/clients/import"
UPLOAD_HEADERS = BROWSER | {"Content-Type": "text/csv"}
ANNA, BORIS = "79160000001", "79030000002"


async def send(api: httpx.AsyncClient, content: bytes, status: int = 200, **headers: str) -> str:
    """Upload a file; return the HTML of the response, which is no whole page."""
    response = await api.post(UPLOAD_URL, content=content, headers=UPLOAD_HEADERS | headers)
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


@pytest.mark.parametrize(
    ("content", "status", "headers", "message"),
    [
        (b"", 400, {}, "<code>phone</code> is required"),
        (b"name\n", 400, {}, "<code>phone</code> is required"),
        (b'"><b>,phone\n', 400, {}, "is not well-formed CSV"),
        (b"x" * 9000, 400, {}, "the header is longer than 2000 characters"),
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
