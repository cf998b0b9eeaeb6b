"""Message counters and segment counts: changes, merging of deltas, downsampling."""

import asyncio
from datetime import UTC, datetime, timedelta
from uuid import uuid4

import httpx
import pytest
from sqlalchemy.ext.asyncio import AsyncEngine
from tests.factories import (
    HOUR,
    NOON,
    SETTLED,
    add_clients,
    add_mailing,
    add_messages,
    do,
    execute,
    value,
)

from mailer.access.model import COMMAND_LINE
from mailer.client import segment_counts
from mailer.mailing import audience, purging, service
from mailer.message import counters
from mailer.statistics import service as statistics
from mailer.statistics.verify import find_differences

DELTAS = "SELECT count(*) FROM message_count_delta"
SECONDS = "SELECT count(*) FROM message_count WHERE dimension = 'second'"


async def merge_deltas(engine: AsyncEngine, chunk: int = 10_000) -> None:
    await do(engine, lambda db: counters.merge_deltas(db, chunk))


async def test_merging_deltas_changes_no_count(engine: AsyncEngine) -> None:
    clients = await add_clients(engine, 30)
    mailing_id = await add_mailing(engine, clients=30)
    await add_messages(engine, mailing_id, clients[:20], "delivered")
    await add_messages(engine, mailing_id, clients[20:], "undelivered", "rejected_400")
    before = await statistics.of_mailing(engine, mailing_id)

    deltas = await value(engine, DELTAS)
    while deltas:
        await merge_deltas(engine, chunk=3)
        assert await value(engine, DELTAS) == max(0, deltas - 3)
        assert await statistics.of_mailing(engine, mailing_id) == before
        assert await find_differences(engine) == []
        deltas = await value(engine, DELTAS)


async def test_concurrent_merges_count_nothing_twice(engine: AsyncEngine) -> None:
    clients = await add_clients(engine, 40)
    mailing_id = await add_mailing(engine, clients=40)
    for client in clients:
        await add_messages(engine, mailing_id, [client], "delivered")
    await asyncio.gather(*(merge_deltas(engine, chunk=30) for _ in range(4)))
    assert await find_differences(engine) == []


async def test_every_change_of_messages_changes_the_counters(engine: AsyncEngine) -> None:
    clients = await add_clients(engine, 60)
    mailing_id = await add_mailing(engine, clients=60)
    await add_messages(engine, mailing_id, clients, "scheduled")
    lease = f"lease_owner = '{uuid4()}', lease_expires_at = now()"
    free = "lease_owner = NULL, lease_expires_at = NULL, updated_at = clock_timestamp()"
    for change in (
        f"status = 'sending', attempts = 1, {lease} WHERE id % 2 = 0",
        f"status = 'delivered', sent_at = now(), {free} WHERE status = 'sending' AND id % 4 = 0",
        f"status = 'scheduled', reason = 'timeout', {free} WHERE status = 'sending'",
        f"status = 'sending', reason = NULL, attempts = 2, {lease} WHERE reason = 'timeout'",
        f"status = 'undelivered', reason = 'attempts_exhausted', {free} WHERE status = 'sending'",
        f"status = 'scheduled', attempts = 0, reason = NULL, {free} WHERE id % 3 = 0",
        f"status = 'cancelled', reason = 'expired', {free} WHERE status = 'scheduled'",
        "reason = 'filter_changed' WHERE reason = 'expired' AND id % 5 = 0",
    ):
        await execute(engine, f"UPDATE message SET {change}")  # noqa: S608  # a change above
        assert await find_differences(engine) == []
        await merge_deltas(engine, chunk=5)
        assert await find_differences(engine) == []


async def test_a_claim_writes_no_deltas(engine: AsyncEngine) -> None:
    mailing_id = await add_mailing(engine, clients=9)
    await add_messages(engine, mailing_id, await add_clients(engine, 9), "scheduled")
    deltas = await value(engine, DELTAS)
    lease = f"lease_owner = '{uuid4()}', lease_expires_at = now()"
    await execute(engine, f"UPDATE message SET status = 'sending', attempts = 1, {lease}")  # noqa: S608  # a change above
    assert await value(engine, DELTAS) == deltas


@pytest.mark.parametrize(
    ("span", "resolution"),
    [
        (timedelta(minutes=30), 1),
        (5 * HOUR, 10),
        (30 * HOUR, 60),
        (300 * HOUR, 600),
        (301 * HOUR, 3600),
    ],
)
async def test_old_counts_are_downsampled(
    engine: AsyncEngine, span: timedelta, resolution: int
) -> None:
    clients = await add_clients(engine, 61)
    mailing_id = await add_mailing(engine, clients=61)
    for number, client in enumerate(clients[:60]):
        at = NOON + timedelta(seconds=number * 7)
        await add_messages(engine, mailing_id, [client], "delivered", at=at)
    await add_messages(engine, mailing_id, clients[60:61], "cancelled", "expired", at=NOON + span)
    await merge_deltas(engine)
    bucket = 3600 * 24
    before = await statistics.of_mailing(engine, mailing_id, bucket)

    await do(engine, counters.downsample)

    assert await value(engine, SECONDS) == len({n * 7 // resolution for n in range(60)}) + 1
    assert await statistics.of_mailing(engine, mailing_id, bucket) == before
    assert await find_differences(engine) == []


async def test_the_last_two_minutes_are_not_downsampled(engine: AsyncEngine) -> None:
    clients = await add_clients(engine, 61)
    mailing_id = await add_mailing(engine, clients=61)
    now = datetime.now(UTC)
    await add_messages(engine, mailing_id, clients[:1], "delivered", at=now - 2 * HOUR)
    for number, client in enumerate(clients[1:]):
        at = now - timedelta(seconds=number)
        await add_messages(engine, mailing_id, [client], "delivered", at=at)
    await merge_deltas(engine)
    await do(engine, counters.downsample)
    assert await value(engine, SECONDS) == 61


@pytest.mark.parametrize(("minutes", "buckets"), [(10, 6), (40, 60)])
async def test_counts_of_a_recently_finished_mailing_are_downsampled_too(
    engine: AsyncEngine, minutes: int, buckets: int
) -> None:
    clients = await add_clients(engine, 60)
    mailing_id = await add_mailing(engine, clients=60)
    for number, client in enumerate(clients):
        at = NOON + timedelta(seconds=number if number < 50 else 5_000 + number)
        await add_messages(engine, mailing_id, [client], "delivered", at=at)
    await merge_deltas(engine)
    finish = f"{SETTLED}, updated_at = now() - interval '{minutes} min'"
    await execute(engine, f"UPDATE mailing SET {finish}")  # noqa: S608  # a change above

    await do(engine, counters.downsample)

    assert await value(engine, SECONDS) == buckets
    assert await find_differences(engine) == []


async def test_a_deleted_mailing_leaves_no_counters(engine: AsyncEngine) -> None:
    mailing_id = await add_mailing(engine, clients=4)
    await add_messages(engine, mailing_id, await add_clients(engine, 4), "delivered")
    await merge_deltas(engine)
    await service.delete(engine, mailing_id, COMMAND_LINE)
    for _ in range(2):
        await do(engine, lambda db: purging.purge(db, 100))
    assert await value(engine, "SELECT count(*) FROM message_count") == 0
    assert await value(engine, DELTAS) == 0


async def test_segment_counts_follow_every_change_of_clients(
    api: httpx.AsyncClient, engine: AsyncEngine
) -> None:
    async def count_matching(client_filter: str | None) -> int:
        return await do(engine, lambda db: audience.count(db, client_filter))

    csv = "phone,tag\n" + "".join(f"7916000000{n},vip\n" for n in range(8))
    headers = {"content-type": "text/csv"}
    for step in range(2):
        await api.post("/clients/import", content=csv, headers=headers)
        assert (
            await count_matching(None),
            await count_matching("vip"),
            await count_matching("916"),
        ) == (8, 8, 8)
        if step == 0:
            await do(engine, lambda db: segment_counts.merge_deltas(db, 1_000))
    newest = (await api.get("/clients?limit=3")).json()["results"]
    await api.patch(f"/clients/{newest[0]['id']}", json={"tag": None, "operator_code": "903"})
    await api.patch(f"/clients/{newest[1]['id']}", json={"time_zone": "Asia/Tokyo"})
    await api.delete(f"/clients/{newest[2]['id']}")
    await api.post("/clients", json={"phone": "79031234567", "tag": "new"})

    async def counts() -> list[int]:
        return [
            await count_matching(f) for f in (None, "vip", "916", "903", "new", "vip, new, 903")
        ]

    assert await counts() == [8, 6, 6, 2, 1, 8]
    assert (await api.get("/clients?time_zone=Asia/Tokyo&tag=vip")).json()["count"] == 1
    assert await find_differences(engine) == []
    await do(engine, lambda db: segment_counts.merge_deltas(db, 1_000))
    assert await counts() == [8, 6, 6, 2, 1, 8]
    assert await find_differences(engine) == []


async def test_an_empty_segment_is_deleted(api: httpx.AsyncClient, engine: AsyncEngine) -> None:
    created = (await api.post("/clients", json={"phone": "79031234567"})).json()
    await do(engine, lambda db: segment_counts.merge_deltas(db, 1_000))
    await api.delete(f"/clients/{created['id']}")
    await do(engine, lambda db: segment_counts.merge_deltas(db, 1_000))
    assert await value(engine, "SELECT count(*) FROM segment_count") == 0


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (
            "UPDATE message_count SET delivered = 3 WHERE dimension = 'operator_code'",
            "mailing 1: count of delivered messages with operator_code 916: 3, expected 2",
        ),
        (
            "DELETE FROM message_count WHERE dimension = 'second'",
            "mailing 1: count of delivered messages with second any: 0, expected 2",
        ),
        (
            "INSERT INTO segment_count_delta VALUES ('916', 'vip', 'UTC', 1)",
            "all: client segments with a wrong count: 1, expected 0",
        ),
        (
            "UPDATE settled_totals SET finished = 5",
            "all: count of finished mailings: 5, expected 0",
        ),
    ],
)
async def test_verify_finds_wrong_counts(engine: AsyncEngine, change: str, expected: str) -> None:
    mailing_id = await add_mailing(engine, clients=2)
    await add_messages(engine, mailing_id, await add_clients(engine, 2), "delivered")
    await merge_deltas(engine)
    await execute(engine, change)
    assert expected in [str(difference) for difference in await find_differences(engine)]
