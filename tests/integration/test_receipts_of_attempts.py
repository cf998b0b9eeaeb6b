"""Receipts of messages that are attempted several times, while the newest attempt is running."""

import pytest
from msgspec.structs import replace
from sqlalchemy.ext.asyncio import AsyncEngine
from tests.factories import add_due_messages, do, execute, state
from tests.integration.test_receipts import (
    accepted,
    add_sent,
    assert_counts_agree,
    claim_all,
    receive,
    record,
)

from mailer.gateway.callback import Receipt
from mailer.message import recovery
from mailer.receipt.store import apply_early_receipts

SCHEDULE_AGAIN = """
    UPDATE message SET status = 'scheduled', reason = NULL, attempts = 0, sent_at = NULL"""
END_LEASES = "UPDATE message SET lease_expires_at = now() - interval '1 second'"


@pytest.mark.parametrize(("failed_id", "expected"), [("first", "sent"), ("second", "undelivered")])
async def test_failure_that_comes_during_a_retry_counts_only_if_it_is_about_the_retry(
    engine: AsyncEngine, failed_id: str, expected: str
) -> None:
    mailing_id, [message_id] = await add_sent(engine)
    await execute(engine, "UPDATE message SET gateway_message_id = 'first'")
    await receive(engine, Receipt("failed", message_id, "first"))
    await execute(engine, SCHEDULE_AGAIN)
    [claim] = await claim_all(engine, mailing_id)
    await receive(engine, Receipt("failed", message_id, failed_id))
    await record(engine, replace(accepted(claim), gateway_message_id="second"))
    await do(engine, lambda connection: apply_early_receipts(connection, 1))
    assert (await state(engine, message_id))[0] == expected
    await assert_counts_agree(engine)


async def test_message_is_not_sent_again_if_its_worker_dies_after_the_receipt_of_a_part(
    engine: AsyncEngine,
) -> None:
    mailing_id = await add_due_messages(engine, 1)
    [claim] = await claim_all(engine, mailing_id)
    await receive(engine, Receipt("delivered", claim.id, part="a"))
    await execute(engine, END_LEASES)
    assert await do(engine, lambda connection: recovery.rescue(connection, 8, 10)) == 1
    assert (await state(engine, claim.id))[0] == "sent"
    assert await claim_all(engine, mailing_id) == []
    await do(engine, lambda connection: apply_early_receipts(connection, 1))
    assert (await state(engine, claim.id))[0] == "delivered"
    await assert_counts_agree(engine)
