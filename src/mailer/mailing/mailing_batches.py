"""Lock a batch of mailings for one step of their lifecycle, fairly between new and old ones."""

from collections.abc import Sequence
from typing import Any

from sqlalchemy import (
    Row,
    TextClause,
)
from sqlalchemy.ext.asyncio import AsyncConnection

from mailer.mailing.skipped import SkippedMailings

MAILINGS_PER_BATCH = 25
"""Mailings that one transaction starts, enqueues or finishes.

A mailing that is due now waits for at most one such batch of each kind, however many others there
are."""
NEWEST_PER_BATCH = 5
"""Newest mailings of a batch, which come first; the others are those that wait longest."""


async def lock_mailings(
    connection: AsyncConnection,
    statements: Sequence[TextClause],
    limit: int,
    skipped: SkippedMailings,
) -> list[Row[Any]]:
    """Lock up to `limit` mailings; return their rows.

    The two `statements` select mailings by newest first and by longest waiting first. The first one
    selects `NEWEST_PER_BATCH` mailings, the second one the rest. Each has the parameters `limit`
    and `skipped`, the ids to leave out.
    """
    rows: list[Row[Any]] = []
    for statement, number in zip(statements, (NEWEST_PER_BATCH, limit), strict=True):
        parameters = {
            "limit": min(number, limit - len(rows)),
            "skipped": [*skipped, *(row.id for row in rows)],
        }
        rows += await connection.execute(statement, parameters)
        if len(rows) < NEWEST_PER_BATCH:
            break
    return rows
