"""The history of a message: when it was claimed, and which attempts failed."""

import pytest
from sqlalchemy.ext.asyncio import AsyncEngine
from tests.factories import (
    LEASE,
    NOON,
    OWNER,
    add_due_messages,
    claim,
    do,
    execute,
    finish,
    resend,
    value,
)

from mailer.access.model import COMMAND_LINE
from mailer.db.engine import asyncpg_connection
from mailer.erasure import erase_client
from mailer.mailing import service
from mailer.message import reading, store
from mailer.message.model import (
    ClaimedMessage,
    MessageHistory,
    MessageNotFoundError,
    MessageResult,
)

ID = "SELECT max(id) FROM message"


async def get_history(engine: AsyncEngine) -> MessageHistory:
    """Return the history of the newest message."""
    message_id = await value(engine, ID)
    mailing_id = await value(engine, "SELECT max(mailing_id) FROM message")
    return await do(engine, lambda db: reading.get_history(db, mailing_id, message_id))


async def claim_one(engine: AsyncEngine, mailing_id: int) -> ClaimedMessage:
    (claimed,) = await claim(engine, mailing_id)
    return claimed


async def fail_attempt(engine: AsyncEngine, mailing_id: int, reason: str, cost: int = 1) -> None:
    """Fail an attempt; the message waits for the next one."""
    claimed = await claim_one(engine, mailing_id)
    attempts = claimed.attempts - 1 + cost
    result = MessageResult(claimed, "scheduled", attempts, reason, last_failure=reason)
    assert await finish(engine, result) == 1


async def test_a_waiting_message_was_not_claimed(engine: AsyncEngine) -> None:
    mailing_id = await add_due_messages(engine, 1)

    history = await get_history(engine)

    assert (history.mailing_id, history.status, history.due_at) == (mailing_id, "scheduled", NOON)
    assert (history.claimed_at, history.sent_at, history.lease_expires_at) == (None, None, None)
    assert (history.failures, history.attempts, history.datetime_send) == ((), 0, NOON)
    assert (history.phone, history.operator_code, history.time_zone) == (
        "79160000001",
        "916",
        "UTC",
    )


async def test_a_message_being_sent_has_a_claim_time_and_a_lease(engine: AsyncEngine) -> None:
    claimed = await claim_one(engine, await add_due_messages(engine, 1))

    history = await get_history(engine)

    assert history.claimed_at == history.updated_at
    assert history.lease_expires_at == claimed.lease_expires_at


async def test_a_delivered_message_keeps_its_claim_time(engine: AsyncEngine) -> None:
    claimed = await claim_one(engine, await add_due_messages(engine, 1))
    claimed_at = (await get_history(engine)).claimed_at
    await finish(engine, MessageResult(claimed, "delivered", 1, sent_at=NOON))

    history = await get_history(engine)

    assert (history.claimed_at, history.sent_at, history.lease_expires_at) == (
        claimed_at,
        NOON,
        None,
    )
    assert history.updated_at > history.claimed_at  # type: ignore[operator]  # not None here
    assert await value(engine, "SELECT failures FROM message") is None


async def test_releasing_an_untried_message_restores_its_claim_time(engine: AsyncEngine) -> None:
    mailing_id = await add_due_messages(engine, 1)
    claimed = await claim_one(engine, mailing_id)
    await finish(engine, MessageResult(claimed, "scheduled", 0))
    assert (await get_history(engine)).claimed_at is None

    await fail_attempt(engine, mailing_id, "http_503")
    before = await get_history(engine)
    claimed = await claim_one(engine, mailing_id)
    await finish(engine, MessageResult(claimed, "cancelled", 1, "expired"))

    history = await get_history(engine)
    assert (history.claimed_at, history.failures) == (before.claimed_at, before.failures)


async def test_releasing_orphaned_claims_restores_the_history(engine: AsyncEngine) -> None:
    mailing_id = await add_due_messages(engine, 1)
    await fail_attempt(engine, mailing_id, "http_503")
    before = await get_history(engine)
    claimed = await claim_one(engine, mailing_id)
    async with engine.connect() as pooled:
        assert await store.release_orphaned(await asyncpg_connection(pooled), OWNER, []) == 1

    history = await get_history(engine)

    assert claimed.attempts == 2
    assert (history.claimed_at, history.failures) == (before.claimed_at, before.failures)
    assert history.attempts == 1


async def test_every_failed_attempt_is_recorded_with_times_and_reason(
    engine: AsyncEngine,
) -> None:
    mailing_id = await add_due_messages(engine, 1)
    await fail_attempt(engine, mailing_id, "http_503")
    await fail_attempt(engine, mailing_id, "timeout")
    last = await claim_one(engine, mailing_id)
    rejected = MessageResult(last, "undelivered", 3, "rejected_400", last_failure="rejected_400")
    await finish(engine, rejected)

    history = await get_history(engine)

    failures = [(failure.attempt, failure.reason) for failure in history.failures]
    assert failures == [(1, "http_503"), (2, "timeout"), (3, "rejected_400")]
    times = [
        time for failure in history.failures for time in (failure.claimed_at, failure.ended_at)
    ]
    assert times == sorted(set(times))
    assert (history.claimed_at, history.updated_at) == (times[-2], times[-1])


async def test_only_the_newest_twenty_failures_are_kept(engine: AsyncEngine) -> None:
    mailing_id = await add_due_messages(engine, 1)
    for number in range(1, 24):
        await fail_attempt(engine, mailing_id, f"http_{500 + number}")

    failures = (await get_history(engine)).failures

    assert [failure.attempt for failure in failures] == list(range(4, 24))
    assert failures[-1].reason == "http_523"


async def test_a_refunded_failure_stays_in_the_history_and_its_number_is_used_again(
    engine: AsyncEngine,
) -> None:
    mailing_id = await add_due_messages(engine, 1)
    await fail_attempt(engine, mailing_id, "http_503", cost=0)
    await fail_attempt(engine, mailing_id, "http_500")
    async with engine.connect() as pooled:  # as when the breaker opens
        id_ = await value(engine, ID)
        failed = ClaimedMessage(id_, mailing_id, 1, NOON, None, "UTC")
        await store.refund_attempts(await asyncpg_connection(pooled), [failed])
    assert await value(engine, "SELECT attempts FROM message") == 0
    await fail_attempt(engine, mailing_id, "timeout")

    history = await get_history(engine)

    failures = [(failure.attempt, failure.reason) for failure in history.failures]
    assert failures == [(1, "http_503"), (1, "http_500"), (1, "timeout")]
    assert history.attempts == 1


@pytest.mark.parametrize("on_unknown", ["retry", "hold"])
async def test_an_attempt_of_a_dead_worker_fails_with_lease_expired(
    engine: AsyncEngine, on_unknown: str
) -> None:
    mailing_id = await add_due_messages(engine, 1)
    await execute(engine, f"UPDATE mailing SET on_unknown = '{on_unknown}'")  # noqa: S608  # a value above
    await fail_attempt(engine, mailing_id, "http_503")
    await claim(engine, mailing_id, lease=-LEASE)
    claimed_at = (await get_history(engine)).claimed_at
    await do(engine, lambda db: store.rescue(db, 8, 10))

    history = await get_history(engine)

    assert [failure.reason for failure in history.failures] == ["http_503", "lease_expired"]
    assert history.failures[-1].attempt == 2
    assert history.failures[-1].claimed_at == history.claimed_at == claimed_at


async def test_retrying_a_mailing_keeps_the_history(engine: AsyncEngine) -> None:
    mailing_id = await add_due_messages(engine, 1)
    claimed = await claim_one(engine, mailing_id)
    await finish(
        engine,
        MessageResult(claimed, "undelivered", 1, "rejected_400", last_failure="rejected_400"),
    )
    before = await get_history(engine)
    await service.retry(engine, mailing_id, COMMAND_LINE)
    assert await resend(engine)

    history = await get_history(engine)

    assert (history.status, history.attempts, history.last_failure) == ("scheduled", 0, None)
    assert (history.failures, history.claimed_at) == (before.failures, before.claimed_at)


async def test_the_history_outlives_the_client_without_the_phone(engine: AsyncEngine) -> None:
    await add_due_messages(engine, 1)
    client_id = (await get_history(engine)).client_id
    await erase_client(engine, client_id, COMMAND_LINE)

    history = await get_history(engine)
    assert (history.phone, history.status, history.client_id) == (None, "cancelled", client_id)

    await execute(engine, "DELETE FROM client")
    assert (await get_history(engine)).phone is None


async def test_a_message_under_another_mailing_is_not_found(engine: AsyncEngine) -> None:
    mailing_id, other = await add_due_messages(engine, 1), await add_due_messages(engine, 1)
    message_id = await value(engine, ID)
    for mailing, message in ((mailing_id, message_id), (other, message_id + 1)):
        with pytest.raises(MessageNotFoundError):
            await do(engine, lambda db: reading.get_history(db, mailing, message))  # noqa: B023  # called at once
