"""Claiming messages, recording results, refunding attempts and releasing orphaned claims."""

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from uuid import uuid4

import asyncpg
import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine
from tests.event_timeout import EVENT_TIMEOUT
from tests.factories import (
    HOUR,
    LEASE,
    NOON,
    OWNER,
    add_clients,
    add_due_messages,
    add_mailings,
    add_messages,
    mailing_counts,
    state,
)

from mailer.db.engine import INDEX_ORDER_PLANS, DedicatedConnection, asyncpg_connection
from mailer.message import store
from mailer.message.model import ClaimedMessage, MessageResult
from mailer.sample_data import SampleMailing
from mailer.statuses import MessageStatus

COUNTER_PAGE_READS = """
    SELECT pg_stat_get_blocks_fetched(oid) + pg_stat_get_xact_blocks_fetched(oid)
    FROM pg_class, pg_stat_force_next_flush() WHERE relname = 'mailing_counts'"""


@pytest.fixture
async def claimer(engine: AsyncEngine) -> AsyncIterator[asyncpg.Connection]:
    async with engine.connect() as pooled:
        yield await asyncpg_connection(pooled)


@pytest.fixture
async def other(engine: AsyncEngine) -> AsyncIterator[asyncpg.Connection]:
    async with engine.connect() as pooled:
        yield await asyncpg_connection(pooled)


async def claim_one(
    engine: AsyncEngine, claimer: asyncpg.Connection, lease: timedelta = LEASE
) -> ClaimedMessage:
    mailing_id = await add_due_messages(engine, 1)
    (claim,) = await store.claim(claimer, {mailing_id: store.FIRST_CURSOR}, 1, OWNER, lease)
    return claim


async def test_a_claim_takes_the_oldest_due_messages_of_each_mailing(
    engine: AsyncEngine, claimer: asyncpg.Connection
) -> None:
    large, small = await add_due_messages(engine, 5), await add_due_messages(engine, 1)
    oldest = datetime.now(UTC) - 100_000 * HOUR
    await add_messages(engine, large, await add_clients(engine, 2), "scheduled", at=oldest)

    claims = await store.claim(
        claimer, {large: store.FIRST_CURSOR, small: store.FIRST_CURSOR}, 2, OWNER, LEASE
    )

    assert sorted(claim.mailing_id for claim in claims) == [large, large, small]
    assert all(claim.attempts == 1 for claim in claims)
    claimed_ids = [claim.id for claim in claims if claim.mailing_id == large]
    query = "SELECT count(*) FROM message WHERE id = ANY($1) AND due_at = $2"
    assert await claimer.fetchval(query, claimed_ids, oldest) == 2


async def test_claims_read_no_dead_counter_rows_kept_for_an_old_snapshot(
    engine: AsyncEngine, shared_database_url: str
) -> None:
    mailing_id = await add_due_messages(engine, 400)
    dedicated = DedicatedConnection(shared_database_url)
    connection = await dedicated.get()
    cursor = store.FIRST_CURSOR

    async def claim_some(count: int) -> int:
        """Claim messages one by one; return how many pages of counters were read."""
        nonlocal cursor
        before = await connection.fetchval(COUNTER_PAGE_READS)
        for _ in range(count):
            (claimed,) = await store.claim(connection, {mailing_id: cursor}, 1, OWNER, LEASE)
            cursor = (claimed.due_at, claimed.id)
        reads: int = await connection.fetchval(COUNTER_PAGE_READS) - before
        return reads

    async with engine.connect() as backup:
        await backup.execution_options(isolation_level="REPEATABLE READ")
        await backup.execute(text("SELECT FROM client"))
        first_reads = await claim_some(20)
        await claim_some(350)
        assert await claim_some(20) <= 1.2 * first_reads
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

    assert await store.claim(claimer, {mailing_id: store.FIRST_CURSOR}, 9, OWNER, LEASE) == []


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

    assert await store.claim(claimer, {mailing_id: store.FIRST_CURSOR}, 9, OWNER, LEASE) == []


async def test_only_messages_of_the_given_mailings_are_claimed(
    engine: AsyncEngine, claimer: asyncpg.Connection
) -> None:
    mailing_id, _ = await add_due_messages(engine, 1), await add_due_messages(engine, 1)

    claims = await store.claim(claimer, {mailing_id: store.FIRST_CURSOR}, 9, OWNER, LEASE)

    assert [claim.mailing_id for claim in claims] == [mailing_id]


COUNTER_ROW_READS = """
    SELECT coalesce(sum(seq_tup_read + idx_tup_fetch), 0)
    FROM pg_stat_xact_user_tables WHERE relname = 'mailing_counts'"""


@pytest.mark.parametrize(
    "settings", [{}, INDEX_ORDER_PLANS], ids=["default plans", "index order plans"]
)
async def test_claims_and_results_read_no_counters_of_other_mailings(
    engine: AsyncEngine, claimer: asyncpg.Connection, settings: dict[str, str]
) -> None:
    mailing_id = await add_due_messages(engine, 2)
    first = {mailing_id: store.FIRST_CURSOR}
    await store.claim(
        claimer, first, 1, OWNER, LEASE
    )  # statements are planned while the tables are small
    await add_mailings(engine, *[SampleMailing(start=datetime.now(UTC))] * 1_000)

    async with claimer.transaction():
        for name, setting in settings.items():
            await claimer.execute(f"SET LOCAL {name} = {setting}")
        read_before = await claimer.fetchval(COUNTER_ROW_READS)
        [claim] = await store.claim(claimer, first, 1, OWNER, LEASE)
        done = MessageResult(claim, "delivered", attempts=1, sent_at=NOON)
        await store.record_results(claimer, OWNER, [done])
        assert await claimer.fetchval(COUNTER_ROW_READS) == read_before + 2


async def test_concurrent_claims_never_take_the_same_message(
    engine: AsyncEngine, claimer: asyncpg.Connection, other: asyncpg.Connection
) -> None:
    mailing_id = await add_due_messages(engine, 5)
    async with claimer.transaction():
        first = await store.claim(claimer, {mailing_id: store.FIRST_CURSOR}, 3, OWNER, LEASE)
        # skips the three locked ones, claims two, and waits for the row of the counters
        claiming = asyncio.create_task(
            store.claim(other, {mailing_id: store.FIRST_CURSOR}, 3, uuid4(), LEASE)
        )
        await asyncio.wait({claiming}, timeout=0.2)
    second = await claiming

    assert (len(first), len(second)) == (3, 2)
    assert not {claim.id for claim in first} & {claim.id for claim in second}
    assert await mailing_counts(engine, mailing_id) == {"sending": 5}


async def test_messages_being_claimed_are_skipped_without_waiting(
    engine: AsyncEngine, claimer: asyncpg.Connection, other: asyncpg.Connection
) -> None:
    mailing_id = await add_due_messages(engine, 2)
    async with claimer.transaction():
        await store.claim(claimer, {mailing_id: store.FIRST_CURSOR}, 2, OWNER, LEASE)
        async with asyncio.timeout(EVENT_TIMEOUT):
            assert (
                await store.claim(other, {mailing_id: store.FIRST_CURSOR}, 2, uuid4(), LEASE) == []
            )


async def test_claims_and_results_change_the_counters(
    engine: AsyncEngine, claimer: asyncpg.Connection
) -> None:
    mailing_id = await add_due_messages(engine, 3)
    first, second = await store.claim(claimer, {mailing_id: store.FIRST_CURSOR}, 2, OWNER, LEASE)
    assert await mailing_counts(engine, mailing_id) == {"scheduled": 1, "sending": 2}

    finished = [
        MessageResult(first, "delivered", 1, sent_at=datetime.now(UTC)),
        MessageResult(second, "undelivered", 1, "rejected_400"),
    ]
    assert len(await store.record_results(claimer, OWNER, finished)) == 2
    assert await mailing_counts(engine, mailing_id) == {
        "scheduled": 1,
        "delivered": 1,
        "undelivered": 1,
    }
    assert await state(engine, second.id) == ("undelivered", "rejected_400", 1)


async def test_recording_a_result_twice_changes_nothing(
    engine: AsyncEngine, claimer: asyncpg.Connection
) -> None:
    claim = await claim_one(engine, claimer)
    delivered = MessageResult(claim, "delivered", 1, sent_at=datetime.now(UTC))
    assert len(await store.record_results(claimer, OWNER, [delivered])) == 1

    refused = MessageResult(claim, "undelivered", 1, "rejected_400")
    assert len(await store.record_results(claimer, OWNER, [delivered, refused])) == 0
    assert await state(engine, claim.id) == ("delivered", None, 1)


async def test_a_result_of_another_owner_changes_nothing(
    engine: AsyncEngine, claimer: asyncpg.Connection
) -> None:
    claim = await claim_one(engine, claimer)

    assert (
        len(await store.record_results(claimer, uuid4(), [MessageResult(claim, "delivered", 1)]))
        == 0
    )
    assert await state(engine, claim.id) == ("sending", None, 1)


async def test_a_result_of_an_earlier_claim_changes_nothing(
    engine: AsyncEngine, claimer: asyncpg.Connection
) -> None:
    claim = await claim_one(engine, claimer)
    released = MessageResult(claim, "scheduled", 0)
    assert len(await store.record_results(claimer, OWNER, [released])) == 1
    (claimed_again,) = await store.claim(
        claimer, {claim.mailing_id: store.FIRST_CURSOR}, 1, OWNER, LEASE
    )
    assert (claimed_again.id, claimed_again.attempts) == (claim.id, claim.attempts)

    # the recorder writes again when the connection was lost before the response
    assert len(await store.record_results(claimer, OWNER, [released])) == 0
    assert await state(engine, claim.id) == ("sending", None, 1)
    assert (
        len(
            await store.record_results(
                claimer, OWNER, [MessageResult(claimed_again, "delivered", 1)]
            )
        )
        == 1
    )


async def record_failure(claimer: asyncpg.Connection, claim: ClaimedMessage, reason: str) -> None:
    """Record a failed attempt; the message waits for the next one."""
    result = MessageResult(claim, "scheduled", claim.attempts, reason, last_failure=reason)
    assert len(await store.record_results(claimer, OWNER, [result])) == 1


async def claim_again(claimer: asyncpg.Connection, claim: ClaimedMessage) -> ClaimedMessage:
    (claimed_again,) = await store.claim(
        claimer, {claim.mailing_id: store.FIRST_CURSOR}, 1, OWNER, LEASE
    )
    assert claimed_again.id == claim.id
    return claimed_again


async def last_failure(connection: asyncpg.Connection, claim: ClaimedMessage) -> str | None:
    query = "SELECT last_failure FROM message WHERE id = $1"
    failure: str | None = await connection.fetchval(query, claim.id)
    return failure


async def test_releasing_a_message_restores_its_reason(
    engine: AsyncEngine, claimer: asyncpg.Connection
) -> None:
    claim = await claim_one(engine, claimer)
    await store.record_results(claimer, OWNER, [MessageResult(claim, "scheduled", 0)])
    assert await state(engine, claim.id) == ("scheduled", None, 0)

    await record_failure(claimer, await claim_again(claimer, claim), "http_503")
    claimed_again = await claim_again(claimer, claim)
    assert await state(engine, claim.id) == ("sending", None, 2)
    await store.record_results(claimer, OWNER, [MessageResult(claimed_again, "scheduled", 1)])

    assert await state(engine, claim.id) == ("scheduled", "http_503", 1)


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
    claim = await claim_one(engine, claimer)
    await record_failure(claimer, claim, "http_503")
    claimed_again = await claim_again(claimer, claim)

    assert (
        len(
            await store.record_results(
                claimer, OWNER, [MessageResult(claimed_again, status, 2, reason)]
            )
        )
        == 1
    )

    assert await state(engine, claim.id) == (status, reason, 2)
    assert await last_failure(claimer, claim) == "http_503"


async def test_a_new_failure_replaces_the_previous_one(
    engine: AsyncEngine, claimer: asyncpg.Connection
) -> None:
    claim = await claim_one(engine, claimer)
    assert await last_failure(claimer, claim) is None
    await record_failure(claimer, claim, "http_503")
    claimed_again = await claim_again(claimer, claim)
    failed_permanently = MessageResult(
        claimed_again, "undelivered", 2, "attempts_exhausted", last_failure="timeout"
    )
    await store.record_results(claimer, OWNER, [failed_permanently])

    assert await state(engine, claim.id) == ("undelivered", "attempts_exhausted", 2)
    assert await last_failure(claimer, claim) == "timeout"


async def test_releasing_orphaned_claims_restores_their_state(
    engine: AsyncEngine, claimer: asyncpg.Connection
) -> None:
    tried = await claim_one(engine, claimer)
    await record_failure(claimer, tried, "http_503")
    await claim_again(claimer, tried)
    mailing_id = await add_due_messages(engine, 3)
    in_flight, untried = await store.claim(
        claimer, {mailing_id: store.FIRST_CURSOR}, 2, OWNER, LEASE
    )
    (of_other_owner,) = await store.claim(
        claimer, {mailing_id: store.FIRST_CURSOR}, 1, uuid4(), LEASE
    )

    assert await store.release_orphaned(claimer, OWNER, {in_flight.id}) == 2

    assert await state(engine, tried.id) == ("scheduled", "http_503", 1)
    assert await state(engine, untried.id) == ("scheduled", None, 0)
    assert await state(engine, in_flight.id) == await state(engine, of_other_owner.id)
    assert await mailing_counts(engine, mailing_id) == {"scheduled": 1, "sending": 2}
    assert await store.release_orphaned(claimer, OWNER, {in_flight.id}) == 0
    late, known = MessageResult(untried, "delivered", 1), MessageResult(in_flight, "delivered", 1)
    assert len(await store.record_results(claimer, OWNER, [late, known])) == 1
    assert await state(engine, untried.id) == ("scheduled", None, 0)


async def test_refunding_restores_the_attempt_once(
    engine: AsyncEngine, claimer: asyncpg.Connection
) -> None:
    mailing_id = await add_due_messages(engine, 3)
    *to_refund, other = await store.claim(
        claimer, {mailing_id: store.FIRST_CURSOR}, 3, OWNER, LEASE
    )
    for claim in (*to_refund, other):
        await record_failure(claimer, claim, "http_503")

    await store.refund_attempts(claimer, to_refund)

    for claim in to_refund:
        assert await state(engine, claim.id) == ("scheduled", "http_503", 0)
    assert await state(engine, other.id) == ("scheduled", "http_503", 1)
    assert await mailing_counts(engine, mailing_id) == {"scheduled": 3}
    await store.refund_attempts(claimer, [*to_refund, *to_refund])
    assert {await state(engine, claim.id) for claim in to_refund} == {("scheduled", "http_503", 0)}


async def test_each_failed_attempt_of_a_message_is_refunded(
    engine: AsyncEngine, claimer: asyncpg.Connection
) -> None:
    first = await claim_one(engine, claimer)
    await record_failure(claimer, first, "http_503")
    second = await claim_again(claimer, first)
    await record_failure(claimer, second, "http_500")

    await store.refund_attempts(
        claimer, [second, first, second]
    )  # twice, as if one failed before a `/retry`

    assert await state(engine, first.id) == ("scheduled", "http_500", 0)


async def test_an_attempt_of_a_message_claimed_again_is_not_refunded(
    engine: AsyncEngine, claimer: asyncpg.Connection
) -> None:
    claim = await claim_one(engine, claimer)
    await store.refund_attempts(claimer, [claim])
    assert await state(engine, claim.id) == ("sending", None, 1)

    await record_failure(claimer, claim, "http_503")
    claimed_again = await claim_again(claimer, claim)
    await store.refund_attempts(claimer, [claim])
    assert await state(engine, claim.id) == ("sending", None, 2)

    await record_failure(claimer, claimed_again, "http_500")
    await store.refund_attempts(claimer, [claim])
    assert await state(engine, claim.id) == ("scheduled", "http_500", 2)


@pytest.mark.parametrize("status", ["delivered", "undelivered", "unknown", "cancelled"])
async def test_an_attempt_of_a_message_that_does_not_wait_is_not_refunded(
    engine: AsyncEngine, claimer: asyncpg.Connection, status: MessageStatus
) -> None:
    claim = await claim_one(engine, claimer)
    await store.record_results(claimer, OWNER, [MessageResult(claim, status, 1)])

    await store.refund_attempts(claimer, [claim])

    assert await state(engine, claim.id) == (status, None, 1)


async def test_the_first_waiting_message_is_returned_with_cursor_and_seconds_until_due(
    engine: AsyncEngine, claimer: asyncpg.Connection
) -> None:
    mailing_id, other = await add_due_messages(engine, 0), await add_due_messages(engine, 0)
    clients = await add_clients(engine, 2)
    now = datetime.now(UTC)
    cursors = {mailing_id: None, other: None}
    assert await store.first_waiting(claimer, cursors) == []

    await add_messages(engine, mailing_id, clients[:1], "delivered", at=now)
    await add_messages(engine, mailing_id, clients[1:], "scheduled", at=now + HOUR)
    await add_messages(engine, other, clients, "scheduled", at=now - HOUR)
    await add_messages(engine, other, [100], "scheduled", at=now + HOUR / 2)

    waiting = {
        mailing: (due_at, seconds)
        for mailing, (due_at, _), seconds in await store.first_waiting(claimer, cursors)
    }
    assert (waiting[mailing_id][0], waiting[other][0]) == (now + HOUR, now - HOUR)
    assert waiting[mailing_id][1] == pytest.approx(3600, abs=60)
    assert waiting[other][1] == pytest.approx(-3600, abs=60)
    [(_, cursor, _)] = await store.first_waiting(claimer, {other: now})
    assert cursor[0] == now + HOUR / 2


async def test_claims_continue_from_a_cursor_and_reach_every_message_once(
    engine: AsyncEngine, claimer: asyncpg.Connection
) -> None:
    mailing_id = await add_due_messages(engine, 5)
    clients = await add_clients(engine, 4)
    await add_messages(engine, mailing_id, clients, "scheduled", at=NOON)
    cursor, claimed = store.FIRST_CURSOR, []
    while claims := await store.claim(claimer, {mailing_id: cursor}, 2, OWNER, LEASE):
        cursors = [(claim.due_at, claim.id) for claim in claims]
        assert min(cursors) > cursor
        cursor = max(cursors)
        claimed += [claim.id for claim in claims]
    assert len(claimed) == len(set(claimed)) == 9


async def test_a_claim_after_a_cursor_leaves_earlier_messages(
    engine: AsyncEngine, claimer: asyncpg.Connection
) -> None:
    mailing_id = await add_due_messages(engine, 2)
    (first,) = await store.claim(claimer, {mailing_id: store.FIRST_CURSOR}, 1, OWNER, LEASE)
    await store.record_results(claimer, OWNER, [MessageResult(first, "scheduled", 0)])

    cursor_after_first = (first.due_at, first.id)
    (second,) = await store.claim(claimer, {mailing_id: cursor_after_first}, 9, OWNER, LEASE)
    assert second.id > first.id
    (claimed_again,) = await store.claim(claimer, {mailing_id: store.FIRST_CURSOR}, 9, OWNER, LEASE)
    assert claimed_again.id == first.id
