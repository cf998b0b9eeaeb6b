"""Claiming messages, recording results, refunding attempts and releasing orphaned claims.

`state` returns the status, the reason and the number of attempts of a message.
"""

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from uuid import UUID, uuid4

import asyncpg
import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine
from tests.event_timeout import EVENT_TIMEOUT
from tests.factories import (
    GATEWAY,
    HOUR,
    LEASE,
    NOON,
    OWNER,
    ROUTE,
    add_clients,
    add_due_messages,
    add_mailings,
    add_messages,
    mailing_counts,
    state,
)

from mailer.db.engine import INDEX_ORDER_PLANS, DedicatedConnection, asyncpg_connection
from mailer.message import recovery, store
from mailer.message.model import ClaimedMessage, MessageResult
from mailer.sample_data import SampleMailing
from mailer.statuses import MessageStatus

COUNTER_PAGE_READS = """
    SELECT pg_stat_get_blocks_fetched(oid) + pg_stat_get_xact_blocks_fetched(oid)
    FROM pg_class, pg_stat_force_next_flush() WHERE relname = 'mailing_counts'"""
"""The number of pages of `mailing_counts` that the server has read so far."""
COUNTER_ROW_READS = """
    SELECT coalesce(sum(seq_tup_read + idx_tup_fetch), 0)
    FROM pg_stat_xact_user_tables WHERE relname = 'mailing_counts'"""
"""The number of rows of `mailing_counts` that the current transaction has read so far."""


@pytest.fixture
async def claimer(engine: AsyncEngine) -> AsyncIterator[asyncpg.Connection]:
    """The connection of the worker `OWNER`."""
    async with engine.connect() as pooled:
        yield await asyncpg_connection(pooled)


@pytest.fixture
async def other_claimer(engine: AsyncEngine) -> AsyncIterator[asyncpg.Connection]:
    """The connection of another worker."""
    async with engine.connect() as pooled:
        yield await asyncpg_connection(pooled)


async def claim(
    connection: asyncpg.Connection,
    mailing_id: int,
    limit: int = 9,
    *,
    owner: UUID = OWNER,
    after: store.ClaimCursor = store.FIRST_CURSOR,
) -> list[ClaimedMessage]:
    """Claim up to `limit` due messages of one mailing."""
    source = store.ClaimSource(ROUTE, {mailing_id: after}, {mailing_id: limit})
    return await store.claim(connection, source, store.ClaimTarget(owner, LEASE, GATEWAY))


async def claim_one(engine: AsyncEngine, claimer: asyncpg.Connection) -> ClaimedMessage:
    """Claim the only message of a new mailing."""
    (claimed,) = await claim(claimer, await add_due_messages(engine, 1))
    return claimed


async def claim_again(claimer: asyncpg.Connection, before: ClaimedMessage) -> ClaimedMessage:
    """Claim a message that was released or requeued after the claim `before`."""
    (claimed,) = await claim(claimer, before.mailing_id)
    assert claimed.id == before.id
    return claimed


async def record(
    connection: asyncpg.Connection, *results: MessageResult, owner: UUID = OWNER
) -> int:
    """Record results; return how many were stored."""
    return len(await store.record_results(connection, owner, results))


async def record_failure(claimer: asyncpg.Connection, claimed: ClaimedMessage, reason: str) -> None:
    """Record a failed attempt; the message waits for the next one."""
    result = MessageResult(
        claimed, "scheduled", claimed.attempts, reason=reason, last_failure=reason
    )
    assert await record(claimer, result) == 1


def released(claimed: ClaimedMessage) -> MessageResult:
    """Return the result that releases a message; its attempt does not count."""
    return MessageResult(claimed, "scheduled", attempts=claimed.attempts - 1)


def delivered(claimed: ClaimedMessage) -> MessageResult:
    """Return the result of a message that is delivered now."""
    return MessageResult(claimed, "delivered", attempts=claimed.attempts, sent_at=datetime.now(UTC))


async def last_failure(connection: asyncpg.Connection, claimed: ClaimedMessage) -> str | None:
    """Return the stored reason of the last failed attempt of a message."""
    query = "SELECT last_failure FROM message WHERE id = $1"
    failure: str | None = await connection.fetchval(query, claimed.id)
    return failure


async def test_a_claim_takes_the_oldest_due_messages_of_each_mailing(
    engine: AsyncEngine, claimer: asyncpg.Connection
) -> None:
    large, small = await add_due_messages(engine, 5), await add_due_messages(engine, 1)
    oldest = datetime.now(UTC) - 100_000 * HOUR
    await add_messages(engine, large, await add_clients(engine, 2), "scheduled", at=oldest)

    cursors = {large: store.FIRST_CURSOR, small: store.FIRST_CURSOR}
    source = store.ClaimSource(ROUTE, cursors, {large: 2, small: 2})
    claims = await store.claim(claimer, source, store.ClaimTarget(OWNER, LEASE, GATEWAY))

    assert sorted(claimed.mailing_id for claimed in claims) == [large, large, small]
    assert all(claimed.attempts == 1 for claimed in claims)
    assert {claimed.due_at for claimed in claims if claimed.mailing_id == large} == {oldest}


async def test_claims_read_no_dead_counter_rows_kept_for_an_old_snapshot(
    engine: AsyncEngine, shared_database_url: str
) -> None:
    """Otherwise each claim during a backup, which has an old snapshot, would be slower."""
    mailing_id = await add_due_messages(engine, 400)
    dedicated = DedicatedConnection(shared_database_url)
    connection = await dedicated.get()
    cursor = store.FIRST_CURSOR

    async def claim_one_by_one(count: int) -> int:
        """Claim messages by a statement each; return how many pages of counters were read."""
        nonlocal cursor
        before = await connection.fetchval(COUNTER_PAGE_READS)
        for _ in range(count):
            (claimed,) = await claim(connection, mailing_id, 1, after=cursor)
            cursor = (claimed.due_at, claimed.id)
        reads: int = await connection.fetchval(COUNTER_PAGE_READS) - before
        return reads

    async with engine.connect() as backup:
        await backup.execution_options(isolation_level="REPEATABLE READ")
        await backup.execute(text("SELECT FROM client"))  # takes a snapshot
        first_reads = await claim_one_by_one(20)
        await claim_one_by_one(350)  # each claim leaves a dead row of counters
        assert await claim_one_by_one(20) <= 1.2 * first_reads
    dedicated.close()


async def test_only_due_scheduled_messages_are_claimed(
    engine: AsyncEngine, claimer: asyncpg.Connection
) -> None:
    mailing_id = await add_due_messages(engine, 0)
    clients = await add_clients(engine, 3)
    later = datetime.now(UTC) + HOUR
    await add_messages(engine, mailing_id, clients[:1], "scheduled", at=later)
    await add_messages(engine, mailing_id, clients[1:2], "delivered")
    await add_messages(engine, mailing_id, clients[2:], "cancelled", "expired")

    assert await claim(claimer, mailing_id) == []


@pytest.mark.parametrize(
    "change",
    [
        "status = 'paused'",
        "status = 'cancelled'",
        "status = 'finished'",
        "is_replanning = true",
        "deleted_at = now()",
        "datetime_end = now()",
    ],
)
async def test_messages_of_a_mailing_that_must_not_send_are_not_claimed(
    engine: AsyncEngine, claimer: asyncpg.Connection, change: str
) -> None:
    mailing_id = await add_due_messages(engine, 2)
    await claimer.execute(f"UPDATE mailing SET {change}")  # noqa: S608  # a change above

    assert await claim(claimer, mailing_id) == []


async def test_only_messages_of_the_given_mailings_are_claimed(
    engine: AsyncEngine, claimer: asyncpg.Connection
) -> None:
    mailing_id, _ = await add_due_messages(engine, 1), await add_due_messages(engine, 1)

    claims = await claim(claimer, mailing_id)

    assert [claimed.mailing_id for claimed in claims] == [mailing_id]


@pytest.mark.parametrize(
    "settings", [{}, INDEX_ORDER_PLANS], ids=["default plans", "index order plans"]
)
async def test_claims_and_results_read_no_counters_of_other_mailings(
    engine: AsyncEngine, claimer: asyncpg.Connection, settings: dict[str, str]
) -> None:
    mailing_id = await add_due_messages(engine, 2)
    # plans the statement while the table is small, when a plan that reads all of it is cheap
    await claim(claimer, mailing_id, 1)
    await add_mailings(engine, *[SampleMailing(start=datetime.now(UTC))] * 1_000)

    async with claimer.transaction():
        for name, setting in settings.items():
            await claimer.execute(f"SET LOCAL {name} = {setting}")
        read_before = await claimer.fetchval(COUNTER_ROW_READS)
        [claimed] = await claim(claimer, mailing_id, 1)
        await record(claimer, delivered(claimed))
        # the row of this mailing, at the claim and at the result
        assert await claimer.fetchval(COUNTER_ROW_READS) == read_before + 2


async def test_concurrent_claims_never_take_the_same_message(
    engine: AsyncEngine, claimer: asyncpg.Connection, other_claimer: asyncpg.Connection
) -> None:
    mailing_id = await add_due_messages(engine, 5)
    async with claimer.transaction():
        first = await claim(claimer, mailing_id, 3)
        # skips the three locked ones, claims two, and waits for the row of the counters
        claiming = asyncio.create_task(claim(other_claimer, mailing_id, 3, owner=uuid4()))
        await asyncio.wait({claiming}, timeout=0.2)
    second = await claiming

    assert (len(first), len(second)) == (3, 2)
    assert not {claimed.id for claimed in first} & {claimed.id for claimed in second}
    assert await mailing_counts(engine, mailing_id) == {"sending": 5}


async def test_messages_being_claimed_are_skipped_without_waiting(
    engine: AsyncEngine, claimer: asyncpg.Connection, other_claimer: asyncpg.Connection
) -> None:
    mailing_id = await add_due_messages(engine, 2)
    async with claimer.transaction():
        await claim(claimer, mailing_id, 2)
        async with asyncio.timeout(EVENT_TIMEOUT):
            assert await claim(other_claimer, mailing_id, 2, owner=uuid4()) == []


async def test_claims_and_results_change_the_counters(
    engine: AsyncEngine, claimer: asyncpg.Connection
) -> None:
    mailing_id = await add_due_messages(engine, 3)
    first, second = await claim(claimer, mailing_id, 2)
    assert await mailing_counts(engine, mailing_id) == {"scheduled": 1, "sending": 2}

    rejected = MessageResult(second, "undelivered", attempts=1, reason="rejected_400")
    assert await record(claimer, delivered(first), rejected) == 2
    assert await mailing_counts(engine, mailing_id) == {
        "scheduled": 1,
        "delivered": 1,
        "undelivered": 1,
    }
    assert await state(engine, second.id) == ("undelivered", "rejected_400", 1)


async def test_recording_a_result_twice_changes_nothing(
    engine: AsyncEngine, claimer: asyncpg.Connection
) -> None:
    claimed = await claim_one(engine, claimer)
    assert await record(claimer, delivered(claimed)) == 1

    rejected = MessageResult(claimed, "undelivered", attempts=1, reason="rejected_400")
    assert await record(claimer, delivered(claimed), rejected) == 0
    assert await state(engine, claimed.id) == ("delivered", None, 1)


async def test_a_result_of_another_owner_changes_nothing(
    engine: AsyncEngine, claimer: asyncpg.Connection
) -> None:
    claimed = await claim_one(engine, claimer)

    assert await record(claimer, delivered(claimed), owner=uuid4()) == 0
    assert await state(engine, claimed.id) == ("sending", None, 1)


async def test_a_result_of_an_earlier_claim_changes_nothing(
    engine: AsyncEngine, claimer: asyncpg.Connection
) -> None:
    claimed = await claim_one(engine, claimer)
    assert await record(claimer, released(claimed)) == 1
    claimed_again = await claim_again(claimer, claimed)
    assert claimed_again.attempts == claimed.attempts

    # the recorder writes again when the connection was lost before the response
    assert await record(claimer, released(claimed)) == 0
    assert await state(engine, claimed.id) == ("sending", None, 1)
    assert await record(claimer, delivered(claimed_again)) == 1


async def test_releasing_a_message_restores_its_reason(
    engine: AsyncEngine, claimer: asyncpg.Connection
) -> None:
    claimed = await claim_one(engine, claimer)
    await record(claimer, released(claimed))
    assert await state(engine, claimed.id) == ("scheduled", None, 0)

    await record_failure(claimer, await claim_again(claimer, claimed), "http_503")
    claimed_again = await claim_again(claimer, claimed)
    assert await state(engine, claimed.id) == ("sending", None, 2)
    await record(claimer, released(claimed_again))

    assert await state(engine, claimed.id) == ("scheduled", "http_503", 1)


@pytest.mark.parametrize(
    ("status", "reason"),
    [
        ("delivered", None),
        ("undelivered", "rejected_400"),
        ("unknown", "timeout"),
        ("cancelled", "client_deleted"),
    ],
)
async def test_the_last_failure_is_kept_with_every_final_status(
    engine: AsyncEngine, claimer: asyncpg.Connection, status: MessageStatus, reason: str | None
) -> None:
    claimed = await claim_one(engine, claimer)
    await record_failure(claimer, claimed, "http_503")
    claimed_again = await claim_again(claimer, claimed)

    await record(claimer, MessageResult(claimed_again, status, attempts=2, reason=reason))

    assert await state(engine, claimed.id) == (status, reason, 2)
    assert await last_failure(claimer, claimed) == "http_503"


async def test_a_new_failure_replaces_the_previous_one(
    engine: AsyncEngine, claimer: asyncpg.Connection
) -> None:
    claimed = await claim_one(engine, claimer)
    assert await last_failure(claimer, claimed) is None
    await record_failure(claimer, claimed, "http_503")
    failed_permanently = MessageResult(
        await claim_again(claimer, claimed),
        "undelivered",
        attempts=2,
        reason="attempts_exhausted",
        last_failure="timeout",
    )
    await record(claimer, failed_permanently)

    assert await state(engine, claimed.id) == ("undelivered", "attempts_exhausted", 2)
    assert await last_failure(claimer, claimed) == "timeout"


async def test_releasing_orphaned_claims_restores_their_state(
    engine: AsyncEngine, claimer: asyncpg.Connection
) -> None:
    tried = await claim_one(engine, claimer)
    await record_failure(claimer, tried, "http_503")
    await claim_again(claimer, tried)
    mailing_id = await add_due_messages(engine, 3)
    in_flight, untried = await claim(claimer, mailing_id, 2)
    (of_other_owner,) = await claim(claimer, mailing_id, 1, owner=uuid4())

    # `tried` and `untried` are the orphans
    assert await recovery.release_orphaned(claimer, OWNER, {in_flight.id}) == 2

    assert await state(engine, tried.id) == ("scheduled", "http_503", 1)
    assert await state(engine, untried.id) == ("scheduled", None, 0)
    assert await state(engine, in_flight.id) == ("sending", None, 1)
    assert await state(engine, of_other_owner.id) == ("sending", None, 1)
    assert await mailing_counts(engine, mailing_id) == {"scheduled": 1, "sending": 2}
    assert await recovery.release_orphaned(claimer, OWNER, {in_flight.id}) == 0


async def test_the_result_of_a_released_orphan_is_not_stored(
    engine: AsyncEngine, claimer: asyncpg.Connection
) -> None:
    mailing_id = await add_due_messages(engine, 2)
    in_flight, orphan = await claim(claimer, mailing_id)
    await recovery.release_orphaned(claimer, OWNER, {in_flight.id})

    assert await record(claimer, delivered(orphan), delivered(in_flight)) == 1

    assert await state(engine, orphan.id) == ("scheduled", None, 0)
    assert await state(engine, in_flight.id) == ("delivered", None, 1)


async def test_refunding_restores_the_attempt_once(
    engine: AsyncEngine, claimer: asyncpg.Connection
) -> None:
    mailing_id = await add_due_messages(engine, 3)
    *to_refund, not_to_refund = await claim(claimer, mailing_id, 3)
    for claimed in (*to_refund, not_to_refund):
        await record_failure(claimer, claimed, "http_503")

    for _ in range(2):  # the second refund changes nothing
        await recovery.refund_attempts(claimer, to_refund)

        for claimed in to_refund:
            assert await state(engine, claimed.id) == ("scheduled", "http_503", 0)
        assert await state(engine, not_to_refund.id) == ("scheduled", "http_503", 1)
        assert await mailing_counts(engine, mailing_id) == {"scheduled": 3}


async def test_each_failed_attempt_of_a_message_is_refunded(
    engine: AsyncEngine, claimer: asyncpg.Connection
) -> None:
    first = await claim_one(engine, claimer)
    await record_failure(claimer, first, "http_503")
    second = await claim_again(claimer, first)
    await record_failure(claimer, second, "http_500")

    # `second` twice, as after a user's retry, which starts the numbers of attempts again at 1
    await recovery.refund_attempts(claimer, [second, first, second])

    assert await state(engine, first.id) == ("scheduled", "http_500", 0)


async def test_an_attempt_of_a_message_claimed_again_is_not_refunded(
    engine: AsyncEngine, claimer: asyncpg.Connection
) -> None:
    first = await claim_one(engine, claimer)
    await record_failure(claimer, first, "http_503")
    second = await claim_again(claimer, first)
    await recovery.refund_attempts(claimer, [first])
    assert await state(engine, first.id) == ("sending", None, 2)

    await record_failure(claimer, second, "http_500")
    await recovery.refund_attempts(claimer, [first])
    assert await state(engine, first.id) == ("scheduled", "http_500", 2)


@pytest.mark.parametrize("status", ["delivered", "undelivered", "unknown", "cancelled"])
async def test_an_attempt_of_a_message_that_does_not_wait_is_not_refunded(
    engine: AsyncEngine, claimer: asyncpg.Connection, status: MessageStatus
) -> None:
    claimed = await claim_one(engine, claimer)
    await record(claimer, MessageResult(claimed, status, attempts=1))

    await recovery.refund_attempts(claimer, [claimed])

    assert await state(engine, claimed.id) == (status, None, 1)


async def test_the_attempt_of_a_message_being_sent_is_not_refunded(
    engine: AsyncEngine, claimer: asyncpg.Connection
) -> None:
    claimed = await claim_one(engine, claimer)

    await recovery.refund_attempts(claimer, [claimed])

    assert await state(engine, claimed.id) == ("sending", None, 1)


async def test_the_first_scheduled_message_is_returned_with_due_time_and_seconds_until_then(
    engine: AsyncEngine, claimer: asyncpg.Connection
) -> None:
    later, earlier = await add_due_messages(engine, 0), await add_due_messages(engine, 0)
    clients = await add_clients(engine, 3)
    now = datetime.now(UTC)
    await add_messages(engine, later, clients[:1], "delivered", at=now)
    await add_messages(engine, later, clients[1:2], "scheduled", at=now + HOUR)
    await add_messages(engine, earlier, clients[:2], "scheduled", at=now - HOUR)
    await add_messages(engine, earlier, clients[2:], "scheduled", at=now + HOUR / 2)

    found = await store.first_scheduled(claimer, ROUTE, {later: None, earlier: None})

    due_ats = {first.mailing_id: first.position[0] for first in found}
    assert due_ats == {later: now + HOUR, earlier: now - HOUR}
    seconds_to_due = {first.mailing_id: first.seconds_to_due for first in found}
    assert seconds_to_due == pytest.approx({later: 3600, earlier: -3600}, abs=60)


async def test_messages_due_before_a_given_moment_are_not_the_first_scheduled_ones(
    engine: AsyncEngine, claimer: asyncpg.Connection
) -> None:
    mailing_id = await add_due_messages(engine, 0)
    clients = await add_clients(engine, 2)
    now = datetime.now(UTC)
    await add_messages(engine, mailing_id, clients[:1], "scheduled", at=now - HOUR)
    await add_messages(engine, mailing_id, clients[1:], "scheduled", at=now + HOUR)

    [first] = await store.first_scheduled(claimer, ROUTE, {mailing_id: now})

    due_at, _id = first.position
    assert due_at == now + HOUR


async def test_a_mailing_without_a_scheduled_message_has_no_first_one(
    engine: AsyncEngine, claimer: asyncpg.Connection
) -> None:
    mailing_id = await add_due_messages(engine, 0)
    await add_messages(engine, mailing_id, await add_clients(engine, 1), "delivered")

    assert await store.first_scheduled(claimer, ROUTE, {mailing_id: None}) == []


async def test_claims_continue_from_a_cursor_and_reach_every_message_once(
    engine: AsyncEngine, claimer: asyncpg.Connection
) -> None:
    mailing_id = await add_due_messages(engine, 5)
    await add_messages(engine, mailing_id, await add_clients(engine, 4), "scheduled", at=NOON)
    cursor, claimed_ids = store.FIRST_CURSOR, []
    while claims := await claim(claimer, mailing_id, 2, after=cursor):
        positions = [(claimed.due_at, claimed.id) for claimed in claims]
        assert min(positions) > cursor
        cursor = max(positions)
        claimed_ids += [claimed.id for claimed in claims]
    assert len(claimed_ids) == len(set(claimed_ids)) == 5 + 4


async def test_a_claim_after_a_cursor_leaves_earlier_messages(
    engine: AsyncEngine, claimer: asyncpg.Connection
) -> None:
    mailing_id = await add_due_messages(engine, 2)
    (first,) = await claim(claimer, mailing_id, 1)
    await record(claimer, released(first))

    (second,) = await claim(claimer, mailing_id, after=(first.due_at, first.id))
    assert second.id > first.id
    await claim_again(claimer, first)
