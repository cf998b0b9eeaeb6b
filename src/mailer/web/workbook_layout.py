"""The columns of Excel workbooks that are downloaded."""

from collections.abc import Sequence
from typing import Literal

import msgspec

MAX_SHEET_ROWS = 1_048_576
"""Rows of a sheet in Excel, with the header."""

ColumnKind = Literal["text", "number", "time"]
"""What the values of a column are; times are local ones, as `2025-01-15 09:00:00`."""


class WorkbookColumn(msgspec.Struct, frozen=True):
    """A column of a workbook."""

    heading: str
    width: float
    """In characters."""
    kind: ColumnKind = "text"


class WorkbookLayout(msgspec.Struct, frozen=True):
    """How a workbook is written. Further sheets have a number after the name."""

    sheet: str
    """The name of the sheet: up to 24 characters, without `[]:*?/` and the backslash."""
    columns: Sequence[WorkbookColumn]
    rows_per_sheet: int = MAX_SHEET_ROWS - 1
    """Rows after which the next sheet begins, without the header."""
