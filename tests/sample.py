"""Clients, mailings and messages as tests want them, straight into the database."""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from mailer.mailing import store

NOON = datetime(2020, 1, 15, 12, tzinfo=UTC)

ADD_CLIENT = text("""
    INSERT INTO client (phone, operator_code, time_zone)
    SELECT '7916' || lpad((count(*) + 1)::text, 7, '0'), :operator_code, :time_zone FROM client
    RETURNING id""")
ADD_MESSAGES = text("""
    INSERT INTO message (mailing_id, client_id, due_at, status, reason, sent_at, updated_at)
    SELECT :mailing_id, client_id, :at, :status, :reason, :sent_at, :at
    FROM unnest((:clients)::bigint[]) AS client_id""")
BEGIN = text("""
    UPDATE mailing SET status = :status, audience_until = :until, audience_cursor = :until
    WHERE id = :id""")


async def add_clients(
    engine: AsyncEngine, count: int, operator_code: str = "916", time_zone: str = "UTC"
) -> list[int]:
    """Add clients and return their ids."""
    values = {"operator_code": operator_code, "time_zone": time_zone}
    async with engine.begin() as connection:
        return [(await connection.execute(ADD_CLIENT, values)).scalar_one() for _ in range(count)]


async def add_mailing(
    engine: AsyncEngine,
    *,
    clients: int = 0,
    start: datetime = NOON,
    status: str = "running",
    lasts: timedelta = timedelta(hours=6),
) -> int:
    """Add a mailing and return its id; its audience is taken unless it is scheduled."""
    values: dict[str, Any] = {
        "datetime_start": start,
        "datetime_end": start + lasts,
        "text": "Tonight only, at half price.",
    }
    async with engine.begin() as connection:
        mailing_id = await store.add(connection, values, clients)
        if status != "scheduled":
            begun = {"id": mailing_id, "status": status, "until": 1_000_000}
            await connection.execute(BEGIN, begun)
    return mailing_id


async def add_messages(  # noqa: PLR0913, PLR0917  # a message in one line of a test
    engine: AsyncEngine,
    mailing_id: int,
    clients: Sequence[int],
    status: str,
    reason: str | None = None,
    at: datetime = NOON,
) -> None:
    """Add messages that came to `status` at a moment; the ledger follows by itself."""
    values = {
        "mailing_id": mailing_id,
        "clients": list(clients),
        "at": at,
        "status": status,
        "reason": reason,
        "sent_at": at if status == "delivered" else None,
    }
    async with engine.begin() as connection:
        await connection.execute(ADD_MESSAGES, values)
