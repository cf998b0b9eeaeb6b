"""A spreadsheet that opens an export runs no formula, and importing the export changes nothing.

A cell that begins with a sign such as = is a formula to a spreadsheet. An export puts an apostrophe
before it, which an import removes; see `mailer.client.exporting`.
"""

import csv
import io
import re

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine
from tests.examples import EXAMPLES
from tests.integration.client_files import (
    LineCounts,
    delete_all_clients,
    export_all,
    import_content,
    import_lines,
    line_counts,
    stored_tags,
)

from mailer.client.exporting import unescape_formula
from mailer.client.model import tag_columns
from mailer.text import clean_label

FORMULA_STARTS = tuple("=+-@\t\r\n\uff1d\uff0b\uff0d\uff20")
"""First characters of a cell that is a formula; the last four are full-width signs."""
DELIMITERS = ",;\t"
"""A spreadsheet may split the lines of a file at any of them, whatever its own delimiter is."""
PHONE = "79160000001"
# `tag` is the folded form of a tag. `tag_written` is the form in which a user wrote it, or null if
# that is the same; see `tag_columns`.
INSERT_CLIENT = text("""
    INSERT INTO client (phone, operator_code, tag, tag_written)
    VALUES (:phone, '916', :tag, :tag_written)""")
FORMULAS = ["=1+1", "+1", "-1", "@SUM(A1)", "\t=1", "\r=1", "\n=1", "\uff1d1"]
TAGS_WITH_APOSTROPHE = ["'=1", "''=1", "''", "'x"]
"""Tags that begin with an apostrophe of their own."""
FORMULAS_INSIDE = [
    "a;=1",
    'a";=1',
    "a\t=1",
    "a,=1",
    'a","=1',
    "a\n=1",
    "a;'=1",
    ";;==",
    "';'=",
    "=\t=;'@'",
]
"""Tags with a formula in the middle, where another delimiter or a line end begins a new cell."""

characters = st.sampled_from("'=+-@;,\t\r\n\"ax\uff1d") | st.characters(
    exclude_categories=["Cs"], exclude_characters="\0"
)
# Every stored tag has the form that `clean_label` gives to input. In this form a text may be empty,
# or longer than before: NFC replaces some characters by two.
tags = st.text(characters, max_size=64).map(clean_label).filter(lambda tag: 1 <= len(tag) <= 64)


def test_every_start_of_a_formula_is_unescaped() -> None:
    assert all(unescape_formula(f"'{start}x") == f"{start}x" for start in FORMULA_STARTS)


@pytest.mark.parametrize("cell", ["'", "''", "'x", "it's", "'79160000001", "x'=1", ""])
def test_an_apostrophe_before_other_text_stays(cell: str) -> None:
    assert unescape_formula(cell) == cell


async def replace_clients(engine: AsyncEngine, tags: list[str]) -> None:
    """Replace all clients by ones with these tags."""
    rows = [{"phone": f"7916{n:07}", **tag_columns(tag)} for n, tag in enumerate(tags)]
    await delete_all_clients(engine)
    async with engine.begin() as connection:
        await connection.execute(INSERT_CLIENT, rows)


def assert_no_cell_is_a_formula(exported: str) -> None:
    for delimiter in DELIMITERS:
        for row in csv.reader(io.StringIO(exported, newline=""), delimiter=delimiter):
            assert not any(cell.startswith(FORMULA_STARTS) for cell in row), row
    # also for a program that ends a line at a line end inside quotes
    assert not any(line.startswith(FORMULA_STARTS) for line in re.split("[\r\n]", exported))


@settings(
    max_examples=EXAMPLES // 3 or 1,
    deadline=None,  # CI's machines pause
    suppress_health_check=[
        HealthCheck.function_scoped_fixture
    ],  # the test empties the table itself
)
@example(given_tags=[*map(clean_label, FORMULAS + TAGS_WITH_APOSTROPHE + FORMULAS_INSIDE)])
@given(given_tags=st.lists(tags, min_size=1, max_size=30))
async def test_no_exported_cell_is_a_formula_and_every_tag_is_imported_unchanged(
    engine: AsyncEngine, given_tags: list[str]
) -> None:
    await replace_clients(engine, given_tags)
    assert await stored_tags(engine) == given_tags
    exported = await export_all(engine)

    assert_no_cell_is_a_formula(exported.decode())
    report = await import_content(engine, exported)
    assert line_counts(report) == LineCounts(unchanged=len(given_tags))

    # now in chunks of 7 bytes, so that chunks also end inside cells, escapes and characters
    await delete_all_clients(engine)
    report = await import_content(engine, exported, chunk_size=7)
    assert line_counts(report) == LineCounts(created=len(given_tags))
    assert await stored_tags(engine) == given_tags


@pytest.mark.parametrize("tag", ["'=1+1", "=1+1"])
async def test_a_formula_may_be_imported_escaped_or_not(engine: AsyncEngine, tag: str) -> None:
    await import_lines(engine, "phone,tag", f"{PHONE},{tag}")
    assert await stored_tags(engine) == ["=1+1"]


async def test_a_tag_of_maximum_length_is_imported_although_its_escape_makes_it_longer(
    engine: AsyncEngine,
) -> None:
    longest_tags = ["=" * 64, ";=" * 32]
    await replace_clients(engine, longest_tags)
    report = await import_content(engine, await export_all(engine))
    assert line_counts(report) == LineCounts(unchanged=2)
    assert await stored_tags(engine) == longest_tags
