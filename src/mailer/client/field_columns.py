"""Columns of files that hold fields of clients.

Such a column is called `fields.` and the name of the field. In a header the name alone is enough,
unless it means another column.
"""

from collections.abc import Callable, Sequence
from typing import TypeAlias

from mailer.client.columns import CLIENT_FILE_COLUMNS, may_be_phone
from mailer.client.fields import is_field_name

FIELD_PREFIX = "fields."
REASON_COLUMN = "rejected_reason"
"""The column that a file of rejected lines has in addition; an import ignores it."""

ExtraColumns: TypeAlias = Callable[[Sequence[str]], Sequence[str]]
"""A function that returns the column of each name in a header, or "" to ignore it. The names that
mean another column are empty."""


def field_name(column: str) -> str:
    """Return the name of the field that a column holds; "" for another column."""
    return column.removeprefix(FIELD_PREFIX) if column.startswith(FIELD_PREFIX) else ""


def field_column(name: str) -> str:
    """Return the column of a field, as it is in a choice of columns."""
    return f"{FIELD_PREFIX}{name}"


def column_of_header(written: str) -> str:
    """Return the column of a field that a name in a header means; "" if it means none.

    A name that may be a phone is none, unless the header says that it is a field.
    """
    if is_field_name(field_name(written)):
        return written
    is_name = is_field_name(written) and written != REASON_COLUMN and not may_be_phone(written)
    is_other = any(column.is_named(written) for column in CLIENT_FILE_COLUMNS)
    return field_column(written) if is_name and not is_other else ""


def extra_columns(names: Sequence[str]) -> Sequence[str]:
    """Return the columns of fields that a header names; see `ExtraColumns`."""
    return [column_of_header(name) for name in names]


def header_of(column: str) -> str:
    """Return the name of a column in the header of a file that is written."""
    name = field_name(column)
    return name if name and column_of_header(name) == column else column
