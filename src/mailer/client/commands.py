"""The commands `mailer clients import` and `export`: their files, progress bar and report."""

import asyncio
import os
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing, contextmanager
from pathlib import Path
from typing import BinaryIO, Literal

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    TextColumn,
    TimeElapsedColumn,
)
from sqlalchemy.ext.asyncio import AsyncEngine

from mailer.access.commands import command_line_actor
from mailer.client import segment_counts
from mailer.client.exporting import export_clients
from mailer.client.importing import ImportOutcome, ImportReport, import_clients
from mailer.errors import MailerError

STANDARD_STREAM = "-"
"""Path that means standard input or standard output."""
READ_SIZE = 256 * 1024
"""Bytes read from the file at once."""


class FileError(MailerError):
    """A file cannot be read or written."""


async def import_file(engine: AsyncEngine, path: str, console: Console) -> ImportReport:
    """Import the CSV file at `path`; print the progress and the report to `console`.

    Raises `FileError` when the file cannot be read and `InvalidError` when its header is wrong;
    in both cases nothing is stored.
    """
    with _open_input(path) as file, _progress(console, DownloadColumn()) as progress:
        parts = _read_parts(file, path, progress)
        report = await import_clients(engine, parts, command_line_actor())
    _print_report(report, console)
    return report


async def export_file(engine: AsyncEngine, path: str, console: Console) -> int:
    """Export all clients to a CSV file at `path`; print the progress to `console`.

    An existing file is replaced only when the new one is complete. Returns the number of clients;
    raises `FileError` when the file cannot be written.
    """
    with _open_output(path) as file, _progress(console, MofNCompleteColumn()) as progress:
        async with engine.connect() as connection:
            client_count = await segment_counts.count(connection)
        task = progress.add_task("writing", total=client_count)
        exported_count = 0
        async with aclosing(export_clients(engine, command_line_actor())) as parts:
            async for part in parts:
                with _os_errors_as_file_error(path):
                    await asyncio.to_thread(file.write, part.content)
                progress.advance(task, part.rows)
                exported_count += part.rows
        with _os_errors_as_file_error(path):
            await asyncio.to_thread(file.flush)
    console.print(f"{exported_count:,} clients exported", highlight=False)
    return exported_count


async def _read_parts(file: BinaryIO, path: str, progress: Progress) -> AsyncIterator[bytes]:
    """Yield the file in parts of `READ_SIZE`, and show how much of it has been read.

    After the last part the bar shows that the lines are being stored, which has no known end.
    """
    size = os.fstat(file.fileno()).st_size or None  # 0 for a pipe, whose size is unknown
    reading = progress.add_task("reading", total=size)
    while True:
        with _os_errors_as_file_error(path):
            part = await asyncio.to_thread(file.read, READ_SIZE)
        if not part:
            break
        yield part
        progress.advance(reading, len(part))
    progress.update(reading, visible=False)
    progress.add_task("storing", total=None)


def _progress(console: Console, amount_column: ProgressColumn) -> Progress:
    """Return a progress bar that disappears at the end; it is off when `console` is no terminal.

    `amount_column` shows how much is done, in bytes or in rows.
    """
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        amount_column,
        TimeElapsedColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    )


OUTCOME_TEXTS: dict[ImportOutcome, str] = {
    "all": "all lines are imported",
    "some": "imported, except for the rejected lines",
    "nothing": "nothing was imported: every line was rejected",
    "empty": "nothing was imported: the file has no line after its header",
}


def _print_report(report: ImportReport, console: Console) -> None:
    def print_line(text: str) -> None:
        console.print(text, markup=False, highlight=False, soft_wrap=True)

    if report.encoding:
        print_line(f"the file was read as {report.encoding}")
    for error in report.errors:
        field = f"{error.field} " if error.field else ""  # empty: the line as a whole is wrong
        value = f" (it has {error.value!r})" if error.value else ""
        print_line(f"line {error.line}: {field}{error.message}{value}")
    if report.unlisted:
        print_line(f"and {report.unlisted:,} more rejected lines")
    print_line(OUTCOME_TEXTS[report.outcome])
    print_line(
        f"{report.created:,} created, {report.updated:,} updated,"
        f" {report.unchanged:,} unchanged, {report.rejected:,} rejected"
    )


@contextmanager
def _os_errors_as_file_error(path: str) -> Iterator[None]:
    """Turn an OSError of the block into a `FileError` that names the file.

    The block must only access the file: an OSError of the database must stay as it is.
    """
    try:
        yield
    except OSError as error:
        name = "standard input or output" if path == STANDARD_STREAM else path
        raise FileError(f"{name}: {error.strerror or error}") from error


@contextmanager
def _open_input(path: str) -> Iterator[BinaryIO]:
    """Yield the file to import, or standard input; raises `FileError`."""
    if path == STANDARD_STREAM:
        yield sys.stdin.buffer
    else:
        with _open(path, "rb") as file:
            yield file


@contextmanager
def _open_output(path: str) -> Iterator[BinaryIO]:
    """Yield the file to export to, or standard output; raises `FileError`.

    A regular file is written under another name, and replaces the one at `path` when complete.
    """
    target = Path(path).resolve()
    if path == STANDARD_STREAM:
        yield sys.stdout.buffer
    elif target.exists() and not target.is_file():  # a pipe or a device
        with _os_errors_as_file_error(path), _open(path, "wb") as file:  # closing it may fail too
            yield file
    else:
        with _replacing(path, target) as file:
            yield file


def _open(path: str, mode: Literal["rb", "wb"]) -> BinaryIO:
    with _os_errors_as_file_error(path):
        return Path(path).open(mode)


@contextmanager
def _replacing(path: str, target: Path) -> Iterator[BinaryIO]:
    """Yield a new file that replaces `target` when the block succeeds."""
    with _os_errors_as_file_error(path):
        # mkstemp makes it readable for this user alone: the file holds phones
        descriptor, name = tempfile.mkstemp(prefix=f".{target.name}-", dir=target.parent)
    new_file = Path(name)
    try:
        with os.fdopen(descriptor, "wb") as file:
            yield file
        with _os_errors_as_file_error(path):
            new_file.replace(target)
    finally:
        new_file.unlink(missing_ok=True)
