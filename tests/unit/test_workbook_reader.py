"""Writing the first sheet of a workbook as CSV, inside this process."""

import io
from datetime import date, datetime, time, timedelta

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
        (3.3000000000000003, "3.3"),
        (1e21, "1e+21"),
        (datetime(2030, 1, 2, 3, 4), "2030-01-02 03:04:00"),  # noqa: DTZ001  # as in Excel
        (datetime(2030, 1, 2), "2030-01-02"),  # noqa: DTZ001  # as above
        (date(2030, 1, 2), "2030-01-02"),
        (time(3, 4), "03:04:00"),
        (timedelta(hours=30), "30:00:00"),
        (-timedelta(minutes=90), "-1:30:00"),
    ],
)
def test_every_kind_of_value_becomes_a_text_on_one_line(value: object, text: str) -> None:
    assert to_text(value) == text


@pytest.mark.parametrize(
    ("value", "number_format", "text"),
    [
        (45672, "dd.mm.yyyy", "2025-01-15"),
        (45672.5, "dd.mm.yyyy hh:mm", "2025-01-15 12:00:00"),
        (1.25, "[h]:mm", "30:00:00"),
        (0.25, "h:mm", "06:00:00"),
        (0.2, "0%", "20%"),
        (0.29, "0%", "29%"),
        (0.125, "0%", "12.5%"),
        (1, "0.00%", "100%"),
        (0.2, '0.0"%"', "0.2"),
        (0.07 * 100, "General", "7"),
        (1234.5, '# ##0.00 "₽"', "1234.5"),
    ],
)
def test_a_number_is_imported_as_its_format_shows_it(
    value: float, number_format: str, text: str
) -> None:
    assert converted(workbooks.with_number(value, number_format)) == [text]


def test_a_stored_number_has_the_digits_that_excel_shows() -> None:
    row = '<row r="1"><c r="A1"><v>3.3000000000000003</v></c></row>'
    assert converted(workbooks.with_sheet(row)) == ["3.3"]


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
