"""The directory as a CSV file that an import takes back."""

from collections.abc import Callable, Coroutine
from typing import Any

from sqlalchemy.ext.asyncio import AsyncEngine

from mailer.client import directory
from mailer.db.engine import raw

# COPY quotes what needs it and leaves values as they are, also those that a spreadsheet would take
# for a formula: an export that is imported changes nothing. Null is empty, and no tag is.
LIVING = """
    SELECT phone, operator_code, tag, time_zone FROM client
    WHERE deleted_at IS NULL {conditions} ORDER BY id"""
LONGEST = 3600.0
"""Seconds that an export may take."""


async def export_clients(
    engine: AsyncEngine,
    write: Callable[[bytes], Coroutine[Any, Any, None]],
    *,
    on_count: Callable[[int], None] = lambda _: None,
    **equal: str,
) -> int:
    """Give `write` the living clients whose columns equal what is given, as CSV in UTF-8.

    Returns how many they were, oldest first.

    They come in parts of any size, with a header and LF, as they were at one moment; slowly if
    `write` is slow. `on_count` is told beforehand how many there are about to be.
    """
    async with engine.connect() as connection:
        on_count(await directory.count(connection))
    async with engine.connect() as connection:
        database = await raw(connection)
        conditions = " ".join(f"AND {name} = ${place}" for place, name in enumerate(equal, 1))
        query = LIVING.format(conditions=conditions)
        status = await database.copy_from_query(
            *(query, *equal.values()), output=write, format="csv", header=True, timeout=LONGEST
        )
    return int(status.rpartition(" ")[2])
