"""Writing the first sheet of a workbook as CSV, inside this process."""

import io
from datetime import date, datetime, time

import pytest
from tests import workbooks

from mailer.client import workbook_reader
from mailer.client.workbook_reader import TooLargeError, convert, to_text


def converted(workbook: bytes) -> list[str]:
    """Return the lines of the CSV."""
    output = io.StringIO()
    convert(io.BytesIO(workbook), output)
    return output.getvalue().splitlines()


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, ""),
        ("Москва", "Москва"),
        ("two\r\nlines_x000D_\nmore", "two lines more"),
        (79161234567, "79161234567"),
        (79161234567.0, "79161234567"),
        (1.5, "1.5"),
        (True, "TRUE"),
        (datetime(2030, 1, 2, 3, 4), "2030-01-02T03:04:00"),  # noqa: DTZ001  # as in Excel
        (date(2030, 1, 2), "2030-01-02"),
        (time(3, 4), "03:04:00"),
    ],
)
def test_every_kind_of_value_becomes_a_text_on_one_line(value: object, text: str) -> None:
    assert to_text(value) == text


def test_each_row_is_one_line_and_rows_are_filled_to_the_width_of_the_sheet() -> None:
    rows = [["phone"], ["1", "a\nb"], [], ["2", "", 'q"q']]
    assert converted(workbooks.by_openpyxl(rows)) == ["phone,,", "1,a b,", "", '2,,"q""q"']


def test_a_formula_counts_as_its_stored_value() -> None:
    row = '<row r="1"><c r="A1"><f>1+1</f><v>2</v></c><c r="B1"><f>1+1</f></c><c><v>3</v></c></row>'
    assert converted(workbooks.with_sheet(row)) == ["2,,3"]


def test_missing_rows_are_empty_lines_up_to_the_rows_of_a_sheet() -> None:
    row = '<row r="{}"><c><v>1</v></c></row>'
    assert converted(workbooks.with_sheet(row.format(4))) == ["", "", "", "1"]
    with pytest.raises(TooLargeError):
        converted(workbooks.with_sheet(row.format(10**12)))


def test_a_far_column_makes_no_wide_rows() -> None:
    row = '<row r="1"><c r="A1"><v>1</v></c><c r="XFD1"><v>2</v></c></row>'
    assert converted(workbooks.with_sheet(row * 3)) == ["1"]


@pytest.mark.parametrize(
    ("limit", "value"), [("MAX_UNCOMPRESSED", 1000), ("MAX_ARCHIVE_FILES", 2), ("MAX_CELLS", 3)]
)
def test_a_workbook_over_a_limit_is_refused(
    monkeypatch: pytest.MonkeyPatch, limit: str, value: int
) -> None:
    monkeypatch.setattr(workbook_reader, limit, value)
    with pytest.raises(TooLargeError):
        converted(workbooks.by_openpyxl([["1", "2"], ["3", "4"]]))
