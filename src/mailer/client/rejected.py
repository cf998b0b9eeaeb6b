"""The rejected lines of an import as a file to correct and import again."""

import csv
import io
import re
import tempfile
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from typing import Self

from mailer.client.csv_reader import CsvReader
from mailer.client.disk import on_disk
from mailer.client.exporting import BEFORE_FORMULA
from mailer.client.field_columns import REASON_COLUMN, header_of
from mailer.db.csv_export import CsvPart

MAX_REJECTED_BYTES = 64 * 1024 * 1024
"""Bytes of the file, to bound the disk space: about half a million lines."""
MAX_BYTES_IN_MEMORY = 1024 * 1024
"""Bytes up to which the file is in memory."""
REJECTED_PART_SIZE = 256 * 1024
"""Bytes read from the file at once, and characters written to it."""
BYTE_ORDER_MARK = "\ufeff"
"""The first character of the file, so that Excel reads UTF-8."""
_FORMULA = re.compile(BEFORE_FORMULA)


class RejectedLines:
    """Collects rejected lines in a temporary file, with the columns and delimiter of their file.

    Columns that are imported have the names of their fields, so that a chosen field is kept; the
    others have their own names, and the last one has the reason. What a spreadsheet would run as a
    formula begins with an apostrophe, which an import removes. A line that cannot be split into
    fields is in the first column. When the file is full, the last line says how many lines are
    missing.

    `translate` returns a message in the user's language.
    """

    def __init__(self, translate: Callable[[str], str] = str) -> None:
        self.count = 0
        """The number of lines, without those that are missing."""
        self._missing = 0
        self._translate = translate
        self._file = tempfile.SpooledTemporaryFile(MAX_BYTES_IN_MEMORY)  # noqa: SIM115  # see __exit__
        self._text = io.StringIO()
        """What is not written to the file yet."""
        self._size = 0
        self._reader: CsvReader | None = None

    def add(
        self,
        reader: CsvReader,
        row: Sequence[str],
        messages: Mapping[str, str],
    ) -> None:
        """Add a line that `reader` has read: its fields, or all of it if it cannot be split.

        `messages` are the error messages by field; the field is empty for the line as a whole.
        """
        if self._reader is None:
            self._reader = reader
            self._write_header(reader)
        if self._size + self._text.tell() >= MAX_REJECTED_BYTES:
            self._missing += 1
            return
        reasons = (
            f"{name}: {self._translate(text)}" if name else self._translate(text)
            for name, text in messages.items()
        )
        self._write(row, "; ".join(reasons))
        self.count += 1

    @property
    def is_flush_due(self) -> bool:
        """Whether so much is in memory that it should be written to the file."""
        return self._text.tell() >= REJECTED_PART_SIZE

    async def flush(self) -> None:
        """Write to the file what has been added."""
        content = self._text.getvalue().encode(errors="replace")
        self._text = io.StringIO()
        self._size += len(content)
        await on_disk(self._file.write, content)

    async def parts(self) -> AsyncGenerator[CsvPart, None]:
        """Yield the file, and delete it at the end."""
        with self._file:
            if self._missing:
                self._write([], self._translate(f"and {self._missing} more rejected lines"))
            if self._reader is None:
                self._text.write(f"{BYTE_ORDER_MARK}{REASON_COLUMN}\n")
            await self.flush()
            await on_disk(self._file.seek, 0)
            while content := await on_disk(self._file.read, REJECTED_PART_SIZE):
                yield CsvPart(content, content.count(b"\n"))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: object
    ) -> None:
        """Delete the file after an error; otherwise `parts` does."""
        if error is not None:
            self._file.close()

    def _write_header(self, reader: CsvReader) -> None:
        layout = reader.layout
        if layout is None:  # pragma: no cover  # a reader without a layout has no records
            raise RuntimeError
        self._delimiter = layout.delimiter
        self._kept = [index for index, name in enumerate(layout.names) if name != REASON_COLUMN]
        names = [
            header_of(field) or name
            for field, name in zip(layout.fields, layout.names, strict=True)
        ]
        self._text.write(BYTE_ORDER_MARK)
        self._write(names, REASON_COLUMN)

    def _write(self, row: Sequence[str], last: str) -> None:
        """Write the fields of a row that are kept, and a last one."""
        fields = [row[index] if index < len(row) else "" for index in self._kept]
        escaped = [_FORMULA.sub(r"'\1", field) for field in fields]
        csv.writer(self._text, delimiter=self._delimiter, lineterminator="\n").writerow(
            [*escaped, last]
        )
