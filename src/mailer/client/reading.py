"""Reading a file of clients: its lines are decoded, parsed and validated as they arrive."""

from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Sequence
from contextlib import aclosing
from typing import AnyStr

import asyncpg

from mailer.client.columns import CLIENT_FILE_COLUMNS
from mailer.client.csv_reader import CsvReader
from mailer.client.decoding import TextDecoder
from mailer.client.field_columns import ExtraColumns, extra_columns
from mailer.client.layout import Layout
from mailer.client.model import known_zones
from mailer.client.rejected import RejectedLines
from mailer.client.rows import RowValidator
from mailer.client.workbook import UploadedFile
from mailer.time_slices import TimeSlices

UNIT_SIZE = 256
"""Bytes or characters that are processed before other tasks may run: at most half a millisecond."""
REJECTING_UNIT_SIZE = 32
"""Likewise, when the reasons of all rejected lines are written: each takes 30 microseconds."""
BATCH_SIZE = 2_000
"""Valid rows after which the caller takes them."""

SELECT_POSTGRESQL_ZONES = "SELECT name FROM pg_timezone_names"


async def usable_zones(database: asyncpg.Connection) -> frozenset[str]:
    """Return the time zones that both Python and PostgreSQL know."""
    return known_zones() & {row["name"] for row in await database.fetch(SELECT_POSTGRESQL_ZONES)}


class ClientFile:
    """A file of clients that arrives in `parts`, of which some lines are valid.

    `chosen` are the fields of its columns, if a user has chosen them; otherwise `extra` gives the
    other columns of the header a meaning. All rejected lines are added to `rejected`, if it is
    given.
    """

    def __init__(
        self,
        parts: AsyncIterator[bytes],
        zones: frozenset[str],
        chosen: Sequence[str] | None = None,
        rejected: RejectedLines | None = None,
        extra: ExtraColumns = extra_columns,
    ) -> None:
        self.slices = TimeSlices()
        self.decoder = TextDecoder()
        self.reader = CsvReader(CLIENT_FILE_COLUMNS, chosen, extra)
        self.validator = RowValidator(zones, self.decoder, self.reader, rejected)
        self.uploaded = UploadedFile(parts)
        self._rejected = rejected

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
