"""The contact cap: which messages count, and which are not sent."""

import asyncio
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy.ext.asyncio import AsyncEngine
from tests.factories import (
    GATEWAY,
    LEASE,
    OWNER,
    ROUTE,
    add_clients,
    add_mailing,
    add_messages,
    claim,
    do,
    execute,
    finish,
    running,
    state,
    value,
)
from tests.integration.opted_out import make_service

from mailer.contact_cap import ContactCap
from mailer.db.engine import connect
from mailer.dispatch.send_policy import decide_before_send
from mailer.message import contacts, store
from mailer.message.model import ClaimedMessage, MessageResult
from mailer.statistics.verify import find_differences

ONE_A_DAY = ContactCap(1, 1, "d")
TWO_A_DAY = ContactCap(2, 1, "d")
OVER_CAP = ("cancelled", "contact_cap", 0)
"""The state of a message that is not sent because of the cap."""


def ago(**time: float) -> datetime:
    """Return the moment so long ago."""
    return datetime.now(UTC) - timedelta(**time)


async def add_sent(
    engine: AsyncEngine, clients: Sequence[int], status: str = "delivered", *, at: datetime
) -> int:
    """Create a mailing whose messages to these clients got a status at a moment; return its id."""
    mailing_id = await add_mailing(engine, clients=len(clients), start=at, lasts=timedelta(days=9))
    await add_messages(engine, mailing_id, clients, status, at=at)
    if status == "unknown":
        await execute(
            engine,
            "UPDATE message SET sent_at = updated_at, unknown_reason = 'timeout'"  # noqa: S608  # a number
            f" WHERE mailing_id = {mailing_id}",
        )
    return mailing_id


async def add_due(engine: AsyncEngine, clients: Sequence[int]) -> int:
    """Create a running mailing with due messages to these clients; return its id."""
    start = ago(hours=1)
    mailing_id = await add_mailing(engine, clients=len(clients), start=start)
    await add_messages(engine, mailing_id, clients, "scheduled", at=start)
    return mailing_id


async def claim_one(
    engine: AsyncEngine, mailing_id: int, cap: ContactCap = ONE_A_DAY
) -> ClaimedMessage:
    """Claim the only message of a mailing."""
    [claimed] = await claim(engine, mailing_id, contact_cap=cap)
    return claimed


async def is_over_cap(
    engine: AsyncEngine, clients: Sequence[int], cap: ContactCap = ONE_A_DAY
) -> bool:
    """Return whether a message of a new mailing to a client is over the cap."""
    return (await claim_one(engine, await add_due(engine, clients), cap)).is_over_cap


def delivered(claimed: ClaimedMessage) -> MessageResult:
    """Return the result of a message that is delivered now."""
    return MessageResult(claimed, "delivered", claimed.attempts, sent_at=datetime.now(UTC))


# ---- what counts -----------------------------------------------------------------------------


@pytest.mark.parametrize("status", ["delivered", "sent", "unknown"])
async def test_what_may_have_reached_the_client_counts(engine: AsyncEngine, status: str) -> None:
    clients = await add_clients(engine, 1)
    await add_sent(engine, clients, status, at=ago(hours=23))
    assert await is_over_cap(engine, clients)


@pytest.mark.parametrize("status", ["undelivered", "cancelled", "scheduled"])
async def test_what_has_not_reached_the_client_does_not_count(
    engine: AsyncEngine, status: str
) -> None:
    clients = await add_clients(engine, 1)
    await add_sent(engine, clients, status, at=ago(hours=1))
    assert not await is_over_cap(engine, clients)


async def test_only_messages_within_the_span_count(engine: AsyncEngine) -> None:
    clients = await add_clients(engine, 1)
    await add_sent(engine, clients, at=ago(hours=25))
    assert not await is_over_cap(engine, clients)


async def test_fewer_messages_than_the_cap_permit_another_one(engine: AsyncEngine) -> None:
    clients = await add_clients(engine, 1)
    await add_sent(engine, clients, at=ago(hours=2))
    assert not await is_over_cap(engine, clients, TWO_A_DAY)
    assert await is_over_cap(engine, clients, TWO_A_DAY)  # the one that is being sent counts


async def test_service_messages_neither_count_nor_are_stopped(engine: AsyncEngine) -> None:
    clients = await add_clients(engine, 1)
    await make_service(engine, await add_sent(engine, clients, at=ago(hours=2)))
    assert not await is_over_cap(engine, clients)
    service = await add_due(engine, clients)
    await make_service(engine, service)
    assert not (await claim_one(engine, service)).is_over_cap


async def test_many_later_service_messages_hide_no_marketing_message(engine: AsyncEngine) -> None:
    clients = await add_clients(engine, 1)
    await add_sent(engine, clients, at=ago(hours=2))
    for _ in range(101):
        await make_service(engine, await add_sent(engine, clients, at=ago(hours=1)))
    assert await is_over_cap(engine, clients)


async def test_other_clients_are_not_affected(engine: AsyncEngine) -> None:
    one, other = await add_clients(engine, 2)
    await add_sent(engine, [one], at=ago(hours=2))
    assert not await is_over_cap(engine, [other])


async def test_a_message_of_a_deleted_mailing_still_counts(engine: AsyncEngine) -> None:
    clients = await add_clients(engine, 1)
    mailing_id = await add_due(engine, clients)
    claimed = await claim_one(engine, mailing_id)
    await finish(engine, delivered(claimed))
    await execute(
        engine,
        f"DELETE FROM message WHERE mailing_id = {mailing_id}",  # noqa: S608  # a number
        f"DELETE FROM mailing WHERE id = {mailing_id}",  # noqa: S608  # a number
    )
    assert await is_over_cap(engine, clients)


# ---- what does not count after all -----------------------------------------------------------


async def test_a_rejected_message_makes_room_for_another_one(engine: AsyncEngine) -> None:
    clients = await add_clients(engine, 1)
    claimed = await claim_one(engine, await add_due(engine, clients))
    assert await is_over_cap(engine, clients)
    rejected = MessageResult(claimed, "undelivered", claimed.attempts, "rejected_400")
    await finish(engine, rejected)
    assert not await is_over_cap(engine, clients)


async def test_a_released_message_makes_room_for_another_one(engine: AsyncEngine) -> None:
    clients = await add_clients(engine, 1)
    first = await add_due(engine, clients)
    claimed = await claim_one(engine, first)
    await finish(engine, MessageResult(claimed, "scheduled", claimed.attempts - 1))
    assert not await is_over_cap(engine, clients)
    assert (await claim_one(engine, first)).is_over_cap


async def test_a_message_does_not_count_against_itself(engine: AsyncEngine) -> None:
    clients = await add_clients(engine, 1)
    mailing_id = await add_due(engine, clients)
    for _ in range(3):
        claimed = await claim_one(engine, mailing_id)
        assert not claimed.is_over_cap
        failed = MessageResult(claimed, "scheduled", claimed.attempts, "http_503")
        await finish(engine, failed)


async def test_a_message_that_may_have_been_accepted_is_repeated_and_counts(
    engine: AsyncEngine,
) -> None:
    clients = await add_clients(engine, 1)
    mailing_id = await add_due(engine, clients)
    claimed = await claim_one(engine, mailing_id)
    result = MessageResult(
        claimed, "scheduled", claimed.attempts, "timeout", unknown_reason="timeout"
    )
    await finish(engine, result)
    assert await is_over_cap(engine, clients)
    await add_sent(engine, clients, at=ago(hours=1))
    await do(engine, lambda db: contacts.forget(db, 9))  # so that the other one counts
    assert not (await claim_one(engine, mailing_id)).is_over_cap


# ---- changes of the setting ------------------------------------------------------------------


async def test_a_longer_span_finds_older_messages(engine: AsyncEngine) -> None:
    clients = await add_clients(engine, 1)
    await add_sent(engine, clients, at=ago(hours=30))
    assert not await is_over_cap(engine, clients)
    assert await is_over_cap(engine, clients, ContactCap(2, 2, "d"))


async def test_messages_that_were_sent_without_a_cap_count_later(engine: AsyncEngine) -> None:
    clients = await add_clients(engine, 1)
    await claim_one(engine, await add_due(engine, clients), TWO_A_DAY)
    assert await do(engine, lambda db: contacts.forget(db, 9)) == 1  # as a worker without a cap
    [without_cap] = await claim(engine, await add_due(engine, clients))
    await finish(engine, delivered(without_cap))
    assert await is_over_cap(engine, clients)


async def test_without_a_cap_nothing_is_recorded(engine: AsyncEngine) -> None:
    clients = await add_clients(engine, 1)
    [claimed] = await claim(engine, await add_due(engine, clients))
    assert not claimed.is_over_cap
    assert await value(engine, "SELECT count(*) FROM client_contact") == 0


# ---- several messages at once ----------------------------------------------------------------


async def test_one_claim_of_several_mailings_respects_the_cap(
    engine: AsyncEngine, shared_database_url: str
) -> None:
    clients = await add_clients(engine, 3)
    mailings = [await add_due(engine, clients) for _ in range(3)]
    connection = await connect(shared_database_url)
    source = store.ClaimSource(
        ROUTE, dict.fromkeys(mailings, store.FIRST_CURSOR), dict.fromkeys(mailings, 9)
    )
    target = store.ClaimTarget(OWNER, LEASE, GATEWAY, TWO_A_DAY)
    claims = await store.claim(connection, source, target)
    await connection.close()
    assert len(claims) == 9
    assert sum(claimed.is_over_cap for claimed in claims) == 3


async def test_two_workers_that_claim_for_one_client_at_once_send_one_message(
    engine: AsyncEngine, shared_database_url: str
) -> None:
    """The second claim waits for the first one, whose transaction is still open."""
    clients = await add_clients(engine, 20)
    first, second = await add_due(engine, clients), await add_due(engine, clients)
    connections = [await connect(shared_database_url) for _ in range(2)]
    target = store.ClaimTarget(OWNER, LEASE, GATEWAY, ONE_A_DAY)

    transaction = connections[0].transaction()
    await transaction.start()
    granted = await store.claim(
        connections[0], store.ClaimSource(ROUTE, {first: store.FIRST_CURSOR}, {first: 20}), target
    )
    waiting = asyncio.create_task(
        store.claim(
            connections[1],
            store.ClaimSource(ROUTE, {second: store.FIRST_CURSOR}, {second: 20}),
            target,
        )
    )
    waits = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'"
    while not await value(engine, waits):
        await asyncio.sleep(0.01)
    await transaction.commit()
    refused = await waiting
    for connection in connections:
        await connection.close()

    assert [claimed.is_over_cap for claimed in granted] == [False] * 20
    assert [claimed.is_over_cap for claimed in refused] == [True] * 20


# ---- the message that is not sent ------------------------------------------------------------


async def test_a_message_over_the_cap_is_cancelled_before_any_request(engine: AsyncEngine) -> None:
    clients = await add_clients(engine, 1)
    await add_sent(engine, clients, at=ago(hours=1))
    claimed = await claim_one(engine, await add_due(engine, clients))
    mailing = next(found for found in await running(engine) if found.id == claimed.mailing_id)
    result = decide_before_send(claimed, mailing, datetime.now(UTC), timeout=1)
    assert isinstance(result, MessageResult)
    await finish(engine, result)
    assert await state(engine, claimed.id) == OVER_CAP
    assert await find_differences(engine) == []


async def test_messages_that_are_too_old_make_room_in_a_full_row(engine: AsyncEngine) -> None:
    clients = await add_clients(engine, 1)
    for _ in range(2):
        assert not await is_over_cap(engine, clients, TWO_A_DAY)
    assert await is_over_cap(engine, clients, TWO_A_DAY)
    await execute(
        engine,
        "UPDATE client_contact SET contacted_at = ARRAY[now() - interval '25 hours', now()],"
        " complete_since = now() - interval '2 days'",
    )
    assert not await is_over_cap(engine, clients, TWO_A_DAY)
    assert await is_over_cap(engine, clients, TWO_A_DAY)
    assert await value(engine, "SELECT cardinality(message_ids) FROM client_contact") == 2
    assert not await is_over_cap(engine, clients, ContactCap(3, 1, "d"))
