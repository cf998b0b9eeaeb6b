"""The directory as a CSV file that an import takes back."""

from collections.abc import Callable, Coroutine
from typing import Any

from sqlalchemy.ext.asyncio import AsyncEngine

from mailer.db.engine import raw

# COPY quotes what needs it and leaves values as they are, also those that a spreadsheet would take
# for a formula: an export that is imported changes nothing. Null is empty, and no tag is.
LIVING = """
    SELECT phone, operator_code, tag, time_zone FROM client
    WHERE deleted_at IS NULL ORDER BY id"""
LONGEST = 3600.0
"""Seconds that an export may take."""
COUNT = "SELECT count(*) FROM client WHERE deleted_at IS NULL"


async def export_clients(
    engine: AsyncEngine,
    write: Callable[[bytes], Coroutine[Any, Any, None]],
    *,
    on_count: Callable[[int], None] = lambda _: None,
) -> int:
    """Give `write` the living clients, oldest first, as CSV in UTF-8; return how many they were.

    They come in parts of any size, with a header and LF, as they were at one moment; slowly if
    `write` is slow. `on_count` is told beforehand how many there are about to be.
    """
    async with engine.connect() as connection:
        database = await raw(connection)
        on_count(await database.fetchval(COUNT, timeout=LONGEST))
        status = await database.copy_from_query(
            LIVING, output=write, format="csv", header=True, timeout=LONGEST
        )
    return int(status.rpartition(" ")[2])
