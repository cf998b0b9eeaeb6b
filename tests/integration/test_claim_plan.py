"""The plans of the statements of the hot loop."""

import asyncio
import re

from sqlalchemy.ext.asyncio import AsyncEngine
from tests.factories import GATEWAY, LEASE, OWNER, ROUTE, add_due_messages, execute

from mailer.db.engine import MAX_PLAN_AGE, DedicatedConnection, asyncpg_connection
from mailer.message.store import CLAIM_DUE, FIRST_CURSOR, RECORD_RESULTS


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


async def test_plan_for_a_small_table_is_not_used_long_after_the_table_has_grown(
    engine: AsyncEngine, shared_database_url: str
) -> None:
    """The settings of these connections keep plans; `DedicatedConnection` discards them."""
    dedicated = DedicatedConnection(shared_database_url)
    try:
        connection = await dedicated.get()
        await connection.execute(f"PREPARE record AS {RECORD_RESULTS}")
        values = ", ".join(["NULL"] * len(set(re.findall(r"\$\d+", RECORD_RESULTS))))
        explain = f"EXPLAIN EXECUTE record({values})"
        reads_by_id = "Index Cond: (id = result.id)"
        for_small = "\n".join(row[0] for row in await connection.fetch(explain))
        assert reads_by_id not in for_small  # else this test shows nothing

        await add_due_messages(engine, 5_000)
        await asyncio.sleep(MAX_PLAN_AGE)
        connection = await dedicated.get()
        for_large = "\n".join(row[0] for row in await connection.fetch(explain))
        assert reads_by_id in for_large
    finally:
        dedicated.close()
