"""Export of a table as CSV, in chunks of rows.

Between two chunks no connection and no transaction is open, so that a slow reader of the CSV
occupies no connection and does not keep vacuum from removing old row versions.
"""

from collections.abc import AsyncGenerator, Iterable, Mapping
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

    def build_query(self, template: str, *, first_parameter: int, filters: Iterable[str]) -> str:
        """Return the SQL of `template` for this source.

        `filters` are names of columns. The first of them must equal the parameter of the number
        `first_parameter`, the second the next one, and so on.
        """
        conditions = (
            f"{column} = ${number}" for number, column in enumerate(filters, first_parameter)
        )
        where = " AND ".join([self.where, *conditions])
        return template.format(**self._asdict() | {"where": where, "chunk": CHUNK_ROWS})


async def copy_in_chunks(
    engine: AsyncEngine, source: CsvSource, filters: Mapping[str, str | int]
) -> AsyncGenerator[CsvPart, None]:
    """Yield the rows of a source whose columns equal the values in `filters`, by column.

    Without rows, yields one part with the header alone. Each chunk is consistent in itself; rows
    may change between chunks.
    """
    last_key_query = source.build_query(LAST_KEY_OF_CHUNK, first_parameter=2, filters=filters)
    rows_query = source.build_query(ROWS_OF_CHUNK, first_parameter=3, filters=filters)
    after_key: int | None = 0
    is_first = True
    while after_key is not None:
        async with engine.connect() as connection:
            database = await asyncpg_connection(connection)
            last_key = await database.fetchval(last_key_query, after_key, *filters.values())
            if last_key is None and not is_first:
                return
            values = (after_key, last_key or 0, *filters.values())
            part = await _copy(database, rows_query, values, has_header=is_first)
        yield part
        after_key, is_first = last_key, False


async def _copy(
    database: asyncpg.Connection, query: str, values: Iterable[str | int], *, has_header: bool
) -> CsvPart:
    """Return the rows of a query with the parameters `values`."""
    content = bytearray()

    async def append(part: bytes) -> None:
        content.extend(part)

    command_tag = await database.copy_from_query(
        query, *values, output=append, format="csv", header=has_header
    )
    return CsvPart(bytes(content), affected_rows(command_tag))
