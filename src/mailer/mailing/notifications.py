"""Notify all workers that mailings have changed."""

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

CHANNEL = "mailing"
"""Name of the PostgreSQL notification channel."""


async def notify_mailings_changed(connection: AsyncConnection) -> None:
    """Notify all workers that a mailing has changed; PostgreSQL delivers it after the commit."""
    await connection.execute(text("SELECT pg_notify(:channel, '')"), {"channel": CHANNEL})
