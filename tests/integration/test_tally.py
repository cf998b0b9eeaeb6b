"""What statistics and pages read: counts that are moved, folded and made coarser, and stay true."""

import asyncio
from datetime import UTC, datetime, timedelta
from uuid import uuid4

import httpx
import pytest
from sqlalchemy.ext.asyncio import AsyncEngine
from tests.sample import NOON, add_clients, add_mailing, add_messages, do, execute, value

from mailer.access.model import COMMAND_LINE
from mailer.client import directory
from mailer.mailing import audience, moving, service
from mailer.message import tally
from mailer.report import statistics
from mailer.report.verify import differences

HOUR = timedelta(hours=1)
MOVES = "SELECT count(*) FROM tally_move"
SECONDS = "SELECT count(*) FROM tally WHERE dimension = 'second'"


async def fold(engine: AsyncEngine, chunk: int = 10_000) -> None:
    await do(engine, lambda db: tally.fold(db, chunk))


async def test_folding_changes_no_count_whatever_is_folded_already(engine: AsyncEngine) -> None:
    clients = await add_clients(engine, 30)
    mailing_id = await add_mailing(engine, clients=30)
    await add_messages(engine, mailing_id, clients[:20], "delivered")
    await add_messages(engine, mailing_id, clients[20:], "undelivered", "rejected_400")
    before = await statistics.of_mailing(engine, mailing_id)

    moves = await value(engine, MOVES)
    while moves:
        await fold(engine, chunk=3)
        assert await value(engine, MOVES) == max(0, moves - 3)
        assert await statistics.of_mailing(engine, mailing_id) == before
        assert await differences(engine) == []
        moves = await value(engine, MOVES)


async def test_two_who_fold_at_once_count_nothing_twice(engine: AsyncEngine) -> None:
    clients = await add_clients(engine, 40)
    mailing_id = await add_mailing(engine, clients=40)
    for client in clients:
        await add_messages(engine, mailing_id, [client], "delivered")
    await asyncio.gather(*(fold(engine, chunk=30) for _ in range(4)))
    assert await differences(engine) == []


async def test_every_change_of_messages_moves_the_tallies(engine: AsyncEngine) -> None:
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
        await execute(engine, f"UPDATE message SET {change}")  # noqa: S608  # of a test
        assert await differences(engine) == []
        await fold(engine, chunk=5)
        assert await differences(engine) == []


async def test_a_claim_moves_nothing(engine: AsyncEngine) -> None:
    mailing_id = await add_mailing(engine, clients=9)
    await add_messages(engine, mailing_id, await add_clients(engine, 9), "scheduled")
    moves = await value(engine, MOVES)
    lease = f"lease_owner = '{uuid4()}', lease_expires_at = now()"
    await execute(engine, f"UPDATE message SET status = 'sending', attempts = 1, {lease}")  # noqa: S608  # of a test
    assert await value(engine, MOVES) == moves


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
async def test_what_was_long_ago_is_counted_more_coarsely(
    engine: AsyncEngine, span: timedelta, resolution: int
) -> None:
    clients = await add_clients(engine, 61)
    mailing_id = await add_mailing(engine, clients=61)
    for number, client in enumerate(clients[:60]):
        at = NOON + timedelta(seconds=number * 7)
        await add_messages(engine, mailing_id, [client], "delivered", at=at)
    await add_messages(engine, mailing_id, clients[60:61], "cancelled", "expired", at=NOON + span)
    await fold(engine)
    bucket = 3600 * 24
    before = await statistics.of_mailing(engine, mailing_id, bucket)

    await do(engine, tally.coarsen)

    assert await value(engine, SECONDS) == len({n * 7 // resolution for n in range(60)}) + 1
    assert await statistics.of_mailing(engine, mailing_id, bucket) == before
    assert await differences(engine) == []


async def test_the_last_two_minutes_are_told_apart_by_the_second(engine: AsyncEngine) -> None:
    clients = await add_clients(engine, 61)
    mailing_id = await add_mailing(engine, clients=61)
    now = datetime.now(UTC)
    await add_messages(engine, mailing_id, clients[:1], "delivered", at=now - 2 * HOUR)
    for number, client in enumerate(clients[1:]):
        at = now - timedelta(seconds=number)
        await add_messages(engine, mailing_id, [client], "delivered", at=at)
    await fold(engine)
    await do(engine, tally.coarsen)
    assert await value(engine, SECONDS) == 61


@pytest.mark.parametrize(("ago", "left"), [(10, 6), (40, 60)])
async def test_a_mailing_that_has_ended_lately_is_counted_more_coarsely_too(
    engine: AsyncEngine, ago: int, left: int
) -> None:
    clients = await add_clients(engine, 60)
    mailing_id = await add_mailing(engine, clients=60)
    for number, client in enumerate(clients):
        at = NOON + timedelta(seconds=number if number < 50 else 5_000 + number)
        await add_messages(engine, mailing_id, [client], "delivered", at=at)
    await fold(engine)
    ends = f"is_settled = true, status = 'finished', updated_at = now() - interval '{ago} min'"
    await execute(engine, f"UPDATE mailing SET {ends}")  # noqa: S608  # of a test

    await do(engine, tally.coarsen)

    assert await value(engine, SECONDS) == left
    assert await differences(engine) == []


async def test_a_deleted_mailing_leaves_no_tally(engine: AsyncEngine) -> None:
    mailing_id = await add_mailing(engine, clients=4)
    await add_messages(engine, mailing_id, await add_clients(engine, 4), "delivered")
    await fold(engine)
    await service.delete(engine, mailing_id, COMMAND_LINE)
    for _ in range(2):
        await do(engine, lambda db: moving.purge(db, 100))
    assert await value(engine, "SELECT count(*) FROM tally") == 0
    assert await value(engine, MOVES) == 0


async def test_the_directory_follows_every_change_of_clients(
    api: httpx.AsyncClient, engine: AsyncEngine
) -> None:
    async def of(client_filter: str | None) -> int:
        return await do(engine, lambda db: audience.count(db, client_filter))

    csv = "phone,tag\n" + "".join(f"7916000000{n},vip\n" for n in range(8))
    headers = {"content-type": "text/csv"}
    for step in range(2):
        await api.post("/clients/import", content=csv, headers=headers)
        assert (await of(None), await of("vip"), await of("916")) == (8, 8, 8)
        if step == 0:
            await do(engine, lambda db: directory.fold(db, 1_000))
    newest = (await api.get("/clients?limit=3")).json()["results"]
    await api.patch(f"/clients/{newest[0]['id']}", json={"tag": None, "operator_code": "903"})
    await api.patch(f"/clients/{newest[1]['id']}", json={"time_zone": "Asia/Tokyo"})
    await api.delete(f"/clients/{newest[2]['id']}")
    await api.post("/clients", json={"phone": "79031234567", "tag": "new"})

    async def counts() -> list[int]:
        return [await of(f) for f in (None, "vip", "916", "903", "new", "vip, new, 903")]

    assert await counts() == [8, 6, 6, 2, 1, 8]
    assert (await api.get("/clients?time_zone=Asia/Tokyo&tag=vip")).json()["count"] == 1
    assert await differences(engine) == []
    await do(engine, lambda db: directory.fold(db, 1_000))
    assert await counts() == [8, 6, 6, 2, 1, 8]
    assert await differences(engine) == []


async def test_a_kind_of_clients_that_has_none_left_is_dropped(
    api: httpx.AsyncClient, engine: AsyncEngine
) -> None:
    created = (await api.post("/clients", json={"phone": "79031234567"})).json()
    await do(engine, lambda db: directory.fold(db, 1_000))
    await api.delete(f"/clients/{created['id']}")
    await do(engine, lambda db: directory.fold(db, 1_000))
    assert await value(engine, "SELECT count(*) FROM directory") == 0


@pytest.mark.parametrize(
    ("broken", "told"),
    [
        (
            "UPDATE tally SET delivered = 3 WHERE dimension = 'operator_code'",
            "mailing 1: delivered of operator_code 916 in the tally: 3, expected 2",
        ),
        (
            "DELETE FROM tally WHERE dimension = 'second'",
            "mailing 1: delivered of second any in the tally: 0, expected 2",
        ),
        (
            "INSERT INTO directory_move VALUES ('916', 'vip', 'UTC', 1)",
            "all: kinds of clients that are miscounted: 1, expected 0",
        ),
        (
            "UPDATE settled SET finished = 5",
            "all: finished mailings in what is settled: 5, expected 0",
        ),
    ],
)
async def test_verify_finds_what_is_miscounted(engine: AsyncEngine, broken: str, told: str) -> None:
    mailing_id = await add_mailing(engine, clients=2)
    await add_messages(engine, mailing_id, await add_clients(engine, 2), "delivered")
    await fold(engine)
    await execute(engine, broken)
    assert told in [str(difference) for difference in await differences(engine)]
