"""Reading an imported file: its lines are decoded, parsed and validated as they arrive."""

from collections.abc import AsyncGenerator, AsyncIterator, Iterable, Iterator, Sequence
from contextlib import aclosing
from typing import AnyStr, Generic, NamedTuple, Protocol, TypeVar

import asyncpg

from mailer.client.columns import CLIENT_FILE_COLUMNS, Column
from mailer.client.csv_reader import CsvReader, Record
from mailer.client.decoding import TextDecoder
from mailer.client.field_columns import ExtraColumns, extra_columns
from mailer.client.field_limit import FieldLimit
from mailer.client.layout import Layout
from mailer.client.model import known_zones
from mailer.client.rejected import RejectedLines
from mailer.client.rows import RejectedField, RowValidator, StagedRow
from mailer.client.workbook import UploadedFile
from mailer.time_slices import TimeSlices

UNIT_SIZE = 256
"""Bytes or characters that are processed before other tasks may run: at most half a millisecond."""
REJECTING_UNIT_SIZE = 32
"""Likewise, when the reasons of all rejected lines are written: each takes 30 microseconds."""
BATCH_SIZE = 2_000
"""Valid rows after which the caller takes them."""

ValidRow = TypeVar("ValidRow")


class ImportOptions(NamedTuple):
    """How a file is imported."""

    columns: Sequence[str] | None = None
    """The field of each column, "" for those to ignore; None: the fields are detected."""
    rejected: RejectedLines | None = None
    """Receives all rejected lines."""
    list_name: str | None = None
    """The list to put the clients of all valid lines on; it is created if it does not exist."""
    extra: ExtraColumns = extra_columns
    """Gives a meaning to the columns that are none of the usual ones, when fields are detected. A
    file of opt-outs has no such columns."""


AS_DETECTED = ImportOptions()

SELECT_POSTGRESQL_ZONES = "SELECT name FROM pg_timezone_names"


async def usable_zones(database: asyncpg.Connection) -> frozenset[str]:
    """Return the time zones that both Python and PostgreSQL know."""
    return known_zones() & {row["name"] for row in await database.fetch(SELECT_POSTGRESQL_ZONES)}


class LineValidator(Protocol[ValidRow]):
    """Validates lines: valid ones become rows, others are reported."""

    valid_rows: list[ValidRow]
    """The rows since the last batch, which the caller takes."""
    rejected: int
    """The number of rejected lines."""
    errors: list[RejectedField]
    """Every wrong field of the first rejected lines."""

    def validate(self, records: Iterable[Record]) -> None:
        """Validate more lines."""


class ImportedFile(Generic[ValidRow]):
    """A file with these `columns` that arrives in `parts`, of which some lines are valid.

    `options` are the fields of its columns, if a user has chosen them, and what receives all
    rejected lines. `extra` gives the other columns of the header a meaning.
    """

    validator: LineValidator[ValidRow]

    def __init__(
        self,
        parts: AsyncIterator[bytes],
        columns: Sequence[Column],
        options: ImportOptions,
        extra: ExtraColumns | None = None,
    ) -> None:
        self.slices = TimeSlices()
        self.decoder = TextDecoder()
        self.reader = CsvReader(columns, options.columns, extra)
        self.uploaded = UploadedFile(parts)
        self._rejected = options.rejected

    @property
    def layout(self) -> Layout:
        """The columns of the file; known when the first batch is."""
        if self.reader.layout is None:  # pragma: no cover
            raise RuntimeError
        return self.reader.layout

    async def batches(self) -> AsyncGenerator[None, None]:
        """Read the file; stop whenever the validator has a batch of rows, and at the end.

        The caller takes the rows. Raises `InvalidError` if the file cannot be read.
        """
        validator, reader = self.validator, self.reader
        unit_size = REJECTING_UNIT_SIZE if self._rejected else UNIT_SIZE
        async with aclosing(decode_file(self.uploaded, self.decoder, reader, unit_size)) as texts:
            async for text in texts:
                validator.validate(reader.feed(text))
                await self.slices.pause()
                if len(validator.valid_rows) >= BATCH_SIZE:
                    yield
                if self._rejected and self._rejected.is_flush_due:
                    await self._rejected.flush()
        validator.validate(reader.end())
        yield


class ClientFile(ImportedFile[StagedRow]):
    """A file of clients, whose time zones must be in `zones`, and whose fields within `limit`."""

    validator: RowValidator

    def __init__(
        self,
        parts: AsyncIterator[bytes],
        zones: frozenset[str],
        limit: FieldLimit,
        options: ImportOptions,
    ) -> None:
        super().__init__(parts, CLIENT_FILE_COLUMNS, options, options.extra)
        self.validator = RowValidator(zones, self.decoder, self.reader, options.rejected)
        self._limit = limit

    async def batches(self) -> AsyncGenerator[None, None]:
        """Read the file as `ImportedFile` does; reject lines with too many fields."""
        validator = self.validator
        async with aclosing(super().batches()) as batches:
            async for _ in batches:
                over = await self._limit.find(self.reader.field_names, validator.valid_rows)
                validator.reject_over_limit(over)
                if validator.kept_rows is not None:
                    # a full batch bounds the memory; without a limit to exceed nothing is kept
                    validator.kept_rows = {} if self._limit.may_be_exceeded else None
                yield


async def decode_file(
    uploaded: UploadedFile, decoder: TextDecoder, reader: CsvReader, unit_size: int = UNIT_SIZE
) -> AsyncGenerator[str, None]:
    """Yield the text of a file in units of at most `unit_size` characters.

    The delimiter of a converted workbook is known; it is set in `reader`.
    """
    async with aclosing(uploaded.csv_parts()) as parts:
        async for part in parts:
            if uploaded.is_workbook:
                reader.given_delimiter = ","
            for unit in _split(part, unit_size):
                for text in _split(decoder.feed(unit), unit_size):
                    yield text
    for text in _split(decoder.end(), unit_size):
        yield text


def _split(whole: AnyStr, size: int) -> Iterator[AnyStr]:
    """Split bytes or a text into units of at most `size`."""
    return (whole[start : start + size] for start in range(0, len(whole), size))
