"""Reading a CSV file in chunks."""

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

from mailer.client.csv_reader import (
    MALFORMED_CSV,
    MAX_RECORD_LENGTH,
    TOO_LONG,
    CsvReader,
    Record,
    UnreadableRecord,
)
from mailer.client.decoding import TextDecoder
from mailer.errors import FieldError, InvalidError

ROUGH_BYTES = st.lists(
    st.sampled_from([b"a", b"7", b",", b";", b'"', b"\n", b"\r\n", b"\r", b"\0", b"\xff", b"\xc3"])
    | st.binary(max_size=3)
    | st.just(b"x" * (MAX_RECORD_LENGTH + 1)),
    max_size=40,
).map(b"".join)
TEXTS = st.text(st.characters(codec="utf-8"), max_size=70)


def read(content: bytes, *, chunk_size: int = 1 << 16) -> list[Record]:
    reader, decoder = CsvReader(["a", "b"], required=["a"]), TextDecoder()
    records: list[Record] = []
    for start in range(0, len(content), chunk_size):
        records += reader.feed(decoder.feed(content[start : start + chunk_size]))
    return [*records, *reader.feed(decoder.end()), *reader.end()]


def errors_of(content: bytes) -> Sequence[FieldError]:
    with pytest.raises(InvalidError) as error:
        read(content)
    return error.value.errors


@given(content=ROUGH_BYTES, chunk_size=st.integers(1, 9))
def test_size_of_chunks_does_not_change_the_records(content: bytes, chunk_size: int) -> None:
    content = b"a,b\n" + content
    assert read(content, chunk_size=chunk_size) == read(content)


@given(rows=st.lists(st.tuples(TEXTS, TEXTS)), semicolons=st.booleans(), bom=st.booleans())
def test_well_formed_file_is_read_as_it_was_written(
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
def test_empty_columns_and_rows_and_excels_separator_line_are_ignored(content: str) -> None:
    assert [fields for _, fields in read(content.encode())] == [("1", "2")]


def test_value_without_a_column_is_an_error() -> None:
    [(number, record)] = read(b"a;b;\n1;2;3\n")
    assert (number, record) == (2, UnreadableRecord("has 3 fields, but the header has 2", "1;2;3"))


@given(garbage=ROUGH_BYTES.map(lambda content: re.sub(rb'[\r\n"]', b"", content)))
def test_garbage_in_a_line_does_not_affect_other_lines(garbage: bytes) -> None:
    records = read(b"a,b\n1,2\n" + garbage + b"\n3,4\n")
    assert records[0] == (2, ("1", "2"))
    assert records[-1] == (4, ("3", "4"))


def test_line_numbers_count_every_line_of_the_file() -> None:
    content = b'\n\r\na,b\r\n1,"x\ny\r\n"\n\n2,3\n"4\n4",\n5,6'
    assert read(content) == [
        (4, ("1", "x\ny\n")),
        (8, ("2", "3")),
        (9, ("4\n4", "")),
        (11, ("5", "6")),
    ]


def read_naively(lines: Sequence[str]) -> list[Record]:
    """Read like `CsvReader`, but parse each line again with all lines that may continue it."""
    records: list[Record] = []
    at = 0
    while at < len(lines):
        record, line_count = read_record_naively(at, lines)
        records += [record] if record else []
        at += line_count
    return records


def read_record_naively(at: int, lines: Sequence[str]) -> tuple[Record | None, int]:
    """Return the record at a line, if there is one, and the number of its lines."""
    number = at + 2
    if len(lines[at]) > MAX_RECORD_LENGTH:
        return (number, UnreadableRecord(TOO_LONG, lines[at][:MAX_RECORD_LENGTH])), 1
    size = 0
    candidates: list[str] = []
    for line in lines[at:]:
        size += len(line) + 1
        if size > MAX_RECORD_LENGTH and candidates:
            break
        candidates.append(f"{line}\n")
    reader = csv.reader(candidates, strict=True, skipinitialspace=True)
    try:
        row = next(reader)
    except csv.Error:
        return (number, UnreadableRecord(MALFORMED_CSV, lines[at])), 1
    if not lines[at].strip():
        return None, 1
    if not any(row):
        return None, reader.line_num
    if len(row) > 2 and not any(row[2:]):
        row = row[:2]
    if len(row) != 2:
        unreadable = UnreadableRecord(f"has {len(row)} fields, but the header has 2", lines[at])
        return (number, unreadable), reader.line_num
    return (number, tuple(row)), reader.line_num


LINES = st.lists(
    st.text('"",\r ;x', max_size=6)
    | st.text('"x', min_size=MAX_RECORD_LENGTH - 3, max_size=MAX_RECORD_LENGTH + 3),
    max_size=40,
)


@thorough
@given(LINES, st.integers(1, 3000))
def test_each_line_is_a_record_unless_a_quoted_field_continues_it(
    lines: list[str], chunk_size: int
) -> None:
    content = "\n".join(["a,b", *lines, ""])
    assert read(content.encode(), chunk_size=chunk_size) == read_naively(
        re.split("\r\n?|\n", content)[1:]
    )


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
        '"' + "\n" * MAX_RECORD_LENGTH,
        '1,"' + "\n" * 1_900 + '"',
        '1,"' + "x\n" * 990 + '"x',
        '1,"' + '""\n' * 600,
        "x" * 99,
    ],
)
def test_work_grows_only_linearly_with_the_file(line: str) -> None:
    content = "a,b\n" + f"{line}\n" * (20_000 // (len(line) + 1))
    calls = 0

    def count(*_: object) -> None:
        nonlocal calls
        calls += 1

    sys.setprofile(count)
    try:
        read(content.encode(), chunk_size=512)
    finally:
        sys.setprofile(None)
    assert calls < 100 * content.count("\n") + 50 * len(content) / 512 + 1000


class RecordingIterator:
    """Yields the items of `texts`, and appends each to `recorded`."""

    def __init__(self, texts: Iterator[str], recorded: list[str]) -> None:
        self.texts = texts
        self.recorded = recorded

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        self.recorded.append(next(self.texts))
        return self.recorded[-1]


def test_quoted_field_of_ten_million_line_ends_is_hardly_parsed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    parsed: list[str] = []
    parse = csv.reader

    def recording_reader(texts: Iterator[str], **dialect: Any) -> Iterator[list[str]]:
        return parse(RecordingIterator(texts, parsed), **dialect)

    monkeypatch.setattr("mailer.client.csv_reader.csv.reader", recording_reader)
    reader, line_ends = CsvReader(["a", "b"], required=["a"]), "\n" * 10_000
    [*records] = reader.feed('a,b\n1,"')
    for _ in range(1_000):
        records += reader.feed(line_ends)
    records += reader.end()

    assert records == [(2, UnreadableRecord(MALFORMED_CSV, '1,"'))]
    assert len("".join(parsed)) < 100


def test_column_names_are_read_without_case_and_surrounding_blanks() -> None:
    for header in (
        "A, b",
        " a ,B\u00a0",
        '"A ", "b"',
        "\ufeffa\u200b,b",
        "a;B",
        "A\tb",
    ):
        delimiter = next(character for character in ",;\t" if character in header)
        assert read(f"{header}\n1{delimiter}2\n".encode()) == [(2, ("1", "2"))]


def test_column_name_may_have_blanks_in_place_of_an_underscore() -> None:
    reader = CsvReader(["a_b", "c"], required=["a_b"])
    assert list(reader.feed("A  B,c\n1,\n")) == [(2, ("1", ""))]


@pytest.mark.parametrize("line_end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("chunk_size", [1, 2, 1 << 16])
def test_line_ends_of_all_systems_are_read(line_end: str, chunk_size: int) -> None:
    content = line_end.join(["a,b", "1,2", "", '3,"4', '"', "5,6"])
    expected = [(2, ("1", "2")), (4, ("3", "4\n")), (6, ("5", "6"))]
    assert read(content.encode(), chunk_size=chunk_size) == expected


@pytest.mark.parametrize("line", ["   ", "\t", "\u00a0 "])
def test_blank_line_is_skipped(line: str) -> None:
    assert read(f"a,b\n1,2\n{line}\n3,4\n".encode()) == [(2, ("1", "2")), (4, ("3", "4"))]


def test_blank_before_a_quoted_field_is_ignored() -> None:
    assert read(b'a, b\n1, "2, 3"\n') == [(2, ("1", "2, 3"))]


def test_fields_come_in_the_order_of_the_reader_with_missing_columns_empty() -> None:
    assert read(b"b,a\n1,2\n") == [(2, ("2", "1"))]
    assert read(b"a\n1\n") == [(2, ("1", ""))]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b"1", "has 1 fields, but the header has 2"),
        (b"1,2,3", "has 3 fields, but the header has 2"),
        (b'1,"2"3', MALFORMED_CSV),
        (b'1,"2', MALFORMED_CSV),
        (b"1," + b"2" * MAX_RECORD_LENGTH, TOO_LONG),
        (b"1," + b"2" * 10 * MAX_RECORD_LENGTH, TOO_LONG),
        (b"1," + "я".encode() * MAX_RECORD_LENGTH, TOO_LONG),
    ],
)
@pytest.mark.parametrize("chunk_size", [7, 1 << 16])
def test_unreadable_line_is_reported_and_does_not_affect_other_lines(
    line: bytes, message: str, chunk_size: int
) -> None:
    records = read(b"a,b\n1,2\n" + line + b"\n3,4\n", chunk_size=chunk_size)
    [before, (number, unreadable), after] = records
    assert (before, number, after) == ((2, ("1", "2")), 3, (4, ("3", "4")))
    assert isinstance(unreadable, UnreadableRecord)
    assert unreadable.message == message
    assert line.decode().startswith(unreadable.line)


def test_unclosed_quote_makes_only_its_own_line_unreadable() -> None:
    good = b"5,6\n" * 5000
    records = read(b'a,b\n1,"2\n' + good, chunk_size=1000)
    assert records[0] == (2, UnreadableRecord(MALFORMED_CSV, '1,"2'))
    assert records[1:] == [(line, ("5", "6")) for line in range(3, 5003)]


@pytest.mark.parametrize(
    ("content", "errors"),
    [
        (b"", [("a", "is required")]),
        (b"\n\r\n", [("a", "is required")]),
        (b"a,,b\n", [("column 2", "is not one of the columns a, b")]),
        (b"b\n", [("a", "is required")]),
        (b"a,c,d\n", [("c", "is not one of the columns a, b"), ("d", "...")]),
        (b"a,b,a\n", [("a", "appears more than once")]),
        (b"a;b,c\n", [("b,c", "is not one of the columns a, b")]),
        (b"\xef\xbb\xbfa,b\xff\n", [("b?", "is not one of the columns a, b")]),
        (
            b"a," + b"c," * 900 + b"\n",
            [("c", "is not one of the columns a, b")] * 100,
        ),
        (b'a,"b\n', [("", f"the header {MALFORMED_CSV}")]),
        (b"a," + b"b" * MAX_RECORD_LENGTH, [("", f"the header {TOO_LONG}")]),
    ],
)
def test_wrong_header_is_rejected(content: bytes, errors: list[tuple[str, str]]) -> None:
    actual = errors_of(content)
    assert [error.field for error in actual] == [field for field, _ in errors]
    assert actual[0].message == errors[0][1]
