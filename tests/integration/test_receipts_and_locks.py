"""Receipts and replies while other transactions change the same rows."""

import asyncio

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine
from tests.factories import (
    GATEWAY,
    LEASE,
    OWNER,
    ROUTE,
    add_due_messages,
    execute,
    value,
)
from tests.integration.test_receipts import (
    accepted,
    add_sent,
    assert_counts_agree,
    receive,
    record,
)

from mailer.db.engine import asyncpg_connection
from mailer.gateway.callback import CallbackContent, Receipt, Reply
from mailer.mailing import finishing
from mailer.message import store
from mailer.receipt.inbox import Inbox
from mailer.reply.rules import ReplyRules
from mailer.settings import Settings

COUNT_BLOCKED = """
    SELECT count(*) FROM pg_stat_activity
    WHERE datname = current_database() AND cardinality(pg_blocking_pids(pid)) > 0"""
LOCK_MESSAGE = text("SELECT FROM message WHERE id = :id FOR UPDATE")
CLAIM_MESSAGE = text("""
    UPDATE message SET status = 'sending', attempts = 1, lease_owner = :owner,
        lease_expires_at = now() WHERE id = :id""")


async def wait_until_blocked(engine: AsyncEngine) -> None:
    """Wait until a transaction waits for a lock of another one."""
    async with asyncio.timeout(10):
        while not await value(engine, COUNT_BLOCKED):
            await asyncio.sleep(0.01)


async def test_receipt_that_comes_while_its_mailing_is_settled_is_in_the_totals(
    engine: AsyncEngine,
) -> None:
    mailing_id, (message_id,) = await add_sent(engine)
    await receive(engine, Receipt("failed", message_id))
    await execute(engine, "UPDATE mailing SET is_closed = true, status = 'finished'")
    async with engine.connect() as connection:
        await connection.begin()
        finished = await finishing.finish(connection, check_ids=[mailing_id])
        assert [each.change for each in finished] == ["settled"]
        receiving = asyncio.create_task(receive(engine, Receipt("delivered", message_id)))
        await wait_until_blocked(engine)
        await connection.commit()
    await receiving
    await assert_counts_agree(engine)


async def test_receipts_and_a_stop_word_of_one_batch_never_deadlock_with_a_claim(
    engine: AsyncEngine,
) -> None:
    """The claim has locked the message that the stop word cancels, and counts it afterwards."""
    mailing_id = await add_due_messages(engine, 2)
    source = store.ClaimSource(ROUTE, {mailing_id: store.FIRST_CURSOR}, {mailing_id: 1})
    async with engine.connect() as pooled:
        connection = await asyncpg_connection(pooled)
        (claim,) = await store.claim(connection, source, store.ClaimTarget(OWNER, LEASE, GATEWAY))
    await record(engine, accepted(claim))
    waiting_id = await value(engine, "SELECT id FROM message WHERE status = 'scheduled'")
    phone = await value(
        engine,
        "SELECT phone FROM client JOIN message ON client_id = client.id"
        " WHERE message.status = 'scheduled'",
    )
    inbox = Inbox(engine, ReplyRules.of(Settings()))
    content = CallbackContent([Receipt("delivered", claim.id)], [Reply(phone, "STOP")])
    async with engine.begin() as claiming:
        await claiming.execute(LOCK_MESSAGE, {"id": waiting_id})
        storing = inbox.store(GATEWAY, content)
        await wait_until_blocked(engine)
        await claiming.execute(CLAIM_MESSAGE, {"id": waiting_id, "owner": OWNER})
    await storing
