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
from mailer.dispatch.schedule import JobLimits, jobs
from mailer.gateway.channel import NO_CHANNELS
from mailer.mailing import audience, downsampling, purging, service
from mailer.message import counters
from mailer.settings import Settings
from mailer.statistics import service as statistics
from mailer.statistics.verify import find_differences

COUNT_DELTAS = "SELECT count(*) FROM message_count_delta"
COUNT_SECONDS = "SELECT count(*) FROM message_count WHERE dimension = 'second'"
"""The number of buckets of outcomes over time."""
LEASE_COLUMNS = f"lease_owner = '{uuid4()}', lease_expires_at = now()"
"""Columns of a message that is being sent."""
NO_LEASE_COLUMNS = "lease_owner = NULL, lease_expires_at = NULL, updated_at = clock_timestamp()"


async def merge_deltas(engine: AsyncEngine, chunk: int = 10_000) -> None:
    """Merge up to `chunk` deltas of message counters."""
    await do(engine, lambda db: counters.merge_deltas(db, chunk))


async def test_merging_deltas_changes_no_count(engine: AsyncEngine) -> None:
    clients = await add_clients(engine, 30)
    mailing_id = await add_mailing(engine, clients=30)
    await add_messages(engine, mailing_id, clients[:20], "delivered")
    await add_messages(engine, mailing_id, clients[20:], "undelivered", "rejected_400")
    before = await statistics.of_mailing(engine, mailing_id)

    deltas = await value(engine, COUNT_DELTAS)
    while deltas:
        await merge_deltas(engine, chunk=3)
        deltas_left = await value(engine, COUNT_DELTAS)
        assert deltas_left == max(0, deltas - 3)
        assert await statistics.of_mailing(engine, mailing_id) == before
        assert await find_differences(engine) == []
        deltas = deltas_left


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
    lease, no_lease = LEASE_COLUMNS, NO_LEASE_COLUMNS
    for change in (
        # a claim of some messages, and a result of each
        f"status = 'sending', attempts = 1, gateway = 'first', {lease} WHERE id % 2 = 0",
        f"status = 'delivered', sent_at = now(), {no_lease} WHERE attempts = 1 AND id % 4 = 0",
        "parts = 2",
        f"status = 'scheduled', reason = 'timeout', {no_lease} WHERE status = 'sending'",
        # another claim of the messages that failed, which then fail permanently
        "gateway = 'second' WHERE reason = 'timeout'",
        f"status = 'sending', reason = NULL, attempts = 2, {lease} WHERE reason = 'timeout'",
        f"status = 'undelivered', reason = 'rejected_400', {no_lease} WHERE status = 'sending'",
        # a retry, the end of the mailing, and a change of the reason
        f"status = 'scheduled', attempts = 0, reason = NULL, {no_lease} WHERE id % 3 = 0",
        f"status = 'cancelled', reason = 'expired', {no_lease} WHERE status = 'scheduled'",
        "reason = 'filter_changed' WHERE reason = 'expired' AND id % 5 = 0",
    ):
        await execute(engine, f"UPDATE message SET {change}")  # noqa: S608  # a change above
        assert await find_differences(engine) == []
        await merge_deltas(engine, chunk=5)
        assert await find_differences(engine) == []


async def test_a_claim_writes_no_deltas(engine: AsyncEngine) -> None:
    mailing_id = await add_mailing(engine, clients=9)
    await add_messages(engine, mailing_id, await add_clients(engine, 9), "scheduled")
    deltas = await value(engine, COUNT_DELTAS)
    await execute(engine, f"UPDATE message SET status = 'sending', attempts = 1, {LEASE_COLUMNS}")  # noqa: S608  # a constant above
    assert await value(engine, COUNT_DELTAS) == deltas


@pytest.mark.parametrize(
    ("span", "resolution"),  # from the first to the last outcome; seconds of a bucket
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
    *clients, last_client = await add_clients(engine, 61)
    mailing_id = await add_mailing(engine, clients=61)
    seconds = [number * 7 for number in range(60)]
    for second, client in zip(seconds, clients, strict=True):
        at = NOON + timedelta(seconds=second)
        await add_messages(engine, mailing_id, [client], "delivered", at=at)
    await add_messages(engine, mailing_id, [last_client], "cancelled", "expired", at=NOON + span)
    await execute(engine, "UPDATE message SET gateway = 'main', parts = 2")
    await merge_deltas(engine)
    day_seconds = 3600 * 24  # a bucket of statistics that every resolution divides
    before = await statistics.of_mailing(engine, mailing_id, day_seconds)

    await do(engine, downsampling.downsample)

    buckets_of_first_clients = {second // resolution for second in seconds}
    assert await value(engine, COUNT_SECONDS) == len(buckets_of_first_clients) + 1
    assert await statistics.of_mailing(engine, mailing_id, day_seconds) == before
    assert await find_differences(engine) == []


async def test_the_last_two_minutes_are_not_downsampled(engine: AsyncEngine) -> None:
    first_client, *clients = await add_clients(engine, 61)
    mailing_id = await add_mailing(engine, clients=61)
    now = datetime.now(UTC)
    # two hours between the outcomes, so that old ones are downsampled to ten seconds
    await add_messages(engine, mailing_id, [first_client], "delivered", at=now - 2 * HOUR)
    for number, client in enumerate(clients):
        at = now - timedelta(seconds=number)
        await add_messages(engine, mailing_id, [client], "delivered", at=at)
    await merge_deltas(engine)
    await do(engine, downsampling.downsample)
    assert await value(engine, COUNT_SECONDS) == 61


@pytest.mark.parametrize(
    ("minutes", "buckets"),  # since the mailing has finished; left after downsampling
    [(10, 5 + 1), (40, 50 + 10)],
)
async def test_counts_of_a_mailing_are_downsampled_for_half_an_hour_after_its_end(
    engine: AsyncEngine, minutes: int, buckets: int
) -> None:
    clients = await add_clients(engine, 60)
    mailing_id = await add_mailing(engine, clients=60)
    # one outcome a second for 50 s, and 5,000 s later for 10 s; such a span has buckets of 10 s
    for number, client in enumerate(clients):
        at = NOON + timedelta(seconds=number if number < 50 else 5_000 + number)
        await add_messages(engine, mailing_id, [client], "delivered", at=at)
    await merge_deltas(engine)
    finish = f"{SETTLED}, updated_at = now() - interval '{minutes} min'"
    await execute(engine, f"UPDATE mailing SET {finish}")  # noqa: S608  # a change above

    await do(engine, downsampling.downsample)

    assert await value(engine, COUNT_SECONDS) == buckets
    assert await find_differences(engine) == []


async def test_a_deleted_mailing_leaves_no_counters(engine: AsyncEngine) -> None:
    mailing_id = await add_mailing(engine, clients=4)
    await add_messages(engine, mailing_id, await add_clients(engine, 4), "delivered")
    await merge_deltas(engine)
    await service.delete(engine, mailing_id, COMMAND_LINE)
    for _ in range(2):
        await do(engine, lambda db: purging.purge(db, chunk=100))
    assert await value(engine, "SELECT count(*) FROM message_count") == 0
    assert await value(engine, COUNT_DELTAS) == 0


async def merge_segment_deltas(engine: AsyncEngine) -> None:
    """Merge all deltas of segment counts."""
    await do(engine, lambda db: segment_counts.merge_deltas(db, 1_000))


async def count_matching(engine: AsyncEngine, *client_filters: str | None) -> list[int]:
    """Return how many clients each filter matches, by the segment counts."""
    return [
        await do(engine, lambda db: audience.count(db, client_filter))  # noqa: B023  # called at once
        for client_filter in client_filters
    ]


async def import_eight_vips(api: httpx.AsyncClient) -> None:
    """Import a CSV file with eight clients who have the operator code 916 and the tag `vip`."""
    csv = "phone,tag\n" + "".join(f"7916000000{n},vip\n" for n in range(8))
    await api.post("/clients/import", content=csv, headers={"content-type": "text/csv"})


async def test_importing_the_same_clients_again_changes_no_segment_count(
    api: httpx.AsyncClient, engine: AsyncEngine
) -> None:
    await import_eight_vips(api)
    assert await count_matching(engine, None, "vip", "916") == [8, 8, 8]

    await merge_segment_deltas(engine)
    await import_eight_vips(api)

    assert await count_matching(engine, None, "vip", "916") == [8, 8, 8]


async def test_segment_counts_follow_every_change_of_clients(
    api: httpx.AsyncClient, engine: AsyncEngine
) -> None:
    await import_eight_vips(api)
    await merge_segment_deltas(engine)
    changed_code, changed_zone, deleted = (await api.get("/clients?limit=3")).json()["results"]
    await api.patch(f"/clients/{changed_code['id']}", json={"tag": None, "operator_code": "903"})
    await api.patch(f"/clients/{changed_zone['id']}", json={"time_zone": "Asia/Tokyo"})
    await api.delete(f"/clients/{deleted['id']}")
    await api.post("/clients", json={"phone": "79031234567", "tag": "new"})

    filters = (None, "vip", "916", "903", "new", "vip, new, 903")
    assert await count_matching(engine, *filters) == [8, 6, 6, 2, 1, 8]
    assert (await api.get("/clients?time_zone=Asia/Tokyo&tag=vip")).json()["count"] == 1
    assert await find_differences(engine) == []
    await merge_segment_deltas(engine)
    assert await count_matching(engine, *filters) == [8, 6, 6, 2, 1, 8]
    assert await find_differences(engine) == []


async def test_an_empty_segment_is_deleted(api: httpx.AsyncClient, engine: AsyncEngine) -> None:
    created = (await api.post("/clients", json={"phone": "79031234567"})).json()
    await merge_segment_deltas(engine)
    await api.delete(f"/clients/{created['id']}")
    await merge_segment_deltas(engine)
    assert await value(engine, "SELECT count(*) FROM segment_count") == 0


async def test_a_periodic_job_merges_segment_deltas_every_two_seconds(engine: AsyncEngine) -> None:
    await add_clients(engine, 8)
    all_jobs = jobs(engine, NO_CHANNELS, JobLimits.of(Settings()), report=None)
    [merge_job] = [job for job in all_jobs if job.name == "merge_counters"]
    assert merge_job.interval == 2
    await merge_job.run()
    assert await value(engine, "SELECT count(*) FROM segment_count_delta") == 0
    assert await count_matching(engine, None) == [8]


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
            "INSERT INTO client_field_count_delta VALUES ('city', 1)",
            "all: count of clients with the field city: 1, expected 0",
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
