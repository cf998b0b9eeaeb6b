"""An export opened in a spreadsheet runs no formula, and imports unchanged."""

import csv
import io
import re

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine
from tests.examples import EXAMPLES
from tests.integration.test_client_csv import (
    chunks_of,
    counts,
    export_all,
    import_lines,
    read_clients,
)

from mailer.access.model import COMMAND_LINE
from mailer.client.exporting import unescape_formula
from mailer.client.importing import import_clients
from mailer.client.model import tag_columns
from mailer.text import clean_label

STARTS = tuple("=+-@\t\r\n\uff1d\uff0b\uff0d\uff20")
SEPARATORS = ",;\t"
PHONE = "79160000001"
ADD = text("""
    INSERT INTO client (phone, operator_code, tag, tag_written)
    VALUES (:phone, '916', :tag, :tag_written)""")
FORMULAS = [
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
FORMULAS += [
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


def test_every_start_of_a_formula_is_unescaped() -> None:
    assert all(unescape_formula(f"'{start}x") == f"{start}x" for start in STARTS)


@pytest.mark.parametrize("cell", ["'", "''", "'x", "it's", "'79160000001", "x'=1", ""])
def test_an_apostrophe_before_other_text_stays(cell: str) -> None:
    assert unescape_formula(cell) == cell


async def store_tags(engine: AsyncEngine, tags: list[str]) -> list[str | None]:
    """Replace all clients by ones with these tags; return the stored tags."""
    rows = [{"phone": f"7916{n:07}", **tag_columns(tag)} for n, tag in enumerate(tags)]
    async with engine.begin() as connection:
        await connection.execute(text("TRUNCATE client"))
        await connection.execute(ADD, rows)
    return [tag for _, _, tag, _ in await read_clients(engine)]


@settings(
    max_examples=EXAMPLES // 3 or 1,
    deadline=None,  # CI's machines pause
    suppress_health_check=[
        HealthCheck.function_scoped_fixture
    ],  # the test empties the table itself
)
@example(given_tags=[*map(clean_label, FORMULAS)])
@given(given_tags=st.lists(tags, min_size=1, max_size=30))
async def test_no_exported_cell_is_a_formula_and_every_tag_is_imported_unchanged(
    engine: AsyncEngine, given_tags: list[str]
) -> None:
    stored = await store_tags(engine, given_tags)
    assert stored == given_tags
    exported = await export_all(engine)
    for delimiter in SEPARATORS:
        for row in csv.reader(io.StringIO(exported.decode(), newline=""), delimiter=delimiter):
            assert not any(cell.startswith(STARTS) for cell in row), row
    assert not any(line.startswith(STARTS) for line in re.split("[\r\n]", exported.decode()))
    assert counts(await import_clients(engine, chunks_of(exported), COMMAND_LINE)) == (
        0,
        0,
        len(stored),
        0,
    )
    async with engine.begin() as connection:
        await connection.execute(text("TRUNCATE client"))
    assert counts(await import_clients(engine, chunks_of(exported, 7), COMMAND_LINE)) == (
        len(stored),
        0,
        0,
        0,
    )
    assert [tag for _, _, tag, _ in await read_clients(engine)] == given_tags


async def test_a_formula_may_be_imported_escaped_or_not(engine: AsyncEngine) -> None:
    for tag in ("'=1+1", "=1+1"):
        await import_lines(engine, "phone,tag", f"{PHONE},{tag}")
        assert [imported for _, _, imported, _ in await read_clients(engine)] == ["=1+1"]


async def test_an_escaped_tag_of_maximum_length_is_imported(engine: AsyncEngine) -> None:
    before = await store_tags(engine, ["=" * 64, ";=" * 32])
    assert counts(
        await import_clients(engine, chunks_of(await export_all(engine)), COMMAND_LINE)
    ) == (
        0,
        0,
        2,
        0,
    )
    assert [tag for _, _, tag, _ in await read_clients(engine)] == before
