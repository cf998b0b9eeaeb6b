"""The commands `mailer clients import` and `export`: their files, progress bar and report."""

import asyncio
import os
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import aclosing, contextmanager, nullcontext
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
from mailer.client.lists.model import ListChoice
from mailer.client.reading import ImportOptions
from mailer.client.rejected import RejectedLines
from mailer.client.rows import excerpt
from mailer.clock import database_clock
from mailer.errors import MailerError
from mailer.validation import check

STANDARD_STREAM = "-"
"""Path that means standard input or standard output."""
READ_SIZE = 256 * 1024
"""Bytes read from the file at once."""


class FileError(MailerError):
    """A file cannot be read or written."""


async def import_file(  # noqa: PLR0913  # the options of the command
    engine: AsyncEngine,
    path: str,
    console: Console,
    *,
    rejected_path: str | None = None,
    list_name: str | None = None,
    columns: Sequence[str] | None = None,
) -> ImportReport:
    """Import the CSV file or Excel workbook at `path`, and put its clients on a list, if given.

    `columns` are those of the file, in its order; None: they are detected. The progress and the
    report are printed to `console`. The rejected lines are written to `rejected_path`, where an
    existing file is replaced.

    Raises `FileError` when the file cannot be read, or that of the rejected lines cannot be
    created, and `InvalidError` when its columns are wrong; then nothing is stored.
    """
    target = nullcontext() if rejected_path is None else _open_output(rejected_path)
    with target as rejected_file, _open_input(path) as file, RejectedLines() as rejected:
        options = ImportOptions(
            columns,
            rejected if rejected_file else None,
            list_name=None if list_name is None else _read_list_name(list_name),
        )
        with _progress(console, DownloadColumn()) as progress:
            parts = _read_parts(file, path, progress)
            actor = command_line_actor()
            report = await import_clients(engine, parts, actor, options=options)
        _print_report(report, console)
        async with aclosing(rejected.parts()) as rejected_parts:
            async for part in rejected_parts:
                if rejected_file:
                    with _os_errors_as_file_error(str(rejected_path)):
                        await asyncio.to_thread(rejected_file.write, part.content)
    return report


def _read_list_name(given: str) -> str:
    """Return the name of a list as it is stored; raises `InvalidError`."""
    choice = check(ListChoice, {"list": given}, database_clock.now())
    return choice.list_name or ""


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

    if report.fields:
        print_line(f"fields: {', '.join(report.fields)}")
    if report.ignored_columns:
        names = ", ".join(excerpt(name) for name in report.ignored_columns)
        print_line(f"ignored columns: {names}")
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
    if report.client_list:
        print_line(f"{report.client_list.added:,} put on the list {report.client_list.name}")


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
        with _closing(_open(path, "wb"), path) as file:
            yield file
    else:
        with _replacing(path, target) as file:
            yield file


def _open(path: str, mode: Literal["rb", "wb"]) -> BinaryIO:
    with _os_errors_as_file_error(path):
        return Path(path).open(mode)


@contextmanager
def _closing(file: BinaryIO, path: str) -> Iterator[BinaryIO]:
    """Yield `file` and close it at the end; raises `FileError`, because closing writes the rest."""
    try:
        yield file
    finally:
        with _os_errors_as_file_error(path):
            file.close()


@contextmanager
def _replacing(path: str, target: Path) -> Iterator[BinaryIO]:
    """Yield a new file that replaces `target` when the block succeeds."""
    with _os_errors_as_file_error(path):
        # mkstemp makes it readable for this user alone: the file holds phones
        descriptor, name = tempfile.mkstemp(prefix=f".{target.name}-", dir=target.parent)
    new_file = Path(name)
    try:
        with _closing(os.fdopen(descriptor, "wb"), path) as file:
            yield file
        with _os_errors_as_file_error(path):
            new_file.replace(target)
    finally:
        new_file.unlink(missing_ok=True)
