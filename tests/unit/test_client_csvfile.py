"""Reading a CSV file in parts."""

import csv
import io
import re
import sys
from collections.abc import Iterator, Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.examples import thorough

from mailer.client.csvfile import LIMIT, MALFORMED, TOO_LONG, CsvFile, Record, Unreadable
from mailer.client.decoding import TextDecoder
from mailer.errors import FieldError, InvalidError

ROUGH_BYTES = st.lists(
    st.sampled_from([b"a", b"7", b",", b";", b'"', b"\n", b"\r\n", b"\r", b"\0", b"\xff", b"\xc3"])
    | st.binary(max_size=3)
    | st.just(b"x" * (LIMIT + 1)),
    max_size=40,
).map(b"".join)
TEXTS = st.text(st.characters(codec="utf-8"), max_size=70)


def read(content: bytes, *, part: int = 1 << 16) -> list[Record]:
    file, decoder = CsvFile(["a", "b"], required=["a"]), TextDecoder()
    records: list[Record] = []
    for start in range(0, len(content), part):
        records += file.feed(decoder.feed(content[start : start + part]))
    return [*records, *file.feed(decoder.end()), *file.end()]


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
    assert [fields for _, fields in read(content)] == [
        tuple(re.sub("\r\n?", "\n", field) for field in row) for row in rows if any(row)
    ]


@pytest.mark.parametrize(
    "content",
    [
        "a;b;\n1;2;\n",
        "a;b;;\n1;2\n",
        "a;b\n1;2;;;\n",
        "a;b\n;\n;;;\n1;2\n",
        "sep=;\na;b\n1;2\n",
        "\ufeffSEP=\t\r\na\tb\r\n1\t2\r\n",
        "sep=,\na,b\n1,2\n",
    ],
)
def test_empty_columns_empty_rows_and_the_separator_of_excel_are_no_errors(content: str) -> None:
    assert [fields for _, fields in read(content.encode())] == [("1", "2")]


def test_value_beyond_the_columns_is_an_error() -> None:
    [(number, record)] = read(b"a;b;\n1;2;3\n")
    assert (number, record) == (2, Unreadable("has 3 fields, and the header 2", "1;2;3"))


@given(garbage=ROUGH_BYTES.map(lambda content: re.sub(rb'[\r\n"]', b"", content)))
def test_no_line_harms_another(garbage: bytes) -> None:
    records = read(b"a,b\n1,2\n" + garbage + b"\n3,4\n")
    assert records[0] == (2, ("1", "2"))
    assert records[-1] == (4, ("3", "4"))


def test_lines_are_numbered_whatever_they_hold() -> None:
    content = b'\n\r\na,b\r\n1,"x\ny\r\n"\n\n2,3\n"4\n4",\n5,6'
    assert read(content) == [
        (4, ("1", "x\ny\n")),
        (8, ("2", "3")),
        (9, ("4\n4", "")),
        (11, ("5", "6")),
    ]


def naive(lines: Sequence[str]) -> list[Record]:
    """Read as `CsvFile` does, but each line anew with all that may follow it."""
    records: list[Record] = []
    at = 0
    while at < len(lines):
        record, taken = naive_record(at, lines)
        records += [record] if record else []
        at += taken
    return records


def naive_record(at: int, lines: Sequence[str]) -> tuple[Record | None, int]:
    number = at + 2
    if len(lines[at]) > LIMIT:
        return (number, Unreadable(TOO_LONG, lines[at][:LIMIT])), 1
    size = 0
    fitting: list[str] = []
    for line in lines[at:]:
        size += len(line) + 1
        if size > LIMIT and fitting:
            break
        fitting.append(f"{line}\n")
    reader = csv.reader(fitting, strict=True, skipinitialspace=True)
    try:
        row = next(reader)
    except csv.Error:
        return (number, Unreadable(MALFORMED, lines[at])), 1
    if not lines[at].strip():
        return None, 1
    if not any(row):
        return None, reader.line_num
    if len(row) > 2 and not any(row[2:]):
        row = row[:2]
    if len(row) != 2:
        unreadable = Unreadable(f"has {len(row)} fields, and the header 2", lines[at])
        return (number, unreadable), reader.line_num
    return (number, tuple(row)), reader.line_num


LINES = st.lists(
    st.text('"",\r ;x', max_size=6) | st.text('"x', min_size=LIMIT - 3, max_size=LIMIT + 3),
    max_size=40,
)


@thorough
@given(LINES, st.integers(1, 3000))
def test_each_line_counts_for_itself_unless_a_quote_joins_it_to_others(
    lines: list[str], part: int
) -> None:
    content = "\n".join(["a,b", *lines, ""])
    assert read(content.encode(), part=part) == naive(re.split("\r\n?|\n", content)[1:])


@pytest.mark.parametrize(
    "line",
    [
        "x",
        'x","',
        'a,"',
        '"',
        '"x',
        '",x',
        '"",',
        "",
        "\r",
        "\0",
        '"a,b\n"',
        '"' + "\n" * LIMIT,
        '1,"' + "\n" * 1_900 + '"',
        '1,"' + "x\n" * 990 + '"x',
        '1,"' + '""\n' * 600,
        "x" * 99,
    ],
)
def test_work_grows_with_the_file_and_not_faster(line: str) -> None:
    content = "a,b\n" + f"{line}\n" * (20_000 // (len(line) + 1))
    calls = 0

    def count(*_: object) -> None:
        nonlocal calls
        calls += 1

    sys.setprofile(count)
    try:
        read(content.encode(), part=512)
    finally:
        sys.setprofile(None)
    assert calls < 100 * content.count("\n") + 50 * len(content) / 512 + 1000


class Noting:
    """Gives what `texts` gives, and notes it."""

    def __init__(self, texts: Iterator[str], noted: list[str]) -> None:
        self.texts = texts
        self.noted = noted

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        self.noted.append(next(self.texts))
        return self.noted[-1]


def test_quoted_field_of_ten_million_line_ends_is_hardly_parsed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    parsed: list[str] = []
    parse = csv.reader

    def noting(texts: Iterator[str], **dialect: Any) -> Iterator[list[str]]:
        return parse(Noting(texts, parsed), **dialect)

    monkeypatch.setattr("mailer.client.csvfile.csv.reader", noting)
    file, unit = CsvFile(["a", "b"], required=["a"]), "\n" * 10_000
    [*records] = file.feed('a,b\n1,"')
    for _ in range(1_000):
        records += file.feed(unit)
    records += file.end()

    assert records == [(2, Unreadable(MALFORMED, '1,"'))]
    assert len("".join(parsed)) < 100


def test_names_of_columns_may_have_capitals_and_blanks() -> None:
    for header in (
        "A, b",
        " a ,B\u00a0",
        '"A ", "b"',
        "\ufeffa\u200b,b",
        "a;B",
        "A\tb",
    ):
        delimiter = next(each for each in ",;\t" if each in header)
        assert read(f"{header}\n1{delimiter}2\n".encode()) == [(2, ("1", "2"))]


def test_name_of_two_words_may_have_a_blank_between_them() -> None:
    file = CsvFile(["a_b", "c"], required=["a_b"])
    assert list(file.feed("A  B,c\n1,\n")) == [(2, ("1", ""))]


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("part", [1, 2, 1 << 16])
def test_lines_end_as_any_system_ends_them(end: str, part: int) -> None:
    content = end.join(["a,b", "1,2", "", '3,"4', '"', "5,6"])
    expected = [(2, ("1", "2")), (4, ("3", "4\n")), (6, ("5", "6"))]
    assert read(content.encode(), part=part) == expected


@pytest.mark.parametrize("line", ["   ", "\t", "\u00a0 "])
def test_line_of_blanks_alone_is_passed_over(line: str) -> None:
    assert read(f"a,b\n1,2\n{line}\n3,4\n".encode()) == [(2, ("1", "2")), (4, ("3", "4"))]


def test_blank_before_a_quoted_field_is_no_part_of_it() -> None:
    assert read(b'a, b\n1, "2, 3"\n') == [(2, ("1", "2, 3"))]


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
    [before, (number, unreadable), after] = records
    assert (before, number, after) == ((2, ("1", "2")), 3, (4, ("3", "4")))
    assert isinstance(unreadable, Unreadable)
    assert unreadable.message == message
    assert line.decode().startswith(unreadable.line)


def test_quote_that_is_never_closed_costs_its_own_line_alone() -> None:
    good = b"5,6\n" * 5000
    records = read(b'a,b\n1,"2\n' + good, part=1000)
    assert records[0] == (2, Unreadable(MALFORMED, '1,"2'))
    assert records[1:] == [(line, ("5", "6")) for line in range(3, 5003)]


@pytest.mark.parametrize(
    ("content", "errors"),
    [
        (b"", [("a", "is required")]),
        (b"\n\r\n", [("a", "is required")]),
        (b"a,,b\n", [("column 2", "is not one of the columns a, b")]),
        (b"b\n", [("a", "is required")]),
        (b"a,c,d\n", [("c", "is not one of the columns a, b"), ("d", "...")]),
        (b"a,b,a\n", [("a", "comes more than once")]),
        (b"a;b,c\n", [("b,c", "is not one of the columns a, b")]),
        (b"\xef\xbb\xbfa,b\xff\n", [("b?", "is not one of the columns a, b")]),
        (
            b"a," + b"c," * 900 + b"\n",
            [("c", "is not one of the columns a, b")] * 100,
        ),
        (b'a,"b\n', [("", f"the header {MALFORMED}")]),
        (b"a," + b"b" * LIMIT, [("", f"the header {TOO_LONG}")]),
    ],
)
def test_wrong_header_is_refused(content: bytes, errors: list[tuple[str, str]]) -> None:
    found = refusal(content)
    assert [error.field for error in found] == [field for field, _ in errors]
    assert found[0].message == errors[0][1]
