"""Receipts are applied to messages and counts, whenever they come."""

import asyncio
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from msgspec.structs import replace
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine
from tests.event_timeout import EVENT_TIMEOUT, let_run
from tests.factories import (
    GATEWAY,
    LEASE,
    OWNER,
    ROUTE,
    add_due_messages,
    advance,
    do,
    execute,
    mailing_counts,
    state,
    value,
)

from mailer import metrics
from mailer.db.engine import asyncpg_connection
from mailer.gateway.callback import CallbackContent, Receipt, ReceiptStatus, Reply
from mailer.mailing import purging
from mailer.mailing.finishing import finish
from mailer.message import recovery, store
from mailer.message.model import ClaimedMessage, MessageResult
from mailer.receipt import inbox as inbox_module
from mailer.receipt.inbox import Inbox, InboxFullError
from mailer.receipt.store import (
    AppliedReceipts,
    ReceivedReceipt,
    apply_early_receipts,
    apply_receipts,
    give_up_waiting,
)
from mailer.reply.rules import ReplyRules
from mailer.settings import Settings
from mailer.statistics.verify import find_differences

DAY = timedelta(days=1)


async def claim_all(engine: AsyncEngine, mailing_id: int) -> list[ClaimedMessage]:
    """Claim all messages of a mailing."""
    source = store.ClaimSource(ROUTE, {mailing_id: store.FIRST_CURSOR}, {mailing_id: 1_000})
    async with engine.connect() as pooled:
        connection = await asyncpg_connection(pooled)
        return await store.claim(connection, source, store.ClaimTarget(OWNER, LEASE, GATEWAY))


async def record(engine: AsyncEngine, *results: MessageResult) -> None:
    """Record results; all must be stored."""
    async with engine.connect() as pooled:
        connection = await asyncpg_connection(pooled)
        assert len(await store.record_results(connection, OWNER, results)) == len(results)


def accepted(claim: ClaimedMessage, *, uses_gateway_id: bool = False) -> MessageResult:
    """Return the result of a message whose receipt is awaited."""
    return MessageResult(
        claim,
        "sent",
        claim.attempts,
        sent_at=datetime.now(UTC),
        gateway_message_id=f"m{claim.id}",
        parts=1,
        uses_gateway_id=uses_gateway_id,
    )


def timed_out(claim: ClaimedMessage, status: str = "scheduled") -> MessageResult:
    """Return the result of an attempt whose answer did not come."""
    result = MessageResult(claim, "unknown", claim.attempts, "timeout")
    result = replace(result, last_failure="timeout", unknown_reason="timeout")
    return result if status == "unknown" else replace(result, status="scheduled")


async def add_sent(engine: AsyncEngine, count: int = 1) -> tuple[int, list[int]]:
    """Create a running mailing whose messages await receipts; return its id and theirs."""
    mailing_id = await add_due_messages(engine, count)
    claims = await claim_all(engine, mailing_id)
    await record(engine, *map(accepted, claims))
    return mailing_id, [claim.id for claim in claims]


async def receive(
    engine: AsyncEngine, *receipts: Receipt, gateway: str = GATEWAY
) -> AppliedReceipts:
    """Apply receipts in one transaction."""
    now = datetime.now(UTC)
    received = [ReceivedReceipt(gateway, receipt, now) for receipt in receipts]
    return await do(engine, lambda connection: apply_receipts(connection, received))


async def settle(engine: AsyncEngine, mailing_id: int) -> None:
    """Finish a mailing all of whose messages have an outcome, and settle it if they are final."""
    await advance(engine)
    await advance(engine)
    assert await value(engine, f"SELECT status FROM mailing WHERE id = {mailing_id}") == "finished"  # noqa: S608  # an id


async def is_settled(engine: AsyncEngine, mailing_id: int) -> bool:
    return bool(await value(engine, f"SELECT is_settled FROM mailing WHERE id = {mailing_id}"))  # noqa: S608  # an id


async def assert_counts_agree(engine: AsyncEngine) -> None:
    assert await find_differences(engine) == []


@pytest.mark.parametrize(
    ("status", "expected"),
    [
        ("delivered", ("delivered", None, 1)),
        ("failed", ("undelivered", "not_delivered_7", 1)),
        ("sent", ("sent", None, 1)),
    ],
)
async def test_receipt_decides_the_outcome_of_an_accepted_message(
    engine: AsyncEngine, status: ReceiptStatus, expected: tuple[str, str | None, int]
) -> None:
    mailing_id, [message_id] = await add_sent(engine)
    assert await receive(engine, Receipt(status, message_id, code="7")) == AppliedReceipts(1)
    assert await state(engine, message_id) == expected
    counts = await mailing_counts(engine, mailing_id)
    assert counts[expected[0]] == 1
    await assert_counts_agree(engine)


async def test_mailing_finishes_when_all_is_accepted_and_is_settled_when_all_is_delivered(
    engine: AsyncEngine,
) -> None:
    mailing_id, ids = await add_sent(engine, 3)
    await settle(engine, mailing_id)
    assert not await is_settled(engine, mailing_id)
    await receive(engine, *(Receipt("delivered", id_) for id_ in ids))
    await advance(engine)
    assert await is_settled(engine, mailing_id)
    await assert_counts_agree(engine)


async def test_late_receipt_changes_the_counts_of_a_settled_mailing(engine: AsyncEngine) -> None:
    mailing_id, [message_id] = await add_sent(engine)
    await receive(engine, Receipt("failed", message_id))
    await settle(engine, mailing_id)
    assert await is_settled(engine, mailing_id)
    await assert_counts_agree(engine)

    await receive(engine, Receipt("delivered", message_id))
    await assert_counts_agree(engine)
    await advance(engine)
    assert await is_settled(engine, mailing_id)
    assert (await mailing_counts(engine, mailing_id))["delivered"] == 1
    await assert_counts_agree(engine)


async def test_mailing_that_was_settled_too_early_is_settled_again(engine: AsyncEngine) -> None:
    """A receipt that ends an unknown delivery may come in the moment in which it is settled."""
    mailing_id, [message_id] = await add_sent(engine)
    await settle(engine, mailing_id)
    await execute(engine, "UPDATE mailing SET is_settled = true")

    await receive(engine, Receipt("delivered", message_id))
    assert not await is_settled(engine, mailing_id)
    await advance(engine)
    assert await is_settled(engine, mailing_id)
    await assert_counts_agree(engine)


async def test_message_without_a_receipt_in_time_stays_sent_and_is_final(
    engine: AsyncEngine,
) -> None:
    mailing_id, [message_id, delivered_id] = await add_sent(engine, 2)
    await receive(engine, Receipt("delivered", delivered_id))
    await settle(engine, mailing_id)

    assert await do(engine, lambda connection: give_up_waiting(connection, DAY, 10)) == 0
    nothing = timedelta(0)
    assert await do(engine, lambda connection: give_up_waiting(connection, nothing, 10)) == 1
    assert await state(engine, message_id) == ("sent", "no_receipt", 1)
    await advance(engine)
    assert await is_settled(engine, mailing_id)
    await assert_counts_agree(engine)

    await receive(engine, Receipt("delivered", message_id))  # years late
    assert await state(engine, message_id) == ("delivered", None, 1)
    await assert_counts_agree(engine)


async def test_late_receipt_counts_if_the_mailing_is_being_settled(engine: AsyncEngine) -> None:
    mailing_id, [message_id] = await add_sent(engine)
    await receive(engine, Receipt("failed", message_id))
    async with engine.connect() as connection:
        assert [mailing.id for mailing in await finish(connection)] == [mailing_id]
        receiving = asyncio.create_task(receive(engine, Receipt("delivered", message_id)))
        await let_run(receiving)
        await connection.commit()
    await receiving
    assert await state(engine, message_id) == ("delivered", None, 1)
    await assert_counts_agree(engine)


@pytest.mark.parametrize("is_unknown", [False, True])
async def test_receipt_before_the_answer_counts_once_the_answer_is_recorded(
    engine: AsyncEngine, *, is_unknown: bool
) -> None:
    mailing_id = await add_due_messages(engine, 1)
    [claim] = await claim_all(engine, mailing_id)
    await receive(engine, Receipt("delivered", claim.id))
    assert (await state(engine, claim.id))[0] == "sending"
    await record(engine, timed_out(claim) if is_unknown else accepted(claim))
    assert await state(engine, claim.id) == ("delivered", None, 1)
    await assert_counts_agree(engine)


async def test_message_is_sent_at_the_attempt_that_a_receipt_proves(engine: AsyncEngine) -> None:
    """Else a receipt would be awaited for too short a time: the attempt before may be long ago."""
    mailing_id = await add_due_messages(engine, 1)
    [first] = await claim_all(engine, mailing_id)
    failure = MessageResult(first, "scheduled", 1, "http_503", last_failure="http_503")
    await record(engine, failure)
    await execute(engine, "UPDATE message SET claimed_at = now() - interval '1 day'")
    [claim] = await claim_all(engine, mailing_id)
    await receive(engine, Receipt("sent", claim.id))
    await record(engine, timed_out(claim))
    age = "SELECT extract(epoch FROM now() - sent_at) < 3600 FROM message WHERE status = 'sent'"
    assert await value(engine, age) is True


async def test_id_of_another_gateway_is_forgotten_when_one_without_ids_accepts(
    engine: AsyncEngine,
) -> None:
    mailing_id, [message_id] = await add_sent(engine)
    await receive(engine, Receipt("failed", message_id))
    await execute(engine, "UPDATE message SET status = 'scheduled', reason = NULL, sent_at = NULL")
    [claim] = await claim_all(engine, mailing_id)
    await record(engine, replace(accepted(claim), gateway_message_id=None))
    assert await value(engine, "SELECT gateway_message_id FROM message") is None


async def test_failure_before_the_answer_ends_the_message_once_it_is_recorded(
    engine: AsyncEngine,
) -> None:
    mailing_id = await add_due_messages(engine, 1)
    [claim] = await claim_all(engine, mailing_id)
    await receive(engine, Receipt("expired", claim.id))
    await record(engine, accepted(claim))
    assert await state(engine, claim.id) == ("undelivered", "validity_expired", 1)
    await assert_counts_agree(engine)


@pytest.mark.parametrize("status", ["scheduled", "unknown"])
async def test_receipt_resolves_an_unknown_delivery(engine: AsyncEngine, status: str) -> None:
    mailing_id = await add_due_messages(engine, 1)
    [claim] = await claim_all(engine, mailing_id)
    await record(engine, timed_out(claim, status))
    await receive(engine, Receipt("sent", claim.id))
    assert await state(engine, claim.id) == ("sent", None, 1)
    await receive(engine, Receipt("delivered", claim.id))
    assert await state(engine, claim.id) == ("delivered", None, 1)
    assert await claim_all(engine, mailing_id) == []
    await assert_counts_agree(engine)


async def test_receipt_counts_although_the_worker_has_died(engine: AsyncEngine) -> None:
    mailing_id = await add_due_messages(engine, 1)
    [claim] = await claim_all(engine, mailing_id)
    await receive(engine, Receipt("delivered", claim.id))
    await execute(engine, "UPDATE message SET lease_expires_at = now() - interval '1 second'")
    assert await do(engine, lambda connection: recovery.rescue(connection, 8, 10)) == 1
    assert await state(engine, claim.id) == ("delivered", None, 1)
    await assert_counts_agree(engine)


async def test_receipt_counts_although_the_claim_is_released(engine: AsyncEngine) -> None:
    mailing_id = await add_due_messages(engine, 1)
    [claim] = await claim_all(engine, mailing_id)
    await receive(engine, Receipt("delivered", claim.id))
    async with engine.connect() as pooled:
        connection = await asyncpg_connection(pooled)
        assert await recovery.release_orphaned(connection, OWNER, []) == 1
    assert (await state(engine, claim.id))[0] == "delivered"
    await assert_counts_agree(engine)


async def test_receipt_with_the_gateways_id_alone_finds_its_message(engine: AsyncEngine) -> None:
    mailing_id = await add_due_messages(engine, 1)
    [claim] = await claim_all(engine, mailing_id)
    receipt = Receipt("delivered", gateway_message_id=f"m{claim.id}")
    assert await receive(engine, receipt) == AppliedReceipts(early=1)
    run = 0

    async def retry(connection: AsyncConnection) -> AppliedReceipts:
        return await apply_early_receipts(connection, run)

    assert await do(engine, retry) == AppliedReceipts()
    await record(engine, accepted(claim, uses_gateway_id=True))
    assert await do(engine, retry) == AppliedReceipts(1)
    assert (await state(engine, claim.id))[0] == "delivered"
    assert await value(engine, "SELECT count(*) FROM early_receipt") == 0
    other_gateways = await receive(engine, replace(receipt, status="failed"), gateway="other")
    assert other_gateways == AppliedReceipts(early=1)


async def test_receipts_of_parts_wait_for_the_answer(engine: AsyncEngine) -> None:
    mailing_id = await add_due_messages(engine, 1)
    [claim] = await claim_all(engine, mailing_id)
    parts = [Receipt("delivered", claim.id, part=part) for part in ("a", "b")]
    assert await receive(engine, *parts) == AppliedReceipts(early=2)
    await record(engine, replace(accepted(claim), parts=2))
    applied = await do(engine, lambda connection: apply_early_receipts(connection, 1))
    assert applied == AppliedReceipts(2)
    assert (await state(engine, claim.id))[0] == "delivered"


async def test_receipt_of_an_unknown_id_is_deleted_after_some_minutes(engine: AsyncEngine) -> None:
    assert await receive(engine, Receipt("delivered", 987_654_321)) == AppliedReceipts(ignored=1)
    await receive(engine, Receipt("delivered", gateway_message_id="never sent"))
    await execute(engine, "UPDATE early_receipt SET received_at = now() - interval '1 hour'")
    [old_id] = [await value(engine, "SELECT id FROM early_receipt")]
    applied = await do(engine, lambda connection: apply_early_receipts(connection, old_id))
    assert applied == AppliedReceipts(ignored=1)
    assert await value(engine, "SELECT count(*) FROM early_receipt") == 0


@pytest.mark.parametrize("change", ["deleted_at = now()", "purge_started_at = now()"])
async def test_receipt_for_a_mailing_that_is_being_deleted_is_ignored(
    engine: AsyncEngine, change: str
) -> None:
    _, [message_id] = await add_sent(engine)
    await execute(engine, f"UPDATE mailing SET {change}")  # noqa: S608  # a change above
    assert await receive(engine, Receipt("delivered", message_id)) == AppliedReceipts(ignored=1)
    assert (await state(engine, message_id))[0] == "sent"


async def test_receipt_for_a_deleted_message_is_ignored(engine: AsyncEngine) -> None:
    _, [message_id] = await add_sent(engine)
    await execute(engine, "UPDATE mailing SET deleted_at = now()")
    await do(engine, lambda connection: purging.purge(connection, 10))
    assert await receive(engine, Receipt("delivered", message_id)) == AppliedReceipts(ignored=1)
    await assert_counts_agree(engine)


async def test_receipt_does_not_change_the_lease_of_a_message_that_is_being_sent(
    engine: AsyncEngine,
) -> None:
    mailing_id = await add_due_messages(engine, 1)
    [claim] = await claim_all(engine, mailing_id)
    before = await value(engine, "SELECT updated_at FROM message")
    await receive(engine, Receipt("sent", claim.id), Receipt("unknown", claim.id))
    assert await value(engine, "SELECT updated_at FROM message") == before
    await record(engine, accepted(claim))
    assert await state(engine, claim.id) == ("sent", None, 1)


async def test_history_of_a_message_has_each_receipt_once(engine: AsyncEngine) -> None:
    _, [message_id] = await add_sent(engine)
    for status in ("sent", "sent", "delivered", "failed", "delivered"):
        await receive(engine, Receipt(status, message_id, code="7"))
    stored = await value(engine, "SELECT receipts FROM message")
    assert [receipt["status"] for receipt in stored] == ["sent", "delivered", "failed"]
    assert {receipt["gateway"] for receipt in stored} == {GATEWAY}


# ---- the inbox ------------------------------------------------------------------------------


def content(*receipts: Receipt) -> CallbackContent:
    return CallbackContent(list(receipts), [])


async def test_calls_at_the_same_time_are_stored_by_few_transactions(engine: AsyncEngine) -> None:
    _, ids = await add_sent(engine, 300)
    inbox = Inbox(engine, ReplyRules.of(Settings()))
    before = await value(engine, "SELECT pg_current_xact_id()::text::bigint")
    calls = [inbox.store(GATEWAY, content(Receipt("delivered", id_))) for id_ in ids]
    await asyncio.gather(*calls)
    transactions = await value(engine, "SELECT pg_current_xact_id()::text::bigint") - before
    assert transactions < 30  # the background jobs of the database have some too
    assert await value(engine, "SELECT count(*) FROM message WHERE status = 'delivered'") == 300


async def test_call_that_comes_when_the_writers_end_is_stored(engine: AsyncEngine) -> None:
    class CountingInbox(Inbox):
        async def _write(self, batch: list[Any]) -> None:
            for item in batch:
                item.stored.set_result(None)

    inbox = CountingInbox(engine, ReplyRules.of(Settings()))

    async def call_again_and_again() -> None:
        for _ in range(200):
            async with asyncio.timeout(EVENT_TIMEOUT):
                await inbox.store(GATEWAY, content(Receipt("delivered", 1)))

    # each of these stores its next receipt in the step of the event loop in which a writer ends
    await asyncio.gather(*(call_again_and_again() for _ in range(3)))


async def test_call_that_cannot_be_stored_affects_no_other(engine: AsyncEngine) -> None:
    _, [message_id, other_id] = await add_sent(engine, 2)
    inbox = Inbox(engine, ReplyRules.of(Settings()))
    bad = Receipt("failed", other_id, code="\x00")  # PostgreSQL cannot store NUL
    results = await asyncio.gather(
        inbox.store(GATEWAY, content(Receipt("delivered", message_id))),
        inbox.store(GATEWAY, content(bad)),
        return_exceptions=True,
    )
    assert results[0] is None
    assert isinstance(results[1], Exception)
    assert (await state(engine, message_id))[0] == "delivered"
    assert (await state(engine, other_id))[0] == "sent"


async def test_stored_replies_are_counted(engine: AsyncEngine) -> None:
    labels = {"gateway": GATEWAY}
    before = metrics.REGISTRY.get_sample_value("mailer_replies_total", labels) or 0.0
    inbox = Inbox(engine, ReplyRules.of(Settings()))
    await inbox.store(GATEWAY, CallbackContent([], [Reply("79990000000", "When?")]))
    assert metrics.REGISTRY.get_sample_value("mailer_replies_total", labels) == before + 1


async def test_full_inbox_refuses_calls(
    engine: AsyncEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inbox_module, "MAX_INBOX_ITEMS", 2)
    inbox = Inbox(engine, ReplyRules.of(Settings()))
    receipt = content(Receipt("delivered", 1))
    results = await asyncio.gather(
        *(inbox.store(GATEWAY, receipt) for _ in range(3)), return_exceptions=True
    )
    assert [type(result) for result in results] == [type(None), type(None), InboxFullError]
