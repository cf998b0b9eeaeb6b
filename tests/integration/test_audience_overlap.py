"""The clients of an audience who got messages lately: exact numbers, and estimates."""

from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy.ext.asyncio import AsyncEngine
from tests.factories import add_clients, add_mailing, add_messages, do, execute

from mailer.contact_cap import ContactCap
from mailer.mailing.audience_overlap import MAX_EXACT, AudienceOverlap, find_shared, read_overlap
from mailer.mailing.client_filter import ClientFilter

ONE_A_DAY = ContactCap(1, 1, "d")


async def overlap(
    engine: AsyncEngine, client_filter: ClientFilter = None, cap: ContactCap | None = ONE_A_DAY
) -> AudienceOverlap:
    """Return the overlap of a filter."""
    return await do(engine, lambda db: read_overlap(db, client_filter, cap))


async def deliver(engine: AsyncEngine, clients: list[int], status: str = "delivered") -> None:
    """Send a mailing to these clients an hour ago."""
    at = datetime.now(UTC) - timedelta(hours=1)
    mailing_id = await add_mailing(engine, clients=len(clients), start=at, status="finished")
    await add_messages(engine, mailing_id, clients, status, at=at)


async def test_numbers_of_a_large_audience_are_estimates(engine: AsyncEngine) -> None:
    clients = await add_clients(engine, MAX_EXACT + 2_000)
    await deliver(engine, clients[::3])
    large = await overlap(engine)
    assert large.is_estimate
    assert large.clients == MAX_EXACT + 2_000
    assert large.contacted == large.at_cap == pytest.approx(4_000, rel=0.2)
    assert large.contacted % 100 == 0  # two significant digits
    assert await overlap(engine) == large  # the same sample each time
    few = await add_clients(engine, 10, "903")
    await deliver(engine, few[:3])
    small = await overlap(engine, "903")
    assert not small.is_estimate
    assert (small.clients, small.contacted, small.at_cap) == (10, 3, 3)


@pytest.mark.parametrize("status", ["undelivered", "cancelled", "scheduled"])
async def test_messages_that_did_not_reach_the_client_do_not_count(
    engine: AsyncEngine, status: str
) -> None:
    await deliver(engine, await add_clients(engine, 2), status)
    found = await overlap(engine)
    assert (found.contacted, found.at_cap) == (0, 0)


async def test_clients_who_have_opted_out_do_not_count(engine: AsyncEngine) -> None:
    clients = await add_clients(engine, 3)
    await deliver(engine, clients)
    await execute(engine, f"UPDATE client SET opted_out_at = now() WHERE id = {clients[0]}")  # noqa: S608  # a number
    found = await overlap(engine)
    assert (found.clients, found.contacted, found.at_cap) == (2, 2, 2)


async def test_a_mailing_whose_stored_filter_is_wrong_is_left_out(engine: AsyncEngine) -> None:
    await add_clients(engine, 2)
    start = datetime.now(UTC) + timedelta(hours=1)
    [good, wrong] = [await add_mailing(engine, start=start, status="scheduled") for _ in range(2)]
    await execute(engine, f"UPDATE mailing SET client_filter = '7' WHERE id = {wrong}")  # noqa: S608  # a number
    shared = await do(engine, lambda db: find_shared(db, None))
    assert [(other.id, other.clients) for other in shared] == [(good, 2)]
