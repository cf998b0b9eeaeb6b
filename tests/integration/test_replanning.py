"""Replanning of messages after a change of their mailing: its end, sending window or filter."""

from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine
from tests.factories import (
    DAY,
    HOUR,
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
from tests.integration.vip_mailings import (
    add_vips,
    after,
    change_mailing,
    create_mailing,
    is_consistent,
    set_tag,
    start_mailing,
    window,
)

from mailer.access.model import COMMAND_LINE
from mailer.mailing import (
    enqueuing,
    replanning,
    service,
    small_audiences,
    starting,
)
from mailer.mailing.client_filter import AudienceLists
from mailer.mailing.skipped import SkippedMailings
from mailer.message.model import MessageResult
from mailer.statistics.verify import find_differences

ID_DISTANCE = 1_000
"""How far ahead of the current transaction's id the id in a restored client is."""
CURRENT_TRANSACTION = "pg_current_xact_id()::xid::text::bigint"
# Runs enough transactions to get past that id.
USE_IDS = f"""
    DO $$ BEGIN FOR number IN 1..{ID_DISTANCE} + 100 LOOP PERFORM pg_current_xact_id(); COMMIT;
    END LOOP; END $$"""
MEMBERS = "SELECT array_agg(client_id ORDER BY client_id) FROM message WHERE status = 'scheduled'"
"""The clients who have a scheduled message."""
COUNT_DUE = (
    "SELECT count(*) FROM message WHERE status = 'scheduled' AND due_at <= clock_timestamp()"
)
COUNT_DUE_LATER = "SELECT count(*) FROM message WHERE due_at > clock_timestamp()"
ADD_CLIENT = """
    INSERT INTO client (phone, operator_code, tag) VALUES ('79990000001', '916', 'vip')"""
NEXT_CLIENT_ID = text("SELECT nextval(pg_get_serial_sequence('client', 'id'))")
ADD_CLIENT_WITH_ID = """
    INSERT INTO client (id, phone, operator_code, tag) OVERRIDING SYSTEM VALUE
    VALUES ({}, '79990000002', '999', 'vip')"""


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
    member, not_member = await add_vips(engine, 2)
    await set_tag(engine, not_member, "other")
    mailing_id = await start_mailing(engine)
    # now the filter, which is not changed, would match other clients
    await set_tag(engine, member, "other")
    await set_tag(engine, not_member, "vip")
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
    await set_tag(engine, new, "other")
    mailing_id = await start_mailing(engine)
    created_later = (await add_vips(engine, 1))[0]
    await set_tag(engine, removed, "gone")

    await change_mailing(engine, mailing_id, client_filter="vip, other")
    await add_vips(engine, 1)  # created after the change
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
    async with engine.connect() as in_progress, engine.connect() as without_id:
        # one client is written before the start, and one after it; both have a low id, and both are
        # committed after the start
        await in_progress.execute(text(ADD_CLIENT))
        client_id = (await without_id.execute(NEXT_CLIENT_ID)).scalar_one()
        members = await add_vips(engine, 1)
        assert client_id < members[0]
        mailing_id = await create_mailing(engine)
        await do(engine, starting.start_due)
        await without_id.execute(text(ADD_CLIENT_WITH_ID.format(client_id)))
        await in_progress.commit()
        await without_id.commit()

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
    # no transaction of this server has had this id yet
    await execute(engine, "UPDATE client SET created_by = 9e15")

    await start_mailing(engine)

    assert await value(engine, MEMBERS) == members


async def test_a_restored_client_is_in_the_audience_even_if_its_transaction_id_recurs(
    engine: AsyncEngine,
) -> None:
    members = await add_vips(engine, 2)
    # the other server had already used this id, which this server will use after the start
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
        members_by_chunk = (await trial.exec_driver_sql(MEMBERS)).scalar_one()
        await trial.rollback()
    await do(engine, lambda db: small_audiences.enqueue_small(db, SkippedMailings()))

    assert members_by_chunk == members
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


@pytest.mark.parametrize("is_window_first", [True, False])
async def test_consecutive_changes_of_window_and_filter_both_apply(
    engine: AsyncEngine, *, is_window_first: bool
) -> None:
    clients = await add_vips(engine, 5)
    await set_tag(engine, clients[0], "other")
    mailing_id = await start_mailing(engine, **window(2 * HOUR, 3 * HOUR))
    changes = [window(-HOUR, HOUR), {"client_filter": "other"}]
    for fields in changes if is_window_first else reversed(changes):
        await change_mailing(engine, mailing_id, **fields)
        await do(engine, lambda db: replanning.replan_chunk(db, chunk=2))  # not all five messages
    await advance(engine, chunk=2)

    assert await value(engine, MEMBERS) == clients[:1]
    assert await mailing_counts(engine, mailing_id) == {"scheduled": 1, "cancelled": 4}
    assert await value(engine, COUNT_DUE) == 1
    assert await is_consistent(engine, mailing_id)


async def test_a_rolled_back_chunk_is_replanned(engine: AsyncEngine) -> None:
    await add_vips(engine, 5)
    mailing_id = await start_mailing(engine, **window(2 * HOUR, 3 * HOUR))
    await change_mailing(engine, mailing_id, **window(-HOUR, HOUR))
    await do(engine, lambda db: replanning.replan_chunk(db, chunk=2))
    async with engine.connect() as crashing:
        assert await replanning.replan_chunk(crashing, chunk=2) == mailing_id
        await crashing.rollback()
    assert await value(engine, COUNT_DUE) == 2

    await advance(engine, chunk=2)

    assert await value(engine, COUNT_DUE) == 5
    assert not await value(engine, "SELECT is_replanning FROM mailing")


async def test_a_change_with_pause_and_retry_counts_every_message_once(
    engine: AsyncEngine,
) -> None:
    clients = await add_vips(engine, 4)
    mailing_id = await start_mailing(engine)
    (claimed,) = await claim(engine, mailing_id)
    await finish(engine, MessageResult(claimed, "undelivered", attempts=1, reason="rejected_400"))
    await service.pause(engine, mailing_id, COMMAND_LINE)
    await service.retry(engine, mailing_id, COMMAND_LINE)
    await change_mailing(engine, mailing_id, datetime_end=after(DAY), **window(2 * HOUR, 3 * HOUR))
    await advance(engine, chunk=1)

    assert await value(engine, MEMBERS) == clients
    assert await value(engine, "SELECT status FROM mailing") == "paused"
    assert await value(engine, COUNT_DUE_LATER) == 4
    assert await is_consistent(engine, mailing_id)


async def test_messages_that_stay_cancelled_keep_the_day_of_their_outcome(
    engine: AsyncEngine,
) -> None:
    await add_vips(engine, 1)
    await add_vips(engine, 1, time_zone="Asia/Tokyo")  # the window does not open there in time
    mailing_id = await create_mailing(
        engine, datetime_end=after(2 * HOUR), **window(-HOUR, HOUR / 2)
    )
    await do(engine, starting.start_due)
    await enqueue_and_replan(engine)
    assert await mailing_counts(engine, mailing_id) == {"scheduled": 1, "cancelled": 1}
    days_ago = "updated_at = now() - interval '2 days'"
    await execute(engine, f"UPDATE message SET {days_ago} WHERE reason = 'no_window'")  # noqa: S608  # a constant

    await change_mailing(engine, mailing_id, datetime_end=after(HOUR))
    await advance(engine)

    old = "SELECT count(*) FROM message WHERE updated_at < now() - interval '1 day'"
    assert await value(engine, old) == 1
    assert await find_differences(engine) == []
