"""POST /clients/import: accepted and refused files, and broken uploads."""

import asyncio
import codecs
import contextlib
from collections.abc import AsyncIterator, Iterator

import httpx
import pytest
import uvicorn
from sqlalchemy.ext.asyncio import AsyncEngine
from tests.event_timeout import EVENT_TIMEOUT
from tests.factories import OPEN, value
from tests.workbooks import XLSX, by_xlsxwriter

from mailer.app import create_app
from mailer.client.api import MAX_IMPORT_BYTES
from mailer.client.upload import MAX_CONCURRENT_IMPORTS
from mailer.client.workbook import NOT_A_WORKBOOK, OLD_WORKBOOK
from mailer.web.body import MAX_BODY_BYTES

PATH = "/clients/import"
CSV = {"Content-Type": "text/csv"}
ACCEPT_CSV = CSV | {"Accept": "text/csv"}
ANNA = "79160000001"
COUNT_STAGING_TABLES = "SELECT count(*) FROM pg_class WHERE relname = 'client_import'"
"""Each import has a staging table, from its first bytes to its end."""
COUNT_CLIENTS = "SELECT count(*) FROM client"


async def test_the_response_counts_lines_and_lists_rejected_ones(api: httpx.AsyncClient) -> None:
    content = f"phone,tag\n{ANNA},vip\n79160000002,\n8916,vip\n"
    response = await api.post(PATH, content=content, headers=CSV)
    assert response.status_code == 200
    rule = "must be 7 and ten more digits, such as 79161234567"
    report = {
        "created": 2,
        "updated": 0,
        "unchanged": 0,
        "rejected": 1,
        "errors": [{"line": 4, "field": "phone", "value": "8916", "message": rule}],
        "ignored_columns": [],
    }
    assert response.json() == report
    clients = (await api.get("/clients")).json()["results"]
    assert [client["phone"] for client in clients] == ["79160000002", ANNA]

    repeat = await api.post(f"{PATH}/", content=content, headers=CSV)
    assert repeat.json() == report | {"created": 0, "unchanged": 2}


async def test_a_file_may_be_larger_than_a_json_body(api: httpx.AsyncClient) -> None:
    lines = [f"7916{n:07}" for n in range(100_000)]
    content = "\n".join(["phone", *lines])
    assert len(content) > MAX_BODY_BYTES
    response = await api.post(PATH, content=content, headers=CSV)
    assert response.json()["created"] == 100_000


async def test_a_file_over_the_limit_is_413(api: httpx.AsyncClient) -> None:
    headers = CSV | {"Content-Length": str(MAX_IMPORT_BYTES + 1)}
    response = await api.post(PATH, content=b"phone\n", headers=headers)
    assert response.status_code == 413
    assert response.headers["Content-Type"] == "application/problem+json"


@pytest.mark.parametrize(
    "media_type",
    [
        *("text/csv", "Text/CSV; charset=UTF-8", 'text/csv; header=present; charset="utf-8"'),
        *("text/csv; charset=windows-1251", "text/csv; charset=cp1251", "text/csv; charset=utf8"),
    ],
)
async def test_csv_in_a_known_encoding_is_accepted(api: httpx.AsyncClient, media_type: str) -> None:
    headers = {"Content-Type": media_type}
    response = await api.post(PATH, content=f"phone\n{ANNA}\n", headers=headers)
    assert response.status_code == 200


@pytest.mark.parametrize(
    "media_type",
    ["application/json", "text/plain", "multipart/form-data", "text/csv; charset=latin1", "", ";"],
)
async def test_other_types_are_415(api: httpx.AsyncClient, media_type: str) -> None:
    headers = {"Content-Type": media_type}
    response = await api.post(PATH, content=f"phone\n{ANNA}\n", headers=headers)
    assert response.status_code == 415
    assert response.json()["title"] == "Unsupported Media Type"


@pytest.mark.parametrize(
    ("content", "wrong_columns"),
    [
        (b"", ["phone"]),
        (b"tag,name\nvip,Anna\n", ["phone"]),
        (b"phone,phone\n", ["phone"]),
        (b"\xff\xfe\n", ["phone"]),  # half a character of UTF-16
        ("Имя\n".encode("cp1251"), ["phone"]),
        (b"phone," * 101, [""]),
        (b"x" * 100_000, [""]),  # the header as a whole
    ],
)
async def test_an_invalid_header_is_400_and_names_the_columns(
    api: httpx.AsyncClient, content: bytes, wrong_columns: list[str]
) -> None:
    response = await api.post(PATH, content=content, headers=CSV)
    assert response.status_code == 400
    assert [error["field"] for error in response.json()["errors"]] == wrong_columns


async def test_a_file_in_windows_1251_is_read_and_the_response_names_the_encoding(
    api: httpx.AsyncClient,
) -> None:
    content = f"phone;tag\n{ANNA};Лёд и пламя\n1;да\n".encode("cp1251")
    response = await api.post(PATH, content=content, headers=CSV)
    assert response.json()["encoding"] == "windows-1251"
    assert (response.json()["created"], response.json()["rejected"]) == (1, 1)
    [client] = (await api.get("/clients")).json()["results"]
    assert client["tag"] == "Лёд и пламя"


async def test_a_file_in_utf16_with_tabs_is_read(api: httpx.AsyncClient) -> None:
    content = f"Phone\tTag\r\n{ANNA}\tвип\r\n".encode("utf-16")
    response = await api.post(PATH, content=content, headers=CSV)
    assert response.json()["encoding"] == "UTF-16"
    assert response.json()["created"] == 1


INVALID_BYTES = codecs.BOM_UTF8 + b"phone\n\0\xff\n"
INVALID_BYTES_ERROR = {
    "line": 2,
    "field": "phone",
    "value": "\ufffd\ufffd",
    "message": "is not UTF-8",
}


async def test_invalid_bytes_in_a_value_are_reported_as_replacement_characters(
    api: httpx.AsyncClient,
) -> None:
    response = await api.post(PATH, content=INVALID_BYTES, headers=CSV)
    assert response.json()["errors"] == [INVALID_BYTES_ERROR]


async def test_a_report_on_invalid_bytes_can_be_stored_for_a_repeat(api: httpx.AsyncClient) -> None:
    headers = CSV | {"Idempotency-Key": "once"}
    first = await api.post(PATH, content=INVALID_BYTES, headers=headers)
    assert first.json()["errors"] == [INVALID_BYTES_ERROR | {"value": ""}]
    repeat = await api.post(PATH, content=INVALID_BYTES, headers=headers)
    assert repeat.json() == first.json()


@pytest.mark.parametrize(
    "content",
    [
        f"phone,time_zone\n{ANNA},Mars\n7{ANNA},UTC\n",
        f'phone\n"{ANNA}\n',
        f"phone\n{ANNA},vip\n",
        f"{ANNA},vip\n{ANNA}\n",
        f"tag,+{ANNA}\n{ANNA}\n",
        "+7 (916) 123-45-67;vip\n8 (916) 123-45-67\n",
    ],
)
async def test_the_response_to_an_idempotent_import_contains_no_phone(
    api: httpx.AsyncClient, engine: AsyncEngine, content: str
) -> None:
    headers = CSV | {"Idempotency-Key": "once"}
    response = await api.post(PATH, content=content, headers=headers)
    assert response.json()["errors"]
    stored = await value(
        engine,
        "SELECT string_agg(concat(result, convert_from(body, 'UTF8')), '') FROM idempotency",
    )
    for text in (response.text, str(stored)):
        assert ANNA not in text
        assert "123-45-67" not in text


async def test_a_workbook_is_imported_and_ignored_columns_are_named(api: httpx.AsyncClient) -> None:
    content = by_xlsxwriter([["Город", "Телефон"], ["Томск", 79160000001], ["Омск", "8 916"]])
    response = await api.post(PATH, content=content, headers=XLSX)
    assert response.status_code == 200
    assert (response.json()["created"], response.json()["rejected"]) == (1, 1)
    assert response.json()["errors"][0]["line"] == 3
    assert response.json()["ignored_columns"] == ["Город"]


async def test_columns_of_fields_are_imported_and_named(api: httpx.AsyncClient) -> None:
    content = by_xlsxwriter([["name", "Телефон", "City"], ["Anna", 79160000001, "Omsk"]])
    response = await api.post(PATH, content=content, headers=XLSX)
    assert response.json()["fields"] == ["name"]
    assert response.json()["ignored_columns"] == ["City"]
    [client] = (await api.get("/clients")).json()["results"]
    assert client["fields"] == {"name": "Anna"}


async def test_the_query_says_what_the_columns_are(api: httpx.AsyncClient) -> None:
    content = f"Имя;Телефон;City;Note\nAnna;{ANNA};Omsk;x\n".encode()
    assert (await api.post(f"{PATH}?columns=", content=content, headers=CSV)).status_code == 200
    path = f"{PATH}?columns=name,phone, fields.tag,"
    response = await api.post(path, content=content, headers=CSV)
    assert response.json()["fields"] == ["name", "tag"]
    assert response.json()["ignored_columns"] == ["Note"]
    [client] = (await api.get("/clients")).json()["results"]
    assert (client["fields"], client["tag"]) == ({"name": "Anna", "tag": "Omsk"}, None)

    answer = await api.post(
        f"{PATH}?columns=name,phone,,", content=b"a,b,c,d\nAnna,1,2,3\n", headers=ACCEPT_CSV
    )
    header, line = answer.content.decode("utf-8-sig").splitlines()
    assert header == "name,phone,c,d,rejected_reason"
    assert line.startswith("Anna,1,2,3,")


@pytest.mark.parametrize(
    ("query", "field"),
    [
        ("columns=phone", "columns"),
        ("columns=phone,Имя", "columns"),
        ("columns=phone,fields.Имя", "fields.Имя"),
        ("columns=name,tag", "phone"),
        (f"columns={',' * 100}", "columns"),
        ("columns=phone,%ff", "columns"),
        ("columns=phone,a%00b", "columns"),
        ("columns=phone,x&columns=phone,y", "columns"),
        ("column=phone,name", "column"),
    ],
)
async def test_a_wrong_choice_of_columns_is_400_and_names_it(
    api: httpx.AsyncClient, query: str, field: str
) -> None:
    content = f"phone,Имя\n{ANNA},Anna\n".encode()
    response = await api.post(f"{PATH}?{query}", content=content, headers=CSV)
    assert response.status_code == 400
    assert [error["field"] for error in response.json()["errors"]] == [field]
    assert (await api.get("/clients")).json()["count"] == 0


@pytest.mark.parametrize(
    ("content", "headers", "message"),
    [
        (f"phone\n{ANNA}\n".encode(), XLSX, NOT_A_WORKBOOK),
        (b"", XLSX, NOT_A_WORKBOOK),
        (b"PK\x03\x04x", XLSX, NOT_A_WORKBOOK),
        (b"PK\x03\x04x", CSV, NOT_A_WORKBOOK),
        (b"\xd0\xcf\x11\xe0", CSV, OLD_WORKBOOK),
    ],
)
async def test_a_file_that_is_no_workbook_is_400_with_the_reason(
    api: httpx.AsyncClient, content: bytes, headers: dict[str, str], message: str
) -> None:
    response = await api.post(PATH, content=content, headers=headers)
    assert response.status_code == 400
    assert response.json()["errors"] == [{"field": "", "message": message}]


async def test_the_answer_as_csv_is_the_file_of_rejected_lines(api: httpx.AsyncClient) -> None:
    content = f"phone,tag\n{ANNA},vip\n8916,vip\n".encode()
    answer = await api.post(PATH, content=content, headers=CSV | {"Accept": "text/csv"})
    assert answer.status_code == 200
    assert answer.headers["Content-Type"].startswith("text/csv")
    assert answer.headers["Import-Counts"] == "created=1, updated=0, unchanged=0, rejected=1"
    header, line = answer.content.decode("utf-8-sig").splitlines()
    assert header == "phone,tag,rejected_reason"
    assert line.startswith("8916,vip,")

    corrected = answer.content.replace(b"8916", b"79160000002")
    again = await api.post(PATH, content=corrected, headers=CSV)
    assert again.json()["created"] == 1
    assert again.json()["ignored_columns"] == []


async def test_rejected_lines_are_not_stored_for_a_repeat(
    api: httpx.AsyncClient, engine: AsyncEngine
) -> None:
    headers = CSV | {"Accept": "text/csv", "Idempotency-Key": "once"}
    response = await api.post(PATH, content=f"phone\n{ANNA}\n", headers=headers)
    assert response.status_code == 400
    assert response.json()["errors"][0]["field"] == "Idempotency-Key"
    assert await value(engine, COUNT_CLIENTS) == 0


async def test_a_file_that_is_refused_is_a_problem_although_csv_is_wanted(
    api: httpx.AsyncClient,
) -> None:
    response = await api.post(PATH, content="tag\n", headers=CSV | {"Accept": "text/csv"})
    assert response.status_code == 400
    assert response.json()["errors"] == [{"field": "phone", "message": "is required"}]


async def test_import_is_documented(api: httpx.AsyncClient) -> None:
    schema = (await api.get("http://mailer/openapi.json")).json()
    operation = schema["paths"]["/api/v1" + PATH]["post"]
    media = operation["requestBody"]["content"]["text/csv"]
    assert operation["requestBody"]["required"] is True
    assert media["schema"]["type"] == "string"
    response = await api.post(PATH, content=media["example"], headers=CSV)
    assert response.json()["rejected"] == 0
    assert {"200", "400", "408", "413", "415", "503"} <= operation["responses"].keys()


class Server(uvicorn.Server):
    """Installs no signal handlers, because pytest has its own."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


@pytest.fixture
async def port(engine: AsyncEngine) -> AsyncIterator[int]:
    """Port of a real server for the application: a connection can only be broken on a real one."""
    config = uvicorn.Config(create_app(engine, settings=OPEN), port=0, log_config=None)
    server = Server(config)
    serving = asyncio.create_task(server.serve())
    while not server.started:
        await asyncio.sleep(0.01)
    yield server.servers[0].sockets[0].getsockname()[1]
    server.should_exit = True
    await serving


async def start_upload(port: int, line_count: int) -> asyncio.StreamWriter:
    """Send the head of a chunked request and the first lines of a file, but not its end."""
    _, writer = await asyncio.open_connection("127.0.0.1", port)
    content = "phone\n" + "".join(f"7916{n:07}\n" for n in range(line_count))
    writer.write(
        f"POST /api/v1{PATH} HTTP/1.1\r\nHost: x\r\nContent-Type: text/csv\r\n"
        f"Transfer-Encoding: chunked\r\n\r\n{len(content):x}\r\n{content}\r\n".encode()
    )
    await writer.drain()
    return writer


async def wait_for_uploads(engine: AsyncEngine, count: int) -> None:
    """Wait until `count` uploads have a staging table."""
    async with asyncio.timeout(EVENT_TIMEOUT):
        while await value(engine, COUNT_STAGING_TABLES) != count:
            await asyncio.sleep(0.01)


async def test_an_aborted_upload_stores_nothing(engine: AsyncEngine, port: int) -> None:
    writer = await start_upload(port, line_count=50_000)
    await wait_for_uploads(engine, count=1)
    writer.close()
    await writer.wait_closed()
    await wait_for_uploads(engine, count=0)
    assert await value(engine, COUNT_CLIENTS) == 0


async def test_slow_uploads_leave_database_connections_for_other_requests(
    engine: AsyncEngine, port: int
) -> None:
    writers = [await start_upload(port, line_count=10) for _ in range(15)]
    await wait_for_uploads(engine, count=MAX_CONCURRENT_IMPORTS)
    async with asyncio.timeout(EVENT_TIMEOUT):
        assert await value(engine, COUNT_CLIENTS) == 0  # a connection is free for this query

    for writer in writers:
        writer.write(b"0\r\n\r\n")  # the end of a chunked request
    async with asyncio.timeout(EVENT_TIMEOUT):
        while await value(engine, COUNT_CLIENTS) != 10:
            await asyncio.sleep(0.01)
    for writer in writers:
        writer.close()
        await writer.wait_closed()
    await wait_for_uploads(engine, count=0)
