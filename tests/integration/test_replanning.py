"""Replanning of messages after a change of their mailing or of their client's time zone."""

import asyncio
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import msgspec
import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine
from tests.factories import (
    DAY,
    HOUR,
    REOPENED,
    add_clients,
    advance,
    claim,
    do,
    enqueue_and_replan,
    execute,
    finish,
    mailing_counts,
    value,
)

from mailer.access.model import COMMAND_LINE
from mailer.mailing import (
    enqueuing,
    finishing,
    moved_clients,
    replanning,
    service,
    small_audiences,
    starting,
)
from mailer.mailing.client_filter import AudienceLists
from mailer.mailing.model import MailingChange, NewMailing
from mailer.mailing.skipped import SkippedMailings
from mailer.message.model import MessageResult
from mailer.statistics.verify import find_differences

ID_DISTANCE = 1_000
CURRENT_TRANSACTION = "pg_current_xact_id()::xid::text::bigint"
USE_IDS = f"""
    DO $$ BEGIN FOR number IN 1..{ID_DISTANCE} + 100 LOOP PERFORM pg_current_xact_id(); COMMIT;
    END LOOP; END $$"""
MEMBERS = "SELECT array_agg(client_id ORDER BY client_id) FROM message WHERE status = 'scheduled'"
ADD_CLIENT = """
    INSERT INTO client (phone, operator_code, tag) VALUES ('{}', '916', 'vip') RETURNING id"""

ADD_CLIENT_WITH_ID = """
    INSERT INTO client (id, phone, operator_code, tag) OVERRIDING SYSTEM VALUE
    VALUES ({}, '79990000002', '999', 'vip')"""


def after(ahead: timedelta) -> datetime:
    return datetime.now(UTC) + ahead


async def create_mailing(engine: AsyncEngine, **fields: Any) -> int:
    """Create a mailing to the tag `vip` that is due now."""
    defaults: dict[str, Any] = {
        "datetime_start": after(timedelta()),
        "datetime_end": after(3 * DAY),
        "text": "Tonight only.",
        "client_filter": "vip",
    }
    return (await service.create(engine, NewMailing(**defaults | fields), COMMAND_LINE)).id


async def start_mailing(engine: AsyncEngine, **fields: Any) -> int:
    mailing_id = await create_mailing(engine, **fields)
    await do(engine, starting.start_due)
    await enqueue_and_replan(engine)
    return mailing_id


async def change_mailing(engine: AsyncEngine, mailing_id: int, **fields: Any) -> None:
    await service.change(engine, mailing_id, MailingChange(**fields), COMMAND_LINE)


async def set_tag(engine: AsyncEngine, client: int, tag: str) -> None:
    await execute(engine, f"UPDATE client SET tag = '{tag}' WHERE id = {client}")  # noqa: S608  # values of the test


async def add_vips(engine: AsyncEngine, count: int, **fields: str) -> list[int]:
    clients = await add_clients(engine, count, **fields)
    for client in clients:
        await set_tag(engine, client, "vip")
    return clients


def window(opens: timedelta, closes: timedelta) -> dict[str, str]:
    """Return a sending window in UTC, relative to now."""
    return {
        "send_interval_time_start": f"{after(opens):%H:%M}",
        "send_interval_time_end": f"{after(closes):%H:%M}",
    }


async def is_consistent(engine: AsyncEngine, mailing_id: int) -> bool:
    """Return whether all counters add up and `clients_count` equals the number of messages."""
    count_query = "SELECT clients_count FROM mailing WHERE id = "
    messages = sum((await mailing_counts(engine, mailing_id)).values())
    return (
        await find_differences(engine) == []
        and await value(engine, f"{count_query}{mailing_id}") == messages
    )


# ---- members of an audience -----------------------------------------------------------------


@pytest.mark.parametrize(
    "changes",
    [
        {"datetime_end": 2 * DAY},
        window(-HOUR, HOUR),
        {"datetime_end": 2 * DAY} | window(-2 * HOUR, 2 * HOUR),
    ],
)
async def test_changing_the_end_or_the_sending_window_keeps_the_audience(
    engine: AsyncEngine, changes: dict[str, Any]
) -> None:
    member, other = await add_vips(engine, 2)
    await set_tag(engine, other, "later")
    mailing_id = await start_mailing(engine)
    await set_tag(engine, member, "later")
    await set_tag(engine, other, "vip")
    await add_vips(engine, 1)
    fields = {
        name: after(value) if isinstance(value, timedelta) else value
        for name, value in changes.items()
    }

    await change_mailing(engine, mailing_id, **fields)
    await advance(engine)

    assert await value(engine, MEMBERS) == [member]
    assert await is_consistent(engine, mailing_id)


async def test_changing_the_filter_determines_the_audience_again_as_of_that_time(
    engine: AsyncEngine,
) -> None:
    kept, removed, new = await add_vips(engine, 3)
    await set_tag(engine, new, "later")
    mailing_id = await start_mailing(engine)
    created_later = (await add_vips(engine, 1))[0]
    await set_tag(engine, removed, "gone")

    await change_mailing(engine, mailing_id, client_filter="vip, later")
    await add_vips(engine, 1)
    await advance(engine)

    assert await value(engine, MEMBERS) == sorted([kept, new, created_later])
    reason = "SELECT reason FROM message WHERE status = 'cancelled'"
    assert await value(engine, reason) == "filter_changed"
    assert await is_consistent(engine, mailing_id)

    await change_mailing(engine, mailing_id, client_filter="vip, gone")
    await advance(engine)
    assert removed in await value(engine, MEMBERS)
    assert new not in await value(engine, MEMBERS)
    assert await is_consistent(engine, mailing_id)


async def test_a_client_committed_after_the_start_is_not_in_the_audience_whatever_its_id(
    engine: AsyncEngine,
) -> None:
    async with engine.connect() as importing, engine.connect() as idle:
        await importing.execute(text(ADD_CLIENT.format("79990000001")))  # not committed
        next_id_query = "SELECT nextval(pg_get_serial_sequence('client', 'id'))"
        client_id = (
            await idle.execute(text(next_id_query))
        ).scalar_one()  # before its transaction has an id
        members = await add_vips(engine, 1)
        assert client_id < members[0]
        mailing_id = await create_mailing(engine)
        await do(engine, starting.start_due)
        await idle.execute(text(ADD_CLIENT_WITH_ID.format(client_id)))
        await importing.commit()
        await idle.commit()

    await enqueue_and_replan(engine)
    assert await value(engine, MEMBERS) == members
    await change_mailing(engine, mailing_id, datetime_end=after(2 * DAY))
    await advance(engine)
    assert await value(engine, MEMBERS) == members
    assert await is_consistent(engine, mailing_id)

    await change_mailing(engine, mailing_id, client_filter=AudienceLists(tags=["vip"]))
    await advance(engine)
    assert len(await value(engine, MEMBERS)) == 3
    assert await is_consistent(engine, mailing_id)


async def test_clients_from_the_dump_of_another_server_are_in_the_audience(
    engine: AsyncEngine,
) -> None:
    members = await add_vips(engine, 2)
    await execute(engine, "UPDATE client SET created_by = 9e15")

    await start_mailing(engine)

    assert await value(engine, MEMBERS) == members


async def test_a_restored_client_is_in_the_audience_even_if_its_transaction_id_recurs(
    engine: AsyncEngine,
) -> None:
    members = await add_vips(engine, 2)
    future = f"{CURRENT_TRANSACTION} + {ID_DISTANCE}"
    await execute(engine, f"UPDATE client SET created_by = {future}")  # noqa: S608  # constants
    mailing_id = await create_mailing(engine)
    await do(engine, starting.start_due)
    async with engine.connect() as connection:
        autocommit = await connection.execution_options(isolation_level="AUTOCOMMIT")
        await autocommit.exec_driver_sql(USE_IDS)
    created_later = await add_vips(engine, 1)
    assert await value(engine, f"SELECT {CURRENT_TRANSACTION} > max(created_by) FROM client")  # noqa: S608  # a constant

    async with engine.connect() as trial:
        await enqueuing.enqueue_chunk(trial)
        in_chunks = (await trial.exec_driver_sql(MEMBERS)).scalar_one()
        await trial.rollback()
    await do(engine, lambda db: small_audiences.enqueue_small(db, SkippedMailings()))

    assert in_chunks == members
    assert await value(engine, MEMBERS) == members
    assert created_later[0] not in members
    assert await is_consistent(engine, mailing_id)


# ---- consecutive and concurrent changes -----------------------------------------------------


async def test_changing_the_end_while_enqueuing_does_not_stop_enqueuing(
    engine: AsyncEngine,
) -> None:
    many = 600
    assert many > enqueuing.FIRST_BATCH
    await add_clients(engine, many)
    await execute(engine, "UPDATE client SET tag = 'vip'")
    mailing_id = await create_mailing(engine)
    await do(engine, starting.start_due)
    await do(engine, enqueuing.enqueue_chunk)
    await execute(engine, "UPDATE client SET tag = 'later' WHERE id = 1")

    await change_mailing(engine, mailing_id, datetime_end=after(2 * DAY))
    await advance(engine)

    assert await mailing_counts(engine, mailing_id) == {"scheduled": many}
    assert await is_consistent(engine, mailing_id)


@pytest.mark.parametrize("window_first", [True, False])
async def test_consecutive_changes_of_window_and_filter_both_apply(
    engine: AsyncEngine, *, window_first: bool
) -> None:
    clients = await add_vips(engine, 5)
    await set_tag(engine, clients[0], "other")
    mailing_id = await start_mailing(engine, **window(2 * HOUR, 3 * HOUR))
    changes = [window(-HOUR, HOUR), {"client_filter": "other"}]
    for fields in changes if window_first else reversed(changes):
        await change_mailing(engine, mailing_id, **fields)
        await do(engine, lambda db: replanning.replan_chunk(db, 2))
    await advance(engine, chunk=2)

    assert await value(engine, MEMBERS) == clients[:1]
    assert await mailing_counts(engine, mailing_id) == {"scheduled": 1, "cancelled": 4}
    due = "SELECT count(*) FROM message WHERE status = 'scheduled' AND due_at <= clock_timestamp()"
    assert await value(engine, due) == 1
    assert await is_consistent(engine, mailing_id)


async def test_a_rolled_back_chunk_is_replanned(engine: AsyncEngine) -> None:
    await add_vips(engine, 5)
    mailing_id = await start_mailing(engine, **window(2 * HOUR, 3 * HOUR))
    await change_mailing(engine, mailing_id, **window(-HOUR, HOUR))
    await do(engine, lambda db: replanning.replan_chunk(db, 2))
    async with engine.connect() as crashing:
        assert await replanning.replan_chunk(crashing, 2) == mailing_id
        await crashing.rollback()
    due = "SELECT count(*) FROM message WHERE due_at <= clock_timestamp()"
    assert await value(engine, due) == 2

    await advance(engine, chunk=2)

    assert await value(engine, due) == 5
    assert not await value(engine, "SELECT is_replanning FROM mailing")


async def test_a_change_with_pause_and_retry_counts_every_message_once(
    engine: AsyncEngine,
) -> None:
    clients = await add_vips(engine, 4)
    mailing_id = await start_mailing(engine)
    (claimed,) = await claim(engine, mailing_id)
    await finish(engine, MessageResult(claimed, "undelivered", 1, "rejected_400"))
    await service.pause(engine, mailing_id, COMMAND_LINE)
    await service.retry(engine, mailing_id, COMMAND_LINE)
    await change_mailing(engine, mailing_id, datetime_end=after(DAY), **window(2 * HOUR, 3 * HOUR))
    await advance(engine, chunk=1)

    assert await value(engine, MEMBERS) == clients
    assert await value(engine, "SELECT status FROM mailing") == "paused"
    due = "SELECT count(*) FROM message WHERE due_at > clock_timestamp()"
    assert await value(engine, due) == 4
    assert await is_consistent(engine, mailing_id)


async def test_messages_that_stay_cancelled_keep_the_day_of_their_outcome(
    engine: AsyncEngine,
) -> None:
    await add_vips(engine, 1)
    await add_vips(engine, 1, time_zone="Asia/Tokyo")
    mailing_id = await create_mailing(
        engine, datetime_end=after(2 * HOUR), **window(-HOUR, HOUR / 2)
    )
    await do(engine, starting.start_due)
    await enqueue_and_replan(engine)
    assert await mailing_counts(engine, mailing_id) == {"scheduled": 1, "cancelled": 1}
    make_old = (
        "UPDATE message SET updated_at = now() - interval '2 days' WHERE reason = 'no_window'"
    )
    await execute(engine, make_old)

    await change_mailing(engine, mailing_id, datetime_end=after(HOUR))
    await advance(engine)

    old = "SELECT count(*) FROM message WHERE updated_at < now() - interval '1 day'"
    assert await value(engine, old) == 1
    assert await find_differences(engine) == []


# ---- time zones -----------------------------------------------------------------------------

COUNT_DUE = (
    "SELECT count(*) FROM message WHERE status = 'scheduled' AND due_at <= clock_timestamp()"
)


async def set_zone(engine: AsyncEngine, zone: str, where: str = "true") -> None:
    await execute(engine, f"UPDATE client SET time_zone = '{zone}' WHERE {where}")  # noqa: S608  # values of the test


async def test_waiting_and_no_window_messages_are_replanned_after_a_time_zone_change(
    engine: AsyncEngine,
) -> None:
    await add_vips(engine, 3, time_zone="Asia/Tokyo")
    waiting = await start_mailing(engine, **window(-HOUR, HOUR))
    has_no_window = await create_mailing(
        engine, datetime_end=after(HOUR), **window(-HOUR, HOUR / 2)
    )
    without_window = await create_mailing(engine)
    for _ in range(2):
        await do(engine, starting.start_due)
    await set_zone(engine, "UTC", "id = 1")  # before any message is enqueued
    await enqueue_and_replan(engine)
    await moved_clients.replan_all_moved(engine)
    assert await mailing_counts(engine, has_no_window) == {"scheduled": 1, "cancelled": 2}
    assert await value(engine, COUNT_DUE) == 1 + 1 + 3

    await set_zone(engine, "UTC", "id = 2")
    await moved_clients.replan_all_moved(engine)

    assert await mailing_counts(engine, has_no_window) == {"scheduled": 2, "cancelled": 1}
    assert await value(engine, COUNT_DUE) == 2 + 2 + 3
    zones = "SELECT count(*) FROM message WHERE client_id = 2 AND time_zone = 'Asia/Tokyo'"
    assert await value(engine, zones) == 3  # the time zone under which they are counted stays
    for mailing_id in (waiting, has_no_window, without_window):
        assert await is_consistent(engine, mailing_id)

    await set_zone(engine, "Asia/Tokyo", "id = 2")
    await moved_clients.replan_all_moved(engine)
    assert await mailing_counts(engine, has_no_window) == {"scheduled": 1, "cancelled": 2}
    assert await value(engine, "SELECT count(*) FROM client_to_replan") == 0


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
    claimed = (await claim(engine, 1))[0]
    later = after(HOUR)
    failed = MessageResult(claimed, "scheduled", 1, "http_503", later)
    await finish(engine, msgspec.structs.replace(failed, last_failure="http_503", retry_at=later))

    await set_zone(engine, "Africa/Abidjan")  # the same offset as UTC
    await moved_clients.replan_all_moved(engine)

    due = await value(engine, "SELECT due_at FROM message")
    assert due == later
    assert await value(engine, "SELECT reason FROM message") == "http_503"


async def test_a_message_in_flight_is_replanned_after_its_result(engine: AsyncEngine) -> None:
    await add_vips(engine, 1)
    await start_mailing(engine, **window(-HOUR, HOUR))
    claimed = (await claim(engine, 1))[0]
    await set_zone(engine, "Asia/Tokyo")
    await moved_clients.replan_all_moved(engine)
    assert await value(engine, "SELECT count(*) FROM client_to_replan") == 1

    await finish(engine, MessageResult(claimed, "scheduled", 0))
    assert await value(engine, COUNT_DUE) == 1
    await moved_clients.replan_all_moved(engine)

    assert await value(engine, COUNT_DUE) == 0
    assert await value(engine, "SELECT count(*) FROM client_to_replan") == 0


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
        await asyncio.wait({replanning_task}, timeout=0.3)
        assert not replanning_task.done()
        await enqueuer.commit()
    await replanning_task
    assert await value(engine, COUNT_DUE) == 1


async def test_many_changed_time_zones_are_applied_in_chunks(engine: AsyncEngine) -> None:
    await add_vips(engine, 9, time_zone="Asia/Tokyo")
    for _ in range(3):
        await start_mailing(engine, **window(-HOUR, HOUR))
    await set_zone(engine, "UTC")

    clients_per_chunk = [
        await do(engine, lambda db: moved_clients.replan_moved(db, 12)) for _ in range(4)
    ]

    assert clients_per_chunk == [4, 4, 1, 0]
    assert await value(engine, COUNT_DUE) == 27
    assert await find_differences(engine) == []


async def test_mailings_without_waiting_messages_do_not_reduce_the_chunk(
    engine: AsyncEngine,
) -> None:
    await add_vips(engine, 4, time_zone="Asia/Tokyo")
    for _ in range(3):
        await start_mailing(engine, **window(-HOUR, HOUR))
    await execute(engine, "UPDATE message SET status = 'delivered', sent_at = now()")
    await start_mailing(engine, **window(-HOUR, HOUR))
    await set_zone(engine, "UTC")

    clients_per_chunk = [
        await do(engine, lambda db: moved_clients.replan_moved(db, 4)) for _ in range(2)
    ]

    assert clients_per_chunk == [4, 0]
    assert await value(engine, COUNT_DUE) == 4
    assert await find_differences(engine) == []


# ---- mailings that finished before their end ------------------------------------------------

STATUS = "SELECT status FROM mailing WHERE id = {}"


async def create_finished_mailing(engine: AsyncEngine, clients: int = 2) -> int:
    """Return a mailing that finished at once, because no sending window opens before its end."""
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

    assert await value(engine, STATUS.format(mailing_id)) == "running"
    assert await mailing_counts(engine, mailing_id) == {"scheduled": 1, "cancelled": 1}
    assert await is_consistent(engine, mailing_id)
    (claimed,) = await claim(engine, mailing_id)
    await finish(engine, MessageResult(claimed, "delivered", 1))
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

    assert await value(engine, STATUS.format(mailing_id)) == "finished"
    assert await value(engine, changed) == before
    assert await value(engine, "SELECT count(*) FROM client_to_replan") == 0
    assert await is_consistent(engine, mailing_id)


@pytest.mark.parametrize(
    "end",
    [
        "UPDATE mailing SET status = 'cancelled' WHERE id = {}",
        "UPDATE mailing SET deleted_at = now() WHERE id = {}",
        "UPDATE mailing SET datetime_start = '2020-01-01', datetime_end = '2020-01-02'",
    ],
)
async def test_a_cancelled_deleted_or_ended_mailing_does_not_run_again(
    engine: AsyncEngine, end: str
) -> None:
    mailing_id = await create_finished_mailing(engine)
    await execute(engine, end.format(mailing_id))
    before = await value(engine, STATUS.format(mailing_id))
    await set_zone(engine, "UTC")

    await moved_clients.replan_all_moved(engine)

    assert await value(engine, STATUS.format(mailing_id)) == before
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

    clients_per_chunk = [
        await do(engine, lambda db: moved_clients.replan_moved(db, 10)) for _ in range(4)
    ]

    assert clients_per_chunk == [10, 10, 10, 0]
    assert await mailing_counts(engine, mailing_id) == {"scheduled": many}
    assert await value(engine, STATUS.format(mailing_id)) == "running"
    assert await is_consistent(engine, mailing_id)


async def test_a_mailing_retried_at_the_same_time_is_replanned_in_the_next_run(
    engine: AsyncEngine,
) -> None:
    mailing_id = await create_finished_mailing(engine, 1)
    await set_zone(engine, "UTC")
    async with engine.connect() as retrying:
        await retrying.execute(text(f"UPDATE mailing SET {REOPENED}"))  # noqa: S608  # a constant
        replanning_task = asyncio.create_task(moved_clients.replan_all_moved(engine))
        await asyncio.wait({replanning_task}, timeout=0.3)
        assert not replanning_task.done()
        await retrying.commit()
    await replanning_task
    await moved_clients.replan_all_moved(engine)

    assert await mailing_counts(engine, mailing_id) == {"scheduled": 1}
    assert await is_consistent(engine, mailing_id)
