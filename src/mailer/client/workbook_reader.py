"""The program that writes the first sheet of an Excel workbook as CSV.

It reads the workbook from standard input, which is a regular file, and writes UTF-8 with commas,
one line for each row, to standard output. `mailer.client.workbook` runs it.
"""

import contextlib
import csv
import re
import resource
import sys
import zipfile
from collections.abc import Iterable, Iterator, Sequence
from datetime import date, datetime, time, timedelta
from functools import cache
from itertools import chain, islice
from typing import BinaryIO, Protocol, TextIO

EXIT_UNREADABLE = 65
"""The status if the file is no workbook, as EX_DATAERR of sysexits.h."""
EXIT_TOO_LARGE = 66
"""The status if a limit is exceeded."""
MAX_ARCHIVE_FILES = 10_000
MAX_UNCOMPRESSED = 512 * 1024 * 1024
"""Bytes of all files in the archive: a sheet of a million clients has about 200 MB."""
MAX_ROWS = 1_048_576
"""Rows of a sheet in Excel."""
MAX_CELLS = 20_000_000
MAX_SHEET_COLUMNS = 101
"""Columns that are read: one more than a file may have, so that too many are noticed."""
SAMPLE_ROWS = 20
"""Rows whose longest one is the width of the sheet; shorter rows get empty cells."""
MAX_MEMORY = 512 * 1024 * 1024
"""Bytes of memory that the process may have; a million clients need about 150 MB."""
MAX_SECONDS = 600
"""Seconds of the processor's time that it may take."""
MAX_EXACT_FLOAT = 2.0**53
SHOWN_DIGITS = 15
"""Significant digits of a number that Excel shows: 1.1 * 3 is 3.3, although 3.3000000000000003 is
stored."""
_LITERAL = re.compile(r'"[^"]*"|\\.')
"""A text in a number format, in quotes or after a backslash."""
_LINE_ENDS = re.compile(r"(?:_x000[dD]_|[\r\n\x0b\x0c\x85\u2028\u2029])+")
"""Line ends inside a cell, also as Excel escapes them."""


class SheetCell(Protocol):
    """A cell of the sheet, as openpyxl reads it."""

    @property
    def value(self) -> object:
        """The value; None if the cell is empty."""

    @property
    def number_format(self) -> str:
        """How Excel shows a number, such as `0%`."""


class TooLargeError(Exception):
    """The workbook exceeds a limit."""


def main() -> int:
    """Write the first sheet of the workbook in standard input; return the exit status."""
    _limit_resources()
    output = open(  # noqa: SIM115  # it is closed by the end of the process
        sys.stdout.fileno(), "w", encoding="utf-8-sig", errors="replace", newline="", closefd=False
    )
    try:
        convert(sys.stdin.buffer, output)
        output.flush()
    except (TooLargeError, MemoryError):
        return EXIT_TOO_LARGE
    except Exception:  # noqa: BLE001  # a hostile file may raise anything in the library
        return EXIT_UNREADABLE
    return 0


def convert(file: BinaryIO, output: TextIO) -> None:
    """Write the first sheet of a workbook as CSV.

    Raises `TooLargeError`, and any other error if the file is no workbook.
    """
    _check_archive(file)
    writer = csv.writer(output, lineterminator="\n")
    for row in _padded(_read_rows(file)):
        if any(row):
            writer.writerow(row)
        else:
            output.write("\n")


def _limit_resources() -> None:
    """Limit memory and time. Where that is not allowed, the limits of the file must suffice."""
    for kind, limit in ((resource.RLIMIT_AS, MAX_MEMORY), (resource.RLIMIT_CPU, MAX_SECONDS)):
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(kind, (limit, limit))


def _check_archive(file: BinaryIO) -> None:
    """Refuse an archive that would be too large when uncompressed.

    The sizes are those that the archive states; zipfile reads no more than these.
    """
    with zipfile.ZipFile(file) as archive:
        entries = archive.infolist()
    is_too_large = sum(entry.file_size for entry in entries) > MAX_UNCOMPRESSED
    if is_too_large or len(entries) > MAX_ARCHIVE_FILES:
        raise TooLargeError


def _read_rows(file: BinaryIO) -> Iterator[list[str]]:
    """Yield the rows of the first sheet as texts, without empty cells at their ends."""
    from openpyxl import load_workbook  # noqa: PLC0415  # only this process loads it

    workbook = load_workbook(file, read_only=True, data_only=True, keep_links=False)
    sheet = workbook.worksheets[0]
    sheet.reset_dimensions()  # some programs state a wrong size
    cells = 0
    for number, sheet_row in enumerate(sheet.iter_rows(max_col=MAX_SHEET_COLUMNS), 1):
        row = _texts(sheet_row)
        cells += len(row)
        if number > MAX_ROWS or cells > MAX_CELLS:
            raise TooLargeError
        yield row


def _texts(row: Sequence[SheetCell]) -> list[str]:
    width = len(row)
    while width and row[width - 1].value is None:
        width -= 1
    return list(map(cell_text, row[:width]))


def cell_text(cell: SheetCell) -> str:
    """Return the value of a cell as a text on one line; 0.2 that is shown as a percentage is 20%.

    A percentage keeps its decimals, also those that the format does not show.
    """
    value = cell.value
    if isinstance(value, bool) or not isinstance(value, int | float):
        return to_text(value)
    return f"{_number_text(value * 100)}%" if _is_percentage(cell.number_format) else to_text(value)


def to_text(value: object) -> str:
    """Return a value as a text on one line.

    A whole number has no fraction, a day no time, and a duration is `H:MM:SS`, such as `30:00:00`.
    """
    match value:
        case None:
            return ""
        case bool():
            return str(value).upper()
        case float():
            return _number_text(value)
        case date() | time() | timedelta():
            return _time_text(value)
        case _:
            return _LINE_ENDS.sub(" ", str(value))


@cache
def _is_percentage(number_format: str) -> bool:
    return "%" in _LITERAL.sub("", number_format)


def _number_text(value: float) -> str:
    if float(value).is_integer() and abs(value) < MAX_EXACT_FLOAT:
        return str(int(value))
    return f"{value:.{SHOWN_DIGITS}g}"


def _time_text(value: date | time | timedelta) -> str:
    match value:
        case datetime() if value.time() != time.min:
            return value.isoformat(" ")
        case datetime():
            return value.date().isoformat()
        case timedelta():
            minutes, seconds = divmod(round(abs(value).total_seconds()), 60)
            hours, minutes = divmod(minutes, 60)
            sign = "-" if value < timedelta() else ""
            return f"{sign}{hours}:{minutes:02}:{seconds:02}"
        case _:
            return value.isoformat()


def _padded(rows: Iterator[list[str]]) -> Iterable[list[str]]:
    """Yield the rows, each filled with empty cells to the width of the sheet."""
    sample = list(islice(rows, SAMPLE_ROWS))
    width = max(map(len, sample), default=0)
    for row in chain(sample, rows):
        yield row + [""] * (width - len(row))


if __name__ == "__main__":
    sys.exit(main())
