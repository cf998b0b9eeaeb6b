"""Reading a CSV file in parts, and telling good lines from bad ones."""

import csv
import io
from collections.abc import Sequence
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mailer.client.csvfile import LIMIT, MALFORMED, NOT_UTF8, TOO_LONG, CsvFile, Record
from mailer.client.importing import COLUMNS, LineSorter
from mailer.client.model import NewClient, known_zones
from mailer.errors import FieldError, InvalidError
from mailer.validation import check

ROUGH_BYTES = st.lists(
    st.sampled_from([b"a", b"7", b",", b";", b'"', b"\n", b"\r\n", b"\r", b"\0", b"\xff", b"\xc3"])
    | st.binary(max_size=3)
    | st.just(b"x" * (LIMIT + 1)),
    max_size=40,
).map(b"".join)
TEXTS = st.text(st.characters(codec="utf-8"), max_size=70)


def read(content: bytes, *, part: int = 1 << 16) -> list[Record]:
    file = CsvFile(["a", "b"], required=["a"])
    records: list[Record] = []
    for start in range(0, len(content), part):
        records += file.feed(content[start : start + part])
    return [*records, *file.end()]


def refusal(content: bytes) -> Sequence[FieldError]:
    with pytest.raises(InvalidError) as refused:
        read(content)
    return refused.value.errors


@given(content=ROUGH_BYTES, part=st.integers(1, 9))
def test_parts_of_any_size_give_the_same_records(content: bytes, part: int) -> None:
    content = b"a,b\n" + content
    assert read(content, part=part) == read(content)


@given(rows=st.lists(st.tuples(TEXTS, TEXTS)), semicolons=st.booleans(), bom=st.booleans())
def test_what_is_well_formed_is_read_as_it_was_written(
    rows: list[tuple[str, str]], *, semicolons: bool, bom: bool
) -> None:
    text = io.StringIO()
    writer = csv.writer(text, delimiter=";" if semicolons else ",", quoting=csv.QUOTE_ALL)
    writer.writerows([("a", "b"), *rows])
    content = text.getvalue().encode("utf-8-sig" if bom else "utf-8")
    assert [fields for _, fields in read(content)] == rows


@given(garbage=ROUGH_BYTES.map(lambda content: content.replace(b"\n", b"").replace(b'"', b"")))
def test_no_line_harms_another(garbage: bytes) -> None:
    records = read(b"a,b\n1,2\n" + garbage + b"\n3,4\n")
    assert records[0] == (2, ("1", "2"))
    assert records[-1] == (4, ("3", "4"))


def test_lines_are_numbered_whatever_they_hold() -> None:
    content = b'\n\r\na,b\r\n1,"x\ny\r\n"\n\n2,3\n"4\n4",\n5,6'
    assert read(content) == [
        (4, ("1", "x\ny\r\n")),
        (8, ("2", "3")),
        (9, ("4\n4", "")),
        (11, ("5", "6")),
    ]


def test_columns_come_in_the_order_asked_for_and_missing_ones_are_empty() -> None:
    assert read(b"b,a\n1,2\n") == [(2, ("2", "1"))]
    assert read(b"a\n1\n") == [(2, ("1", ""))]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b"1", "has 1 fields, and the header 2"),
        (b"1,2,3", "has 3 fields, and the header 2"),
        (b'1,"2"3', MALFORMED),
        (b'1,"2', MALFORMED),
        (b"1,2\r3,4", MALFORMED),
        (b"1," + b"2" * LIMIT, TOO_LONG),
        (b"1," + b"2" * 10 * LIMIT, TOO_LONG),
        (b"1," + "я".encode() * LIMIT, TOO_LONG),
    ],
)
@pytest.mark.parametrize("part", [7, 1 << 16])
def test_line_that_cannot_be_read_is_named_and_harms_no_other(
    line: bytes, message: str, part: int
) -> None:
    records = read(b"a,b\n1,2\n" + line + b"\n3,4\n", part=part)
    assert records == [(2, ("1", "2")), (3, FieldError("", message)), (4, ("3", "4"))]


def test_quote_that_is_never_closed_costs_its_own_line_alone() -> None:
    good = b"5,6\n" * 5000
    records = read(b'a,b\n1,"2\n' + good, part=1000)
    assert records[0] == (2, FieldError("", MALFORMED))
    assert records[1:] == [(line, ("5", "6")) for line in range(3, 5003)]


@pytest.mark.parametrize(
    ("content", "errors"),
    [
        (b"", [("a", "is required")]),
        (b"\n\r\n", [("a", "is required")]),
        (b"b\n", [("a", "is required")]),
        (b"a,c, b\n", [("c", "is not one of the columns a, b"), (" b", "...")]),
        (b"a,b,a\n", [("a", "comes more than once")]),
        (b"a;b,c\n", [("b,c", "is not one of the columns a, b")]),
        (b"a,b\xff\n", [("", f"the header {NOT_UTF8}")]),
        ("a,b\n".encode("utf-16"), [("", f"the header {NOT_UTF8}")]),
        (b'a,"b\n', [("", f"the header {MALFORMED}")]),
        (b"a," + b"b" * LIMIT, [("", f"the header {TOO_LONG}")]),
    ],
)
def test_wrong_header_is_refused(content: bytes, errors: list[tuple[str, str]]) -> None:
    found = refusal(content)
    assert [error.field for error in found] == [field for field, _ in errors]
    assert found[0].message == errors[0][1]


ANY_CHARACTER = st.characters() | st.sampled_from("\0\udcff\ud800")
FIELDS = st.tuples(
    st.from_regex("7[0-9]{10}", fullmatch=True) | st.text(max_size=12),
    st.just("") | st.from_regex("[0-9]{3}", fullmatch=True) | st.text(max_size=4),
    st.text(ANY_CHARACTER, max_size=66) | st.text(min_size=60, max_size=70),
    st.sampled_from(["", "UTC", "Europe/Moscow", "europe/moscow", "Nowhere", " UTC"]),
)


@given(FIELDS)
def test_line_is_good_exactly_when_the_model_takes_it(fields: tuple[str, str, str, str]) -> None:
    sorter = LineSorter(known_zones())
    sorter.sort([(2, fields)])
    expected = {
        name: value for name, value in zip(COLUMNS, fields, strict=True) if value or name == "phone"
    }
    try:
        check(NewClient, expected, datetime.now(UTC))
        "".join(fields).encode()
    except (InvalidError, UnicodeEncodeError):
        assert not sorter.good
        assert sorter.rejected == 1
        assert sorter.errors
    else:
        assert sorter.good == [(2, *(value or None for value in fields))]
        assert not sorter.rejected
