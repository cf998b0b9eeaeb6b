"""The layout of a CSV file: its delimiter and columns, found in its first lines."""

import csv
from collections.abc import Iterator, Sequence

import msgspec

from mailer.client.columns import Column, may_be_phone
from mailer.client.field_columns import REASON_COLUMN, ExtraColumns, field_column, field_name
from mailer.client.fields import WRONG_FIELD_NAME, is_field_name
from mailer.client.phone import is_rounded
from mailer.errors import FieldError, InvalidError
from mailer.text import strip_invisible

SAMPLE_LINES = 10
"""Lines from which the layout is found."""
MAX_COLUMNS = 100
"""Columns of a file, to bound the time and the size of the preview."""
DELIMITERS = ",;\t"
"""Possible delimiters: commas by the standard (RFC 4180), semicolons and tabs in Excel."""
MALFORMED_CSV = "is not well-formed CSV: a quote or a line's end is out of place"

Rows = Sequence[Sequence[str]]


class Layout(msgspec.Struct, frozen=True):
    """The delimiter and the columns of a file."""

    delimiter: str
    has_header: bool
    """Whether the first line names the columns."""
    names: tuple[str, ...]
    """The names of the columns in the header; all are empty without one."""
    fields: tuple[str, ...]
    """The field of each column; empty if the column is ignored. Fields that a user has named begin
    with `fields.`."""
    examples: tuple[str, ...]
    """A value of each column in the first lines; empty if there is none."""

    @property
    def ignored(self) -> list[str]:
        """The names of the columns that are ignored, none of which may be a phone."""
        return [
            safe_column_name(number, name)
            for number, (name, field) in enumerate(zip(self.names, self.fields, strict=True), 1)
            if not field and name != REASON_COLUMN
        ]

    def errors(self, columns: Sequence[Column]) -> list[FieldError]:
        """Return why the file cannot be read with these fields. The first column is required."""
        named = {field: field_name(field) for field in self.fields if field_name(field)}
        errors = [
            FieldError(field, "appears more than once")
            for field in (*(column.name for column in columns), *named)
            if self.fields.count(field) > 1
        ]
        errors += (
            FieldError(field, WRONG_FIELD_NAME)
            for field, name in named.items()
            if not is_field_name(name)
        )
        if columns[0].name not in self.fields:
            errors.append(FieldError(columns[0].name, "is required"))
        return errors

    def with_fields(
        self, fields: Sequence[str], columns: Sequence[Column], *, named_too: bool
    ) -> "Layout":
        """Return the layout with other fields; raises `LayoutError` if they do not fit.

        With `named_too`, a name that is of no column is that of a field that a user has named.
        """
        known = {"", *(column.name for column in columns)}
        chosen = tuple(
            field_column(field) if field not in known and is_field_name(field) else field
            for field in fields
        )
        are_known = all(field in known or (named_too and field_name(field)) for field in chosen)
        if len(fields) != len(self.fields) or not are_known:
            raise LayoutError([FieldError("columns", "must name a field for each column")])
        return msgspec.structs.replace(self, fields=chosen)


class LayoutError(InvalidError):
    """The fields of the columns are incomplete or do not fit the file."""


def header_error(message: str) -> InvalidError:
    """Return the error of a file whose first line is wrong."""
    return InvalidError([FieldError("", f"the header {message}")])


def safe_column_name(number: int, written: str) -> str:
    """Return a column's name for a report or an error message, or its number.

    The text may be stored, so it must hold no phone: a name that may be a phone, or is empty, is
    replaced with the number.
    """
    if not strip_invisible(written).strip() or may_be_phone(written):
        return f"column {number}"
    return written.strip().encode(errors="replace").decode()


def detect_layout(
    lines: Sequence[str],
    columns: Sequence[Column],
    delimiter: str = "",
    extra: ExtraColumns | None = None,
) -> Layout:
    """Return the layout of a file that begins with `lines`, of which the first is not empty.

    The first line is the header if it has a name of a column. Otherwise the first of `columns` is
    found by its values, the phones; the first line is a header if it has no digits there. `extra`
    gives the other names in the header a meaning; without it these columns are ignored.

    The delimiter, unless given, is the one with which the header has the most names, and then the
    one with which the most lines have a phone. Raises `InvalidError` for a malformed first line,
    and for too many columns.
    """
    first = lines[0]
    # of equal delimiters, the one that comes first in the line
    candidates = sorted(delimiter or DELIMITERS, key=lambda each: f"{first}{each}".index(each))
    samples = [
        _Sample(rows, candidate, columns)
        for candidate in candidates
        if (rows := _parse_lines(lines, candidate))
    ]
    best = max(samples, key=_Sample.score, default=None)
    # a line may be malformed with one delimiter and well-formed with another
    if best is None or (len(samples) < len(candidates) and not any(best.score())):
        raise header_error(MALFORMED_CSV)
    if len(best.rows[0]) > MAX_COLUMNS:
        raise header_error(f"has more than {MAX_COLUMNS} columns")
    return best.layout(extra)


def _parse_lines(lines: Sequence[str], delimiter: str) -> Rows:
    """Return the rows of the lines that can be read alone; none if the first one cannot."""
    rows: list[Sequence[str]] = []
    for line in lines:
        try:
            [row] = csv.reader(
                iter([line]), delimiter=delimiter, strict=True, skipinitialspace=True
            )
        except (csv.Error, ValueError):  # an empty line has no row
            if not rows:
                return []
            continue
        rows.append([strip_invisible(value).strip() for value in row[: MAX_COLUMNS + 1]])
    return rows


class _Sample:
    """The first rows of a file, read with one delimiter."""

    def __init__(self, rows: Rows, delimiter: str, columns: Sequence[Column]) -> None:
        self.rows = rows
        self._delimiter = delimiter
        self._columns = columns
        self._named = [
            next((column.name for column in columns if column.is_named(name)), "")
            for name in rows[0]
        ]
        """The field that each value of the first row names."""
        self._name_count = sum(map(bool, self._named))
        key_counts = [self._count_keys(index) for index in range(len(rows[0]))]
        self._key_count = max(key_counts, default=0)
        """The number of rows with a phone, in the column that has the most."""
        self._key_index = key_counts.index(self._key_count) if self._key_count else None

    def score(self) -> tuple[int, int]:
        """Return how well the delimiter fits: names in the first row, then rows with a phone."""
        return self._name_count, self._key_count

    def layout(self, extra: ExtraColumns | None) -> Layout:
        """Return the layout of the file."""
        has_header = self._has_header()
        fields = self._named_fields(extra) if has_header else self._recognized_fields()
        width = len(fields)
        names = self.rows[0][:width] if has_header else [""] * width
        data = self.rows[1:] if has_header else self.rows
        examples = (next(filter(None, _values(data, index)), "") for index in range(width))
        return Layout(self._delimiter, has_header, tuple(names), tuple(fields), tuple(examples))

    def _count_keys(self, index: int) -> int:
        """Return the number of phones in a column; 0 if most of its values are others."""
        values = [value for value in _values(self.rows, index) if value]
        count = sum(map(self._columns[0].accepts, values))
        # a name in the first row does not count against the column
        return count if 2 * count >= len(values) - 1 else 0

    def _has_header(self) -> bool:
        if self._key_index is None:
            return True
        first_key = self.rows[0][self._key_index]
        if self._columns[0].accepts(first_key):
            return False
        is_data = may_be_phone(first_key) or is_rounded(first_key) or first_key.isdigit()
        return self._name_count > 0 or not is_data

    def _named_fields(self, extra: ExtraColumns | None) -> list[str]:
        """Return the fields that the header names, without empty names at its end."""
        fields, key = list(self._named), self._columns[0].name
        while fields and not self.rows[0][len(fields) - 1]:
            fields.pop()
        index = self._key_index
        if key not in fields and index is not None and index < len(fields) and not fields[index]:
            fields[index] = key
        if extra is None:
            return fields
        others = extra(
            ["" if field else name for field, name in zip(fields, self.rows[0], strict=False)]
        )
        return [field or other for field, other in zip(fields, others, strict=True)]

    def _recognized_fields(self) -> list[str]:
        """Return the fields of a file without a header, as far as its values show them.

        The columns after the phone are in the usual order, but some may be missing. Elsewhere only
        a distinctive column is recognized.
        """
        fields = [""] * len(self.rows[0])
        key, *others = self._columns
        if self._key_index is None:
            return fields
        fields[self._key_index] = key.name
        after, before = range(self._key_index + 1, len(fields)), range(self._key_index)
        for index in (*after, *before):
            values = [value for value in _values(self.rows, index) if value]
            if column := self._recognize(values, others, in_order=index > self._key_index):
                fields[index] = column.name
                # in the usual order, the columns before this one do not follow any more
                others.remove(column)
        return fields

    @staticmethod
    def _recognize(
        values: Sequence[str], others: Sequence[Column], *, in_order: bool
    ) -> Column | None:
        """Return the column that has these values; None if it is none of the others."""
        fitting = [column for column in others if all(map(column.accepts, values))]
        if values and (distinctive := [each for each in fitting if each.is_distinctive]):
            return distinctive[0]
        return fitting[0] if in_order and fitting else None


def _values(rows: Rows, index: int) -> Iterator[str]:
    """Yield the values of a column; a row that is too short has none."""
    return (row[index] for row in rows if index < len(row))
