"""Commands that import and export clients: files, progress bar and report."""

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
            task = progress.add_task("writing", total=await segment_counts.count(connection))
        count = 0
        async with aclosing(export_clients(engine, command_line_actor())) as parts:
            async for part in parts:
                with _named_errors(path):
                    await asyncio.to_thread(file.write, part.content)
                progress.advance(task, part.rows)
                count += part.rows
        with _named_errors(path):
            await asyncio.to_thread(file.flush)
    console.print(f"{count:,} clients exported", highlight=False)
    return count


async def _read_parts(file: BinaryIO, path: str, progress: Progress) -> AsyncIterator[bytes]:
    """Yield the file in parts, and show the progress of reading, then of storing."""
    size = os.fstat(file.fileno()).st_size or None  # 0 for a pipe, whose size is unknown
    reading = progress.add_task("reading", total=size)
    while True:
        with _named_errors(path):
            part = await asyncio.to_thread(file.read, READ_SIZE)
        if not part:
            break
        yield part
        progress.advance(reading, len(part))
    progress.update(reading, visible=False)
    progress.add_task("storing", total=None)


def _progress(console: Console, amount: ProgressColumn) -> Progress:
    """Return a progress bar that disappears at the end; it is off when `console` is no terminal."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        amount,
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
    def say(text: str) -> None:
        console.print(text, markup=False, highlight=False, soft_wrap=True)

    if report.encoding:
        say(f"the file was read as {report.encoding}")
    for error in report.errors:
        value = f" (it has {error.value!r})" if error.value else ""
        say(f"line {error.line}: {error.field} {error.message}{value}".replace(":  ", ": "))
    if report.unlisted:
        say(f"and {report.unlisted:,} more rejected lines")
    say(OUTCOME_TEXTS[report.outcome])
    say(
        f"{report.created:,} created, {report.updated:,} updated,"
        f" {report.unchanged:,} unchanged, {report.rejected:,} rejected"
    )


@contextmanager
def _named_errors(path: str) -> Iterator[None]:
    """Turn an OSError into a `FileError` that names the file.

    Wraps only the accesses to the file: the database raises OSErrors too.
    """
    try:
        yield
    except OSError as error:
        name = "standard input or output" if path == STANDARD_STREAM else path
        raise FileError(f"{name}: {error.strerror or error}") from error


@contextmanager
def _open_input(path: str) -> Iterator[BinaryIO]:
    if path == STANDARD_STREAM:
        yield sys.stdin.buffer
    else:
        with _open(path, "rb") as file:
            yield file


@contextmanager
def _open_output(path: str) -> Iterator[BinaryIO]:
    target = Path(path).resolve()
    if path == STANDARD_STREAM:
        yield sys.stdout.buffer
    elif target.exists() and not target.is_file():  # a pipe or a device
        with _named_errors(path), _open(path, "wb") as file:  # closing the file flushes it
            yield file
    else:
        with _replacing(path, target) as file:
            yield file


def _open(path: str, mode: Literal["rb", "wb"]) -> BinaryIO:
    with _named_errors(path):
        return Path(path).open(mode)


@contextmanager
def _replacing(path: str, target: Path) -> Iterator[BinaryIO]:
    """Yield a new file that replaces `target` when the block succeeds."""
    with _named_errors(path):
        # mkstemp makes it readable for this user alone: the file holds phones
        descriptor, name = tempfile.mkstemp(prefix=f".{target.name}-", dir=target.parent)
    new = Path(name)
    try:
        with os.fdopen(descriptor, "wb") as file:
            yield file
        with _named_errors(path):
            new.replace(target)
    finally:
        new.unlink(missing_ok=True)
