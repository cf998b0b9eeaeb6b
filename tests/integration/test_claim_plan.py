"""The plan of the statement that claims messages."""

from sqlalchemy.ext.asyncio import AsyncEngine
from tests.factories import GATEWAY, LEASE, OWNER, ROUTE, add_due_messages, execute

from mailer.db.engine import asyncpg_connection
from mailer.message.store import CLAIM_DUE, FIRST_CURSOR


async def test_a_claim_with_unequal_shares_scans_neither_clients_nor_messages(
    engine: AsyncEngine,
) -> None:
    mailing_ids = [await add_due_messages(engine, 5_000) for _ in range(3)]
    await execute(engine, "ANALYZE")
    due_at, message_id = FIRST_CURSOR
    async with engine.connect() as pooled:
        connection = await asyncpg_connection(pooled)
        transaction = connection.transaction()
        await transaction.start()
        plan = await connection.fetch(
            f"EXPLAIN {CLAIM_DUE}",
            mailing_ids,
            [10, 1, 5],
            OWNER,
            LEASE,
            [due_at] * 3,
            [message_id] * 3,
            ROUTE,
            GATEWAY,
            10,
        )
        await transaction.rollback()
    lines = "\n".join(row[0] for row in plan)
    assert "Seq Scan on client" not in lines
    assert "Seq Scan on message" not in lines
