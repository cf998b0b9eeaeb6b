"""Validation of the lines of a client file."""

from datetime import UTC, datetime

from hypothesis import given
from hypothesis import strategies as st

from mailer.client.columns import CLIENT_FILE_COLUMNS
from mailer.client.csv_reader import CsvReader, UnreadableRecord
from mailer.client.decoding import TextDecoder
from mailer.client.exporting import unescape_formula
from mailer.client.model import NewClient, known_zones, tag_columns
from mailer.client.phone import normalize_phone
from mailer.client.rows import (
    CSV_COLUMNS,
    MAX_REPORTED_LINES,
    MAX_REPORTED_VALUE_LENGTH,
    RowValidator,
)
from mailer.errors import InvalidError
from mailer.text import clean_label, strip_invisible
from mailer.validation import check

Line = tuple[str, str, str, str]
"""The fields of a line in the order of `CSV_COLUMNS`: phone, operator code, tag, time zone."""


def validate(*lines: Line | UnreadableRecord) -> RowValidator:
    """Validate the lines of a file, whose header is line 1, and return the validator."""
    validator = RowValidator(known_zones(), TextDecoder(), CsvReader(CLIENT_FILE_COLUMNS))
    validator.validate(enumerate(lines, 2))
    return validator


ANY_CHARACTER = st.characters() | st.sampled_from("\0\udcff\ud800")
PHONES = st.from_regex("7[0-9]{10}", fullmatch=True) | st.text(max_size=12)
OPERATOR_CODES = st.just("") | st.from_regex("[0-9]{3}", fullmatch=True) | st.text(max_size=4)
TAGS = st.text(ANY_CHARACTER, max_size=66) | st.text(min_size=60, max_size=70)
TIME_ZONES = st.sampled_from(
    ["", "UTC", "Europe/Moscow", "europe/moscow", "Nowhere", " UTC", "\u200bUTC\u00a0"]
)


def normalized(line: Line) -> Line:
    """Return the fields in the form in which they are validated and stored."""
    phone, code, tag, zone = line
    return (
        normalize_phone(phone),
        strip_invisible(code).strip(),
        clean_label(unescape_formula(tag)),
        strip_invisible(zone).strip(),
    )


def is_accepted_by_the_model(line: Line) -> bool:
    fields = zip(CSV_COLUMNS, normalized(line), strict=True)
    values = {name: value for name, value in fields if value or name == "phone"}
    try:
        check(NewClient, values, datetime.now(UTC))
        "".join(line).encode()  # has no lone surrogates, which invalid bytes become
    except (InvalidError, UnicodeEncodeError):
        return False
    return True


@given(st.tuples(PHONES, OPERATOR_CODES, TAGS, TIME_ZONES))
def test_line_is_valid_exactly_when_the_model_accepts_it(line: Line) -> None:
    validator = validate(line)
    if is_accepted_by_the_model(line):
        phone, code, tag, zone = normalized(line)
        tags = tag_columns(tag or None)
        row = (2, phone, code or None, tags["tag"], tags["tag_written"], zone or None, None)
        assert validator.valid_rows == [row]
        assert not validator.rejected
    else:
        assert not validator.valid_rows
        assert validator.rejected == 1
        assert validator.errors


def test_invisible_characters_around_a_field_are_ignored() -> None:
    validator = validate(("79160000001", "\ufeff912\u00a0", "\u200bvip", "Europe/Moscow\u200b"))
    assert validator.valid_rows == [(2, "79160000001", "912", "vip", None, "Europe/Moscow", None)]


def test_invalid_value_is_reported_shortened_and_printable() -> None:
    validator = validate(
        ("7,91612E+10", "91", "x" * 65, "Nowhere"),
        ("\0\udcff\n\u200b", "", "", ""),
        UnreadableRecord("is odd", "y" * 2000),
    )
    assert [(error.line, error.field, error.value) for error in validator.errors] == [
        (2, "phone", "7,91612E+10"),
        (2, "operator_code", "91"),
        (2, "tag", "x" * (MAX_REPORTED_VALUE_LENGTH - 1) + "…"),
        (2, "time_zone", "Nowhere"),
        (3, "phone", "\ufffd\ufffd \ufffd"),
        (4, "", "y" * (MAX_REPORTED_VALUE_LENGTH - 1) + "…"),
    ]


def test_lines_beyond_the_report_limit_are_only_counted() -> None:
    validator = validate(
        *[("1", "", "", "")] * (MAX_REPORTED_LINES + 5), UnreadableRecord("is odd", "y")
    )
    assert validator.rejected == MAX_REPORTED_LINES + 6
    assert [error.line for error in validator.errors] == list(range(2, MAX_REPORTED_LINES + 2))
