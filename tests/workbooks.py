"""Excel workbooks in tests, written by two independent libraries and by hand."""

import io
import zipfile
from collections.abc import Iterable, Sequence
from typing import Any

import openpyxl
import xlsxwriter

XLSX = {"Content-Type": "application/vnd.openxmlformats-officedocument.spreadsheetml.sheet"}
"""The header of a request with a workbook."""
Rows = Iterable[Sequence[Any]]
SHEET = "xl/worksheets/sheet1.xml"
"""The path of the first sheet in a workbook of openpyxl."""


def by_openpyxl(rows: Rows) -> bytes:
    """Return a workbook whose texts are in the table of shared strings."""
    workbook = openpyxl.Workbook()
    for row in rows:
        workbook.active.append(list(row))
    file = io.BytesIO()
    workbook.save(file)
    return file.getvalue()


def by_xlsxwriter(rows: Rows, **options: Any) -> bytes:
    """Return a workbook; with `constant_memory` its texts are inside the cells."""
    file = io.BytesIO()
    workbook = xlsxwriter.Workbook(file, {"in_memory": True, **options})
    sheet = workbook.add_worksheet()
    for number, row in enumerate(rows):
        sheet.write_row(number, 0, row)
    workbook.close()
    return file.getvalue()


def with_number(value: float, number_format: str) -> bytes:
    """Return a workbook with one number, which is shown in this format."""
    file = io.BytesIO()
    workbook = xlsxwriter.Workbook(file, {"in_memory": True})
    sheet = workbook.add_worksheet()
    sheet.write_number(0, 0, value, workbook.add_format({"num_format": number_format}))
    workbook.close()
    return file.getvalue()


def with_file(workbook: bytes, path: str, content: bytes | None) -> bytes:
    """Return a workbook with another file at `path` inside it; without the file if it is None."""
    result = io.BytesIO()
    with (
        zipfile.ZipFile(io.BytesIO(workbook)) as old,
        zipfile.ZipFile(result, "w", zipfile.ZIP_DEFLATED) as new,
    ):
        for entry in old.infolist():
            if entry.filename != path:
                new.writestr(entry, old.read(entry))
        if content is not None:
            new.writestr(path, content)
    return result.getvalue()


def with_sheet(rows: str) -> bytes:
    """Return a workbook whose first sheet has these rows, as XML."""
    content = (
        '<worksheet xmlns="http://schemas.openxmlformats.org/spreadsheetml/2006/main">'
        f"<sheetData>{rows}</sheetData></worksheet>"
    )
    return with_file(by_openpyxl([["x"]]), SHEET, content.encode())
