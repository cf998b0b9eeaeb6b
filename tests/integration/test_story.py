"""What is told of one message: when it was claimed, and which attempts failed."""

import pytest
from sqlalchemy.ext.asyncio import AsyncEngine
from tests.sample import (
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
from mailer.client import store as clients
from mailer.db.engine import raw
from mailer.mailing import service
from mailer.message import store
from mailer.message.model import (
    ClaimedMessage,
    FinishedMessage,
    MessageNotFoundError,
    Story,
)

ID = "SELECT max(id) FROM message"


async def story(engine: AsyncEngine) -> Story:
    """The story of the newest message."""
    message_id = await value(engine, ID)
    mailing_id = await value(engine, "SELECT max(mailing_id) FROM message")
    return await do(engine, lambda db: store.story(db, mailing_id, message_id))


async def claim_one(engine: AsyncEngine, mailing_id: int) -> ClaimedMessage:
    (claimed,) = await claim(engine, mailing_id)
    return claimed


async def fail(engine: AsyncEngine, mailing_id: int, reason: str, cost: int = 1) -> None:
    """Have an attempt fail; the message waits for the next."""
    claimed = await claim_one(engine, mailing_id)
    attempts = claimed.attempts - 1 + cost
    again = FinishedMessage(claimed, "scheduled", attempts, reason, last_failure=reason)
    assert await finish(engine, again) == 1


async def test_message_that_waits_was_not_claimed(engine: AsyncEngine) -> None:
    mailing_id = await add_due_messages(engine, 1)

    told = await story(engine)

    assert (told.mailing_id, told.status, told.due_at) == (mailing_id, "scheduled", NOON)
    assert (told.claimed_at, told.sent_at, told.lease_expires_at) == (None, None, None)
    assert (told.failures, told.attempts, told.datetime_send) == ((), 0, NOON)
    assert (told.phone, told.operator_code, told.time_zone) == ("79160000001", "916", "UTC")


async def test_message_being_sent_was_claimed_under_a_lease(engine: AsyncEngine) -> None:
    claimed = await claim_one(engine, await add_due_messages(engine, 1))

    told = await story(engine)

    assert told.claimed_at == told.updated_at
    assert told.lease_expires_at == claimed.lease_expires_at


async def test_delivered_message_keeps_when_it_was_claimed(engine: AsyncEngine) -> None:
    claimed = await claim_one(engine, await add_due_messages(engine, 1))
    claimed_at = (await story(engine)).claimed_at
    await finish(engine, FinishedMessage(claimed, "delivered", 1, sent_at=NOON))

    told = await story(engine)

    assert (told.claimed_at, told.sent_at, told.lease_expires_at) == (claimed_at, NOON, None)
    assert told.updated_at > told.claimed_at  # type: ignore[operator]  # it is one
    assert await value(engine, "SELECT failures FROM message") is None


async def test_message_handed_back_untried_was_not_claimed(engine: AsyncEngine) -> None:
    mailing_id = await add_due_messages(engine, 1)
    claimed = await claim_one(engine, mailing_id)
    await finish(engine, FinishedMessage(claimed, "scheduled", 0))
    assert (await story(engine)).claimed_at is None

    await fail(engine, mailing_id, "http_503")
    before = await story(engine)
    claimed = await claim_one(engine, mailing_id)
    await finish(engine, FinishedMessage(claimed, "cancelled", 1, "expired"))

    told = await story(engine)
    assert (told.claimed_at, told.failures) == (before.claimed_at, before.failures)


async def test_claims_that_nobody_knew_of_leave_the_story_as_it_was(engine: AsyncEngine) -> None:
    mailing_id = await add_due_messages(engine, 1)
    await fail(engine, mailing_id, "http_503")
    before = await story(engine)
    claimed = await claim_one(engine, mailing_id)
    async with engine.connect() as pooled:
        assert await store.let_go(await raw(pooled), OWNER, []) == 1

    told = await story(engine)

    assert claimed.attempts == 2
    assert (told.claimed_at, told.failures) == (before.claimed_at, before.failures)
    assert told.attempts == 1


async def test_every_attempt_that_failed_is_told_with_its_time_and_reason(
    engine: AsyncEngine,
) -> None:
    mailing_id = await add_due_messages(engine, 1)
    await fail(engine, mailing_id, "http_503")
    await fail(engine, mailing_id, "timeout")
    last = await claim_one(engine, mailing_id)
    refused = FinishedMessage(last, "undelivered", 3, "rejected_400", last_failure="rejected_400")
    await finish(engine, refused)

    told = await story(engine)

    said = [(failure.attempt, failure.reason) for failure in told.failures]
    assert said == [(1, "http_503"), (2, "timeout"), (3, "rejected_400")]
    moments = [at for failure in told.failures for at in (failure.claimed_at, failure.ended_at)]
    assert moments == sorted(set(moments))
    assert (told.claimed_at, told.updated_at) == (moments[-2], moments[-1])


async def test_no_more_than_the_newest_twenty_failures_are_kept(engine: AsyncEngine) -> None:
    mailing_id = await add_due_messages(engine, 1)
    for number in range(1, 24):
        await fail(engine, mailing_id, f"http_{500 + number}")

    failures = (await story(engine)).failures

    assert [failure.attempt for failure in failures] == list(range(4, 24))
    assert failures[-1].reason == "http_523"


async def test_failure_that_costs_no_attempt_is_told_and_its_number_comes_again(
    engine: AsyncEngine,
) -> None:
    mailing_id = await add_due_messages(engine, 1)
    await fail(engine, mailing_id, "http_503", cost=0)
    await fail(engine, mailing_id, "http_500")
    async with engine.connect() as pooled:  # as when the breaker opens
        id_ = await value(engine, ID)
        failed = ClaimedMessage(id_, mailing_id, 1, NOON, None, "UTC")
        await store.give_back(await raw(pooled), [failed])
    assert await value(engine, "SELECT attempts FROM message") == 0
    await fail(engine, mailing_id, "timeout")

    told = await story(engine)

    said = [(failure.attempt, failure.reason) for failure in told.failures]
    assert said == [(1, "http_503"), (1, "http_500"), (1, "timeout")]
    assert told.attempts == 1


@pytest.mark.parametrize("on_unknown", ["retry", "hold"])
async def test_attempt_whose_process_was_lost_has_failed_when_its_lease_expired(
    engine: AsyncEngine, on_unknown: str
) -> None:
    mailing_id = await add_due_messages(engine, 1)
    await execute(engine, f"UPDATE mailing SET on_unknown = '{on_unknown}'")  # noqa: S608  # of a test
    await fail(engine, mailing_id, "http_503")
    await claim(engine, mailing_id, lease=-LEASE)
    claimed_at = (await story(engine)).claimed_at
    await do(engine, lambda db: store.rescue(db, 8, 10))

    told = await story(engine)

    assert [failure.reason for failure in told.failures] == ["http_503", "lease_expired"]
    assert told.failures[-1].attempt == 2
    assert told.failures[-1].claimed_at == told.claimed_at == claimed_at


async def test_retry_of_a_mailing_forgets_nothing_of_the_story(engine: AsyncEngine) -> None:
    mailing_id = await add_due_messages(engine, 1)
    claimed = await claim_one(engine, mailing_id)
    await finish(
        engine,
        FinishedMessage(claimed, "undelivered", 1, "rejected_400", last_failure="rejected_400"),
    )
    before = await story(engine)
    await service.retry(engine, mailing_id, COMMAND_LINE)
    assert await resend(engine)

    told = await story(engine)

    assert (told.status, told.attempts, told.last_failure) == ("scheduled", 0, None)
    assert (told.failures, told.claimed_at) == (before.failures, before.claimed_at)


async def test_story_outlives_the_client_without_the_phone(engine: AsyncEngine) -> None:
    await add_due_messages(engine, 1)
    client_id = (await story(engine)).client_id
    await do(engine, lambda db: clients.erase(db, client_id))

    told = await story(engine)
    assert (told.phone, told.status, told.client_id) == (None, "cancelled", client_id)

    await execute(engine, "DELETE FROM client")
    assert (await story(engine)).phone is None


async def test_message_of_another_mailing_is_not_found(engine: AsyncEngine) -> None:
    mailing_id, other = await add_due_messages(engine, 1), await add_due_messages(engine, 1)
    message_id = await value(engine, ID)
    for mailing, message in ((mailing_id, message_id), (other, message_id + 1)):
        with pytest.raises(MessageNotFoundError):
            await do(engine, lambda db: store.story(db, mailing, message))  # noqa: B023  # it runs now
