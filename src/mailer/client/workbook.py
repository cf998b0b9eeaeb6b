"""Uploaded files as CSV: an Excel workbook (.xlsx) is converted by a process of its own.

That process (`workbook_reader`) parses what a stranger may have made, so it has a limit of memory
and of time, no secrets in its environment, and does not block the event loop.
"""

import tempfile
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from typing import BinaryIO

from mailer.client.disk import on_disk
from mailer.client.workbook_reader import EXIT_TOO_LARGE
from mailer.errors import FieldError, InvalidError
from mailer.python_process import read_output, run_program

MAX_WORKBOOK_BYTES = 64 * 1024 * 1024
"""Bytes of a workbook: about a million clients, as many as a sheet has rows."""
ZIP_SIGNATURE = b"PK\x03\x04"
"""The first bytes of a workbook, which is a ZIP archive."""
OLD_SIGNATURE = b"\xd0\xcf\x11\xe0"
"""The first bytes of a workbook of Excel 97 to 2003, and of one with a password."""
READER_MODULE = "mailer.client.workbook_reader"

NOT_A_WORKBOOK = "the file is not an Excel workbook (.xlsx) that can be read"
OLD_WORKBOOK = (
    "the file is an Excel workbook with a password, or of the old format (.xls):"
    " save it without a password as .xlsx or as CSV"
)
LARGE_WORKBOOK = "the Excel workbook is too large: save it as CSV"


class UploadedFile:
    """The parts of a file as CSV. The first bytes show whether it is an Excel workbook."""

    def __init__(self, parts: AsyncIterator[bytes]) -> None:
        self.is_workbook = False
        """Whether the file is a workbook; known from the first part on."""
        self._parts = parts

    async def csv_parts(self) -> AsyncGenerator[bytes, None]:
        """Yield the file as CSV. A workbook is in UTF-8 with commas, a line for each row.

        Raises `InvalidError` if the file cannot be read, and `NoSpaceError`.
        """
        start = await _read_start(self._parts)
        self.is_workbook = start.startswith(ZIP_SIGNATURE)
        if start.startswith(OLD_SIGNATURE):
            raise _refused(OLD_WORKBOOK)
        if self.is_workbook:
            async with aclosing(self._convert(start)) as converted:
                async for part in converted:
                    yield part
            return
        yield start
        async for part in self._parts:
            yield part

    async def _convert(self, start: bytes) -> AsyncGenerator[bytes, None]:
        """Store the file temporarily, and yield it as CSV; it begins with `start`."""
        with await on_disk(tempfile.TemporaryFile) as file:
            await self._store(file, start)
            async with aclosing(_run_reader(file)) as converted:
                async for part in converted:
                    yield part

    async def _store(self, file: BinaryIO, start: bytes) -> None:
        await on_disk(file.write, start)
        async for part in self._parts:
            if file.tell() + len(part) > MAX_WORKBOOK_BYTES:
                raise _refused(LARGE_WORKBOOK)
            await on_disk(file.write, part)
        await on_disk(file.seek, 0)  # writes what is buffered too


async def require_workbook(parts: AsyncIterator[bytes]) -> AsyncGenerator[bytes, None]:
    """Yield the parts of a file; raises `InvalidError` unless it begins like a workbook."""
    start = await _read_start(parts)
    if not start.startswith((ZIP_SIGNATURE, OLD_SIGNATURE)):
        raise _refused(NOT_A_WORKBOOK)
    yield start
    async for part in parts:
        yield part


async def _read_start(parts: AsyncIterator[bytes]) -> bytes:
    """Return the first parts, which together are as long as a signature if the file is."""
    start = b""
    while len(start) < len(ZIP_SIGNATURE) and (part := await anext(parts, b"")):
        start += part
    return start


async def _run_reader(file: BinaryIO) -> AsyncGenerator[bytes, None]:
    """Run the process that reads the workbook `file`, and yield its output.

    Raises `InvalidError` if the process refuses the file, and `UnavailableError` if it cannot run.
    """
    async with run_program(READER_MODULE, stdin=file) as process:
        async with aclosing(read_output(process)) as output:
            async for part in output:
                yield part
        status = await process.wait()
    if status:
        raise _refused(LARGE_WORKBOOK if status == EXIT_TOO_LARGE else NOT_A_WORKBOOK)


def _refused(message: str) -> InvalidError:
    return InvalidError([FieldError("", message)])
