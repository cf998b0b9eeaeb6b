"""The rejected lines of an import as a file, which is corrected and imported again."""

import csv
import io
from collections.abc import AsyncIterator

import pytest
from sqlalchemy.ext.asyncio import AsyncEngine
from tests.integration.client_files import (
    LineCounts,
    import_content,
    line_counts,
    split_into_chunks,
    stored_tags,
)
from tests.workbooks import by_openpyxl

from mailer.access.model import COMMAND_LINE
from mailer.client import rejected as rejected_module
from mailer.client.field_columns import REASON_COLUMN
from mailer.client.importing import ImportReport, import_clients
from mailer.client.previewing import preview_clients
from mailer.client.reading import ImportOptions
from mailer.client.rejected import RejectedLines

ANNA = "79160000001"
WRONG_PHONE = "phone: must be 7 and ten more digits, such as 79161234567"


async def read_rejected(rejected: RejectedLines) -> str:
    content = b"".join([part.content async for part in rejected.parts()])
    assert content.startswith("\ufeff".encode())  # so that Excel reads it as UTF-8
    return content.decode("utf-8-sig")


async def import_and_read_rejected(
    engine: AsyncEngine, content: bytes
) -> tuple[ImportReport, list[list[str]]]:
    """Import a file; return the report, and the rows of the file of rejected lines."""
    with RejectedLines() as rejected:
        parts = split_into_chunks(content, 1000)
        options = ImportOptions(rejected=rejected)
        report = await import_clients(engine, parts, COMMAND_LINE, options=options)
        text = await read_rejected(rejected)
    delimiter = ";" if ";" in text.split("\n", maxsplit=1)[0] else ","
    return report, list(csv.reader(io.StringIO(text), delimiter=delimiter, strict=True))


async def test_rejected_lines_keep_all_columns_and_get_the_reasons(engine: AsyncEngine) -> None:
    lines = ["Имя;Телефон;Метка", f"Анна;{ANNA};vip", "Борис;8903;=1+1", "Пётр;1;2;3;4"]
    report, rows = await import_and_read_rejected(engine, "\n".join(lines).encode("cp1251"))
    assert line_counts(report) == LineCounts(created=1, rejected=2)
    assert rows == [
        ["Имя", "phone", "tag", REASON_COLUMN],
        ["Борис", "8903", "'=1+1", WRONG_PHONE],
        ["Пётр;1;2;3;4", "", "", "has 5 fields, but the header has 3"],
    ]


async def test_every_rejected_line_is_in_the_file_not_only_the_reported_ones(
    engine: AsyncEngine,
) -> None:
    report, rows = await import_and_read_rejected(engine, b"phone,time_zone\n" + b"1,x\n" * 250)
    assert len(rows) == 1 + 250
    assert rows[-1] == ["1", "x", f"{WRONG_PHONE}; time_zone: {report.errors[1].message}"]


@pytest.mark.parametrize("is_workbook", [False, True])
async def test_a_corrected_file_of_rejected_lines_is_imported(
    engine: AsyncEngine, *, is_workbook: bool
) -> None:
    _, rows = await import_and_read_rejected(engine, "тег,Город,телефон\n=1+1,Омск,8916\n".encode())
    corrected = [[cell.replace("8916", ANNA) for cell in row] for row in rows]
    if is_workbook:
        content = by_openpyxl(corrected)
    else:
        content = "\n".join(",".join(row) for row in corrected[:1]).encode()
        content += b"\n" + f"'=1+1,Омск,{ANNA},must be 7 and ten more".encode()
    report = await import_content(engine, content)
    assert line_counts(report) == LineCounts(created=1)
    assert report.ignored_columns == ["Город"]  # and not that of the reasons
    assert await stored_tags(engine) == ["=1+1"]


async def test_lines_that_are_rejected_again_have_only_the_new_reason(engine: AsyncEngine) -> None:
    content = f"phone,{REASON_COLUMN}\n1,old reason\n".encode()
    _, rows = await import_and_read_rejected(engine, content)
    assert rows == [["phone", REASON_COLUMN], ["1", WRONG_PHONE]]


async def test_a_file_without_rejected_lines_has_only_a_header(engine: AsyncEngine) -> None:
    _, rows = await import_and_read_rejected(engine, f"phone\n{ANNA}\n".encode())
    assert rows == [[REASON_COLUMN]]


async def test_a_full_file_says_how_many_lines_are_missing(
    engine: AsyncEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rejected_module, "MAX_REJECTED_BYTES", 1000)
    _, rows = await import_and_read_rejected(engine, b"phone\n" + b"1\n" * 100)
    assert rows[-1] == ["", f"and {100 - (len(rows) - 2)} more rejected lines"]


async def test_a_preview_stores_nothing_and_says_what_an_import_would_do(
    engine: AsyncEngine,
) -> None:
    lines = ["Телефон;Имя;Метка", *(f"8916000000{n};x;VIP" for n in range(8)), "1;;"]
    parts = split_into_chunks("\n".join(lines).encode(), 100)
    preview = await preview_clients(engine, parts)
    assert (preview.valid, preview.rejected) == (8, 1)
    assert preview.layout.fields == ("phone", "", "tag")
    assert [(row.phone, row.operator_code, row.tag, row.time_zone) for row in preview.rows] == [
        (f"7916000000{n}", "916", "VIP", "UTC") for n in range(5)
    ]
    assert await stored_tags(engine) == []


async def test_a_preview_with_wrong_columns_reads_the_whole_upload(engine: AsyncEngine) -> None:
    remaining = [b"name,tag\n", *[b"Anna,vip\n"] * 100]

    async def parts() -> AsyncIterator[bytes]:
        while remaining:
            yield remaining.pop(0)

    preview = await preview_clients(engine, parts())
    assert [error.field for error in preview.layout_errors] == ["phone"]
    assert not remaining
