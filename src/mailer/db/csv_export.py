"""Export of a table as CSV, in chunks of rows.

Between two chunks no connection and no transaction is open, so that a slow reader of the CSV
occupies no connection and does not keep vacuum from removing old row versions.
"""

import codecs
from collections.abc import AsyncGenerator, Iterable, Mapping, Sequence
from typing import NamedTuple

import asyncpg
from sqlalchemy.ext.asyncio import AsyncEngine

from mailer.db.engine import affected_rows, asyncpg_connection

CHUNK_ROWS = 10_000
"""Rows of a chunk: about a megabyte."""
# Templates of SQL; `CsvSource.build_query` fills in the braces. COPY does not say what the last key
# of a chunk was, so this is queried first.
LAST_KEY_OF_CHUNK = """
    SELECT max({key}) FROM (
        SELECT {key} FROM {table} WHERE {key} > $1 AND {where}
        ORDER BY {key} LIMIT {chunk}) AS chunk"""
"""The last key of the chunk after the key $1; null when no row is left."""
ROWS_OF_CHUNK = """
    SELECT {columns} FROM {table} WHERE {key} > $1 AND {key} <= $2 AND {where} ORDER BY {key}"""
"""The rows of the chunk after the key $1 up to the key $2."""


CsvFilters = Mapping[str, str | int | list[int]]
"""By column, the value that it must equal, or numbers of which it must be one."""


FIRST_FILTER = 3
"""Number of the first filter's parameter in the query for the rows, after those of the two keys."""


class CsvLayout(NamedTuple):
    """How a file is written."""

    delimiter: str = ","
    header: bytes | None = None
    """The start of the file; None: a line with the names of the columns."""
    has_mark: bool = False
    """Whether the file begins with a byte order mark, by which Excel recognizes UTF-8."""


PLAIN_CSV = CsvLayout()


class CsvPart(NamedTuple):
    """Some rows as CSV in UTF-8, lines ended by LF; the first part starts with a header."""

    content: bytes
    rows: int


class CsvSource(NamedTuple):
    """The rows to export, in SQL: `columns` of the rows of `table` that meet `where`.

    The rows are ordered by `key`, a unique positive number.
    """

    table: str
    key: str
    columns: str
    where: str

    def build_query(self, template: str, *, first_parameter: int, filters: CsvFilters) -> str:
        """Return the SQL of `template` for this source.

        The value of the first filter must be the parameter of the number `first_parameter`, that of
        the second the next one, and so on.
        """
        conditions = (
            f"{column} = {'ANY ' if isinstance(value, list) else ''}(${number})"
            for number, (column, value) in enumerate(filters.items(), first_parameter)
        )
        where = " AND ".join([self.where, *conditions])
        return template.format(**self._asdict() | {"where": where, "chunk": CHUNK_ROWS})


def constant_parameter(filters: CsvFilters, number: int) -> str:
    """Return the parameter for a constant in the columns of a source; `number` counts from 0."""
    return f"${FIRST_FILTER + len(filters) + number}"


async def copy_in_chunks(
    engine: AsyncEngine,
    source: CsvSource,
    filters: CsvFilters,
    constants: Sequence[str] = (),
    layout: CsvLayout = PLAIN_CSV,
) -> AsyncGenerator[CsvPart, None]:
    """Yield the rows of a source that match all filters.

    `constants` are texts that the columns contain as parameters; see `constant_parameter`. Without
    rows, yields one part with the header alone. Each chunk is consistent in itself; rows
    may change between chunks.
    """
    last_key_query = source.build_query(LAST_KEY_OF_CHUNK, first_parameter=2, filters=filters)
    rows_query = source.build_query(ROWS_OF_CHUNK, first_parameter=FIRST_FILTER, filters=filters)
    after_key: int | None = 0
    is_first = True
    while after_key is not None:
        async with engine.connect() as connection:
            database = await asyncpg_connection(connection)
            last_key = await database.fetchval(last_key_query, after_key, *filters.values())
            if last_key is None and not is_first:
                return
            values = (after_key, last_key or 0, *filters.values(), *constants)
            part = await _copy(database, rows_query, values, layout, is_first=is_first)
        yield part
        after_key, is_first = last_key, False


async def _copy(
    database: asyncpg.Connection,
    query: str,
    values: Iterable[object],
    layout: CsvLayout,
    *,
    is_first: bool,
) -> CsvPart:
    """Return the rows of a query with the parameters `values`; the first part has the header."""
    content = bytearray()
    if is_first:
        content += (codecs.BOM_UTF8 if layout.has_mark else b"") + (layout.header or b"")

    async def append(part: bytes) -> None:
        content.extend(part)

    command_tag = await database.copy_from_query(
        query,
        *values,
        output=append,
        format="csv",
        header=is_first and layout.header is None,
        delimiter=layout.delimiter,
    )
    return CsvPart(bytes(content), affected_rows(command_tag))
