"""Export of a table as CSV in chunks by key. No connection is occupied while a reader is slow."""

from collections.abc import AsyncGenerator, Iterable, Mapping
from typing import NamedTuple

from sqlalchemy.ext.asyncio import AsyncEngine

from mailer.db.engine import affected_rows, asyncpg_connection

CHUNK_ROWS = 10_000
"""Rows of a chunk: about a megabyte."""
CHUNK_BOUND = """
    SELECT max({key}) FROM (
        SELECT {key} FROM {table} WHERE {key} > $1 AND {where}
        ORDER BY {key} LIMIT {chunk}) AS chunk"""
CHUNK_QUERY = """
    SELECT {columns} FROM {table} WHERE {key} > $1 AND {key} <= $2 AND {where} ORDER BY {key}"""


class CsvPart(NamedTuple):
    """Some rows as CSV in UTF-8, lines ended by LF; the first part begins with a header."""

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
        """Fill in a template; the columns `filters` equal parameters from `first_parameter` on."""
        conditions = (f"{name} = ${n}" for n, name in enumerate(filters, first_parameter))
        where = " AND ".join([self.where, *conditions])
        return template.format(**self._asdict() | {"where": where, "chunk": CHUNK_ROWS})


async def copy_in_chunks(
    engine: AsyncEngine, source: CsvSource, filters: Mapping[str, str | int]
) -> AsyncGenerator[CsvPart, None]:
    """Yield the rows of a source whose columns equal `filters`.

    Each chunk is consistent in itself; rows may change between chunks. No transaction is open
    between chunks, so a slow reader does not keep vacuum from cleaning.
    """
    bound = source.build_query(CHUNK_BOUND, first_parameter=2, filters=filters)
    rows = source.build_query(CHUNK_QUERY, first_parameter=3, filters=filters)
    after: int | None = 0
    is_first = True
    while after is not None:
        async with engine.connect() as connection:
            database = await asyncpg_connection(connection)
            upper = await database.fetchval(bound, after, *filters.values())
            if upper is None and not is_first:
                return
            content = bytearray()

            async def append(part: bytes, content: bytearray = content) -> None:
                content.extend(part)

            values = (after, upper or 0, *filters.values())
            status = await database.copy_from_query(
                rows, *values, output=append, format="csv", header=is_first
            )
        yield CsvPart(bytes(content), affected_rows(status))
        after, is_first = upper, False
