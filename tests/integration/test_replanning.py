"""Messages planned anew: after a change of their mailing, or of their client's time zone."""

import asyncio
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import msgspec
import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine
from tests.sample import (
    add_clients,
    advance,
    claim,
    do,
    execute,
    finish,
    ledger,
    take_audience,
    value,
)

from mailer.access.model import COMMAND_LINE
from mailer.mailing import audience, moving, replanning, service, together
from mailer.mailing.model import AudienceLists, MailingChange, NewMailing
from mailer.mailing.passing_over import PassedOver
from mailer.message.model import FinishedMessage
from mailer.report.verify import differences

HOUR = timedelta(hours=1)
DAY = 24 * HOUR
AHEAD = 1_000
NEXT_NUMBER = "pg_current_xact_id()::xid::text::bigint"
BURN = f"""
    DO $$ BEGIN FOR number IN 1..{AHEAD} + 100 LOOP PERFORM pg_current_xact_id(); COMMIT; END LOOP;
    END $$"""
MEMBERS = "SELECT array_agg(client_id ORDER BY client_id) FROM message WHERE status = 'scheduled'"
ADD_CLIENT = """
    INSERT INTO client (phone, operator_code, tag) VALUES ('{}', '916', 'vip') RETURNING id"""

ADD_LATE = """
    INSERT INTO client (id, phone, operator_code, tag) OVERRIDING SYSTEM VALUE
    VALUES ({}, '79990000002', '999', 'vip')"""


def moment(ahead: timedelta) -> datetime:
    return datetime.now(UTC) + ahead


async def create(engine: AsyncEngine, **fields: Any) -> int:
    """A mailing to `vip` that is due now."""
    given: dict[str, Any] = {
        "datetime_start": moment(timedelta()),
        "datetime_end": moment(3 * DAY),
        "text": "Tonight only.",
        "client_filter": "vip",
    }
    return (await service.create(engine, NewMailing(**given | fields), COMMAND_LINE)).id


async def begun(engine: AsyncEngine, **fields: Any) -> int:
    mailing_id = await create(engine, **fields)
    await do(engine, moving.begin_due)
    await take_audience(engine)
    return mailing_id


async def change(engine: AsyncEngine, mailing_id: int, **fields: Any) -> None:
    await service.change(engine, mailing_id, MailingChange(**fields), COMMAND_LINE)


async def tag(engine: AsyncEngine, client: int, tag: str) -> None:
    await execute(engine, f"UPDATE client SET tag = '{tag}' WHERE id = {client}")  # noqa: S608  # of a test


async def vips(engine: AsyncEngine, count: int, **fields: str) -> list[int]:
    clients = await add_clients(engine, count, **fields)
    for client in clients:
        await tag(engine, client, "vip")
    return clients


def hours(opens: timedelta, closes: timedelta) -> dict[str, str]:
    """A window of UTC's hours, from and to so long from now."""
    return {
        "send_interval_time_start": f"{moment(opens):%H:%M}",
        "send_interval_time_end": f"{moment(closes):%H:%M}",
    }


async def is_sound(engine: AsyncEngine, mailing_id: int) -> bool:
    """Whether all counts add up, and the audience is the messages."""
    counts = "SELECT clients_count FROM mailing WHERE id = "
    created = sum((await ledger(engine, mailing_id)).values())
    return (
        await differences(engine) == [] and await value(engine, f"{counts}{mailing_id}") == created
    )


# ---- who belongs to an audience -------------------------------------------------------------


@pytest.mark.parametrize(
    "changes",
    [
        {"datetime_end": 2 * DAY},
        hours(-HOUR, HOUR),
        {"datetime_end": 2 * DAY} | hours(-2 * HOUR, 2 * HOUR),
    ],
)
async def test_change_of_end_or_window_adds_and_removes_nobody(
    engine: AsyncEngine, changes: dict[str, Any]
) -> None:
    member, other = await vips(engine, 2)
    await tag(engine, other, "later")
    mailing_id = await begun(engine)
    await tag(engine, member, "later")
    await tag(engine, other, "vip")
    await vips(engine, 1)
    given = {
        name: moment(value) if isinstance(value, timedelta) else value
        for name, value in changes.items()
    }

    await change(engine, mailing_id, **given)
    await advance(engine)

    assert await value(engine, MEMBERS) == [member]
    assert await is_sound(engine, mailing_id)


async def test_change_of_the_filter_takes_the_audience_anew_as_of_that_moment(
    engine: AsyncEngine,
) -> None:
    stays, goes, comes = await vips(engine, 3)
    await tag(engine, comes, "later")
    mailing_id = await begun(engine)
    joined = (await vips(engine, 1))[0]
    await tag(engine, goes, "gone")

    await change(engine, mailing_id, client_filter="vip, later")
    await vips(engine, 1)
    await advance(engine)

    assert await value(engine, MEMBERS) == sorted([stays, comes, joined])
    why = "SELECT reason FROM message WHERE status = 'cancelled'"
    assert await value(engine, why) == "filter_changed"
    assert await is_sound(engine, mailing_id)

    await change(engine, mailing_id, client_filter="vip, gone")
    await advance(engine)
    assert goes in await value(engine, MEMBERS)
    assert comes not in await value(engine, MEMBERS)
    assert await is_sound(engine, mailing_id)


async def test_client_whose_id_was_given_before_the_beginning_but_committed_after_it_joined_later(
    engine: AsyncEngine,
) -> None:
    async with engine.connect() as importing, engine.connect() as idle:
        await importing.execute(text(ADD_CLIENT.format("79990000001")))  # in progress
        given = "SELECT nextval(pg_get_serial_sequence('client', 'id'))"
        number = (await idle.execute(text(given))).scalar_one()  # before its transaction has one
        members = await vips(engine, 1)
        assert number < members[0]
        mailing_id = await create(engine)
        await do(engine, moving.begin_due)
        await idle.execute(text(ADD_LATE.format(number)))
        await importing.commit()
        await idle.commit()

    await take_audience(engine)
    assert await value(engine, MEMBERS) == members
    await change(engine, mailing_id, datetime_end=moment(2 * DAY))
    await advance(engine)
    assert await value(engine, MEMBERS) == members
    assert await is_sound(engine, mailing_id)

    await change(engine, mailing_id, client_filter=AudienceLists(tags=["vip"]))
    await advance(engine)
    assert len(await value(engine, MEMBERS)) == 3
    assert await is_sound(engine, mailing_id)


async def test_client_that_comes_from_the_dump_of_another_server_was_there_before(
    engine: AsyncEngine,
) -> None:
    members = await vips(engine, 2)
    await execute(engine, "UPDATE client SET created_by = 9e15")

    await begun(engine)

    assert await value(engine, MEMBERS) == members


async def test_restored_client_was_there_though_its_number_is_given_here_while_it_is_enqueued(
    engine: AsyncEngine,
) -> None:
    members = await vips(engine, 2)
    await execute(engine, f"UPDATE client SET created_by = {NEXT_NUMBER} + {AHEAD}")  # noqa: S608  # of a test
    mailing_id = await create(engine)
    await do(engine, moving.begin_due)
    async with engine.connect() as connection:
        burning = await connection.execution_options(isolation_level="AUTOCOMMIT")
        await burning.exec_driver_sql(BURN)
    joined_later = await vips(engine, 1)
    assert await value(engine, f"SELECT {NEXT_NUMBER} > max(created_by) FROM client")  # noqa: S608  # likewise

    async with engine.connect() as trial:
        await audience.take_chunk(trial)
        in_chunks = (await trial.exec_driver_sql(MEMBERS)).scalar_one()
        await trial.rollback()
    await do(engine, lambda db: together.take_small(db, PassedOver()))

    assert in_chunks == members
    assert await value(engine, MEMBERS) == members
    assert joined_later[0] not in members
    assert await is_sound(engine, mailing_id)


# ---- changes one after the other, and beside other steps ------------------------------------


async def test_end_changed_while_the_audience_is_enqueued_leaves_the_rest_to_come(
    engine: AsyncEngine,
) -> None:
    many = 600
    assert many > audience.FIRST_CHUNK
    await add_clients(engine, many)
    await execute(engine, "UPDATE client SET tag = 'vip'")
    mailing_id = await create(engine)
    await do(engine, moving.begin_due)
    await do(engine, audience.take_chunk)
    await execute(engine, "UPDATE client SET tag = 'later' WHERE id = 1")

    await change(engine, mailing_id, datetime_end=moment(2 * DAY))
    await advance(engine)

    assert await ledger(engine, mailing_id) == {"scheduled": many}
    assert await is_sound(engine, mailing_id)


@pytest.mark.parametrize("end_first", [True, False])
async def test_end_and_filter_changed_one_after_the_other_count_both(
    engine: AsyncEngine, *, end_first: bool
) -> None:
    clients = await vips(engine, 5)
    await tag(engine, clients[0], "other")
    mailing_id = await begun(engine, **hours(2 * HOUR, 3 * HOUR))
    changes = [hours(-HOUR, HOUR), {"client_filter": "other"}]
    for fields in changes if end_first else reversed(changes):
        await change(engine, mailing_id, **fields)
        await do(engine, lambda db: replanning.replan_chunk(db, 2))
    await advance(engine, chunk=2)

    assert await value(engine, MEMBERS) == clients[:1]
    assert await ledger(engine, mailing_id) == {"scheduled": 1, "cancelled": 4}
    due = "SELECT count(*) FROM message WHERE status = 'scheduled' AND due_at <= clock_timestamp()"
    assert await value(engine, due) == 1
    assert await is_sound(engine, mailing_id)


async def test_chunk_that_was_rolled_back_is_planned_again(engine: AsyncEngine) -> None:
    await vips(engine, 5)
    mailing_id = await begun(engine, **hours(2 * HOUR, 3 * HOUR))
    await change(engine, mailing_id, **hours(-HOUR, HOUR))
    await do(engine, lambda db: replanning.replan_chunk(db, 2))
    async with engine.connect() as crashing:
        assert await replanning.replan_chunk(crashing, 2) == mailing_id
        await crashing.rollback()
    due = "SELECT count(*) FROM message WHERE due_at <= clock_timestamp()"
    assert await value(engine, due) == 2

    await advance(engine, chunk=2)

    assert await value(engine, due) == 5
    assert not await value(engine, "SELECT replanning FROM mailing")


async def test_change_beside_pause_and_retry_counts_every_message_once(
    engine: AsyncEngine,
) -> None:
    clients = await vips(engine, 4)
    mailing_id = await begun(engine)
    (claimed,) = await claim(engine, mailing_id)
    await finish(engine, FinishedMessage(claimed, "undelivered", 1, "rejected_400"))
    await service.pause(engine, mailing_id, COMMAND_LINE)
    await service.retry(engine, mailing_id, COMMAND_LINE)
    await change(engine, mailing_id, datetime_end=moment(DAY), **hours(2 * HOUR, 3 * HOUR))
    await advance(engine, chunk=1)

    assert await value(engine, MEMBERS) == clients
    assert await value(engine, "SELECT status FROM mailing") == "paused"
    due = "SELECT count(*) FROM message WHERE due_at > clock_timestamp()"
    assert await value(engine, due) == 4
    assert await is_sound(engine, mailing_id)


async def test_what_stays_cancelled_keeps_the_day_of_its_outcome(engine: AsyncEngine) -> None:
    await vips(engine, 1)
    await vips(engine, 1, time_zone="Asia/Tokyo")
    mailing_id = await create(engine, datetime_end=moment(2 * HOUR), **hours(-HOUR, HOUR / 2))
    await do(engine, moving.begin_due)
    await take_audience(engine)
    assert await ledger(engine, mailing_id) == {"scheduled": 1, "cancelled": 1}
    ago = "UPDATE message SET updated_at = now() - interval '2 days' WHERE reason = 'no_window'"
    await execute(engine, ago)

    await change(engine, mailing_id, datetime_end=moment(HOUR))
    await advance(engine)

    old = "SELECT count(*) FROM message WHERE updated_at < now() - interval '1 day'"
    assert await value(engine, old) == 1
    assert await differences(engine) == []


# ---- time zones -----------------------------------------------------------------------------

NOW = "SELECT count(*) FROM message WHERE status = 'scheduled' AND due_at <= clock_timestamp()"


async def set_zone(engine: AsyncEngine, zone: str, where: str = "true") -> None:
    await execute(engine, f"UPDATE client SET time_zone = '{zone}' WHERE {where}")  # noqa: S608  # of a test


async def test_waiting_and_no_window_messages_follow_a_corrected_time_zone(
    engine: AsyncEngine,
) -> None:
    await vips(engine, 3, time_zone="Asia/Tokyo")
    waits = await begun(engine, **hours(-HOUR, HOUR))
    has_no_window = await create(engine, datetime_end=moment(HOUR), **hours(-HOUR, HOUR / 2))
    without_window = await create(engine)
    for _ in range(2):
        await do(engine, moving.begin_due)
    await set_zone(engine, "UTC", "id = 1")  # one of each is still to be sent
    await take_audience(engine)
    await replanning.replan_all_moved(engine)
    assert await ledger(engine, has_no_window) == {"scheduled": 1, "cancelled": 2}
    assert await value(engine, NOW) == 1 + 1 + 3

    await set_zone(engine, "UTC", "id = 2")
    await replanning.replan_all_moved(engine)

    assert await ledger(engine, has_no_window) == {"scheduled": 2, "cancelled": 1}
    assert await value(engine, NOW) == 2 + 2 + 3
    zones = "SELECT count(*) FROM message WHERE client_id = 2 AND time_zone = 'Asia/Tokyo'"
    assert await value(engine, zones) == 3  # what they count under for good
    for mailing_id in (waits, has_no_window, without_window):
        assert await is_sound(engine, mailing_id)

    await set_zone(engine, "Asia/Tokyo", "id = 2")
    await replanning.replan_all_moved(engine)
    assert await ledger(engine, has_no_window) == {"scheduled": 1, "cancelled": 2}
    assert await value(engine, "SELECT count(*) FROM moved_client") == 0


async def test_every_way_to_change_a_time_zone_is_followed(
    api: httpx.AsyncClient, engine: AsyncEngine
) -> None:
    clients = await vips(engine, 2, time_zone="Asia/Tokyo")
    await begun(engine, **hours(-HOUR, HOUR))
    assert await value(engine, NOW) == 0

    await api.patch(f"/clients/{clients[0]}", json={"time_zone": "UTC"})
    await replanning.replan_all_moved(engine)
    assert await value(engine, NOW) == 1
    phone = await value(engine, f"SELECT phone FROM client WHERE id = {clients[1]}")  # noqa: S608  # of a test
    csv = f"phone,time_zone\n{phone},UTC\n"
    await api.post("/clients/import", content=csv, headers={"content-type": "text/csv"})
    await replanning.replan_all_moved(engine)
    assert await value(engine, NOW) == 2


async def test_pause_after_a_failure_is_not_cut_short_by_a_time_zone(engine: AsyncEngine) -> None:
    await vips(engine, 1)
    await begun(engine, **hours(-HOUR, 2 * HOUR))
    claimed = (await claim(engine, 1))[0]
    later = moment(HOUR)
    failed = FinishedMessage(claimed, "scheduled", 1, "http_503", later)
    await finish(engine, msgspec.structs.replace(failed, last_failure="http_503", retry_at=later))

    await set_zone(engine, "Africa/Abidjan")  # as far from UTC as UTC
    await replanning.replan_all_moved(engine)

    due = await value(engine, "SELECT due_at FROM message")
    assert due == later
    assert await value(engine, "SELECT reason FROM message") == "http_503"


async def test_message_on_its_way_is_planned_when_it_is_back(engine: AsyncEngine) -> None:
    await vips(engine, 1)
    await begun(engine, **hours(-HOUR, HOUR))
    claimed = (await claim(engine, 1))[0]
    await set_zone(engine, "Asia/Tokyo")
    await replanning.replan_all_moved(engine)
    assert await value(engine, "SELECT count(*) FROM moved_client") == 1

    await finish(engine, FinishedMessage(claimed, "scheduled", 0))
    assert await value(engine, NOW) == 1
    await replanning.replan_all_moved(engine)

    assert await value(engine, NOW) == 0
    assert await value(engine, "SELECT count(*) FROM moved_client") == 0


async def test_zone_that_changes_while_its_chunk_is_enqueued_is_followed(
    engine: AsyncEngine,
) -> None:
    await vips(engine, 1, time_zone="Asia/Tokyo")
    await create(engine, **hours(-HOUR, HOUR))
    await do(engine, moving.begin_due)
    async with engine.connect() as enqueuing:
        await audience.take_chunk(enqueuing)  # by the old zone
        await set_zone(engine, "UTC")
        following = asyncio.create_task(replanning.replan_all_moved(engine))
        await asyncio.wait({following}, timeout=0.3)
        assert not following.done()
        await enqueuing.commit()
    await following
    assert await value(engine, NOW) == 1


async def test_many_changed_zones_are_followed_in_bounded_chunks(engine: AsyncEngine) -> None:
    await vips(engine, 9, time_zone="Asia/Tokyo")
    for _ in range(3):
        await begun(engine, **hours(-HOUR, HOUR))
    await set_zone(engine, "UTC")

    taken = [await do(engine, lambda db: replanning.replan_moved(db, 12)) for _ in range(4)]

    assert taken == [4, 4, 1, 0]
    assert await value(engine, NOW) == 27
    assert await differences(engine) == []


async def test_mailing_with_nothing_open_makes_no_chunk_of_changed_zones_smaller(
    engine: AsyncEngine,
) -> None:
    await vips(engine, 4, time_zone="Asia/Tokyo")
    for _ in range(3):
        await begun(engine, **hours(-HOUR, HOUR))
    await execute(engine, "UPDATE message SET status = 'delivered', sent_at = now()")
    await begun(engine, **hours(-HOUR, HOUR))
    await set_zone(engine, "UTC")

    taken = [await do(engine, lambda db: replanning.replan_moved(db, 4)) for _ in range(2)]

    assert taken == [4, 0]
    assert await value(engine, NOW) == 4
    assert await differences(engine) == []


# ---- mailings that were through before their end --------------------------------------------

STATUS = "SELECT status FROM mailing WHERE id = {}"


async def finished_without_window(engine: AsyncEngine, clients: int = 2) -> int:
    """A mailing that was through at once: its window has no moment left in its clients' zone."""
    await vips(engine, clients, time_zone="Asia/Tokyo")
    mailing_id = await begun(engine, datetime_end=moment(HOUR), **hours(-HOUR, HOUR / 2))
    assert await do(engine, moving.finish) == [(mailing_id, "finished")]
    assert await ledger(engine, mailing_id) == {"cancelled": clients}
    return mailing_id


async def test_finished_mailing_runs_again_for_a_corrected_time_zone(engine: AsyncEngine) -> None:
    mailing_id = await finished_without_window(engine)
    await set_zone(engine, "UTC", "id = 1")

    await replanning.replan_all_moved(engine)

    assert await value(engine, STATUS.format(mailing_id)) == "running"
    assert await ledger(engine, mailing_id) == {"scheduled": 1, "cancelled": 1}
    assert await is_sound(engine, mailing_id)
    (claimed,) = await claim(engine, mailing_id)
    await finish(engine, FinishedMessage(claimed, "delivered", 1))
    assert await do(engine, moving.finish) == [(mailing_id, "finished")]
    assert await ledger(engine, mailing_id) == {"delivered": 1, "cancelled": 1}
    assert await is_sound(engine, mailing_id)


async def test_zone_that_has_no_window_either_leaves_a_finished_mailing_alone(
    engine: AsyncEngine,
) -> None:
    mailing_id = await finished_without_window(engine)
    changed = f"SELECT updated_at FROM mailing WHERE id = {mailing_id}"  # noqa: S608  # of a test
    before = await value(engine, changed)
    await set_zone(engine, "Asia/Seoul")

    await replanning.replan_all_moved(engine)

    assert await value(engine, STATUS.format(mailing_id)) == "finished"
    assert await value(engine, changed) == before
    assert await value(engine, "SELECT count(*) FROM moved_client") == 0
    assert await is_sound(engine, mailing_id)


@pytest.mark.parametrize(
    "end",
    [
        "UPDATE mailing SET status = 'cancelled' WHERE id = {}",
        "UPDATE mailing SET deleted_at = now() WHERE id = {}",
        "UPDATE mailing SET datetime_start = '2020-01-01', datetime_end = '2020-01-02'",
    ],
)
async def test_mailing_that_is_cancelled_or_deleted_or_over_stays_so(
    engine: AsyncEngine, end: str
) -> None:
    mailing_id = await finished_without_window(engine)
    await execute(engine, end.format(mailing_id))
    before = await value(engine, STATUS.format(mailing_id))
    await set_zone(engine, "UTC")

    await replanning.replan_all_moved(engine)

    assert await value(engine, STATUS.format(mailing_id)) == before
    assert await ledger(engine, mailing_id) == {"cancelled": 2}
    assert await value(engine, "SELECT is_settled FROM mailing")


async def test_import_that_corrects_zones_lets_a_finished_mailing_reach_everybody(
    api: httpx.AsyncClient, engine: AsyncEngine
) -> None:
    many = 30
    mailing_id = await finished_without_window(engine, many)
    phones = await value(engine, "SELECT array_agg(phone) FROM client")
    csv = "phone,time_zone\n" + "".join(f"{phone},UTC\n" for phone in phones)
    await api.post("/clients/import", content=csv, headers={"content-type": "text/csv"})

    taken = [await do(engine, lambda db: replanning.replan_moved(db, 10)) for _ in range(4)]

    assert taken == [10, 10, 10, 0]
    assert await ledger(engine, mailing_id) == {"scheduled": many}
    assert await value(engine, STATUS.format(mailing_id)) == "running"
    assert await is_sound(engine, mailing_id)


async def test_mailing_that_is_retried_meanwhile_is_planned_in_the_next_round(
    engine: AsyncEngine,
) -> None:
    mailing_id = await finished_without_window(engine, 1)
    await set_zone(engine, "UTC")
    async with engine.connect() as retrying:
        again = "UPDATE mailing SET status = 'running', is_settled = false"
        await retrying.execute(text(again))
        following = asyncio.create_task(replanning.replan_all_moved(engine))
        await asyncio.wait({following}, timeout=0.3)
        assert not following.done()
        await retrying.commit()
    await following
    await replanning.replan_all_moved(engine)

    assert await ledger(engine, mailing_id) == {"scheduled": 1}
    assert await is_sound(engine, mailing_id)
