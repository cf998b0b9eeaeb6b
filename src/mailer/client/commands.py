"""Import and export of clients at the command line: files, progress and the report."""

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

from mailer.access.commands import at_the_command_line
from mailer.client import directory
from mailer.client.exporting import export_clients
from mailer.client.importing import ImportReport, Outcome, import_clients
from mailer.errors import MailerError

STANDARD = "-"
"""Path that stands for standard input or output."""
PART = 256 * 1024
"""Bytes read at once."""


class FileError(MailerError):
    """A file cannot be read or written."""


async def import_file(engine: AsyncEngine, path: str, console: Console) -> ImportReport:
    """Import the CSV file at `path`, and print to `console` how it goes and what became of it.

    Raises `FileError` when the file cannot be read and `InvalidError` when its header is wrong;
    nothing is stored then.
    """
    with _opened_to_read(path) as file, _progress(console, DownloadColumn()) as progress:
        report = await import_clients(engine, _parts(file, path, progress), at_the_command_line())
    _print_report(report, console)
    return report


async def export_file(engine: AsyncEngine, path: str, console: Console) -> int:
    """Export the clients to a CSV file at `path`, and print to `console` how it goes.

    A file that was there is replaced once the new one is whole. Returns the number of clients;
    raises `FileError` when the file cannot be written.
    """
    with _opened_to_write(path) as file, _progress(console, MofNCompleteColumn()) as progress:
        async with engine.connect() as connection:
            task = progress.add_task("writing", total=await directory.count(connection))
        count = 0
        async with aclosing(export_clients(engine, at_the_command_line())) as parts:
            async for part in parts:
                with _explained(path):
                    await asyncio.to_thread(file.write, part.content)
                progress.advance(task, part.rows)
                count += part.rows
        with _explained(path):
            await asyncio.to_thread(file.flush)
    console.print(f"{count:,} clients exported", highlight=False)
    return count


async def _parts(file: BinaryIO, path: str, progress: Progress) -> AsyncIterator[bytes]:
    size = os.fstat(file.fileno()).st_size or None  # of a pipe nobody knows
    reading = progress.add_task("reading", total=size)
    while True:
        with _explained(path):
            part = await asyncio.to_thread(file.read, PART)
        if not part:
            break
        yield part
        progress.advance(reading, len(part))
    progress.update(reading, visible=False)
    progress.add_task("storing", total=None)


def _progress(console: Console, amount: ProgressColumn) -> Progress:
    """Return a bar that is gone when it is done, and never comes where nobody looks."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        amount,
        TimeElapsedColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    )


OUTCOMES: dict[Outcome, str] = {
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
    if report.unnamed:
        say(f"and {report.unnamed:,} more rejected lines")
    say(OUTCOMES[report.outcome])
    say(
        f"{report.created:,} created, {report.updated:,} updated,"
        f" {report.unchanged:,} unchanged, {report.rejected:,} rejected"
    )


@contextmanager
def _explained(path: str) -> Iterator[None]:
    """Name the file when it is at fault; the database raises such errors too."""
    try:
        yield
    except OSError as error:
        name = "standard input or output" if path == STANDARD else path
        raise FileError(f"{name}: {error.strerror or error}") from error


@contextmanager
def _opened_to_read(path: str) -> Iterator[BinaryIO]:
    if path == STANDARD:
        yield sys.stdin.buffer
    else:
        with _open(path, "rb") as file:
            yield file


@contextmanager
def _opened_to_write(path: str) -> Iterator[BinaryIO]:
    target = Path(path).resolve()
    if path == STANDARD:
        yield sys.stdout.buffer
    elif target.exists() and not target.is_file():  # a pipe or a device
        with _explained(path), _open(path, "wb") as file:  # closing writes what is left
            yield file
    else:
        with _replacing(path, target) as file:
            yield file


def _open(path: str, mode: Literal["rb", "wb"]) -> BinaryIO:
    with _explained(path):
        return Path(path).open(mode)


@contextmanager
def _replacing(path: str, target: Path) -> Iterator[BinaryIO]:
    """Give a new file that takes the place of `target` when the block succeeds."""
    with _explained(path):
        # in nobody else's reach, as phones should be
        descriptor, name = tempfile.mkstemp(prefix=f".{target.name}-", dir=target.parent)
    new = Path(name)
    try:
        with os.fdopen(descriptor, "wb") as file:
            yield file
        with _explained(path):
            new.replace(target)
    finally:
        new.unlink(missing_ok=True)
