"""Importing Excel workbooks and what Excel saves as CSV, with a real PostgreSQL."""

import codecs
import csv
import io
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy.ext.asyncio import AsyncEngine
from tests.factories import value
from tests.integration.client_files import (
    LineCounts,
    StoredClient,
    import_content,
    line_counts,
    split_into_chunks,
    stored_clients,
)
from tests.workbooks import SHEET, by_openpyxl, by_xlsxwriter, with_file, with_sheet

from mailer.client.csv_reader import TOO_LONG
from mailer.client.disk import NoSpaceError
from mailer.client.workbook import (
    LARGE_WORKBOOK,
    MAX_WORKBOOK_BYTES,
    NOT_A_WORKBOOK,
    OLD_WORKBOOK,
    ZIP_SIGNATURE,
    UploadedFile,
)
from mailer.client.workbook_reader import MAX_UNCOMPRESSED
from mailer.errors import InvalidError

ANNA, BORIS = "79160000001", "79030000002"
ROWS: list[list[Any]] = [
    ["Метка", "Телефон", "Город", "Часовой пояс"],
    ["vip", 79160000001, "Москва", "Europe/Moscow"],
    ["да, нет", "8 (903) 000-00-02", "Томск", None],
]
CLIENTS = [
    StoredClient(ANNA, "916", "vip", "Europe/Moscow"),
    StoredClient(BORIS, "903", "да, нет"),
]
"""What `ROWS` are stored as."""


def written_csv(delimiter: str = ";") -> str:
    """Return `ROWS` as Excel writes them: CRLF, and quotes where they are needed."""
    file = io.StringIO()
    csv.writer(file, dialect="excel", delimiter=delimiter).writerows(ROWS)
    return file.getvalue()


@pytest.mark.parametrize(
    "content",
    [
        by_openpyxl(ROWS),
        by_xlsxwriter(ROWS),
        by_xlsxwriter(ROWS, constant_memory=True),
    ],
    ids=["openpyxl", "xlsxwriter", "texts in the cells"],
)
@pytest.mark.parametrize("chunk_size", [3, 65_536])
async def test_the_first_sheet_of_a_workbook_is_imported(
    engine: AsyncEngine, content: bytes, chunk_size: int
) -> None:
    report = await import_content(engine, content, chunk_size)
    assert line_counts(report) == LineCounts(created=2)
    assert report.ignored_columns == ["Город"]
    assert await stored_clients(engine) == CLIENTS


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-be", "cp1251"])
@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
async def test_csv_of_excel_is_imported_in_every_encoding(
    engine: AsyncEngine, encoding: str, delimiter: str
) -> None:
    mark = codecs.BOM_UTF16_BE if encoding == "utf-16-be" else b""
    report = await import_content(engine, mark + written_csv(delimiter).encode(encoding))
    assert line_counts(report) == LineCounts(created=2)
    assert await stored_clients(engine) == CLIENTS


async def test_numbers_and_formulas_may_be_phones(engine: AsyncEngine) -> None:
    rows = (
        '<row r="1"><c t="str"><v>phone</v></c></row>'
        '<row r="2"><c><v>79160000001</v></c></row>'
        '<row r="3"><c><v>79160000002.0</v></c></row>'
        '<row r="4"><c><v>7.9160000003E10</v></c></row>'
        '<row r="5"><c t="str"><f>"8916"&amp;"0000004"</f><v>89160000004</v></c></row>'
    )
    report = await import_content(engine, with_sheet(rows))
    assert line_counts(report) == LineCounts(created=4)
    assert [client.phone for client in await stored_clients(engine)] == [
        f"7916000000{number}" for number in range(1, 5)
    ]


async def test_wrong_cells_are_reported_with_their_row_and_value(engine: AsyncEngine) -> None:
    rows: list[list[Any]] = [
        ["phone", "tag"],
        [],
        [datetime(2030, 1, 2), "x"],  # noqa: DTZ001  # as in Excel
        [ANNA, "y" * 65],
        [None, "z"],
    ]  # as in Excel
    report = await import_content(engine, by_openpyxl(rows))
    assert [(error.line, error.field, error.value[:19]) for error in report.errors] == [
        (3, "phone", "2030-01-02"),
        (4, "tag", "y" * 19),
        (5, "phone", ""),
    ]
    assert line_counts(report) == LineCounts(rejected=3)


async def test_a_workbook_without_a_header_is_imported(engine: AsyncEngine) -> None:
    rows: list[list[Any]] = [[79160000001], ["8 903 000-00-02", "a"]]
    report = await import_content(engine, by_xlsxwriter(rows))
    assert line_counts(report) == LineCounts(created=2)


async def test_a_very_long_cell_rejects_its_line_alone(engine: AsyncEngine) -> None:
    ten_megabytes = "x" * 10_000_000
    rows = (
        '<row r="1"><c t="str"><v>phone</v></c><c t="str"><v>tag</v></c></row>'
        f'<row r="2"><c><v>{ANNA}</v></c><c t="str"><v>{ten_megabytes}</v></c></row>'
        f'<row r="3"><c><v>{BORIS}</v></c></row>'
    )
    report = await import_content(engine, with_sheet(rows))
    assert line_counts(report) == LineCounts(created=1, rejected=1)
    assert report.errors[0].message == TOO_LONG


ENTITIES = (
    b'<!DOCTYPE x [<!ENTITY a "aaaaaaaaaa">'
    + b"".join(b'<!ENTITY a%d "%s">' % (n, b"&a%d;" % (n - 1) * 10) for n in range(1, 12))
    + b"]><worksheet>&a11;</worksheet>"
).replace(b"&a0;", b"&a;")
"""Entities that expand to ten thousand million letters."""


def replaced(path: str, content: bytes | None) -> bytes:
    return with_file(by_openpyxl(ROWS), path, content)


HOSTILE_FILES: dict[str, tuple[Callable[[], bytes], str]] = {
    "no archive": (lambda: ZIP_SIGNATURE + b"x" * 5000, NOT_A_WORKBOOK),
    "cut off": (lambda: by_openpyxl(ROWS)[:2000], NOT_A_WORKBOOK),
    "no sheet": (lambda: replaced(SHEET, None), NOT_A_WORKBOOK),
    "no XML": (lambda: replaced(SHEET, b"\0\xff"), NOT_A_WORKBOOK),
    "NUL in XML": (lambda: with_sheet("<row><c><v>\0</v></c></row>"), NOT_A_WORKBOOK),
    "another archive": (lambda: replaced("xl/workbook.xml", None), NOT_A_WORKBOOK),
    "entities": (lambda: replaced(SHEET, ENTITIES), NOT_A_WORKBOOK),
    "bomb": (lambda: replaced(SHEET, bytes(MAX_UNCOMPRESSED)), LARGE_WORKBOOK),
    "bomb of rows": (lambda: with_sheet('<row r="999999999999"><c/></row>'), LARGE_WORKBOOK),
    "too long": (lambda: ZIP_SIGNATURE + bytes(MAX_WORKBOOK_BYTES), LARGE_WORKBOOK),
    "old format": (lambda: b"\xd0\xcf\x11\xe0" + bytes(5000), OLD_WORKBOOK),
}
"""How to create a file, and why it is refused."""


@pytest.mark.parametrize("name", HOSTILE_FILES)
async def test_a_hostile_workbook_is_refused_and_stores_nothing(
    engine: AsyncEngine, name: str
) -> None:
    create, message = HOSTILE_FILES[name]
    with pytest.raises(InvalidError) as refused:
        await import_content(engine, create())
    assert [error.message for error in refused.value.errors] == [message]
    assert await value(engine, "SELECT count(*) FROM client") == 0


def child_processes() -> set[str]:
    """Return the ids of the child processes of this one."""
    tasks = Path("/proc/self/task").iterdir()
    return {child for task in tasks for child in (task / "children").read_text().split()}


async def test_an_import_that_fails_midway_ends_the_process_that_reads_the_workbook() -> None:
    before = child_processes()
    rows = [[f"7916{number:07}", "x" * 60] for number in range(20_000)]  # more than a pipe holds
    converted = UploadedFile(split_into_chunks(by_xlsxwriter(rows), 65_536)).csv_parts()
    assert await anext(converted)
    assert child_processes() > before
    await converted.aclose()
    assert child_processes() == before


async def test_a_full_disk_is_unavailable_and_stores_nothing(
    engine: AsyncEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = by_openpyxl(ROWS)
    monkeypatch.setattr("tempfile.tempdir", "/dev/null/no folder")
    with pytest.raises(NoSpaceError):
        await import_content(engine, content)
    assert await value(engine, "SELECT count(*) FROM client") == 0
