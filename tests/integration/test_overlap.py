"""Clients whom mailings share: exact for small audiences, estimated beyond a bound."""

from typing import Any

import msgspec
import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine
from tests.factories import do, execute, put_on_list

from mailer.client import segment_counts
from mailer.db.engine import asyncpg_connection
from mailer.mailing import audience, overlap
from mailer.mailing.client_filter import ClientFilter, stored_filter
from mailer.mailing.model import Mailing
from mailer.mailing.overlap import Pair, count_overlaps, find_pairs
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


async def _has_many(_connection: AsyncConnection) -> bool:
    return False
