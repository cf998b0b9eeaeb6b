"""A CSV file whose text arrives in parts of any size and is read line by line, whatever is in it.

The standard library's reader does the parsing; this adds what it lacks: parts, line numbers, and
that a line which cannot be read costs that line alone. Time is linear in the size of the text.
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
from mailer.validation import MOST_ERRORS

LIMIT = 2000
"""Characters of a record, over all its lines: a client needs some 200. Memory does not grow with
what is sent."""
DELIMITERS = re.compile("[,;\t]")
"""What may separate fields: commas by the standard, semicolons and tabs in Excel."""
SEPARATOR_LINE = re.compile("\ufeff?sep=([,;\t])[,;]*", re.IGNORECASE)
"""What Excel reads, and some programs write, before the header."""

DIGITS = 7
"""From so many digits on a name in a header may be a phone: the file has no header then."""

TOO_LONG = f"is longer than {LIMIT} characters"
MALFORMED = "is not well-formed CSV: a quote or a line's end is out of place"


class Unreadable(NamedTuple):
    """Why a record cannot be read, and the line that it begins with, up to `LIMIT` characters."""

    message: str
    line: str


Record: TypeAlias = tuple[int, Sequence[str] | Unreadable]
"""The number of a line, the first being 1, and its fields or why they cannot be read."""


OPEN: Literal["open"] = "open"
"""What a line is as the begin of a record when it ends inside a quoted field."""


class CsvFile:
    """Gives the `columns` of every line, in that order; a column that the file lacks is empty.

    The first line that is not empty is the header. Its first comma, semicolon or tab says what
    separates fields; its names may stand in any order, in small or capital letters, with blanks
    around them, and with blanks for underscores. Lines end with LF, CRLF or CR; those without a
    value are skipped. As Excel writes them, columns at the end without a name and a value count for
    nothing, and a line such as `sep=;` before the header says what separates fields.

    A line that ends inside a quoted field goes on with those after it, up to `LIMIT` characters.
    When the field is not closed by then, or not as it should be, that line alone is unreadable, and
    those after it count for themselves.
    """

    def __init__(self, columns: Sequence[str], *, required: Sequence[str]) -> None:
        self.header: tuple[str, ...] = ()
        """The names in the file's order; empty until they have come."""
        self._columns = columns
        self._required = required
        self._line_ends = io.IncrementalNewlineDecoder(None, translate=True)
        self._rest = ""
        self._number = 0
        self._separator = ""
        self._source = _Source()
        # A line in which a quoted field is open, and those after it that lie wholly inside the
        # field. No line is parsed more than thrice: as the begin of a record, as what follows an
        # open field, and in its record.
        self._open: deque[str] = deque()
        self._open_size = 0

    def feed(self, text: str) -> Iterator[Record]:
        """Give the records that end in `text`; raises `InvalidError` when the header is wrong."""
        return self._read_lines(self._line_ends.decode(text))

    def end(self) -> Iterator[Record]:
        """Give the records that were waiting for more; raises `InvalidError` likewise."""
        yield from self._read_lines(self._line_ends.decode("", final=True))
        yield from self._read([self._rest] if self._rest else [])
        while self._open:
            yield from self._give_up(self._number + 1)
        if not self.header:
            raise InvalidError([FieldError(name, "is required") for name in self._required])

    def _read_lines(self, text: str) -> Iterator[Record]:
        *lines, rest = (self._rest + text).split("\n")
        self._rest = rest[: LIMIT + 1]  # what is cut off here is beyond the limit
        return self._read(lines)

    def _read(self, lines: Sequence[str]) -> Iterator[Record]:
        for line in lines:
            self._number += 1
            if not self.header:
                self._read_header(line)
            elif self._open and '"' not in line and self._has_room_for(line):
                self._hold(line)  # it lies wholly inside the field
            elif self._open:
                yield from self._go_on(line)
            elif record := self._begin(self._number, line):
                yield record

    def _begin(self, number: int, line: str) -> Record | None:
        """Return the record that a line is; None when it is empty, or goes on with the next."""
        record = self._alone(number, line)
        if record == OPEN:
            self._hold(line)
            return None
        return record

    def _alone(self, number: int, line: str) -> Record | Literal["open"] | None:
        """Return what a line is as the begin of a record; None when it is empty."""
        if not line.strip():
            return None
        if len(line) > LIMIT:
            return number, Unreadable(TOO_LONG, line[:LIMIT])
        try:
            row = self._source.parse(line)
        except csv.Error:
            if self._source.ran_out:
                return OPEN
            return number, Unreadable(MALFORMED, line)
        return self._arranged(number, line, row)

    def _arranged(self, number: int, line: str, row: list[str]) -> Record | None:
        if not any(row):
            return None
        if len(row) > len(self.header) and not any(row[len(self.header) :]):
            del row[len(self.header) :]
        if len(row) == len(self.header):
            row.append("")  # what columns that the file lacks are taken from
            return number, self._arrange(row)
        message = f"has {len(row)} fields, and the header {len(self.header)}"
        return number, Unreadable(message, line)

    def _go_on(self, line: str) -> Iterator[Record]:
        """Give the records that end with a line that comes while a quoted field is open."""
        is_closed = is_wrong = False
        try:
            self._source.parse(f'"{line}')  # as if the field began here
            is_closed = True
        except csv.Error:
            is_wrong = not self._source.ran_out
        while self._open and (is_wrong or not self._has_room_for(line)):
            yield from self._give_up(self._number)
        if not self._open:
            record = self._begin(self._number, line)
        elif is_closed:
            number = self._number - len(self._open)
            row = self._source.parse("\n".join([*self._open, line]))
            record = self._arranged(number, self._open[0], row)
            self._open.clear()
            self._open_size = 0
        else:
            self._hold(line)
            record = None
        if record:
            yield record

    def _has_room_for(self, line: str) -> bool:
        return self._open_size + len(line) < LIMIT

    def _hold(self, line: str) -> None:
        self._open.append(line)
        self._open_size += len(line) + 1

    def _release(self) -> str:
        first = self._open.popleft()
        self._open_size -= len(first) + 1
        return first

    def _give_up(self, after: int) -> Iterator[Record]:
        """Give up the open line, and give those after it, up to the next that is open itself.

        `after` is the number of the line after all of them.
        """
        number = after - len(self._open)
        yield number, Unreadable(MALFORMED, self._release())
        while self._open:
            number += 1
            record = self._alone(number, self._open[0])
            if record == OPEN:
                return
            self._release()
            if record:
                yield record

    def _read_header(self, line: str) -> None:
        """Take the header if it is this line."""
        if not strip_invisible(line[:LIMIT]).strip():
            return
        if len(line) > LIMIT:
            raise _header_error(TOO_LONG)
        if told := SEPARATOR_LINE.fullmatch(line):
            self._separator = told[1]
            return
        found = DELIMITERS.search(line)
        self._source = _Source(self._separator or (found[0] if found else ","))
        self.header = self._checked_header(line)
        places = {name: place for place, name in enumerate(self.header)}
        self._arrange = itemgetter(*(places.get(name, -1) for name in self._columns))

    def _checked_header(self, text: str) -> tuple[str, ...]:
        try:
            row = self._source.parse(text)
        except csv.Error as error:
            raise _header_error(MALFORMED) from error
        while row and not _column(row[-1]):
            row.pop()
        header = [_column(name) for name in row]
        known = f"is not one of the columns {', '.join(self._columns)}"
        errors = [
            FieldError(_shown(place, given), known)
            for place, (given, name) in enumerate(zip(row, header, strict=True), 1)
            if name not in self._columns
        ][:MOST_ERRORS]
        errors += (
            FieldError(name, "comes more than once")
            for name in self._columns
            if header.count(name) > 1
        )
        errors += (FieldError(name, "is required") for name in self._required if name not in header)
        if errors:
            raise InvalidError(errors)
        return tuple(header)


def _column(given: str) -> str:
    """Return the name of a column as a model has it."""
    return "_".join(strip_invisible(given).lower().split())


def _shown(place: int, given: str) -> str:
    """Return a column's name for an error, which may be kept: its number for a phone or nothing."""
    if not given.strip() or sum(map(str.isdigit, given)) >= DIGITS:
        return f"column {place}"
    return given.encode(errors="replace").decode()


def _header_error(message: str) -> InvalidError:
    return InvalidError([FieldError("", f"the header {message}")])


class _Source:
    """The reader of the standard library, for a line or a record at a time."""

    def __init__(self, delimiter: str = ",") -> None:
        self.ran_out = False
        """Whether the last text ended inside a quoted field."""
        self._text: str | None = None
        self._reader = csv.reader(self, delimiter=delimiter, strict=True, skipinitialspace=True)

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> str:
        text, self._text = self._text, None
        if text is None:
            self.ran_out = True
            raise StopIteration
        return text

    def parse(self, text: str) -> list[str]:
        """Return the fields of a text; raises `csv.Error`."""
        self._text, self.ran_out = text, False
        return next(self._reader)
