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

from mailer.errors import FieldError, InvalidError
from mailer.text import strip_invisible
from mailer.validation import MAX_ERRORS

MAX_RECORD_LENGTH = 2000
"""Characters of a record, over all its lines, to bound the memory; a client needs about 200."""
DELIMITERS = re.compile("[,;\t]")
"""Possible delimiters: commas by the standard (RFC 4180), semicolons and tabs in Excel."""
SEPARATOR_LINE = re.compile("\ufeff?sep=([,;\t])[,;]*", re.IGNORECASE)
"""A line before the header that names the delimiter; Excel reads it and some programs write it."""

MIN_PHONE_DIGITS = 7
"""A column name with this many digits may be a phone: the file may have no header."""

TOO_LONG = f"is longer than {MAX_RECORD_LENGTH} characters"
MALFORMED_CSV = "is not well-formed CSV: a quote or a line's end is out of place"


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

    The first line that is not empty is the header. Its first comma, semicolon or tab is the
    delimiter. Its names may come in any order, in lower or upper case, with blanks around them, and
    with blanks in place of underscores. Lines end with LF, CRLF or CR; lines without a value are
    skipped. Two habits of Excel are accepted: trailing columns without a name and a value are
    ignored, and a line such as `sep=;` before the header sets the delimiter.

    A quoted field may contain line ends. It is open until its closing quote, and the record goes on
    in the next lines, up to `MAX_RECORD_LENGTH` characters. When the field is not closed by then,
    or a wrong character follows its closing quote, only the record's first line is unreadable; the
    lines after it are read as records of their own.
    """

    def __init__(self, columns: Sequence[str], *, required: Sequence[str]) -> None:
        self.header: tuple[str, ...] = ()
        """The column names in the file's order; empty until the header was read."""
        self._columns = columns
        self._required = required
        self._line_ends = io.IncrementalNewlineDecoder(None, translate=True)
        """Replaces CRLF and CR by LF."""
        self._incomplete_line = ""
        self._line_number = 0
        self._given_delimiter = ""
        """The delimiter that a line such as `sep=;` named."""
        self._parser = _LineParser()
        self._open_lines: deque[str] = deque()
        """The line in which the open field began, and the lines after it, all inside the field.

        No line is parsed more than three times: as the start of a record, as the continuation of an
        open field, and as a part of the complete record.
        """
        self._open_size = 0
        """Characters of `_open_lines`, with their line ends."""

    def feed(self, text: str) -> Iterator[Record]:
        """Yield the records that `text` completes; raises `InvalidError` for a wrong header."""
        return self._read_text(self._line_ends.decode(text))

    def end(self) -> Iterator[Record]:
        """Yield the remaining records; raises `InvalidError` for a wrong or missing header."""
        yield from self._read_text(self._line_ends.decode("", final=True))
        yield from self._read_lines([self._incomplete_line] if self._incomplete_line else [])
        while self._open_lines:
            yield from self._reject_first_open_line(self._line_number + 1)
        if not self.header:
            raise InvalidError([FieldError(name, "is required") for name in self._required])

    def _read_text(self, text: str) -> Iterator[Record]:
        """Read the complete lines of `text`, and keep its last one, which is incomplete."""
        *lines, incomplete = (self._incomplete_line + text).split("\n")
        # a line over the limit is rejected, so its rest need not be kept
        self._incomplete_line = incomplete[: MAX_RECORD_LENGTH + 1]
        return self._read_lines(lines)

    def _read_lines(self, lines: Sequence[str]) -> Iterator[Record]:
        for line in lines:
            self._line_number += 1
            if not self.header:
                self._read_header(line)
            elif self._open_lines and '"' not in line and self._fits(line):
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
        if len(row) > len(self.header) and not any(row[len(self.header) :]):
            del row[len(self.header) :]  # empty fields beyond the header
        if len(row) == len(self.header):
            row.append("")  # at index -1: the value of every column that the file lacks
            return number, self._select_columns(row)
        message = f"has {len(row)} fields, but the header has {len(self.header)}"
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

    def _read_header(self, line: str) -> None:
        """Set the header from `line`, unless the line is empty or only names the delimiter."""
        if not strip_invisible(line[:MAX_RECORD_LENGTH]).strip():
            return
        if len(line) > MAX_RECORD_LENGTH:
            raise _header_error(TOO_LONG)
        if separator_line := SEPARATOR_LINE.fullmatch(line):
            self._given_delimiter = separator_line[1]
            return
        delimiter = DELIMITERS.search(line)
        self._parser = _LineParser(self._given_delimiter or (delimiter[0] if delimiter else ","))
        self.header = self._parse_header(line)
        indexes = {name: index for index, name in enumerate(self.header)}
        # index -1: the empty value that `_to_record` appends
        self._select_columns = itemgetter(*(indexes.get(name, -1) for name in self._columns))

    def _parse_header(self, line: str) -> tuple[str, ...]:
        """Return the column names of a header; raises `InvalidError` naming every wrong one."""
        try:
            row = self._parser.parse(line)
        except csv.Error as error:
            raise _header_error(MALFORMED_CSV) from error
        while row and not _column_name(row[-1]):
            row.pop()
        header = [_column_name(name) for name in row]
        unknown_message = f"is not one of the columns {', '.join(self._columns)}"
        errors = [
            FieldError(_safe_column_name(number, written), unknown_message)
            for number, (written, name) in enumerate(zip(row, header, strict=True), 1)
            if name not in self._columns
        ][:MAX_ERRORS]
        errors += (
            FieldError(name, "appears more than once")
            for name in self._columns
            if header.count(name) > 1
        )
        errors += (FieldError(name, "is required") for name in self._required if name not in header)
        if errors:
            raise InvalidError(errors)
        return tuple(header)


def _column_name(written: str) -> str:
    """Return a column name in the form of the model's field names."""
    return "_".join(strip_invisible(written).lower().split())


def _safe_column_name(number: int, written: str) -> str:
    """Return a column's name for an error message, or its number.

    The message may be stored, so it must hold no phone: a name that may be a phone, or is empty, is
    replaced with the number.
    """
    if not written.strip() or sum(map(str.isdigit, written)) >= MIN_PHONE_DIGITS:
        return f"column {number}"
    return written.encode(errors="replace").decode()


def _header_error(message: str) -> InvalidError:
    return InvalidError([FieldError("", f"the header {message}")])


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
