"""A CSV file that arrives in parts of any size and is read line by line, whatever is in it.

The standard library's reader does the parsing; this adds what it lacks: parts, line numbers, and
that a line which cannot be read costs that line alone.
"""

import csv
import io
from collections.abc import Iterator, Sequence
from operator import itemgetter
from typing import TypeAlias

from mailer.errors import FieldError, InvalidError

LIMIT = 2000
"""Characters of a record, over all its lines: a client needs some 200. Memory does not grow with
what is sent, and a quote that is never closed costs no more than a look at these."""

Record: TypeAlias = tuple[int, Sequence[str] | FieldError]
"""The number of a line, the first being 1, and its fields or why they cannot be read."""

TOO_LONG = f"is longer than {LIMIT} characters"
MALFORMED = "is not well-formed CSV: a quote or a line's end is out of place"
NOT_UTF8 = "is not UTF-8"


def is_utf8(text: str) -> bool:
    """Whether `text` was UTF-8; bytes that were not stand in it as lone surrogates."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


class CsvFile:
    """Gives the `columns` of every line, in that order; a column that the file lacks is empty.

    The first line that is not empty is the header. It decides whether commas or semicolons
    separate; its names may stand in any order. Lines end with LF or CRLF; empty ones are skipped.
    """

    def __init__(self, columns: Sequence[str], *, required: Sequence[str]) -> None:
        self.header: tuple[str, ...] = ()
        """The names in the file's order; empty until they have come."""
        self._columns = columns
        self._required = required
        self._rest = b""
        self._lines = _Lines()

    def feed(self, part: bytes) -> Iterator[Record]:
        """Give the records that end in `part`; raises `InvalidError` when the header is wrong."""
        part = self._rest + part
        end = part.rfind(b"\n") + 1
        # what is cut off here is beyond the limit, in characters of four bytes at most
        self._rest = part[end : end + 4 * LIMIT + 4]
        return self._read(part[:end], final=False)

    def end(self) -> Iterator[Record]:
        """Give the records that were waiting for more; raises `InvalidError` likewise."""
        yield from self._read(self._rest, final=True)
        if not self.header:
            raise InvalidError([FieldError(name, "is required") for name in self._required])

    def _read(self, data: bytes, *, final: bool) -> Iterator[Record]:
        self._lines.add(data)
        if not self.header:
            self._read_header()
        if self.header:
            yield from self._records(final=final)
        self._lines.forget()

    def _records(self, *, final: bool) -> Iterator[Record]:
        lines, reader, arrange, width = self._lines, self._reader, self._arrange, len(self.header)
        while True:
            start = lines.start()
            try:
                row = next(reader)
            except StopIteration:
                return
            except csv.Error:
                if lines.ran_out and not final:
                    lines.go_back_to(start)
                    return
                # a quote that opens here and closes nowhere must not swallow the lines after it
                lines.go_back_to(start + 1)
                too_long = len(lines[start]) > LIMIT
                yield lines.number(start), FieldError("", TOO_LONG if too_long else MALFORMED)
                continue
            if len(row) == width:
                row.append("")  # what columns that the file lacks are taken from
                yield lines.number(start), arrange(row)
            elif row:
                message = f"has {len(row)} fields, and the header {width}"
                yield lines.number(start), FieldError("", message)

    def _read_header(self) -> None:
        """Take the header if it has come."""
        text = ""
        while not text:
            self._lines.start()
            try:
                line = next(self._lines)
            except StopIteration:
                return
            except csv.Error as error:
                raise _header_error(TOO_LONG) from error
            text = line.removeprefix("\ufeff").rstrip("\r\n")
        delimiter = ";" if ";" in text.partition(",")[0] else ","
        self.header = self._checked_header(text, delimiter)
        self._reader = csv.reader(self._lines, delimiter=delimiter, strict=True)
        places = {name: place for place, name in enumerate(self.header)}
        self._arrange = itemgetter(*(places.get(name, -1) for name in self._columns))

    def _checked_header(self, text: str, delimiter: str) -> tuple[str, ...]:
        if not is_utf8(text):
            raise _header_error(NOT_UTF8)
        try:
            [header] = csv.reader([text], delimiter=delimiter, strict=True)
        except csv.Error as error:
            raise _header_error(MALFORMED) from error
        known = f"is not one of the columns {', '.join(self._columns)}"
        errors = [FieldError(name, known) for name in header if name not in self._columns]
        errors += (
            FieldError(name, "comes more than once")
            for name in self._columns
            if header.count(name) > 1
        )
        errors += (FieldError(name, "is required") for name in self._required if name not in header)
        if errors:
            raise InvalidError(errors)
        return tuple(header)


def _header_error(message: str) -> InvalidError:
    return InvalidError([FieldError("", f"the header {message}")])


class _Lines:
    """Lines for a reader to take one by one, which can be taken back."""

    def __init__(self) -> None:
        self.ran_out = False
        """Whether the reader asked for a line that has not come."""
        self._lines: list[str] = []
        self._next = 0
        self._size = 0  # characters of the record so far
        self._before = 0  # lines of the file that are forgotten

    def __iter__(self) -> "_Lines":
        return self

    def __next__(self) -> str:
        """Give the next line; raises `csv.Error` when the record is too long with it."""
        at = self._next
        if at == len(self._lines):
            self.ran_out = True
            raise StopIteration
        line = self._lines[at]
        self._next = at + 1
        self._size += len(line)
        if self._size > LIMIT:
            raise csv.Error(TOO_LONG)
        return line

    def __getitem__(self, at: int) -> str:
        return self._lines[at]

    def add(self, data: bytes) -> None:
        """Add the lines of `data`, each with its end: quoted fields may hold one."""
        text = data.decode("utf-8", "surrogateescape")
        self._lines += io.StringIO(text, newline="\n").readlines()

    def forget(self) -> None:
        """Let go of the lines that were taken."""
        del self._lines[: self._next]
        self._before += self._next
        self._next = 0

    def start(self) -> int:
        """Begin a record at the next line and return where that is."""
        self.ran_out = False
        self._size = 0
        return self._next

    def go_back_to(self, at: int) -> None:
        """Give the line `at` next."""
        self._next = at

    def number(self, at: int) -> int:
        """Return the number in the file of the line `at`, the first being 1."""
        return self._before + at + 1
