"""The clients of an audience who got messages lately: exact numbers, and estimates."""

from datetime import UTC, datetime, timedelta

import msgspec
import pytest
from sqlalchemy.ext.asyncio import AsyncEngine
from tests.factories import add_clients, add_mailing, add_messages, do, execute, put_on_list
from tests.statements import recorded_statements

from mailer.contact_cap import ContactCap
from mailer.mailing.audience_overlap import (
    MAX_COMPARED_CLIENTS,
    MAX_EXACT,
    AudienceOverlap,
    find_shared,
    read_overlap,
)
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


async def add_scheduled(engine: AsyncEngine, client_filter: object) -> int:
    """Create a mailing with a filter that starts in an hour."""
    start = datetime.now(UTC) + timedelta(hours=1)
    mailing_id = await add_mailing(engine, start=start, status="scheduled")
    stored = msgspec.json.encode(client_filter).decode()
    await execute(engine, f"UPDATE mailing SET client_filter = '{stored}' WHERE id = {mailing_id}")  # noqa: S608  # of this test
    return mailing_id


async def test_all_other_mailings_are_compared_in_one_pass(engine: AsyncEngine) -> None:
    """The number of statements and of reads of lists does not grow with the mailings."""
    ids = await add_clients(engine, 6)
    await put_on_list(engine, "large", ids)
    await put_on_list(engine, "all", ids)
    on_list = msgspec.convert({"lists": ["large"]}, ClientFilter)
    counts = []
    for _ in range(2):
        for other in ({"lists": ["large"], "operator_codes": ["916"]}, {"lists": ["large"]}, "916"):
            await add_scheduled(engine, other)
        with recorded_statements(engine) as statements:
            shared = await do(engine, lambda db: find_shared(db, on_list))
        assert {(other.clients, other.is_estimate) for other in shared} == {(6, False)}
        counts.append((len(shared), len(statements)))
    (few, statements_for_few), (many, statements_for_many) = counts
    assert (few, many) == (3, 6)
    assert statements_for_few == statements_for_many


async def test_clients_shared_by_large_lists_are_estimates(engine: AsyncEngine) -> None:
    ids = await add_clients(engine, MAX_COMPARED_CLIENTS + 4_000)
    await execute(engine, f"UPDATE client SET tag = 'vip' WHERE id >= {ids[-6_000]}")  # noqa: S608  # a number
    await put_on_list(engine, "large", ids)
    await put_on_list(engine, "few", ids[-7:])
    vip = await add_scheduled(engine, {"lists": ["large"], "tags": ["VIP"]})
    few = await add_scheduled(engine, {"lists": ["few"]})
    await add_scheduled(engine, "903")
    await deliver(engine, ids[::3])

    found = await overlap(engine, msgspec.convert({"lists": ["Large"]}, ClientFilter))

    by_id = {other.id: other for other in found.shared}
    assert by_id.keys() == {vip, few}
    assert by_id[vip].clients == pytest.approx(6_000, rel=0.1)
    assert by_id[vip].is_estimate
    assert (by_id[few].clients, by_id[few].is_estimate) == (7, False)
    assert found.clients == len(ids)
    assert found.contacted == pytest.approx(8_000, rel=0.2)


async def test_a_small_audience_on_a_list_is_exact(engine: AsyncEngine) -> None:
    ids = await add_clients(engine, 4)
    await put_on_list(engine, "spring", ids[:3])
    await deliver(engine, ids[:2])
    found = await overlap(engine, msgspec.convert({"lists": ["spring"]}, ClientFilter))
    assert (found.clients, found.contacted, found.is_estimate) == (3, 2, False)
