"""How every process learns that a mailing has changed."""

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

CHANNEL = "mailing"
"""Where PostgreSQL's NOTIFY tells it."""


async def tell(connection: AsyncConnection) -> None:
    """Tell every process, once this transaction is committed, that a mailing has changed."""
    await connection.execute(text("SELECT pg_notify(:channel, '')"), {"channel": CHANNEL})
