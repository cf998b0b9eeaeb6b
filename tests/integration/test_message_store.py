import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from uuid import UUID, uuid4

import asyncpg
import pytest
from sqlalchemy.ext.asyncio import AsyncEngine
from tests.sample import add_clients, add_mailing, add_messages

from mailer.db.engine import raw
from mailer.message import store
from mailer.message.model import ClaimedMessage, FinishedMessage

OWNER = UUID(int=1)
LEASE = timedelta(seconds=60)
HOUR = timedelta(hours=1)


@pytest.fixture
async def claimer(engine: AsyncEngine) -> AsyncIterator[asyncpg.Connection]:
    async with engine.connect() as pooled:
        yield await raw(pooled)


@pytest.fixture
async def other(engine: AsyncEngine) -> AsyncIterator[asyncpg.Connection]:
    async with engine.connect() as pooled:
        yield await raw(pooled)


async def due_mailing(engine: AsyncEngine, count: int, status: str = "running") -> int:
    """A mailing under way with messages that are due."""
    start = datetime.now(UTC) - HOUR
    mailing_id = await add_mailing(engine, clients=count, start=start, status=status)
    await add_messages(engine, mailing_id, await add_clients(engine, count), "scheduled")
    return mailing_id


async def claim_one(
    engine: AsyncEngine, claimer: asyncpg.Connection, lease: timedelta = LEASE
) -> ClaimedMessage:
    mailing_id = await due_mailing(engine, 1)
    (claim,) = await store.claim(claimer, [mailing_id], 1, OWNER, lease)
    return claim


async def state(connection: asyncpg.Connection, message_id: int) -> tuple[str, str | None, int]:
    query = "SELECT status, reason, attempts FROM message WHERE id = $1"
    row = await connection.fetchrow(query, message_id)
    assert row is not None
    return row["status"], row["reason"], row["attempts"]


async def ledger(connection: asyncpg.Connection, mailing_id: int) -> dict[str, int]:
    row = await connection.fetchrow("SELECT * FROM ledger WHERE mailing_id = $1", mailing_id)
    assert row is not None
    return {name: n for name, n in row.items() if n and name != "mailing_id"}


async def rescue(engine: AsyncEngine, max_attempts: int = 8) -> int:
    async with engine.begin() as connection:
        return await store.rescue(connection, max_attempts, 1_000)


async def test_claim_takes_the_oldest_due_up_to_the_share_of_each_mailing(
    engine: AsyncEngine, claimer: asyncpg.Connection
) -> None:
    large, small = await due_mailing(engine, 5), await due_mailing(engine, 1)
    oldest = datetime.now(UTC) - 100_000 * HOUR
    await add_messages(engine, large, await add_clients(engine, 2), "scheduled", at=oldest)

    claims = await store.claim(claimer, [large, small], 2, OWNER, LEASE)

    assert sorted(claim.mailing_id for claim in claims) == [large, large, small]
    assert all(claim.attempts == 1 for claim in claims)
    taken = [claim.id for claim in claims if claim.mailing_id == large]
    query = "SELECT count(*) FROM message WHERE id = ANY($1) AND due_at = $2"
    assert await claimer.fetchval(query, taken, oldest) == 2


async def test_claim_takes_nothing_that_is_not_due_or_not_scheduled(
    engine: AsyncEngine, claimer: asyncpg.Connection
) -> None:
    mailing_id = await due_mailing(engine, 0)
    clients = await add_clients(engine, 3)
    later = datetime.now(UTC) + HOUR
    await add_messages(engine, mailing_id, clients[:1], "scheduled", at=later)
    await add_messages(engine, mailing_id, clients[1:2], "delivered")
    await add_messages(engine, mailing_id, clients[2:], "cancelled", "expired")

    assert await store.claim(claimer, [mailing_id], 9, OWNER, LEASE) == []


@pytest.mark.parametrize(
    "change",
    [
        "status = 'paused'",
        "status = 'cancelled'",
        "status = 'finished'",
        "replanning = true",
        "deleted_at = now()",
        "datetime_end = now()",
    ],
)
async def test_claim_takes_nothing_of_a_mailing_that_must_not_send(
    engine: AsyncEngine, claimer: asyncpg.Connection, change: str
) -> None:
    mailing_id = await due_mailing(engine, 2)
    await claimer.execute(f"UPDATE mailing SET {change}")  # noqa: S608  # of a test

    assert await store.claim(claimer, [mailing_id], 9, OWNER, LEASE) == []


async def test_claim_takes_nothing_of_a_mailing_that_is_not_asked_for(
    engine: AsyncEngine, claimer: asyncpg.Connection
) -> None:
    asked, _ = await due_mailing(engine, 1), await due_mailing(engine, 1)

    claims = await store.claim(claimer, [asked], 9, OWNER, LEASE)

    assert [claim.mailing_id for claim in claims] == [asked]


async def test_two_claimers_at_once_never_take_the_same_message(
    engine: AsyncEngine, claimer: asyncpg.Connection, other: asyncpg.Connection
) -> None:
    mailing_id = await due_mailing(engine, 5)
    async with claimer.transaction():
        first = await store.claim(claimer, [mailing_id], 3, OWNER, LEASE)
        # it passes over the three and waits with the other two, for the ledger's row
        claiming = asyncio.create_task(store.claim(other, [mailing_id], 3, uuid4(), LEASE))
        await asyncio.wait({claiming}, timeout=0.2)
    second = await claiming

    assert (len(first), len(second)) == (3, 2)
    assert not {claim.id for claim in first} & {claim.id for claim in second}


async def test_what_another_is_claiming_is_passed_over_without_waiting(
    engine: AsyncEngine, claimer: asyncpg.Connection, other: asyncpg.Connection
) -> None:
    mailing_id = await due_mailing(engine, 2)
    async with claimer.transaction():
        await store.claim(claimer, [mailing_id], 2, OWNER, LEASE)
        async with asyncio.timeout(5):
            assert await store.claim(other, [mailing_id], 2, uuid4(), LEASE) == []


async def test_ledger_moves_with_claim_and_finish(
    engine: AsyncEngine, claimer: asyncpg.Connection
) -> None:
    mailing_id = await due_mailing(engine, 3)
    first, second = await store.claim(claimer, [mailing_id], 2, OWNER, LEASE)
    assert await ledger(claimer, mailing_id) == {"scheduled": 1, "sending": 2}

    finished = [
        FinishedMessage(first, "delivered", 1, sent_at=datetime.now(UTC)),
        FinishedMessage(second, "undelivered", 1, "rejected_400"),
    ]
    assert await store.finish(claimer, OWNER, finished) == 2
    assert await ledger(claimer, mailing_id) == {"scheduled": 1, "delivered": 1, "undelivered": 1}
    assert await state(claimer, second.id) == ("undelivered", "rejected_400", 1)


async def test_finish_twice_writes_once(engine: AsyncEngine, claimer: asyncpg.Connection) -> None:
    claim = await claim_one(engine, claimer)
    delivered = FinishedMessage(claim, "delivered", 1, sent_at=datetime.now(UTC))
    assert await store.finish(claimer, OWNER, [delivered]) == 1

    refused = FinishedMessage(claim, "undelivered", 1, "rejected_400")
    assert await store.finish(claimer, OWNER, [delivered, refused]) == 0
    assert await state(claimer, claim.id) == ("delivered", None, 1)


async def test_finish_by_another_owner_changes_nothing(
    engine: AsyncEngine, claimer: asyncpg.Connection
) -> None:
    claim = await claim_one(engine, claimer)

    assert await store.finish(claimer, uuid4(), [FinishedMessage(claim, "delivered", 1)]) == 0
    assert await state(claimer, claim.id) == ("sending", None, 1)


async def test_finish_of_an_earlier_attempt_changes_nothing(
    engine: AsyncEngine, claimer: asyncpg.Connection
) -> None:
    claim = await claim_one(engine, claimer, lease=-LEASE)
    assert await rescue(engine) == 1
    (again,) = await store.claim(claimer, [claim.mailing_id], 1, OWNER, LEASE)
    assert (again.id, again.attempts) == (claim.id, 2)

    assert await store.finish(claimer, OWNER, [FinishedMessage(claim, "delivered", 1)]) == 0
    assert await state(claimer, claim.id) == ("sending", None, 2)


async def test_finish_of_a_claim_handed_back_and_made_anew_changes_nothing(
    engine: AsyncEngine, claimer: asyncpg.Connection
) -> None:
    claim = await claim_one(engine, claimer)
    handed_back = FinishedMessage(claim, "scheduled", 0)
    assert await store.finish(claimer, OWNER, [handed_back]) == 1
    (again,) = await store.claim(claimer, [claim.mailing_id], 1, OWNER, LEASE)
    assert (again.id, again.attempts) == (claim.id, claim.attempts)

    # as the recorder writes once more when the connection was lost before the answer
    assert await store.finish(claimer, OWNER, [handed_back]) == 0
    assert await state(claimer, claim.id) == ("sending", None, 1)
    assert await store.finish(claimer, OWNER, [FinishedMessage(again, "delivered", 1)]) == 1


@pytest.mark.parametrize(
    ("on_unknown", "max_attempts", "becomes"),
    [
        ("retry", 2, ("scheduled", "lease_expired")),
        ("retry", 1, ("undelivered", "attempts_exhausted")),
        ("hold", 2, ("unknown", "lease_expired")),
        ("hold", 1, ("unknown", "lease_expired")),
    ],
)
async def test_rescued_message_counts_as_unknown(
    engine: AsyncEngine,
    claimer: asyncpg.Connection,
    on_unknown: str,
    max_attempts: int,
    becomes: tuple[str, str],
) -> None:
    claim = await claim_one(engine, claimer, lease=-LEASE)
    await claimer.execute("UPDATE mailing SET on_unknown = $1", on_unknown)

    assert await rescue(engine, max_attempts) == 1

    assert await state(claimer, claim.id) == (*becomes, 1)
    assert await ledger(claimer, claim.mailing_id) == {becomes[0]: 1}
    assert await store.finish(claimer, OWNER, [FinishedMessage(claim, "delivered", 1)]) == 0


async def test_rescue_leaves_leases_that_hold_alone(
    engine: AsyncEngine, claimer: asyncpg.Connection
) -> None:
    lost = await claim_one(engine, claimer, lease=-LEASE)
    held = await claim_one(engine, claimer)

    assert await rescue(engine) == 1
    assert await state(claimer, lost.id) == ("scheduled", "lease_expired", 1)
    assert await state(claimer, held.id) == ("sending", None, 1)


async def test_rescue_takes_no_more_than_a_chunk(
    engine: AsyncEngine, claimer: asyncpg.Connection
) -> None:
    mailing_id = await due_mailing(engine, 3)
    await store.claim(claimer, [mailing_id], 3, OWNER, -LEASE)

    async with engine.begin() as connection:
        assert await store.rescue(connection, 8, 2) == 2
    assert await ledger(claimer, mailing_id) == {"scheduled": 2, "sending": 1}


async def test_seconds_to_next_due_are_those_of_the_earliest_message_that_waits(
    engine: AsyncEngine, claimer: asyncpg.Connection
) -> None:
    asked, other = await due_mailing(engine, 0), await due_mailing(engine, 0)
    clients = await add_clients(engine, 2)
    now = datetime.now(UTC)
    assert await store.seconds_to_next_due(claimer, [asked, other]) is None

    await add_messages(engine, asked, clients[:1], "delivered", at=now)
    await add_messages(engine, asked, clients[1:], "scheduled", at=now + HOUR)
    await add_messages(engine, other, clients, "scheduled", at=now + HOUR / 2)

    assert await store.seconds_to_next_due(claimer, [asked]) == pytest.approx(3600, abs=5)
    assert await store.seconds_to_next_due(claimer, [asked, other]) == pytest.approx(1800, abs=5)
    await claimer.execute("UPDATE message SET due_at = now() - interval '9 s'")
    assert await store.seconds_to_next_due(claimer, [asked]) == pytest.approx(-9, abs=5)
