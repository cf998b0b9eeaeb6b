"""Incremental CSV reader: text comes in parts of any size, records come out line by line.

The csv module of the standard library parses the lines. This reader adds three things: the text may
come in parts, each record has its line number, and a malformed line costs that line alone. The time
is linear in the size of the text, whatever the text is.
"""

import csv
import io
import re
from collections import deque
from collections.abc import Iterator, Sequence
from operator import itemgetter
from typing import Literal, NamedTuple, Self, TypeAlias

from mailer.client.columns import Column
from mailer.client.field_columns import ExtraColumns, field_name
from mailer.client.layout import (
    MALFORMED_CSV,
    SAMPLE_LINES,
    Layout,
    LayoutError,
    detect_layout,
    header_error,
)
from mailer.errors import FieldError, InvalidError
from mailer.text import strip_invisible

MAX_RECORD_LENGTH = 16_000
"""Characters of a record, over all its lines, to bound the memory; a client needs about 200, and
one with all fields, and only quotes in them, 13,000."""
SEPARATOR_LINE = re.compile("\ufeff?sep=([,;\t])[,;]*", re.IGNORECASE)
"""A line before the header that names the delimiter; Excel reads it and some programs write it."""

TOO_LONG = f"is longer than {MAX_RECORD_LENGTH} characters"


class UnreadableRecord(NamedTuple):
    """Why a record cannot be read, and its first line, cut to `MAX_RECORD_LENGTH` characters."""

    message: str
    line: str


Record: TypeAlias = tuple[int, Sequence[str] | UnreadableRecord]
"""The number of the record's first line, counted from 1; then its fields, or why it is rejected."""


UNFINISHED: Literal["unfinished"] = "unfinished"
"""The result of parsing a text that ends inside a quoted field, which the next line continues."""


class CsvReader:
    """Reads the `columns` of every record, in that order; a column that the file lacks is "".

    The columns of `field_names` follow them, if the file has fields that users have named.

    The delimiter and the columns are found in the first lines (`detect_layout`). `chosen` are the
    fields of the file's columns, if a user has chosen them; a column with an empty one is ignored.
    Otherwise `extra` gives the names in the header a meaning that are not those of `columns`.
    Without `extra` the file has no other columns, and none can be chosen.

    Lines end with LF, CRLF or CR; lines without a value are skipped. Two habits of Excel are
    accepted: trailing columns without a name and a value are ignored, and a line such as `sep=;`
    before the first one sets the delimiter.

    A quoted field may contain line ends. It is open until its closing quote, and the record goes on
    in the next lines, up to `MAX_RECORD_LENGTH` characters. When the field is not closed by then,
    or a wrong character follows its closing quote, only the record's first line is unreadable; the
    lines after it are read as records of their own.
    """

    def __init__(
        self,
        columns: Sequence[Column],
        chosen: Sequence[str] | None = None,
        extra: ExtraColumns | None = None,
    ) -> None:
        self.layout: Layout | None = None
        """The delimiter and the columns; None until the first lines were read."""
        self.field_names: list[str] = []
        """The names of the fields in the file that are not `columns`, once the layout is known."""
        self.row: list[str] = []
        """All fields of the latest record that could be read, in the file's order."""
        self.given_delimiter = ""
        """The delimiter if it is known: a line such as `sep=;` names it."""
        self._columns = columns
        self._chosen = chosen
        self._extra = extra
        self._width = 0
        """The number of the file's columns."""
        self._sample: list[str] = []
        """The first lines, until the layout is known."""
        self._line_ends = io.IncrementalNewlineDecoder(None, translate=True)
        """Replaces CRLF and CR by LF."""
        self._incomplete_line = ""
        self._line_number = 0
        self._parser = _LineParser()
        self._open_lines: deque[str] = deque()
        """The line in which the open field began, and the lines after it, all inside the field.

        No line is parsed more than three times: as the start of a record, as the continuation of an
        open field, and as a part of the complete record.
        """
        self._open_size = 0
        """Characters of `_open_lines`, with their line ends."""

    def feed(self, text: str) -> Iterator[Record]:
        """Yield the records that `text` completes; raises `InvalidError` for a wrong layout."""
        return self._read_text(self._line_ends.decode(text))

    def end(self) -> Iterator[Record]:
        """Yield the remaining records; raises `InvalidError` for a wrong layout."""
        yield from self._read_text(self._line_ends.decode("", final=True))
        yield from self._read_lines([self._incomplete_line] if self._incomplete_line else [])
        yield from self._read_records(self._begin_records([]) if self._sample else [])
        while self._open_lines:
            yield from self._reject_first_open_line(self._line_number + 1)
        if self.layout is None:
            raise InvalidError([FieldError(self._columns[0].name, "is required")])

    def _read_text(self, text: str) -> Iterator[Record]:
        """Read the complete lines of `text`, and keep its last one, which is incomplete."""
        *lines, incomplete = (self._incomplete_line + text).split("\n")
        # a line over the limit is rejected, so its rest need not be kept
        self._incomplete_line = incomplete[: MAX_RECORD_LENGTH + 1]
        return self._read_lines(lines)

    def _read_lines(self, lines: Sequence[str]) -> Iterator[Record]:
        if self.layout is None:
            lines = self._collect_sample(lines)
        return self._read_records(lines)

    def _read_records(self, lines: Sequence[str]) -> Iterator[Record]:
        for line in lines:
            self._line_number += 1
            if self._open_lines and '"' not in line and self._fits(line):
                self._append_open_line(line)  # no quote: the line is wholly inside the field
            elif self._open_lines:
                yield from self._continue_field(line)
            elif record := self._start_record(self._line_number, line):
                yield record

    def _start_record(self, number: int, line: str) -> Record | None:
        """Return the record of a line; None when the line is empty or its last field is open."""
        record = self._parse_line(number, line)
        if record == UNFINISHED:
            self._append_open_line(line)
            return None
        return record

    def _parse_line(self, number: int, line: str) -> Record | Literal["unfinished"] | None:
        """Parse a line as the start of a record.

        Returns None when the line is empty, and `UNFINISHED` when its last field is open.
        """
        if not line.strip():
            return None
        if len(line) > MAX_RECORD_LENGTH:
            return number, UnreadableRecord(TOO_LONG, line[:MAX_RECORD_LENGTH])
        try:
            row = self._parser.parse(line)
        except csv.Error:
            if self._parser.is_unfinished:
                return UNFINISHED
            return number, UnreadableRecord(MALFORMED_CSV, line)
        return self._to_record(number, line, row)

    def _to_record(self, number: int, line: str, row: list[str]) -> Record | None:
        """Return the record of the parsed fields `row`; None when all of them are empty.

        `line` is the record's first line, for the report of a record with a wrong number of fields.
        """
        if not any(row):
            return None
        if len(row) > self._width and not any(row[self._width :]):
            del row[self._width :]  # empty fields beyond the header
        if len(row) == self._width:
            row.append("")  # at index -1: the value of every column that the file lacks
            self.row = row
            return number, self._select_columns(row)
        message = f"has {len(row)} fields, but the header has {self._width}"
        return number, UnreadableRecord(message, line)

    def _continue_field(self, line: str) -> Iterator[Record]:
        """Yield the records that `line` completes; a quoted field is open before this line."""
        field_end = self._parse_inside_field(line)
        # lines that cannot belong to one record with `line` are rejected, until none is open
        while self._open_lines and (field_end == "malformed" or not self._fits(line)):
            yield from self._reject_first_open_line(self._line_number)
        if not self._open_lines:
            record = self._start_record(self._line_number, line)
        elif field_end == "closed":
            record = self._complete_record(line)
        else:
            self._append_open_line(line)
            record = None
        if record:
            yield record

    def _parse_inside_field(self, line: str) -> Literal["closed", "open", "malformed"]:
        """Return how `line` continues a quoted field that is open before it.

        Closed: the record ends with the line. Open: this or a later field is open after the line.
        Malformed: a wrong character follows a closing quote.
        """
        try:
            self._parser.parse(f'"{line}')  # as if the field began in this line
        except csv.Error:
            return "open" if self._parser.is_unfinished else "malformed"
        return "closed"

    def _complete_record(self, last_line: str) -> Record | None:
        """Return the record of all open lines and `last_line`, which closes the open field."""
        number = self._line_number - len(self._open_lines)
        row = self._parser.parse("\n".join([*self._open_lines, last_line]))
        record = self._to_record(number, self._open_lines[0], row)
        self._open_lines.clear()
        self._open_size = 0
        return record

    def _fits(self, line: str) -> bool:
        """Return whether the open lines and `line` together are short enough for one record."""
        return self._open_size + len(line) < MAX_RECORD_LENGTH

    def _append_open_line(self, line: str) -> None:
        self._open_lines.append(line)
        self._open_size += len(line) + 1

    def _pop_open_line(self) -> str:
        first_line = self._open_lines.popleft()
        self._open_size -= len(first_line) + 1
        return first_line

    def _reject_first_open_line(self, next_number: int) -> Iterator[Record]:
        """Reject the first open line and read the open lines after it as records of their own.

        If a field is open at the end of one of these lines, that line and the ones after it are the
        open lines now. `next_number` is the number of the line after all open lines.
        """
        number = next_number - len(self._open_lines)
        yield number, UnreadableRecord(MALFORMED_CSV, self._pop_open_line())
        while self._open_lines:
            number += 1
            record = self._parse_line(number, self._open_lines[0])
            if record == UNFINISHED:
                return
            self._pop_open_line()
            if record:
                yield record

    def _collect_sample(self, lines: Sequence[str]) -> Sequence[str]:
        """Add lines to the sample; return the lines to read now: none until the sample is full."""
        for index, line in enumerate(lines, 1):
            if not self._sample and self._is_before_first(line):
                self._line_number += 1
                continue
            self._sample.append(line)
            if len(self._sample) == SAMPLE_LINES:
                return self._begin_records(lines[index:])
        return []

    def _is_before_first(self, line: str) -> bool:
        """Return whether a line is empty, or only names the delimiter."""
        if separator_line := SEPARATOR_LINE.fullmatch(line[:MAX_RECORD_LENGTH]):
            self.given_delimiter = separator_line[1]
            return True
        return not strip_invisible(line[:MAX_RECORD_LENGTH]).strip()

    def _begin_records(self, later_lines: Sequence[str]) -> Sequence[str]:
        """Find the layout; return the lines to read now: those of the sample and the later ones.

        Raises `InvalidError`. It is a `LayoutError` if `layout` is set nevertheless.
        """
        lines, self._sample = self._sample, []
        if len(lines[0]) > MAX_RECORD_LENGTH:
            raise header_error(TOO_LONG)
        readable = [line for line in lines if len(line) <= MAX_RECORD_LENGTH]
        self.layout = detect_layout(readable, self._columns, self.given_delimiter, self._extra)
        if self._chosen is not None:
            self.layout = self.layout.with_fields(
                self._chosen, self._columns, named_too=self._extra is not None
            )
        if errors := self.layout.errors(self._columns):
            raise LayoutError(errors)
        if self.layout.has_header:
            self._line_number += 1
            lines = lines[1:]
        self._parser = _LineParser(self.layout.delimiter)
        self._width = len(self.layout.fields)
        indexes = {name: index for index, name in enumerate(self.layout.fields)}
        extra = [field for field in self.layout.fields if field_name(field)]
        self.field_names = [field_name(field) for field in extra]
        # index -1: the empty value that `_to_record` appends
        self._select_columns = itemgetter(
            *(indexes.get(each.name, -1) for each in self._columns),
            *(indexes[field] for field in extra),
        )
        return [*lines, *later_lines]


class _LineParser:
    """Parses one line or one record at a time with the csv reader of the standard library.

    That reader takes its text from an iterator, here from this object, which gives it the text of
    one call of `parse`. The reader asks for more when the text ends inside a quoted field. Then
    the iterator ends, and the reader raises `csv.Error`.
    """

    def __init__(self, delimiter: str = ",") -> None:
        self.is_unfinished = False
        """Whether the last parsed text ended inside a quoted field."""
        self._text: str | None = None
        self._reader = csv.reader(self, delimiter=delimiter, strict=True, skipinitialspace=True)

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> str:
        text, self._text = self._text, None
        if text is None:
            self.is_unfinished = True
            raise StopIteration
        return text

    def parse(self, text: str) -> list[str]:
        """Return the fields of a text; raises `csv.Error`."""
        self._text, self.is_unfinished = text, False
        return next(self._reader)
