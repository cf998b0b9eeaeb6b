"""The program that writes the rows of a CSV file as an Excel workbook.

It reads UTF-8 with commas and without a header from standard input, and writes the workbook to
standard output. `mailer.web.workbook` runs it. Its argument is a `WorkbookLayout` as JSON.

The workbook is written while the rows come: nothing is stored, neither in memory nor on the disk.
XlsxWriter cannot do that, because it writes the rows to temporary files first. So it makes an
empty workbook with formats, widths and a header, and the rows are written into that one.
"""

import csv
import io
import re
import sys
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import datetime, timedelta
from itertools import chain
from typing import IO, BinaryIO, TextIO

import msgspec
import xlsxwriter
from xlsxwriter.utility import xl_col_to_name

from mailer.web.workbook_layout import WorkbookLayout

MAX_SHEET_BYTES = 1024**3
"""Bytes of a sheet after which the next one begins: a ZIP archive that is written as a stream
cannot have files of 2 GiB that Excel reads."""
MAX_CELL_LENGTH = 32_767
"""Characters of a text in a cell of Excel."""
COMPRESSION_LEVEL = 3
"""Of zlib; the default, 6, takes twice as long for a file that is a tenth smaller."""
BLOCK_ROWS = 500
"""Rows that are compressed at once."""
EXCEL_EPOCH = datetime(1899, 12, 30)  # noqa: DTZ001  # times in cells have no zone
FIRST_EXCEL_DAY = datetime(1900, 3, 1)  # noqa: DTZ001  # as above
"""Excel has a 29th of February 1900, so that earlier days are wrong."""
EXCEL_DAY = timedelta(days=1)
CELL_TIME_FORMAT = "yyyy-mm-dd hh:mm:ss"

END_OF_ROWS = "</sheetData>"
DIMENSION = re.compile(r"<dimension [^>]*/>")
"""The size that the sheet states; it may be left out."""
STYLE_OF_COLUMN = re.compile(r'<col [^>]*style="(\d+)"')
"""The style of the columns with times; the others have none."""
# ECMA-376, part 1, 22.9.2.19: other characters than those of XML are written as _xHHHH_, and so is
# the first character of a text that looks so
ESCAPED = re.compile(r"_(?=x[0-9A-Fa-f]{4}_)|[\x00-\x08\x0b-\x1f\ufffe\uffff]")
XML_ENTITIES = str.maketrans({"&": "&amp;", "<": "&lt;", ">": "&gt;"})

Line = Sequence[str]
"""The values of a row."""
Cell = Callable[[str, str], str]
"""Returns the XML of a cell, of its name and its value."""


def main() -> int:
    """Write the workbook; return the exit status."""
    layout = msgspec.json.decode(sys.argv[1], type=WorkbookLayout)
    rows = open(  # noqa: SIM115  # it is closed by the end of the process
        sys.stdin.fileno(), encoding="utf-8", newline="", closefd=False
    )
    try:
        write_workbook(rows, sys.stdout.buffer, layout)
        sys.stdout.buffer.flush()
    except BrokenPipeError:  # the reader has gone
        return 1
    return 0


def write_workbook(rows: TextIO, output: BinaryIO, layout: WorkbookLayout) -> None:
    """Write rows of CSV as a workbook, with another sheet whenever one is full."""
    lines: Iterator[Line] = csv.reader(rows)
    line, sheets = next(lines, None), 0
    with zipfile.ZipFile(
        output, "w", zipfile.ZIP_DEFLATED, compresslevel=COMPRESSION_LEVEL
    ) as archive:
        while line is not None or not sheets:
            sheets += 1
            name = f"xl/worksheets/sheet{sheets}.xml"
            frame = _empty_workbook(layout, sheets)[name].decode()
            with archive.open(name, "w") as sheet:
                line = _write_sheet(chain([line] if line else [], lines), sheet, frame, layout)
        for name, content in _empty_workbook(layout, sheets).items():
            if not name.startswith("xl/worksheets/"):
                archive.writestr(name, content)


def _empty_workbook(layout: WorkbookLayout, sheets: int) -> Mapping[str, bytes]:
    """Return the files of a workbook with these many sheets, which have a header alone."""
    file = io.BytesIO()
    workbook = xlsxwriter.Workbook(file, {"in_memory": True})
    bold = workbook.add_format({"bold": True})
    time_format = workbook.add_format({"num_format": CELL_TIME_FORMAT})
    for number in range(1, sheets + 1):
        sheet = workbook.add_worksheet(layout.sheet if number == 1 else f"{layout.sheet} {number}")
        sheet.freeze_panes(1, 0)
        # phones are texts on purpose: as numbers, Excel would show 7.9E+10
        sheet.ignore_errors({"number_stored_as_text": "A1:XFD1048576"})
        for position, column in enumerate(layout.columns):
            cell_format = time_format if column.kind == "time" else None
            sheet.set_column(position, position, column.width, cell_format)
            sheet.write_string(0, position, column.heading, bold)
    workbook.close()
    with zipfile.ZipFile(file) as archive:
        return {entry.filename: archive.read(entry) for entry in archive.infolist()}


def _write_sheet(
    lines: Iterator[Line], sheet: IO[bytes], frame: str, layout: WorkbookLayout
) -> Line | None:
    """Write an empty sheet with lines in it, until it is full; return the first one that is left.

    `frame` is the empty sheet.
    """
    style = STYLE_OF_COLUMN.search(frame)
    cells = _cells(layout, style.group(1) if style else "0")
    before, after = DIMENSION.sub("", frame).split(END_OF_ROWS)
    written = sheet.write(before.encode())
    block, left = [], None
    for number, line in enumerate(lines, 2):
        if number - 1 > layout.rows_per_sheet or written > MAX_SHEET_BYTES:
            left = line
            break
        block.append(_row(number, line, cells))
        if len(block) == BLOCK_ROWS:
            written += sheet.write("".join(block).encode())
            block.clear()
    sheet.write(f"{''.join(block)}{END_OF_ROWS}{after}".encode())
    return left


def _row(number: int, line: Line, cells: Sequence[tuple[str, Cell]]) -> str:
    """Return the XML of a row; it has no cells for empty values."""
    content = "".join(
        cell(f"{letter}{number}", value)
        for (letter, cell), value in zip(cells, line, strict=True)
        if value
    )
    return f'<row r="{number}">{content}</row>'


def _cells(layout: WorkbookLayout, time_style: str) -> list[tuple[str, Cell]]:
    """Return, for each column, its letter and the function that makes its cells."""

    def time_cell(name: str, value: str) -> str:
        time = datetime.fromisoformat(value)
        if time < FIRST_EXCEL_DAY:
            return text_cell(name, value)
        return f'<c r="{name}" s="{time_style}"><v>{(time - EXCEL_EPOCH) / EXCEL_DAY:.10f}</v></c>'

    kinds: dict[str, Cell] = {"text": text_cell, "number": number_cell, "time": time_cell}
    return [
        (xl_col_to_name(position), kinds[column.kind])
        for position, column in enumerate(layout.columns)
    ]


def number_cell(name: str, value: str) -> str:
    """Return the XML of a cell with a number."""
    return f'<c r="{name}"><v>{value}</v></c>'


def text_cell(name: str, value: str) -> str:
    """Return the XML of a cell with a text, which no program runs as a formula."""
    text = ESCAPED.sub(lambda found: f"_x{ord(found[0]):04X}_", value[:MAX_CELL_LENGTH])
    text = text.translate(XML_ENTITIES)
    return f'<c r="{name}" t="inlineStr"><is><t xml:space="preserve">{text}</t></is></c>'


if __name__ == "__main__":
    sys.exit(main())
