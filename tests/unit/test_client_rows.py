"""Telling good lines of a file of clients from bad ones."""

from datetime import UTC, datetime

from hypothesis import given
from hypothesis import strategies as st

from mailer.client.csvfile import Unreadable
from mailer.client.decoding import TextDecoder
from mailer.client.formulas import as_given
from mailer.client.model import NewClient, known_zones, tag_columns
from mailer.client.phone import normalize_phone
from mailer.client.rows import COLUMNS, LONGEST_VALUE, REPORTED, RowValidator
from mailer.errors import InvalidError
from mailer.text import clean_label, strip_invisible
from mailer.validation import check


def validated(*fields: tuple[str, str, str, str] | Unreadable) -> RowValidator:
    lines = RowValidator(known_zones(), TextDecoder())
    lines.validate(enumerate(fields, 2))
    return lines


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
def test_line_is_good_exactly_when_the_model_takes_it(fields: tuple[str, str, str, str]) -> None:
    lines = validated(fields)
    phone, code, tag, zone = fields
    code, zone = (strip_invisible(each).strip() for each in (code, zone))
    plain = (normalize_phone(phone), code, clean_label(as_given(tag)), zone)
    expected = {
        name: value for name, value in zip(COLUMNS, plain, strict=True) if value or name == "phone"
    }
    try:
        check(NewClient, expected, datetime.now(UTC))
        "".join(fields).encode()
    except (InvalidError, UnicodeEncodeError):
        assert not lines.good
        assert lines.rejected == 1
        assert lines.errors
    else:
        phone, code, tag, zone = plain
        columns = tag_columns(tag or None)
        stored = (columns["tag"], columns["tag_written"])
        assert lines.good == [(2, phone, code or None, *stored, zone or None)]
        assert not lines.rejected


def test_what_nobody_sees_is_no_part_of_a_field() -> None:
    lines = validated(("79160000001", "\ufeff912\u00a0", "\u200bvip", "Europe/Moscow\u200b"))
    assert lines.good == [(2, "79160000001", "912", "vip", None, "Europe/Moscow")]


def test_wrong_value_is_shown_as_far_as_it_can_be() -> None:
    lines = validated(
        ("7,91612E+10", "91", "x" * 65, "Nowhere"),
        ("\0\udcff\n\u200b", "", "", ""),
        Unreadable("is odd", "y" * 2000),
    )
    assert [(each.line, each.field, each.value) for each in lines.errors] == [
        (2, "phone", "7,91612E+10"),
        (2, "operator_code", "91"),
        (2, "tag", "x" * (LONGEST_VALUE - 1) + "…"),
        (2, "time_zone", "Nowhere"),
        (3, "phone", "\ufffd\ufffd \ufffd"),
        (4, "", "y" * (LONGEST_VALUE - 1) + "…"),
    ]


def test_lines_past_those_that_are_reported_are_only_counted() -> None:
    lines = validated(*[("1", "", "", "")] * (REPORTED + 5), Unreadable("is odd", "y"))
    assert lines.rejected == REPORTED + 6
    assert [each.line for each in lines.errors] == list(range(2, REPORTED + 2))
