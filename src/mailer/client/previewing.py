"""Preview of an import: how a file is understood, before anything is stored."""

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import aclosing, asynccontextmanager
from typing import Generic, TypeVar

import asyncpg
import msgspec
from sqlalchemy.ext.asyncio import AsyncEngine

from mailer.client.decoding import Encoding
from mailer.client.field_limit import FieldLimit
from mailer.client.layout import Layout, LayoutError
from mailer.client.reading import (
    AS_DETECTED,
    ClientFile,
    ImportedFile,
    ImportOptions,
    ValidRow,
    usable_zones,
)
from mailer.client.rows import RejectedField, StagedRow
from mailer.db.engine import asyncpg_connection
from mailer.errors import FieldError

PREVIEW_ROWS = 5
"""Valid rows that a preview shows."""


PreviewedRow = TypeVar("PreviewedRow")


class PreviewRow(msgspec.Struct, frozen=True):
    """A client as the import would create it."""

    phone: str
    operator_code: str
    tag: str | None
    time_zone: str
    fields: dict[str, str]


class ImportPreview(msgspec.Struct, Generic[PreviewedRow], frozen=True):
    """How a file is understood, and what an import would store."""

    layout: Layout
    layout_errors: Sequence[FieldError]
    """Why the file cannot be imported with these columns; no line was read then."""
    is_workbook: bool
    """Whether the file is an Excel workbook."""
    encoding: Encoding
    rows: list[PreviewedRow]
    """The first valid lines."""
    valid: int
    """The number of valid lines."""
    rejected: int
    errors: list[RejectedField]
    """Every wrong field of the first 100 rejected lines."""

    @property
    def unlisted(self) -> int:
        """The number of rejected lines that `errors` does not list."""
        return self.rejected - len({error.line for error in self.errors})


async def preview_clients(
    engine: AsyncEngine, parts: AsyncIterator[bytes], options: ImportOptions = AS_DETECTED
) -> ImportPreview[PreviewRow]:
    """Read a file as an import does, and store nothing.

    Raises `InvalidError` when no columns can be found in the file. No connection to the database is
    in use while the file arrives, except for single queries.
    """

    @asynccontextmanager
    async def connect() -> AsyncIterator[asyncpg.Connection]:
        async with engine.connect() as connection:
            yield await asyncpg_connection(connection)

    async with connect() as database:
        zones = await usable_zones(database)
    file = ClientFile(parts, zones, FieldLimit(connect), options)
    return await preview_file(file, parts, _preview_row)


async def preview_file(
    file: ImportedFile[ValidRow],
    parts: AsyncIterator[bytes],
    preview_row: Callable[[ValidRow], PreviewedRow],
) -> ImportPreview[PreviewedRow]:
    """Read a file that arrives in `parts`, and store nothing; see `preview_clients`.

    `preview_row` returns a valid row as the preview shows it.
    """
    valid, first_rows = 0, list[ValidRow]()
    errors: Sequence[FieldError] = ()
    try:
        async with aclosing(file.batches()) as batches:
            async for _ in batches:
                rows = file.validator.valid_rows
                first_rows += rows[: PREVIEW_ROWS - len(first_rows)]
                valid += len(rows)
                rows.clear()
    except LayoutError as error:
        errors = error.errors
        async for _ in parts:  # the rest of the upload, so that the response can be sent
            pass
    return ImportPreview(
        layout=file.layout,
        layout_errors=errors,
        is_workbook=file.uploaded.is_workbook,
        encoding=file.decoder.encoding,
        rows=[preview_row(row) for row in first_rows],
        valid=valid,
        rejected=file.validator.rejected,
        errors=file.validator.errors,
    )


def _preview_row(row: StagedRow) -> PreviewRow:
    _, phone, code, tag, written_tag, zone, fields = row
    values = msgspec.json.decode(fields or "{}", type=dict[str, str])
    return PreviewRow(phone, code or phone[1:4], written_tag or tag, zone or "UTC", values)
