import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from uuid import uuid4

import asyncpg
import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine
from tests.patience import PATIENCE
from tests.sample import (
    LEASE,
    NOON,
    OWNER,
    add_clients,
    add_due_messages,
    add_messages,
    ledger,
    state,
)

from mailer.db.engine import IN_INDEX_ORDER, OwnConnection, raw
from mailer.message import store
from mailer.message.model import ClaimedMessage, FinishedMessage, Status

HOUR = timedelta(hours=1)
LEDGER_READS = """
    SELECT pg_stat_get_blocks_fetched(oid) + pg_stat_get_xact_blocks_fetched(oid)
    FROM pg_class, pg_stat_force_next_flush() WHERE relname = 'ledger'"""


@pytest.fixture
async def claimer(engine: AsyncEngine) -> AsyncIterator[asyncpg.Connection]:
    async with engine.connect() as pooled:
        yield await raw(pooled)


@pytest.fixture
async def other(engine: AsyncEngine) -> AsyncIterator[asyncpg.Connection]:
    async with engine.connect() as pooled:
        yield await raw(pooled)


async def claim_one(
    engine: AsyncEngine, claimer: asyncpg.Connection, lease: timedelta = LEASE
) -> ClaimedMessage:
    mailing_id = await add_due_messages(engine, 1)
    (claim,) = await store.claim(claimer, {mailing_id: store.START}, 1, OWNER, lease)
    return claim


async def test_claim_takes_the_oldest_due_up_to_the_share_of_each_mailing(
    engine: AsyncEngine, claimer: asyncpg.Connection
) -> None:
    large, small = await add_due_messages(engine, 5), await add_due_messages(engine, 1)
    oldest = datetime.now(UTC) - 100_000 * HOUR
    await add_messages(engine, large, await add_clients(engine, 2), "scheduled", at=oldest)

    claims = await store.claim(claimer, {large: store.START, small: store.START}, 2, OWNER, LEASE)

    assert sorted(claim.mailing_id for claim in claims) == [large, large, small]
    assert all(claim.attempts == 1 for claim in claims)
    taken = [claim.id for claim in claims if claim.mailing_id == large]
    query = "SELECT count(*) FROM message WHERE id = ANY($1) AND due_at = $2"
    assert await claimer.fetchval(query, taken, oldest) == 2


async def test_claim_reads_no_old_counts_that_a_snapshot_keeps(
    engine: AsyncEngine, shared_database_url: str
) -> None:
    mailing_id = await add_due_messages(engine, 400)
    own = OwnConnection(shared_database_url)
    connection = await own.get()
    place = store.START

    async def claim_some(count: int) -> int:
        """Claim one after the other, and return how many pages of counts that has read."""
        nonlocal place
        before = await connection.fetchval(LEDGER_READS)
        for _ in range(count):
            (claimed,) = await store.claim(connection, {mailing_id: place}, 1, OWNER, LEASE)
            place = (claimed.due_at, claimed.id)
        reads: int = await connection.fetchval(LEDGER_READS) - before
        return reads

    async with engine.connect() as backup:
        await backup.execution_options(isolation_level="REPEATABLE READ")
        await backup.execute(text("SELECT FROM client"))
        at_first = await claim_some(20)
        await claim_some(350)
        assert await claim_some(20) <= 1.2 * at_first
    own.close()


async def test_claim_takes_nothing_that_is_not_due_or_not_scheduled(
    engine: AsyncEngine, claimer: asyncpg.Connection
) -> None:
    mailing_id = await add_due_messages(engine, 0)
    clients = await add_clients(engine, 3)
    later = datetime.now(UTC) + HOUR
    await add_messages(engine, mailing_id, clients[:1], "scheduled", at=later)
    await add_messages(engine, mailing_id, clients[1:2], "delivered")
    await add_messages(engine, mailing_id, clients[2:], "cancelled", "expired")

    assert await store.claim(claimer, {mailing_id: store.START}, 9, OWNER, LEASE) == []


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
    mailing_id = await add_due_messages(engine, 2)
    await claimer.execute(f"UPDATE mailing SET {change}")  # noqa: S608  # of a test

    assert await store.claim(claimer, {mailing_id: store.START}, 9, OWNER, LEASE) == []


async def test_claim_takes_nothing_of_a_mailing_that_is_not_asked_for(
    engine: AsyncEngine, claimer: asyncpg.Connection
) -> None:
    asked, _ = await add_due_messages(engine, 1), await add_due_messages(engine, 1)

    claims = await store.claim(claimer, {asked: store.START}, 9, OWNER, LEASE)

    assert [claim.mailing_id for claim in claims] == [asked]


ADD_OTHERS = """
    WITH added AS (
        INSERT INTO mailing (datetime_start, datetime_end, text, status, clients_count)
        SELECT now(), now() + interval '1 hour', 'Hello', 'running', 0
        FROM generate_series(1, 1000) RETURNING id)
    INSERT INTO ledger (mailing_id) SELECT id FROM added"""
LEDGERS_READ = """
    SELECT coalesce(sum(seq_tup_read + idx_tup_fetch), 0)
    FROM pg_stat_xact_user_tables WHERE relname = 'ledger'"""


@pytest.mark.parametrize("settings", [{}, IN_INDEX_ORDER], ids=["as usual", "in index order"])
async def test_claims_and_outcomes_read_no_ledgers_of_other_mailings(
    engine: AsyncEngine, claimer: asyncpg.Connection, settings: dict[str, str]
) -> None:
    mailing_id = await add_due_messages(engine, 2)
    first = {mailing_id: store.START}
    await store.claim(claimer, first, 1, OWNER, LEASE)  # plans are made while there are few
    await claimer.execute(ADD_OTHERS)

    async with claimer.transaction():
        for name, setting in settings.items():
            await claimer.execute(f"SET LOCAL {name} = {setting}")
        read_before = await claimer.fetchval(LEDGERS_READ)
        [claim] = await store.claim(claimer, first, 1, OWNER, LEASE)
        done = FinishedMessage(claim, "delivered", attempts=1, sent_at=NOON)
        await store.finish(claimer, OWNER, [done])
        assert await claimer.fetchval(LEDGERS_READ) == read_before + 2


async def test_two_claimers_at_once_never_take_the_same_message(
    engine: AsyncEngine, claimer: asyncpg.Connection, other: asyncpg.Connection
) -> None:
    mailing_id = await add_due_messages(engine, 5)
    async with claimer.transaction():
        first = await store.claim(claimer, {mailing_id: store.START}, 3, OWNER, LEASE)
        # it passes over the three and waits with the other two, for the ledger's row
        claiming = asyncio.create_task(
            store.claim(other, {mailing_id: store.START}, 3, uuid4(), LEASE)
        )
        await asyncio.wait({claiming}, timeout=0.2)
    second = await claiming

    assert (len(first), len(second)) == (3, 2)
    assert not {claim.id for claim in first} & {claim.id for claim in second}
    assert await ledger(engine, mailing_id) == {"sending": 5}


async def test_what_another_is_claiming_is_passed_over_without_waiting(
    engine: AsyncEngine, claimer: asyncpg.Connection, other: asyncpg.Connection
) -> None:
    mailing_id = await add_due_messages(engine, 2)
    async with claimer.transaction():
        await store.claim(claimer, {mailing_id: store.START}, 2, OWNER, LEASE)
        async with asyncio.timeout(PATIENCE):
            assert await store.claim(other, {mailing_id: store.START}, 2, uuid4(), LEASE) == []


async def test_ledger_moves_with_claim_and_finish(
    engine: AsyncEngine, claimer: asyncpg.Connection
) -> None:
    mailing_id = await add_due_messages(engine, 3)
    first, second = await store.claim(claimer, {mailing_id: store.START}, 2, OWNER, LEASE)
    assert await ledger(engine, mailing_id) == {"scheduled": 1, "sending": 2}

    finished = [
        FinishedMessage(first, "delivered", 1, sent_at=datetime.now(UTC)),
        FinishedMessage(second, "undelivered", 1, "rejected_400"),
    ]
    assert len(await store.finish(claimer, OWNER, finished)) == 2
    assert await ledger(engine, mailing_id) == {"scheduled": 1, "delivered": 1, "undelivered": 1}
    assert await state(engine, second.id) == ("undelivered", "rejected_400", 1)


async def test_finish_twice_writes_once(engine: AsyncEngine, claimer: asyncpg.Connection) -> None:
    claim = await claim_one(engine, claimer)
    delivered = FinishedMessage(claim, "delivered", 1, sent_at=datetime.now(UTC))
    assert len(await store.finish(claimer, OWNER, [delivered])) == 1

    refused = FinishedMessage(claim, "undelivered", 1, "rejected_400")
    assert len(await store.finish(claimer, OWNER, [delivered, refused])) == 0
    assert await state(engine, claim.id) == ("delivered", None, 1)


async def test_finish_by_another_owner_changes_nothing(
    engine: AsyncEngine, claimer: asyncpg.Connection
) -> None:
    claim = await claim_one(engine, claimer)

    assert len(await store.finish(claimer, uuid4(), [FinishedMessage(claim, "delivered", 1)])) == 0
    assert await state(engine, claim.id) == ("sending", None, 1)


async def test_finish_of_a_claim_handed_back_and_made_anew_changes_nothing(
    engine: AsyncEngine, claimer: asyncpg.Connection
) -> None:
    claim = await claim_one(engine, claimer)
    handed_back = FinishedMessage(claim, "scheduled", 0)
    assert len(await store.finish(claimer, OWNER, [handed_back])) == 1
    (again,) = await store.claim(claimer, {claim.mailing_id: store.START}, 1, OWNER, LEASE)
    assert (again.id, again.attempts) == (claim.id, claim.attempts)

    # as the recorder writes once more when the connection was lost before the answer
    assert len(await store.finish(claimer, OWNER, [handed_back])) == 0
    assert await state(engine, claim.id) == ("sending", None, 1)
    assert len(await store.finish(claimer, OWNER, [FinishedMessage(again, "delivered", 1)])) == 1


async def failed(claimer: asyncpg.Connection, claim: ClaimedMessage, reason: str) -> None:
    """Write that an attempt failed, and that the message waits for the next."""
    again = FinishedMessage(claim, "scheduled", claim.attempts, reason, last_failure=reason)
    assert len(await store.finish(claimer, OWNER, [again])) == 1


async def claim_again(claimer: asyncpg.Connection, claim: ClaimedMessage) -> ClaimedMessage:
    (again,) = await store.claim(claimer, {claim.mailing_id: store.START}, 1, OWNER, LEASE)
    assert again.id == claim.id
    return again


async def last_failure(connection: asyncpg.Connection, claim: ClaimedMessage) -> str | None:
    query = "SELECT last_failure FROM message WHERE id = $1"
    found: str | None = await connection.fetchval(query, claim.id)
    return found


async def test_message_handed_back_waits_again_for_the_reason_it_waited_for(
    engine: AsyncEngine, claimer: asyncpg.Connection
) -> None:
    claim = await claim_one(engine, claimer)
    await store.finish(claimer, OWNER, [FinishedMessage(claim, "scheduled", 0)])
    assert await state(engine, claim.id) == ("scheduled", None, 0)

    await failed(claimer, await claim_again(claimer, claim), "http_503")
    again = await claim_again(claimer, claim)
    assert await state(engine, claim.id) == ("sending", None, 2)
    await store.finish(claimer, OWNER, [FinishedMessage(again, "scheduled", 1)])

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
async def test_why_the_last_attempt_failed_is_kept_whatever_becomes_of_the_message(
    engine: AsyncEngine, claimer: asyncpg.Connection, status: Status, reason: str | None
) -> None:
    claim = await claim_one(engine, claimer)
    await failed(claimer, claim, "http_503")
    again = await claim_again(claimer, claim)

    assert len(await store.finish(claimer, OWNER, [FinishedMessage(again, status, 2, reason)])) == 1

    assert await state(engine, claim.id) == (status, reason, 2)
    assert await last_failure(claimer, claim) == "http_503"


async def test_newest_failure_takes_the_place_of_the_one_before(
    engine: AsyncEngine, claimer: asyncpg.Connection
) -> None:
    claim = await claim_one(engine, claimer)
    assert await last_failure(claimer, claim) is None
    await failed(claimer, claim, "http_503")
    again = await claim_again(claimer, claim)
    given_up = FinishedMessage(
        again, "undelivered", 2, "attempts_exhausted", last_failure="timeout"
    )
    await store.finish(claimer, OWNER, [given_up])

    assert await state(engine, claim.id) == ("undelivered", "attempts_exhausted", 2)
    assert await last_failure(claimer, claim) == "timeout"


async def test_claims_that_nobody_knows_of_go_back_to_where_they_were(
    engine: AsyncEngine, claimer: asyncpg.Connection
) -> None:
    tried = await claim_one(engine, claimer)
    await failed(claimer, tried, "http_503")
    await claim_again(claimer, tried)
    mailing_id = await add_due_messages(engine, 3)
    held, untried = await store.claim(claimer, {mailing_id: store.START}, 2, OWNER, LEASE)
    (of_another,) = await store.claim(claimer, {mailing_id: store.START}, 1, uuid4(), LEASE)

    assert await store.let_go(claimer, OWNER, {held.id}) == 2

    assert await state(engine, tried.id) == ("scheduled", "http_503", 1)
    assert await state(engine, untried.id) == ("scheduled", None, 0)
    assert await state(engine, held.id) == await state(engine, of_another.id)
    assert await ledger(engine, mailing_id) == {"scheduled": 1, "sending": 2}
    assert await store.let_go(claimer, OWNER, {held.id}) == 0
    late, known = FinishedMessage(untried, "delivered", 1), FinishedMessage(held, "delivered", 1)
    assert len(await store.finish(claimer, OWNER, [late, known])) == 1
    assert await state(engine, untried.id) == ("scheduled", None, 0)


async def test_failure_that_was_the_gateways_costs_no_attempt(
    engine: AsyncEngine, claimer: asyncpg.Connection
) -> None:
    mailing_id = await add_due_messages(engine, 3)
    *blamed, other = await store.claim(claimer, {mailing_id: store.START}, 3, OWNER, LEASE)
    for claim in (*blamed, other):
        await failed(claimer, claim, "http_503")

    await store.give_back(claimer, blamed)

    for claim in blamed:
        assert await state(engine, claim.id) == ("scheduled", "http_503", 0)
    assert await state(engine, other.id) == ("scheduled", "http_503", 1)
    assert await ledger(engine, mailing_id) == {"scheduled": 3}
    await store.give_back(claimer, [*blamed, *blamed])
    assert {await state(engine, claim.id) for claim in blamed} == {("scheduled", "http_503", 0)}


async def test_each_attempt_of_a_message_that_failed_more_than_once_is_given_back(
    engine: AsyncEngine, claimer: asyncpg.Connection
) -> None:
    first = await claim_one(engine, claimer)
    await failed(claimer, first, "http_503")
    second = await claim_again(claimer, first)
    await failed(claimer, second, "http_500")

    await store.give_back(claimer, [second, first, second])  # one of them before a `/retry`

    assert await state(engine, first.id) == ("scheduled", "http_500", 0)


async def test_attempt_is_not_given_back_to_a_message_claimed_since(
    engine: AsyncEngine, claimer: asyncpg.Connection
) -> None:
    claim = await claim_one(engine, claimer)
    await store.give_back(claimer, [claim])
    assert await state(engine, claim.id) == ("sending", None, 1)

    await failed(claimer, claim, "http_503")
    again = await claim_again(claimer, claim)
    await store.give_back(claimer, [claim])
    assert await state(engine, claim.id) == ("sending", None, 2)

    await failed(claimer, again, "http_500")
    await store.give_back(claimer, [claim])
    assert await state(engine, claim.id) == ("scheduled", "http_500", 2)


@pytest.mark.parametrize("status", ["delivered", "undelivered", "unknown", "cancelled"])
async def test_attempt_is_not_given_back_to_a_message_that_does_not_wait(
    engine: AsyncEngine, claimer: asyncpg.Connection, status: Status
) -> None:
    claim = await claim_one(engine, claimer)
    await store.finish(claimer, OWNER, [FinishedMessage(claim, status, 1)])

    await store.give_back(claimer, [claim])

    assert await state(engine, claim.id) == (status, None, 1)


async def test_first_that_waits_is_told_with_its_place_and_the_seconds_until_it_is_due(
    engine: AsyncEngine, claimer: asyncpg.Connection
) -> None:
    asked, other = await add_due_messages(engine, 0), await add_due_messages(engine, 0)
    clients = await add_clients(engine, 2)
    now = datetime.now(UTC)
    everything = {asked: None, other: None}
    assert await store.first_waiting(claimer, everything) == []

    await add_messages(engine, asked, clients[:1], "delivered", at=now)
    await add_messages(engine, asked, clients[1:], "scheduled", at=now + HOUR)
    await add_messages(engine, other, clients, "scheduled", at=now - HOUR)
    await add_messages(engine, other, [100], "scheduled", at=now + HOUR / 2)

    found = {
        mailing: (due_at, seconds)
        for mailing, (due_at, _), seconds in await store.first_waiting(claimer, everything)
    }
    assert (found[asked][0], found[other][0]) == (now + HOUR, now - HOUR)
    assert found[asked][1] == pytest.approx(3600, abs=60)
    assert found[other][1] == pytest.approx(-3600, abs=60)
    [(_, place, _)] = await store.first_waiting(claimer, {other: now})
    assert place[0] == now + HOUR / 2


async def test_claims_go_on_from_a_place_and_reach_every_message_once(
    engine: AsyncEngine, claimer: asyncpg.Connection
) -> None:
    mailing_id = await add_due_messages(engine, 5)
    clients = await add_clients(engine, 4)
    await add_messages(engine, mailing_id, clients, "scheduled", at=NOON)
    place, claimed = store.START, []
    while claims := await store.claim(claimer, {mailing_id: place}, 2, OWNER, LEASE):
        places = [(claim.due_at, claim.id) for claim in claims]
        assert min(places) > place
        place = max(places)
        claimed += [claim.id for claim in claims]
    assert len(claimed) == len(set(claimed)) == 9


async def test_a_claim_behind_a_place_leaves_what_is_before_it(
    engine: AsyncEngine, claimer: asyncpg.Connection
) -> None:
    mailing_id = await add_due_messages(engine, 2)
    (first,) = await store.claim(claimer, {mailing_id: store.START}, 1, OWNER, LEASE)
    await store.finish(claimer, OWNER, [FinishedMessage(first, "scheduled", 0)])

    behind = (first.due_at, first.id)
    (second,) = await store.claim(claimer, {mailing_id: behind}, 9, OWNER, LEASE)
    assert second.id > first.id
    (again,) = await store.claim(claimer, {mailing_id: store.START}, 9, OWNER, LEASE)
    assert again.id == first.id
