"""Reading a table as CSV in chunks by key: no connection is held while a reader takes its time."""

from collections.abc import AsyncGenerator, Iterable, Mapping
from typing import NamedTuple

from sqlalchemy.ext.asyncio import AsyncEngine

from mailer.db.engine import raw

CHUNK = 10_000
"""Rows that are read at once: about a megabyte."""
BOUND = """
    SELECT max({key}) FROM (
        SELECT {key} FROM {table} WHERE {key} > $1 AND {where}
        ORDER BY {key} LIMIT {chunk}) AS chunk"""
ROWS = """
    SELECT {columns} FROM {table} WHERE {key} > $1 AND {key} <= $2 AND {where} ORDER BY {key}"""


class CsvPart(NamedTuple):
    """Some rows as CSV in UTF-8 with LF; the first part begins with a header."""

    content: bytes
    rows: int


class Source(NamedTuple):
    """What is read, in SQL: `columns` of the rows of `table` that meet `where`, by their `key`.

    The key is a positive number that is unique among them.
    """

    table: str
    key: str
    columns: str
    where: str

    def statement(self, template: str, *, values: int, equal: Iterable[str]) -> str:
        """Return a statement over what equals the parameters that follow the first `values`."""
        conditions = (f"{name} = ${place}" for place, name in enumerate(equal, values + 1))
        where = " AND ".join([self.where, *conditions])
        return template.format(**self._asdict() | {"where": where, "chunk": CHUNK})


async def copy_in_chunks(
    engine: AsyncEngine, source: Source, equal: Mapping[str, str | int]
) -> AsyncGenerator[CsvPart, None]:
    """Give the rows of a source whose columns equal what is given.

    Each chunk is as it was at one moment. What is read keeps vacuum from nothing meanwhile, however
    slowly it is taken.
    """
    bound = source.statement(BOUND, values=1, equal=equal)
    rows = source.statement(ROWS, values=2, equal=equal)
    after: int | None = 0
    is_first = True
    while after is not None:
        async with engine.connect() as connection:
            database = await raw(connection)
            upper = await database.fetchval(bound, after, *equal.values())
            if upper is None and not is_first:
                return
            content = bytearray()

            async def take(part: bytes, content: bytearray = content) -> None:
                content.extend(part)

            values = (after, upper or 0, *equal.values())
            status = await database.copy_from_query(
                rows, *values, output=take, format="csv", header=is_first
            )
        yield CsvPart(bytes(content), int(status.rpartition(" ")[2]))
        after, is_first = upper, False
