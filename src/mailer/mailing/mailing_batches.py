"""Lock a batch of mailings for one step of their life, so that neither new nor old ones starve."""

from typing import Any

from sqlalchemy import Row, TextClause
from sqlalchemy.ext.asyncio import AsyncConnection

from mailer.mailing.skipped import SkippedMailings

MAILINGS_PER_BATCH = 25
"""Mailings that one transaction starts, enqueues or finishes.

A mailing that is due now waits for at most one such batch of each kind, however many others there
are."""
NEWEST_PER_BATCH = 5
"""How many of them are the newest ones; the others are those that wait longest."""


async def lock_mailings(
    connection: AsyncConnection,
    *,
    newest: TextClause,
    oldest: TextClause,
    limit: int,
    skipped: SkippedMailings,
) -> list[Row[Any]]:
    """Lock up to `limit` mailings; return their rows: `NEWEST_PER_BATCH` new ones, then old ones.

    The statements `newest` and `oldest` select and lock mailings, in opposite orders. Each has the
    parameters `limit`, and `skipped`, the ids to leave out.
    """
    parameters = {"limit": min(NEWEST_PER_BATCH, limit), "skipped": list(skipped)}
    new_rows = (await connection.execute(newest, parameters)).all()
    if len(new_rows) < NEWEST_PER_BATCH:
        return list(new_rows)  # there are no more, or `limit` is reached
    parameters = {
        "limit": limit - len(new_rows),
        "skipped": [*skipped, *(row.id for row in new_rows)],
    }
    return [*new_rows, *(await connection.execute(oldest, parameters))]
