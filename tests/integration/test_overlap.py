"""Clients whom mailings share: exact for small audiences, estimated beyond a bound."""

from itertools import product
from typing import Any

import msgspec
import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine
from tests.factories import add_clients, do, execute, put_on_list
from tests.statements import recorded_statements

from mailer.client import segment_counts
from mailer.db.engine import asyncpg_connection
from mailer.mailing import audience, overlap
from mailer.mailing.client_filter import ClientFilter, stored_filter
from mailer.mailing.model import Mailing
from mailer.mailing.overlap import Overlap, Pair, count_overlaps, find_pairs
from mailer.mailing.shared_counts import count_by_lists, has_lists
from mailer.sample_data import create_clients

FILTERS: tuple[Any, ...] = (
    {"operator_codes": ["916"]},
    {"operator_codes": ["917"]},
    {"tags": ["VIP"]},
    "916, vip",
    {"operator_codes": ["916", "917"], "time_zones": ["UTC"]},
    None,
)
MERGE_ALL = 10**6
"""More deltas of segment counts than there are."""


async def add_directory(engine: AsyncEngine) -> None:
    """Create 1,200 clients in several segments; some of their counts are not merged yet."""
    values: dict[str, Any] = {
        "operator_codes": ("916", "917", "918"),
        "tags": (None, "vip", "gold", "new"),
        "time_zones": ("UTC", "Europe/Moscow", "Asia/Tokyo", "Asia/Omsk", "Asia/Dubai"),
    }
    async with engine.connect() as pooled:
        database = await asyncpg_connection(pooled)
        await create_clients(database, 900, **values)
        await do(engine, lambda connection: segment_counts.merge_deltas(connection, MERGE_ALL))
        await create_clients(database, 300, **values)


async def all_pairs(connection: AsyncConnection) -> list[Pair]:
    """Return all pairs of mailings with the filters `FILTERS`, which last at the same time."""
    example = msgspec.convert(Mailing.EXAMPLE, Mailing)
    mailings = [
        msgspec.structs.replace(
            example,
            id=number,
            client_filter=stored_filter(client_filter),
            clients_count=await audience.count(connection, stored_filter(client_filter)),
        )
        for number, client_filter in enumerate(FILTERS, 1)
    ]
    return find_pairs(mailings)


async def counted(connection: AsyncConnection) -> tuple[dict[tuple[int, int], int], set[bool]]:
    """Return the counts of all pairs by their ids, and whether there are estimates among them."""
    overlaps = await count_overlaps(connection, await all_pairs(connection))
    by_ids = {(each.pair.first.id, each.pair.second.id): each.clients for each in overlaps}
    return by_ids, {each.is_estimate for each in overlaps}


async def expected(connection: AsyncConnection) -> dict[tuple[int, int], int]:
    """Return the same counts, counted one pair at a time."""
    counts = {}
    for pair in await all_pairs(connection):
        filters = (pair.first.client_filter, pair.second.client_filter)
        if clients := await audience.count_both(connection, *filters):
            counts[pair.first.id, pair.second.id] = clients
    return counts


async def test_all_pairs_are_exact_in_a_directory_with_few_segments(engine: AsyncEngine) -> None:
    await add_directory(engine)
    counts, kinds = await do(engine, counted)
    assert counts == await do(engine, expected)
    assert (1, 2) not in counts  # they share nobody
    assert kinds == {False}


async def test_pairs_with_a_small_audience_are_exact_in_a_large_directory(
    engine: AsyncEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    await add_directory(engine)
    monkeypatch.setattr(overlap, "_has_few_segments", _has_many)
    counts, kinds = await do(engine, counted)
    assert counts == await do(engine, expected)
    assert kinds == {False}


async def test_pairs_with_large_audiences_are_estimates_in_a_large_directory(
    engine: AsyncEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    await add_directory(engine)
    await do(engine, lambda connection: segment_counts.merge_deltas(connection, MERGE_ALL))
    await execute(engine, "ANALYZE segment_count")
    monkeypatch.setattr(overlap, "_has_few_segments", _has_many)
    monkeypatch.setattr(overlap, "MAX_EXACT_AUDIENCE", 0)
    counts, kinds = await do(engine, counted)
    assert kinds == {True}
    for ids, clients in (await do(engine, expected)).items():
        assert counts[ids] == pytest.approx(clients, rel=0.05)  # the sample has all segments


async def test_nothing_is_counted_without_pairs(engine: AsyncEngine) -> None:
    assert await do(engine, lambda connection: count_overlaps(connection, [])) == []


async def test_pairs_with_lists_are_exact(engine: AsyncEngine) -> None:
    await add_directory(engine)
    async with engine.connect() as connection:
        ids = (await connection.scalars(text("SELECT id FROM client ORDER BY id LIMIT 40"))).all()
    await put_on_list(engine, "spring", ids)
    on_list = msgspec.convert({"lists": ["spring"]}, ClientFilter)
    example = msgspec.convert(Mailing.EXAMPLE, Mailing)
    listed = msgspec.structs.replace(example, id=1, client_filter=on_list, clients_count=40)
    everybody = msgspec.structs.replace(example, id=2, client_filter=None, clients_count=1_200)
    of_916 = msgspec.structs.replace(
        example, id=3, client_filter=stored_filter({"operator_codes": ["916"]}), clients_count=400
    )
    pairs = find_pairs([listed, everybody, of_916])
    overlaps = await do(engine, lambda connection: count_overlaps(connection, pairs))
    counts = {(each.pair.first.id, each.pair.second.id): each.clients for each in overlaps}
    assert counts[1, 2] == 40
    assert 0 < counts[1, 3] < 40
    assert not any(each.is_estimate for each in overlaps)


def mailing_for(number: int, *names: str, clients: int, **fields: list[str]) -> Mailing:
    """Return a mailing for the clients on lists."""
    client_filter = msgspec.convert({"lists": list(names), **fields}, ClientFilter)
    example = msgspec.convert(Mailing.EXAMPLE, Mailing)
    return msgspec.structs.replace(
        example, id=number, client_filter=client_filter, clients_count=clients
    )


async def test_pairs_with_more_clients_on_lists_than_are_read_are_estimates(
    engine: AsyncEngine,
) -> None:
    await add_directory(engine)
    async with engine.connect() as connection:
        ids = (await connection.scalars(text("SELECT id FROM client ORDER BY id"))).all()
    await put_on_list(engine, "large", ids)
    await put_on_list(engine, "half", ids[600:])
    await put_on_list(engine, "few", ids[:7])
    pairs = find_pairs(
        [
            mailing_for(1, "large", clients=1_200),
            mailing_for(2, "half", clients=600),
            mailing_for(3, "few", clients=7),
            mailing_for(4, "half", clients=200, operator_codes=["916"]),
        ]
    )

    async def count(connection: AsyncConnection) -> dict[tuple[int, int], Overlap]:
        overlaps = await count_overlaps(connection, pairs, max_read=407)
        return {(each.pair.first.id, each.pair.second.id): each for each in overlaps}

    counts = await do(engine, count)
    assert counts.keys() == {(1, 2), (1, 3), (1, 4), (2, 4)}
    assert (counts[1, 3].clients, counts[1, 3].is_estimate) == (7, False)  # of a small list
    assert counts[1, 2].clients == pytest.approx(600, rel=0.2)
    assert counts[1, 2].is_estimate
    assert counts[1, 4].clients == counts[2, 4].clients == pytest.approx(200, rel=0.35)
    assert await do(engine, count) == counts  # the same sample each time


async def test_pairs_of_several_lists_are_counted_as_one_by_one(engine: AsyncEngine) -> None:
    await add_directory(engine)
    async with engine.connect() as connection:
        ids = (await connection.scalars(text("SELECT id FROM client ORDER BY id"))).all()
    for name, listed in (("A", ids[:90]), ("B", ids[60:200]), ("C", ids[::7])):
        await put_on_list(engine, name, listed)
    filters = [
        *(msgspec.convert({"lists": names}, ClientFilter) for names in (["A"], ["b", "A"], ["C"])),
        msgspec.convert({"lists": ["C", "gone"], "tags": ["vip"]}, ClientFilter),
        msgspec.convert({"lists": ["gone"]}, ClientFilter),
        stored_filter("916, vip"),
    ]
    pairs = [pair for pair in product(filters, repeat=2) if has_lists(pair)]
    async with engine.connect() as connection:
        expected_counts = [await audience.count_both(connection, *pair) for pair in pairs]
        counts = await count_by_lists(connection, pairs, max_read=1_000)
        opted_out = await count_by_lists(connection, pairs, max_read=1_000, opted_out=True)
    assert counts == [(clients, False) for clients in expected_counts]
    assert {each.clients for each in opted_out} == {0}


async def test_lists_are_read_once_for_all_pairs(engine: AsyncEngine) -> None:
    ids = await add_clients(engine, 5)
    await put_on_list(engine, "spring", ids[:3])
    mailings = [mailing_for(number, "spring", clients=3) for number in range(1, 9)]
    with recorded_statements(engine) as statements:
        pairs = find_pairs(mailings)
        overlaps = await do(engine, lambda connection: count_overlaps(connection, pairs))
    assert [each.clients for each in overlaps] == [3] * 28
    assert len([each for each in statements if "client_list_member" in each]) == 1


async def _has_many(_connection: AsyncConnection) -> bool:
    return False
