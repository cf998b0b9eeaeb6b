"""Validation of the lines of a client file."""

from datetime import UTC, datetime

from hypothesis import given
from hypothesis import strategies as st

from mailer.client.csv_reader import UnreadableRecord
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


def validate(*fields: tuple[str, str, str, str] | UnreadableRecord) -> RowValidator:
    validator = RowValidator(known_zones(), TextDecoder())
    validator.validate(enumerate(fields, 2))
    return validator


ANY_CHARACTER = st.characters() | st.sampled_from("\0\udcff\ud800")
FIELDS = st.tuples(
    st.from_regex("7[0-9]{10}", fullmatch=True) | st.text(max_size=12),
    st.just("") | st.from_regex("[0-9]{3}", fullmatch=True) | st.text(max_size=4),
    st.text(ANY_CHARACTER, max_size=66) | st.text(min_size=60, max_size=70),
    st.sampled_from(
        ["", "UTC", "Europe/Moscow", "europe/moscow", "Nowhere", " UTC", "\u200bUTC\u00a0"]
    ),
)


@given(FIELDS)
def test_line_is_valid_exactly_when_the_model_accepts_it(fields: tuple[str, str, str, str]) -> None:
    validator = validate(fields)
    phone, code, tag, zone = fields
    code, zone = (strip_invisible(value).strip() for value in (code, zone))
    plain = (normalize_phone(phone), code, clean_label(unescape_formula(tag)), zone)
    expected = {
        name: value
        for name, value in zip(CSV_COLUMNS, plain, strict=True)
        if value or name == "phone"
    }
    try:
        check(NewClient, expected, datetime.now(UTC))
        "".join(fields).encode()
    except (InvalidError, UnicodeEncodeError):
        assert not validator.valid_rows
        assert validator.rejected == 1
        assert validator.errors
    else:
        phone, code, tag, zone = plain
        columns = tag_columns(tag or None)
        stored = (columns["tag"], columns["tag_written"])
        assert validator.valid_rows == [(2, phone, code or None, *stored, zone or None)]
        assert not validator.rejected


def test_invisible_characters_around_a_field_are_ignored() -> None:
    validator = validate(("79160000001", "\ufeff912\u00a0", "\u200bvip", "Europe/Moscow\u200b"))
    assert validator.valid_rows == [(2, "79160000001", "912", "vip", None, "Europe/Moscow")]


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
