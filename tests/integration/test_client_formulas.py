"""A directory that a spreadsheet opens runs nothing, and comes back as it was."""

import csv
import io
import re

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine
from tests.examples import EXAMPLES
from tests.integration.test_client_csv import clients, counts, export, parts_of, put

from mailer.access.model import COMMAND_LINE
from mailer.client.formulas import as_given
from mailer.client.importing import import_clients
from mailer.client.model import tag_columns
from mailer.text import clean_label

STARTS = tuple("=+-@\t\r\n\uff1d\uff0b\uff0d\uff20")
SEPARATORS = ",;\t"
PHONE = "79160000001"
ADD = text("""
    INSERT INTO client (phone, operator_code, tag, tag_written)
    VALUES (:phone, '916', :tag, :tag_written)""")
PLANTED = [
    "=1+1",
    "+1",
    "-1",
    "@SUM(A1)",
    "\t=1",
    "\r=1",
    "\n=1",
    "\uff1d1",
    "'=1",
    "''=1",
    "''",
    "'x",
]
PLANTED += [
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

characters = st.sampled_from("'=+-@;,\t\r\n\"ax\uff1d") | st.characters(
    exclude_categories=["Cs"], exclude_characters="\0"
)
tags = st.text(characters, max_size=64).map(clean_label).filter(lambda tag: 1 <= len(tag) <= 64)


def test_every_start_of_a_formula_is_known() -> None:
    assert all(as_given(f"'{start}x") == f"{start}x" for start in STARTS)


@pytest.mark.parametrize("cell", ["'", "''", "'x", "it's", "'79160000001", "x'=1", ""])
def test_an_apostrophe_that_marks_nothing_stays(cell: str) -> None:
    assert as_given(cell) == cell


async def stored(engine: AsyncEngine, tags: list[str]) -> list[str | None]:
    """Put these tags into an empty directory, and return them as they are there."""
    rows = [{"phone": f"7916{n:07}", **tag_columns(tag)} for n, tag in enumerate(tags)]
    async with engine.begin() as connection:
        await connection.execute(text("TRUNCATE client"))
        await connection.execute(ADD, rows)
    return [tag for _, _, tag, _ in await clients(engine)]


@settings(
    max_examples=EXAMPLES // 3 or 1,
    deadline=None,  # CI's machines pause
    suppress_health_check=[HealthCheck.function_scoped_fixture],  # emptied in the test itself
)
@example(given_tags=[*map(clean_label, PLANTED)])
@given(given_tags=st.lists(tags, min_size=1, max_size=30))
async def test_no_cell_of_an_export_is_a_formula_and_every_tag_comes_back(
    engine: AsyncEngine, given_tags: list[str]
) -> None:
    before = await stored(engine, given_tags)
    assert before == given_tags
    exported = await export(engine)
    for delimiter in SEPARATORS:
        for row in csv.reader(io.StringIO(exported.decode(), newline=""), delimiter=delimiter):
            assert not any(cell.startswith(STARTS) for cell in row), row
    assert not any(line.startswith(STARTS) for line in re.split("[\r\n]", exported.decode()))
    assert counts(await import_clients(engine, parts_of(exported), COMMAND_LINE)) == (
        0,
        0,
        len(before),
        0,
    )
    async with engine.begin() as connection:
        await connection.execute(text("TRUNCATE client"))
    assert counts(await import_clients(engine, parts_of(exported, 7), COMMAND_LINE)) == (
        len(before),
        0,
        0,
        0,
    )
    assert [tag for _, _, tag, _ in await clients(engine)] == given_tags


async def test_a_file_may_mark_a_tag_as_text_or_not(engine: AsyncEngine) -> None:
    for tag in ("'=1+1", "=1+1"):
        await put(engine, "phone,tag", f"{PHONE},{tag}")
        assert [found for _, _, found, _ in await clients(engine)] == ["=1+1"]


async def test_a_marked_tag_of_the_longest_length_is_taken(engine: AsyncEngine) -> None:
    before = await stored(engine, ["=" * 64, ";=" * 32])
    assert counts(await import_clients(engine, parts_of(await export(engine)), COMMAND_LINE)) == (
        0,
        0,
        2,
        0,
    )
    assert [tag for _, _, tag, _ in await clients(engine)] == before
