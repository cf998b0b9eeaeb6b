"""Excel workbooks as responses, streamed while their rows are read from the database.

A process of its own (`workbook_writer`) writes them, so that the event loop goes on.
"""

import asyncio
from collections.abc import AsyncGenerator, Hashable
from contextlib import aclosing, suppress

import msgspec

from mailer.db.csv_export import CsvPart
from mailer.errors import UnavailableError
from mailer.limits import ConcurrencyLimiter
from mailer.python_process import read_output, run_program
from mailer.web.download import Download, read_in_slot
from mailer.web.workbook_layout import WorkbookLayout

XLSX_TYPE = "application/vnd.openxmlformats-officedocument.spreadsheetml.sheet"
"""The media type of a workbook."""
WORKBOOK_LIMITER = ConcurrencyLimiter(4, per_owner=2, timeout=5.0)
"""Workbooks that are written at once: each has a process with about 40 MB."""
WRITER_MODULE = "mailer.web.workbook_writer"


async def workbook_answer(
    name: str,
    parts: AsyncGenerator[CsvPart, None],
    layout: WorkbookLayout,
    owner: Hashable | None,
    limiter: ConcurrencyLimiter = WORKBOOK_LIMITER,
) -> Download:
    """Return a response that downloads the rows of CSV without a header as a workbook.

    Errors are treated as in `csv_answer`.
    """
    contents = _write(read_in_slot(parts, owner, limiter), layout)
    return Download(name, await anext(contents), contents, XLSX_TYPE)


async def _write(
    parts: AsyncGenerator[bytes, None], layout: WorkbookLayout
) -> AsyncGenerator[bytes, None]:
    """Yield the workbook; it begins with an empty part, as soon as the first rows are read."""
    async with aclosing(parts):
        first = await anext(parts)
        yield b""
        arguments = msgspec.json.encode(layout).decode()
        async with run_program(WRITER_MODULE, arguments, stdin=asyncio.subprocess.PIPE) as process:
            # no task group: a generator may be closed by another task than the one that began it
            feeding = asyncio.create_task(_feed(process, first, parts))
            try:
                async with aclosing(read_output(process)) as output:
                    async for part in output:
                        yield part
                if await process.wait():
                    if feeding.done():
                        await feeding  # raises the error that ended the rows
                    raise UnavailableError
            finally:
                feeding.cancel()
                await asyncio.gather(feeding, return_exceptions=True)


async def _feed(
    process: asyncio.subprocess.Process, first: bytes, parts: AsyncGenerator[bytes, None]
) -> None:
    """Pass the rows to the process. If they end in an error, it is killed, so that it does too."""
    rows = process.stdin
    if rows is None:  # pragma: no cover  # it is a pipe
        raise RuntimeError
    part: bytes | None = first
    try:
        while part is not None:
            rows.write(part)
            # if the process has ended, its status tells the error
            with suppress(BrokenPipeError, ConnectionResetError):
                await rows.drain()
            part = await anext(parts, None)
        rows.close()
    except BaseException:
        process.kill()
        raise
