"""Reading a CSV file in chunks."""

import csv
import io
import re
import sys
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.examples import thorough

from mailer.client.columns import Column
from mailer.client.csv_reader import (
    MAX_RECORD_LENGTH,
    TOO_LONG,
    CsvReader,
    Record,
    UnreadableRecord,
)
from mailer.client.decoding import TextDecoder
from mailer.client.layout import MALFORMED_CSV, MAX_COLUMNS
from mailer.errors import FieldError, InvalidError

HOSTILE_BYTES = st.lists(
    st.sampled_from([b"a", b"7", b",", b";", b'"', b"\n", b"\r\n", b"\r", b"\0", b"\xff", b"\xc3"])
    | st.binary(max_size=3),
    max_size=40,
).map(b"".join)
"""Delimiters, quotes, line ends and invalid bytes, in any order."""
TEXTS = st.text(st.characters(codec="utf-8"), max_size=70)


def lengthen(text: str) -> str:
    """Return a text with many x in place of `<n>`: n more than a record may have characters.

    Hypothesis does not take texts of this length.
    """
    return re.sub("<(-?[0-9])>", lambda found: "x" * (MAX_RECORD_LENGTH + int(found[1])), text)


def column(name: str) -> Column:
    """Return a column that is found by its name alone."""
    return Column(name, frozenset(), lambda _: False)


COLUMNS = (column("a"), column("b"))


def read(content: bytes, *, chunk_size: int = 65_536) -> list[Record]:
    """Read a file with the columns `a` (required) and `b`, which arrives in chunks."""
    reader, decoder = CsvReader(COLUMNS), TextDecoder()
    records: list[Record] = []
    for start in range(0, len(content), chunk_size):
        records += reader.feed(decoder.feed(content[start : start + chunk_size]))
    return [*records, *reader.feed(decoder.end()), *reader.end()]


def header_errors(content: bytes) -> Sequence[FieldError]:
    with pytest.raises(InvalidError) as error:
        read(content)
    return error.value.errors


@given(content=HOSTILE_BYTES, chunk_size=st.integers(1, 9))
def test_size_of_chunks_does_not_change_the_records(content: bytes, chunk_size: int) -> None:
    content = b"a,b\n" + content
    assert read(content, chunk_size=chunk_size) == read(content)


@pytest.mark.parametrize("chunk_size", [7, MAX_RECORD_LENGTH, 65_536])
def test_a_too_long_line_is_one_record_in_chunks_of_any_size(chunk_size: int) -> None:
    content = lengthen('a,b\n"<1>\n1,2\n<1>\n3,4\n').encode()
    unreadable, first, too_long, second = read(content, chunk_size=chunk_size)
    assert (unreadable[0], first, second) == (2, (3, ("1", "2")), (5, ("3", "4")))
    assert too_long == (4, UnreadableRecord(TOO_LONG, "x" * MAX_RECORD_LENGTH))


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
    message = "has 3 fields, but the header has 2"
    assert read(b"a;b;\n1;2;3\n") == [(2, UnreadableRecord(message, "1;2;3"))]


# Without line ends the garbage is one line. Without quotes no field of it goes on in the next line;
# lines with quotes are tested below.
@given(garbage=HOSTILE_BYTES.map(lambda content: re.sub(rb'[\r\n"]', b"", content)))
def test_garbage_in_a_line_does_not_affect_other_lines(garbage: bytes) -> None:
    records = read(b"a,b\n1,2\n" + garbage + b"\n3,4\n")
    assert records[0] == (2, ("1", "2"))
    assert records[-1] == (4, ("3", "4"))


def test_line_numbers_count_every_line_of_the_file() -> None:
    content = (
        b"\n\r\n"  # lines 1 and 2
        b"a,b\r\n"
        b'1,"x\ny\r\n"\n'  # lines 4 to 6
        b"\n"
        b"2,3\n"  # line 8
        b'"4\n4",\n'  # lines 9 and 10
        b"5,6"  # line 11
    )
    assert read(content) == [
        (4, ("1", "x\ny\n")),
        (8, ("2", "3")),
        (9, ("4\n4", "")),
        (11, ("5", "6")),
    ]


class ReadRecord(NamedTuple):
    """A record, or None for empty lines, and the number of its lines."""

    record: Record | None
    line_count: int


def read_naively(lines: Sequence[str]) -> list[Record]:
    """Read the lines after a header as `CsvReader` should, in a simpler and slower way.

    Each line is parsed again with all lines that may continue it.
    """
    records: list[Record] = []
    index = 0
    while index < len(lines):
        record, line_count = read_record_naively(lines[index:], number=index + 2)
        records += [record] if record else []
        index += line_count
    return records


def read_record_naively(lines: Sequence[str], number: int) -> ReadRecord:
    """Read the record that begins with the first of the lines; `number` is that line's number."""
    first_line = lines[0]
    if len(first_line) > MAX_RECORD_LENGTH:
        unreadable = UnreadableRecord(TOO_LONG, first_line[:MAX_RECORD_LENGTH])
        return ReadRecord((number, unreadable), 1)
    reader = csv.reader(lines_of_one_record(lines), strict=True, skipinitialspace=True)
    try:
        row = next(reader)
    except csv.Error:
        return ReadRecord((number, UnreadableRecord(MALFORMED_CSV, first_line)), 1)
    if not first_line.strip():
        return ReadRecord(None, 1)
    if not any(row):
        return ReadRecord(None, reader.line_num)
    if len(row) > 2 and not any(row[2:]):
        row = row[:2]
    if len(row) != 2:
        message = f"has {len(row)} fields, but the header has 2"
        return ReadRecord((number, UnreadableRecord(message, first_line)), reader.line_num)
    return ReadRecord((number, tuple(row)), reader.line_num)


def lines_of_one_record(lines: Sequence[str]) -> list[str]:
    """Return the first line, and the lines after it as far as the length of a record allows."""
    candidates: list[str] = []
    length = 0
    for line in lines:
        length += len(line) + 1
        if length > MAX_RECORD_LENGTH and candidates:
            break
        candidates.append(f"{line}\n")
    return candidates


LINES = st.lists(
    st.text('",\r ;x', max_size=6)
    | st.builds(
        "{}<{}>{}".format,
        st.text('"x', max_size=3),
        st.integers(-6, 0),
        st.text('"x', max_size=3),
    ),
    max_size=40,
)


@thorough
@given(LINES, st.integers(1, 3000))
def test_each_line_is_a_record_unless_a_quoted_field_continues_it(
    lines: list[str], chunk_size: int
) -> None:
    content = lengthen("\n".join(["a,b", *lines, ""]))
    _, *lines_after_header = re.split("\r\n?|\n", content)
    expected = read_naively(lines_after_header)
    assert read(content.encode(), chunk_size=chunk_size) == expected


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
        '1,"' + "\n" * (MAX_RECORD_LENGTH - 100) + '"',
        '1,"' + "x\n" * (MAX_RECORD_LENGTH // 2 - 10) + '"x',
        '1,"' + '""\n' * (MAX_RECORD_LENGTH // 3 - 70),
        "x" * 99,
    ],
)
def test_work_grows_only_linearly_with_the_file(line: str) -> None:
    """Each line is one that may need more work the more lines are before it."""
    content = "a,b\n" + f"{line}\n" * (10 * MAX_RECORD_LENGTH // (len(line) + 1))
    line_count, chunk_count = content.count("\n"), len(content) / 512
    calls = 0

    def count_call(*_: object) -> None:
        nonlocal calls
        calls += 1

    sys.setprofile(count_call)
    try:
        read(content.encode(), chunk_size=512)
    finally:
        sys.setprofile(None)
    # several times what is needed, but far less than the square of the number of lines
    assert calls < 100 * line_count + 50 * chunk_count + 1000


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


def test_lines_inside_a_quoted_field_are_not_parsed_again_and_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    parsed_texts: list[str] = []
    original_reader = csv.reader

    def recording_reader(texts: Iterator[str], **dialect: Any) -> Iterator[list[str]]:
        return original_reader(RecordingIterator(texts, parsed_texts), **dialect)

    monkeypatch.setattr("mailer.client.csv_reader.csv.reader", recording_reader)
    reader, ten_thousand_empty_lines = CsvReader(COLUMNS), "\n" * 10_000
    [*records] = reader.feed('a,b\n1,"')
    for _ in range(1_000):
        records += reader.feed(ten_thousand_empty_lines)
    records += reader.end()

    assert records == [(2, UnreadableRecord(MALFORMED_CSV, '1,"'))]
    # the header and `1,"`, a few times each, but none of the ten million empty lines
    assert len("".join(parsed_texts)) < 100


@pytest.mark.parametrize(
    ("header", "line"),
    [
        ("A, b", "1,2"),
        (" a ,B\u00a0", "1,2"),
        ('"A ", "b"', "1,2"),
        ("\ufeffa\u200b,b", "1,2"),
        ("a;B", "1;2"),
        ("A\tb", "1\t2"),
    ],
)
def test_column_names_are_read_without_case_and_surrounding_blanks(header: str, line: str) -> None:
    assert read(f"{header}\n{line}\n".encode()) == [(2, ("1", "2"))]


def test_column_name_may_have_blanks_in_place_of_an_underscore() -> None:
    reader = CsvReader([column("a_b"), column("c")])
    assert [*reader.feed("A  B,c\n1,\n"), *reader.end()] == [(2, ("1", ""))]


@pytest.mark.parametrize("line_end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("chunk_size", [1, 2, 65_536])
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
@pytest.mark.parametrize("chunk_size", [7, 65_536])
def test_unreadable_line_is_reported_and_does_not_affect_other_lines(
    line: bytes, message: str, chunk_size: int
) -> None:
    records = read(b"a,b\n1,2\n" + line + b"\n3,4\n", chunk_size=chunk_size)
    [before, (number, unreadable), after] = records
    assert before == (2, ("1", "2"))
    assert number == 3
    assert after == (4, ("3", "4"))
    assert isinstance(unreadable, UnreadableRecord)
    assert unreadable.message == message
    assert line.decode().startswith(unreadable.line)


def test_unclosed_quote_makes_only_its_own_line_unreadable() -> None:
    records = read(b'a,b\n1,"2\n' + b"5,6\n" * 5000, chunk_size=1000)
    assert records[0] == (2, UnreadableRecord(MALFORMED_CSV, '1,"2'))
    assert records[1:] == [(number, ("5", "6")) for number in range(3, 3 + 5000)]


@pytest.mark.parametrize(
    ("content", "errors"),
    [
        (b"", [("a", "is required")]),
        (b"\n\r\n", [("a", "is required")]),
        (b"b\n", [("a", "is required")]),
        (b"c,d\n1,2\n", [("a", "is required")]),
        (b"a,b,a\n", [("a", "appears more than once")]),
        (b"a," + b"c," * 900 + b"\n", [("", f"the header has more than {MAX_COLUMNS} columns")]),
        (b'a,"b\n', [("", f"the header {MALFORMED_CSV}")]),
        (b"a," + b"b" * MAX_RECORD_LENGTH, [("", f"the header {TOO_LONG}")]),
    ],
)
def test_wrong_header_is_rejected(content: bytes, errors: list[tuple[str, str]]) -> None:
    assert [(error.field, error.message) for error in header_errors(content)] == errors
