"""Excel workbooks that are written while their rows come, by a process of its own."""

import asyncio
import io
import os
import re
import tracemalloc
from collections.abc import AsyncGenerator
from pathlib import Path

import openpyxl
import pytest
from tests.event_timeout import EVENT_TIMEOUT

from mailer.db.csv_export import CsvPart
from mailer.limits import BusyError, ConcurrencyLimiter
from mailer.web.workbook import WRITER_MODULE, workbook_answer
from mailer.web.workbook_layout import WorkbookColumn, WorkbookLayout
from mailer.web.workbook_writer import write_workbook

CHUNK = 10_000
LAYOUT = WorkbookLayout(
    "Messages",
    [
        WorkbookColumn("Phone", 14),
        WorkbookColumn("Sent at", 20, "time"),
        WorkbookColumn("Parts", 8, "number"),
        WorkbookColumn("Text", 60),
    ],
)
MB = 1024**2


async def chunks(rows: int) -> AsyncGenerator[CsvPart, None]:
    """Yield these many rows, as an export does."""
    for start in range(0, rows, CHUNK):
        numbers = range(start, min(start + CHUNK, rows))
        lines = (f"79{n:09},2030-01-15 09:00:00,2,text number {n}\n" for n in numbers)
        yield CsvPart("".join(lines).encode(), len(numbers))


def writer_processes() -> list[int]:
    """Return the ids of the processes of this test that write workbooks."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            is_writer = WRITER_MODULE in (folder / "cmdline").read_text()
        except OSError:  # it has ended
            continue
        if parent == os.getpid() and is_writer:
            found.append(int(folder.name))
    return found


def peak_memory(process: int) -> int:
    """Return the bytes of memory that a process has had at most."""
    lines = Path(f"/proc/{process}/status").read_text().splitlines()
    line = next((line for line in lines if line.startswith("VmHWM")), None)
    if line is None:  # the process has just ended
        return 0
    return int(line.split()[1]) * 1024


async def test_a_workbook_of_200_000_rows_needs_no_more_memory_than_one_of_20_000() -> None:
    peaks, own_peaks, sizes = [], [], []
    for rows in (20_000, 200_000):
        tracemalloc.start()
        answer = await workbook_answer("x.xlsx", chunks(rows), LAYOUT, owner=None)
        size, peak = 0, 0
        async for part in answer.iterator:  # type: ignore[union-attr]  # an async generator
            size += len(part)
            if processes := writer_processes():
                peak = max(peak, peak_memory(processes[0]))
        own_peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        peaks.append(peak)
        sizes.append(size)
    assert sizes[1] > 5 * sizes[0]
    assert peaks[1] < peaks[0] + 8 * MB
    assert own_peaks[1] < own_peaks[0] + 4 * MB
    assert not writer_processes()


async def test_the_first_bytes_come_before_the_last_rows_are_read() -> None:
    is_first_byte_sent = asyncio.Event()

    async def rows() -> AsyncGenerator[CsvPart, None]:
        async for chunk in chunks(3 * CHUNK):
            yield chunk
        async with asyncio.timeout(EVENT_TIMEOUT):
            await is_first_byte_sent.wait()
        yield CsvPart(b"79161234567,,,last\n", 1)

    answer = await workbook_answer("x.xlsx", rows(), LAYOUT, owner=None)
    content = b""
    async for part in answer.iterator:  # type: ignore[union-attr]  # an async generator
        content += part  # type: ignore[operator]  # bytes
        if content:
            is_first_byte_sent.set()
    sheet = openpyxl.load_workbook(io.BytesIO(content)).worksheets[0]
    assert (sheet.max_row, sheet.cell(sheet.max_row, 4).value) == (3 * CHUNK + 2, "last")


async def test_a_disconnect_ends_the_process_and_frees_the_slot() -> None:
    limiter = ConcurrencyLimiter(1, timeout=0.1)
    answer = await workbook_answer("x.xlsx", chunks(200_000), LAYOUT, None, limiter)
    parts = answer.iterator
    while not await anext(parts):  # type: ignore[arg-type]  # an async generator
        pass
    assert len(writer_processes()) == 1
    with pytest.raises(BusyError):
        await workbook_answer("y.xlsx", chunks(1), LAYOUT, None, limiter)
    await parts.aclose()  # type: ignore[union-attr]  # an async generator
    await answer._other_parts.aclose()  # noqa: SLF001  # as the end of the response does
    assert not writer_processes()
    other = await workbook_answer("y.xlsx", chunks(1), LAYOUT, None, limiter)
    assert [part async for part in other.iterator]  # type: ignore[union-attr]  # as above


async def test_an_error_while_rows_are_read_ends_the_download() -> None:
    async def failing() -> AsyncGenerator[CsvPart, None]:
        async for chunk in chunks(2 * CHUNK):
            yield chunk
        raise ConnectionRefusedError

    answer = await workbook_answer("x.xlsx", failing(), LAYOUT, owner=None)
    with pytest.raises(ConnectionRefusedError):
        _ = [part async for part in answer.iterator]  # type: ignore[union-attr]  # as above
    assert not writer_processes()


async def test_an_error_before_the_first_row_is_one_of_the_response() -> None:
    async def failing() -> AsyncGenerator[CsvPart, None]:
        for error in (TimeoutError(),):
            raise error
        yield CsvPart(b"", 0)

    with pytest.raises(TimeoutError):
        await workbook_answer("x.xlsx", failing(), LAYOUT, owner=None)
    assert not writer_processes()


@pytest.mark.parametrize(("rows", "sheets"), [(0, [1]), (3, [4]), (4, [4, 2]), (7, [4, 4, 2])])
def test_rows_go_on_in_another_sheet_when_one_is_full(rows: int, sheets: list[int]) -> None:
    lines = "".join(f"7916000000{n},,1,\n" for n in range(rows))
    file = io.BytesIO()
    layout = WorkbookLayout("Messages", LAYOUT.columns, rows_per_sheet=3)
    write_workbook(io.StringIO(lines), file, layout)
    workbook = openpyxl.load_workbook(file)
    assert [sheet.max_row for sheet in workbook] == sheets
    names = ["Messages", "Messages 2", "Messages 3"]
    assert workbook.sheetnames == names[: len(sheets)]
    for sheet in workbook:
        assert (sheet.freeze_panes, sheet["A1"].value) == ("A2", "Phone")
    phones = [cell.value for sheet in workbook for cell in sheet["A"][1:]]
    assert phones == [f"7916000000{n}" for n in range(rows)]


def test_every_character_of_a_text_is_written_so_that_the_workbook_can_be_read() -> None:
    characters = [chr(code) for code in range(1, 0x10000) if not 0xD800 <= code < 0xE000]
    layout = WorkbookLayout("x", LAYOUT.columns[-1:])
    for start in range(0, len(characters), 30_000):
        text = "".join(characters[start : start + 30_000])
        file = io.BytesIO()
        quoted = text.replace('"', '""')
        write_workbook(io.StringIO(f'"{quoted}"\n', newline=""), file, layout)
        [_, [read]] = openpyxl.load_workbook(file).worksheets[0].iter_rows(values_only=True)
        # openpyxl shows other characters than those of XML as they are stored
        assert re.sub(r"_x[0-9A-F]{4}_", "", read) == re.sub(r"[^\t\n\x20-\ufffd]", "", text)
