"""The history of a message: when it was claimed, and which attempts failed."""

from datetime import timedelta

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
    schedule_retried,
    value,
)

from mailer.access.model import COMMAND_LINE
from mailer.db.engine import asyncpg_connection
from mailer.erasure import erase_client
from mailer.mailing import service
from mailer.message import reading, recovery
from mailer.message.model import (
    ClaimedMessage,
    MessageHistory,
    MessageNotFoundError,
    MessageResult,
)

NEWEST_ID = "SELECT max(id) FROM message"


async def get_history(engine: AsyncEngine) -> MessageHistory:
    """Return the history of the newest message."""
    message_id = await value(engine, NEWEST_ID)
    mailing_id = await value(engine, "SELECT max(mailing_id) FROM message")
    return await do(engine, lambda db: reading.get_history(db, mailing_id, message_id))


async def claim_one(engine: AsyncEngine, mailing_id: int) -> ClaimedMessage:
    """Claim the only due message of a mailing."""
    (claimed,) = await claim(engine, mailing_id)
    return claimed


async def fail_attempt(
    engine: AsyncEngine, mailing_id: int, reason: str, *, is_refunded: bool = False
) -> None:
    """Claim a message and fail the attempt; the message waits for the next one.

    With `is_refunded` the attempt does not count, as in an outage.
    """
    claimed = await claim_one(engine, mailing_id)
    result = MessageResult(
        claimed,
        "scheduled",
        attempts=claimed.attempts - is_refunded,
        reason=reason,
        last_failure=reason,
    )
    assert await finish(engine, result) == 1


def rejected(claimed: ClaimedMessage) -> MessageResult:
    """Return the result of a message that the gateway has rejected."""
    return MessageResult(
        claimed,
        "undelivered",
        attempts=claimed.attempts,
        reason="rejected_400",
        last_failure="rejected_400",
    )


async def test_a_waiting_message_was_not_claimed(engine: AsyncEngine) -> None:
    mailing_id = await add_due_messages(engine, 1)

    history = await get_history(engine)

    assert history.mailing_id == mailing_id
    assert history.status == "scheduled"
    assert history.due_at == history.datetime_send == NOON
    assert history.claimed_at is None
    assert history.sent_at is None
    assert history.lease_expires_at is None
    assert history.attempts == 0
    assert history.failures == ()
    assert history.phone == "79160000001"
    assert history.operator_code == "916"
    assert history.time_zone == "UTC"


async def test_a_message_being_sent_has_a_claim_time_and_a_lease(engine: AsyncEngine) -> None:
    claimed = await claim_one(engine, await add_due_messages(engine, 1))

    history = await get_history(engine)

    assert history.claimed_at == history.updated_at
    assert history.lease_expires_at == claimed.lease_expires_at


async def test_a_delivered_message_keeps_its_claim_time(engine: AsyncEngine) -> None:
    claimed = await claim_one(engine, await add_due_messages(engine, 1))
    claimed_at = (await get_history(engine)).claimed_at
    await finish(engine, MessageResult(claimed, "delivered", attempts=1, sent_at=NOON))

    history = await get_history(engine)

    assert history.claimed_at is not None
    assert history.claimed_at == claimed_at
    assert history.updated_at > history.claimed_at
    assert history.sent_at == NOON
    assert history.lease_expires_at is None
    assert await value(engine, "SELECT failures FROM message") is None


async def test_an_attempt_that_waited_for_the_rate_limit_starts_with_its_request(
    engine: AsyncEngine,
) -> None:
    claimed = await claim_one(engine, await add_due_messages(engine, 1))
    started_at, ended_at = NOON + timedelta(seconds=30), NOON + timedelta(seconds=31)
    failed = MessageResult(
        claimed,
        "scheduled",
        attempts=1,
        reason="http_503",
        last_failure="http_503",
        started_at=started_at,
    )
    await finish(engine, failed)
    history = await get_history(engine)
    assert history.claimed_at == history.failures[0].claimed_at == started_at

    claimed = await claim_one(engine, history.mailing_id)
    later = started_at + timedelta(minutes=1)
    accepted = MessageResult(claimed, "delivered", 2, sent_at=ended_at, started_at=later)
    await finish(engine, accepted)
    history = await get_history(engine)
    assert (history.claimed_at, history.datetime_send) == (later, ended_at)


async def test_an_undelivered_message_was_sent_when_its_last_attempt_failed(
    engine: AsyncEngine,
) -> None:
    claimed = await claim_one(engine, await add_due_messages(engine, 1))
    await finish(engine, rejected(claimed))
    history = await get_history(engine)
    assert history.due_at == NOON
    assert history.datetime_send == history.failures[-1].ended_at > history.due_at


async def test_a_released_message_was_not_claimed(engine: AsyncEngine) -> None:
    claimed = await claim_one(engine, await add_due_messages(engine, 1))
    await finish(engine, MessageResult(claimed, "scheduled", attempts=0))
    assert (await get_history(engine)).claimed_at is None


async def test_a_message_that_ends_untried_keeps_its_history(engine: AsyncEngine) -> None:
    mailing_id = await add_due_messages(engine, 1)
    await fail_attempt(engine, mailing_id, "http_503")
    before = await get_history(engine)
    claimed = await claim_one(engine, mailing_id)
    await finish(engine, MessageResult(claimed, "cancelled", attempts=1, reason="expired"))

    history = await get_history(engine)
    assert history.claimed_at == before.claimed_at
    assert history.failures == before.failures


async def test_releasing_orphaned_claims_restores_the_history(engine: AsyncEngine) -> None:
    mailing_id = await add_due_messages(engine, 1)
    await fail_attempt(engine, mailing_id, "http_503")
    before = await get_history(engine)
    orphan = await claim_one(engine, mailing_id)
    assert orphan.attempts == 2
    async with engine.connect() as pooled:
        assert await recovery.release_orphaned(await asyncpg_connection(pooled), OWNER, []) == 1

    history = await get_history(engine)

    assert history.claimed_at == before.claimed_at
    assert history.failures == before.failures
    assert history.attempts == 1


async def test_every_failed_attempt_is_recorded_with_times_and_reason(
    engine: AsyncEngine,
) -> None:
    mailing_id = await add_due_messages(engine, 1)
    await fail_attempt(engine, mailing_id, "http_503")
    await fail_attempt(engine, mailing_id, "timeout")
    await finish(engine, rejected(await claim_one(engine, mailing_id)))

    history = await get_history(engine)

    failures = [(failure.attempt, failure.reason) for failure in history.failures]
    assert failures == [(1, "http_503"), (2, "timeout"), (3, "rejected_400")]
    times = [
        time for failure in history.failures for time in (failure.claimed_at, failure.ended_at)
    ]
    assert times == sorted(set(times))  # each is later than the one before
    assert history.claimed_at == history.failures[-1].claimed_at
    assert history.updated_at == history.failures[-1].ended_at


async def test_only_the_newest_twenty_failures_are_kept(engine: AsyncEngine) -> None:
    mailing_id = await add_due_messages(engine, 1)
    for number in range(1, 24):  # 23 attempts
        await fail_attempt(engine, mailing_id, f"http_{500 + number}")

    failures = (await get_history(engine)).failures

    assert [failure.attempt for failure in failures] == list(range(4, 24))
    assert failures[-1].reason == "http_523"


async def test_a_refunded_failure_stays_in_the_history_and_its_number_is_used_again(
    engine: AsyncEngine,
) -> None:
    mailing_id = await add_due_messages(engine, 1)
    await fail_attempt(engine, mailing_id, "http_503", is_refunded=True)
    await fail_attempt(engine, mailing_id, "http_500")
    async with engine.connect() as pooled:  # as when the breaker opens
        failed = ClaimedMessage(
            id=await value(engine, NEWEST_ID),
            mailing_id=mailing_id,
            attempts=1,
            lease_expires_at=NOON,
            phone=None,
            time_zone="UTC",
        )
        await recovery.refund_attempts(await asyncpg_connection(pooled), [failed])
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
    await claim(engine, mailing_id, lease=-LEASE)  # a lease that has expired already
    claimed_at = (await get_history(engine)).claimed_at
    await do(engine, lambda db: recovery.rescue(db, max_attempts=8, chunk=10))

    history = await get_history(engine)

    assert [failure.reason for failure in history.failures] == ["http_503", "lease_expired"]
    assert history.failures[-1].attempt == 2
    assert history.failures[-1].claimed_at == history.claimed_at == claimed_at


async def test_retrying_a_mailing_keeps_the_history(engine: AsyncEngine) -> None:
    mailing_id = await add_due_messages(engine, 1)
    await finish(engine, rejected(await claim_one(engine, mailing_id)))
    before = await get_history(engine)
    await service.retry(engine, mailing_id, COMMAND_LINE)
    assert await schedule_retried(engine)

    history = await get_history(engine)

    assert history.status == "scheduled"
    assert history.attempts == 0
    assert history.last_failure is None
    assert history.failures == before.failures
    assert history.claimed_at == before.claimed_at


async def test_the_history_outlives_the_client_without_the_phone(engine: AsyncEngine) -> None:
    await add_due_messages(engine, 1)
    client_id = (await get_history(engine)).client_id
    await erase_client(engine, client_id, COMMAND_LINE)

    history = await get_history(engine)
    assert history.phone is None
    assert history.status == "cancelled"
    assert history.client_id == client_id

    await execute(engine, "DELETE FROM client")  # mailer never deletes this row
    assert (await get_history(engine)).phone is None


async def test_a_message_of_another_mailing_is_not_found(engine: AsyncEngine) -> None:
    mailing_id = await add_due_messages(engine, 1)
    await add_due_messages(engine, 1)
    message_of_other = await value(engine, NEWEST_ID)
    with pytest.raises(MessageNotFoundError):
        await do(engine, lambda db: reading.get_history(db, mailing_id, message_of_other))


async def test_a_message_that_does_not_exist_is_not_found(engine: AsyncEngine) -> None:
    mailing_id = await add_due_messages(engine, 1)
    unused_id = await value(engine, NEWEST_ID) + 1
    with pytest.raises(MessageNotFoundError):
        await do(engine, lambda db: reading.get_history(db, mailing_id, unused_id))
