"""Messages are replanned after the time zone of their client has changed.

In these tests the clients move from Tokyo to UTC or back. The mailings have a sending window that
is open now in UTC, and closed now in Tokyo, which is nine hours ahead.
"""

import asyncio
from typing import NamedTuple

import httpx
import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine
from tests.event_timeout import let_run
from tests.factories import (
    HOUR,
    REOPENED,
    claim,
    do,
    enqueue_and_replan,
    execute,
    finish,
    mailing_counts,
    value,
)
from tests.integration.vip_mailings import (
    add_vips,
    after,
    create_mailing,
    is_consistent,
    start_mailing,
    window,
)

from mailer.mailing import (
    enqueuing,
    finishing,
    moved_clients,
    starting,
)
from mailer.message.model import MessageResult
from mailer.statistics.verify import find_differences

COUNT_WAITING = "SELECT count(*) FROM client_to_replan"
"""Clients whose messages are still to be replanned."""
COUNT_DUE = (
    "SELECT count(*) FROM message WHERE status = 'scheduled' AND due_at <= clock_timestamp()"
)


async def set_zone(engine: AsyncEngine, zone: str, where: str = "true") -> None:
    """Let clients move: all of them, or those for whom the SQL condition `where` is true."""
    await execute(engine, f"UPDATE client SET time_zone = '{zone}' WHERE {where}")  # noqa: S608  # values of the test


async def count_due(engine: AsyncEngine, mailing_id: int) -> int:
    """Return the number of messages of a mailing that may be sent now."""
    count: int = await value(engine, f"{COUNT_DUE} AND mailing_id = {mailing_id}")
    return count


async def replan_chunk(engine: AsyncEngine, max_lookups: int) -> int:
    """Replan the messages of some moved clients; return of how many."""
    return await do(engine, lambda db: moved_clients.replan_moved(db, max_lookups))


class MailingsToTokyo(NamedTuple):
    """Mailings to three clients in Tokyo, with the ids 1 to 3."""

    waiting: int
    """Its messages wait for the sending window."""
    without_window: int
    """Its messages are due."""
    too_short: int
    """Its messages are cancelled, because the window does not open before the mailing's end."""


@pytest.fixture
async def mailings(engine: AsyncEngine) -> MailingsToTokyo:
    await add_vips(engine, 3, time_zone="Asia/Tokyo")
    return MailingsToTokyo(
        waiting=await start_mailing(engine, **window(-HOUR, HOUR)),
        without_window=await start_mailing(engine),
        too_short=await start_mailing(engine, datetime_end=after(HOUR), **window(-HOUR, HOUR / 2)),
    )


async def test_scheduled_messages_and_those_without_a_window_are_replanned_after_a_move(
    engine: AsyncEngine, mailings: MailingsToTokyo
) -> None:
    await set_zone(engine, "UTC", "id = 1")
    await moved_clients.replan_all_moved(engine)

    assert await count_due(engine, mailings.waiting) == 1
    assert await count_due(engine, mailings.without_window) == 3
    assert await count_due(engine, mailings.too_short) == 1
    assert await mailing_counts(engine, mailings.too_short) == {"scheduled": 1, "cancelled": 2}
    for mailing_id in mailings:
        assert await is_consistent(engine, mailing_id)

    await set_zone(engine, "Asia/Tokyo", "id = 1")
    await moved_clients.replan_all_moved(engine)

    assert await count_due(engine, mailings.waiting) == 0
    assert await count_due(engine, mailings.without_window) == 3
    assert await mailing_counts(engine, mailings.too_short) == {"cancelled": 3}
    assert await value(engine, COUNT_WAITING) == 0


@pytest.mark.usefixtures("mailings")
async def test_a_message_is_still_counted_under_its_first_time_zone_after_a_move(
    engine: AsyncEngine,
) -> None:
    await set_zone(engine, "UTC", "id = 1")
    await moved_clients.replan_all_moved(engine)

    time_zones = "SELECT array_agg(DISTINCT time_zone) FROM message WHERE client_id = 1"
    assert await value(engine, time_zones) == ["Asia/Tokyo"]


async def test_a_move_before_the_audience_is_enqueued_is_applied_once(
    engine: AsyncEngine,
) -> None:
    await add_vips(engine, 2, time_zone="Asia/Tokyo")
    mailing_id = await create_mailing(engine, **window(-HOUR, HOUR))
    await do(engine, starting.start_due)
    await set_zone(engine, "UTC", "id = 1")

    await enqueue_and_replan(engine)
    await moved_clients.replan_all_moved(engine)

    assert await count_due(engine, mailing_id) == 1
    assert await is_consistent(engine, mailing_id)


async def test_a_time_zone_changed_by_the_api_or_an_import_is_applied(
    api: httpx.AsyncClient, engine: AsyncEngine
) -> None:
    clients = await add_vips(engine, 2, time_zone="Asia/Tokyo")
    await start_mailing(engine, **window(-HOUR, HOUR))
    assert await value(engine, COUNT_DUE) == 0

    await api.patch(f"/clients/{clients[0]}", json={"time_zone": "UTC"})
    await moved_clients.replan_all_moved(engine)
    assert await value(engine, COUNT_DUE) == 1
    phone = await value(engine, f"SELECT phone FROM client WHERE id = {clients[1]}")  # noqa: S608  # values of the test
    csv = f"phone,time_zone\n{phone},UTC\n"
    await api.post("/clients/import", content=csv, headers={"content-type": "text/csv"})
    await moved_clients.replan_all_moved(engine)
    assert await value(engine, COUNT_DUE) == 2


async def test_a_time_zone_change_does_not_shorten_the_pause_after_a_failure(
    engine: AsyncEngine,
) -> None:
    await add_vips(engine, 1)
    await start_mailing(engine, **window(-HOUR, 2 * HOUR))
    (claimed,) = await claim(engine, 1)
    later = after(HOUR)
    failure = MessageResult(
        claimed,
        "scheduled",
        attempts=1,
        reason="http_503",
        due_at=later,
        last_failure="http_503",
        retry_at=later,
    )
    await finish(engine, failure)

    await set_zone(engine, "Africa/Abidjan")  # the same offset as UTC
    await moved_clients.replan_all_moved(engine)

    assert await value(engine, "SELECT due_at FROM message") == later
    assert await value(engine, "SELECT reason FROM message") == "http_503"


async def test_a_message_in_flight_is_replanned_after_its_result(engine: AsyncEngine) -> None:
    await add_vips(engine, 1)
    await start_mailing(engine, **window(-HOUR, HOUR))
    (claimed,) = await claim(engine, 1)
    await set_zone(engine, "Asia/Tokyo")
    await moved_clients.replan_all_moved(engine)
    assert await value(engine, COUNT_WAITING) == 1

    await finish(engine, MessageResult(claimed, "scheduled", attempts=0))
    assert await value(engine, COUNT_DUE) == 1
    await moved_clients.replan_all_moved(engine)

    assert await value(engine, COUNT_DUE) == 0
    assert await value(engine, COUNT_WAITING) == 0


async def test_a_time_zone_changed_while_its_chunk_is_enqueued_is_applied(
    engine: AsyncEngine,
) -> None:
    await add_vips(engine, 1, time_zone="Asia/Tokyo")
    await create_mailing(engine, **window(-HOUR, HOUR))
    await do(engine, starting.start_due)
    async with engine.connect() as enqueuer:
        await enqueuing.enqueue_chunk(enqueuer)  # with the old time zone
        await set_zone(engine, "UTC")
        replanning_task = asyncio.create_task(moved_clients.replan_all_moved(engine))
        await let_run(replanning_task)
        assert not replanning_task.done()
        await enqueuer.commit()
    await replanning_task
    assert await value(engine, COUNT_DUE) == 1


async def test_many_changed_time_zones_are_applied_in_chunks(engine: AsyncEngine) -> None:
    await add_vips(engine, 9, time_zone="Asia/Tokyo")
    for _ in range(3):
        await start_mailing(engine, **window(-HOUR, HOUR))
    await set_zone(engine, "UTC")

    clients_per_chunk = [await replan_chunk(engine, max_lookups=12) for _ in range(4)]

    # 12 lookups are enough for four clients: each costs a lookup in each of three mailings
    assert clients_per_chunk == [4, 4, 1, 0]
    assert await value(engine, COUNT_DUE) == 9 * 3
    assert await find_differences(engine) == []


async def test_mailings_without_scheduled_messages_do_not_reduce_the_chunk(
    engine: AsyncEngine,
) -> None:
    await add_vips(engine, 4, time_zone="Asia/Tokyo")
    for _ in range(3):
        await start_mailing(engine, **window(-HOUR, HOUR))
    await execute(engine, "UPDATE message SET status = 'delivered', sent_at = now()")
    await start_mailing(engine, **window(-HOUR, HOUR))  # only this one costs lookups
    await set_zone(engine, "UTC")

    clients_per_chunk = [await replan_chunk(engine, max_lookups=4) for _ in range(2)]

    assert clients_per_chunk == [4, 0]
    assert await value(engine, COUNT_DUE) == 4
    assert await find_differences(engine) == []


# ---- mailings that finished before their end ------------------------------------------------

SELECT_STATUS = "SELECT status FROM mailing WHERE id = {}"


async def create_finished_mailing(engine: AsyncEngine, clients: int = 2) -> int:
    """Create a mailing that finished at once, since its window does not open before its end."""
    await add_vips(engine, clients, time_zone="Asia/Tokyo")
    mailing_id = await start_mailing(engine, datetime_end=after(HOUR), **window(-HOUR, HOUR / 2))
    assert await do(engine, finishing.finish) == [(mailing_id, "finished")]
    assert await mailing_counts(engine, mailing_id) == {"cancelled": clients}
    return mailing_id


async def test_a_finished_mailing_runs_again_after_a_time_zone_correction(
    engine: AsyncEngine,
) -> None:
    mailing_id = await create_finished_mailing(engine)
    await set_zone(engine, "UTC", "id = 1")

    await moved_clients.replan_all_moved(engine)

    assert await value(engine, SELECT_STATUS.format(mailing_id)) == "running"
    assert await mailing_counts(engine, mailing_id) == {"scheduled": 1, "cancelled": 1}
    assert await is_consistent(engine, mailing_id)
    (claimed,) = await claim(engine, mailing_id)
    await finish(engine, MessageResult(claimed, "delivered", attempts=1))
    assert await do(engine, finishing.finish) == [(mailing_id, "finished")]
    assert await mailing_counts(engine, mailing_id) == {"delivered": 1, "cancelled": 1}
    assert await is_consistent(engine, mailing_id)


async def test_a_time_zone_without_a_window_does_not_change_a_finished_mailing(
    engine: AsyncEngine,
) -> None:
    mailing_id = await create_finished_mailing(engine)
    changed = f"SELECT updated_at FROM mailing WHERE id = {mailing_id}"  # noqa: S608  # values of the test
    before = await value(engine, changed)
    await set_zone(engine, "Asia/Seoul")

    await moved_clients.replan_all_moved(engine)

    assert await value(engine, SELECT_STATUS.format(mailing_id)) == "finished"
    assert await value(engine, changed) == before
    assert await value(engine, COUNT_WAITING) == 0
    assert await is_consistent(engine, mailing_id)


@pytest.mark.parametrize(
    "ending",
    [
        "UPDATE mailing SET status = 'cancelled' WHERE id = {}",
        "UPDATE mailing SET deleted_at = now() WHERE id = {}",
        "UPDATE mailing SET datetime_start = '2020-01-01', datetime_end = '2020-01-02'",
    ],
)
async def test_a_cancelled_deleted_or_ended_mailing_does_not_run_again(
    engine: AsyncEngine, ending: str
) -> None:
    mailing_id = await create_finished_mailing(engine)
    await execute(engine, ending.format(mailing_id))
    before = await value(engine, SELECT_STATUS.format(mailing_id))
    await set_zone(engine, "UTC")

    await moved_clients.replan_all_moved(engine)

    assert await value(engine, SELECT_STATUS.format(mailing_id)) == before
    assert await mailing_counts(engine, mailing_id) == {"cancelled": 2}
    assert await value(engine, "SELECT is_settled FROM mailing")


async def test_after_an_import_corrected_time_zones_a_finished_mailing_reaches_all_clients(
    api: httpx.AsyncClient, engine: AsyncEngine
) -> None:
    many = 30
    mailing_id = await create_finished_mailing(engine, many)
    phones = await value(engine, "SELECT array_agg(phone) FROM client")
    csv = "phone,time_zone\n" + "".join(f"{phone},UTC\n" for phone in phones)
    await api.post("/clients/import", content=csv, headers={"content-type": "text/csv"})

    clients_per_chunk = [await replan_chunk(engine, max_lookups=10) for _ in range(4)]

    assert clients_per_chunk == [10, 10, 10, 0]
    assert await mailing_counts(engine, mailing_id) == {"scheduled": many}
    assert await value(engine, SELECT_STATUS.format(mailing_id)) == "running"
    assert await is_consistent(engine, mailing_id)


async def test_a_mailing_retried_at_the_same_time_is_replanned_in_the_next_run(
    engine: AsyncEngine,
) -> None:
    mailing_id = await create_finished_mailing(engine, 1)
    await set_zone(engine, "UTC")
    async with engine.connect() as retrying:
        await retrying.execute(text(f"UPDATE mailing SET {REOPENED}"))  # noqa: S608  # a constant
        replanning_task = asyncio.create_task(moved_clients.replan_all_moved(engine))
        await let_run(replanning_task)
        assert not replanning_task.done()
        await retrying.commit()
    await replanning_task
    await moved_clients.replan_all_moved(engine)

    assert await mailing_counts(engine, mailing_id) == {"scheduled": 1}
    assert await is_consistent(engine, mailing_id)
