"""A mailing's messages as a CSV file."""

from collections.abc import Callable, Coroutine
from typing import Any

from sqlalchemy.ext.asyncio import AsyncEngine

from mailer.db.engine import raw

MOMENT = """to_char({} AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"')"""
SHOWN = ", ".join(
    (
        *("id", "mailing_id", "client_id", "status", "reason", "last_failure", "attempts"),
        f"{MOMENT.format('coalesce(sent_at, due_at)')} AS datetime_send",
        f"{MOMENT.format('created_at')} AS created_at",
        f"{MOMENT.format('updated_at')} AS updated_at",
    )
)
LONGEST = 3600.0
"""Seconds that an export may take."""


async def export_messages(
    engine: AsyncEngine,
    write: Callable[[bytes], Coroutine[Any, Any, None]],
    mailing_id: int,
    **equal: str | int,
) -> None:
    """Give `write` a mailing's messages whose columns equal what is given, as CSV in UTF-8.

    They come in no order, in parts of any size, with a header and LF, as they were at one moment;
    slowly if `write` is slow.
    """
    conditions = (f"AND {name} = ${place}" for place, name in enumerate(equal, 2))
    query = f"SELECT {SHOWN} FROM message WHERE mailing_id = $1 {' '.join(conditions)}"  # noqa: S608  # the names are columns
    async with engine.connect() as connection:
        database = await raw(connection)
        await database.copy_from_query(
            query,
            mailing_id,
            *equal.values(),
            output=write,
            format="csv",
            header=True,
            timeout=LONGEST,
        )
