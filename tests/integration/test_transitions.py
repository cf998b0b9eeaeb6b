"""Steps in the life of a mailing, also when two workers run them at the same time."""

import asyncio
import importlib.util
import sys
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from types import ModuleType
from typing import NamedTuple

import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine
from tests.event_timeout import EVENT_TIMEOUT
from tests.factories import (
    HOUR,
    SETTLED,
    active_mailings,
    add_clients,
    add_due_messages,
    add_mailing,
    add_messages,
    advance,
    claim,
    clear,
    do,
    execute,
    mailing_counts,
    resend,
    running,
    state,
    value,
)

from mailer import statuses
from mailer.access.model import COMMAND_LINE
from mailer.mailing import finishing, pending_work, purging, retrying, service, starting
from mailer.mailing.pending_work import PendingWork
from mailer.statistics.verify import find_differences

NO_WORK = {
    "must_start": False,
    "must_enqueue": False,
    "must_replan": False,
    "must_retry": False,
    "must_end_messages": False,
    "must_finish": False,
}
# Changes that give an otherwise complete mailing one piece of pending work.
OPEN_WORK = {
    "waiting messages": "UPDATE message SET status = 'scheduled'",
    "messages in flight": "UPDATE message SET status = 'sending', lease_owner = gen_random_uuid(),"
    " lease_expires_at = now()",
    "messages to retry": "UPDATE mailing SET retry_before = now()",
    "audience to enqueue": "UPDATE mailing SET audience_cursor = audience_until - 1",
    "messages to replan": "UPDATE mailing SET is_replanning = true",
}


@pytest.fixture
async def other(engine: AsyncEngine) -> AsyncIterator[AsyncConnection]:
    """Another worker with an open transaction."""
    async with engine.connect() as connection:
        yield connection


async def find_work(engine: AsyncEngine) -> PendingWork:
    return await do(engine, pending_work.find_pending_work)


async def names_of_work(engine: AsyncEngine) -> set[str]:
    """Return the names of pending work."""
    work = await find_work(engine)
    names = {name for name in NO_WORK if getattr(work, name)}
    assert work.has_work == bool(names)
    return names


async def add_complete_mailing(engine: AsyncEngine, status: str = "running") -> int:
    """Add a mailing all of whose messages were sent."""
    mailing_id = await add_due_messages(engine, 2)
    await execute(engine, "UPDATE message SET status = 'delivered', sent_at = now()")
    await execute(engine, f"UPDATE mailing SET status = '{status}' WHERE id = {mailing_id}")  # noqa: S608  # values of the test
    return mailing_id


# ---- pending work ---------------------------------------------------------------------------


async def test_without_mailings_there_is_no_pending_work(engine: AsyncEngine) -> None:
    assert await find_work(engine) == PendingWork(**NO_WORK, seconds_until_next=None)


@pytest.mark.parametrize("status", ["scheduled", "paused"])
async def test_a_mailing_is_due_at_its_start(engine: AsyncEngine, status: str) -> None:
    await add_mailing(engine, start=datetime.now(UTC) + HOUR, status="scheduled")
    await execute(engine, f"UPDATE mailing SET status = '{status}'")  # noqa: S608  # values of the test
    work = await find_work(engine)
    assert not work.has_work
    assert work.seconds_until_next == pytest.approx(3600, abs=10)

    await execute(engine, "UPDATE mailing SET datetime_start = now()")

    assert await names_of_work(engine) == {"must_start"}


async def test_an_audience_is_pending_until_all_of_it_is_enqueued(engine: AsyncEngine) -> None:
    await add_clients(engine, 1)
    await add_mailing(engine, start=datetime.now(UTC), status="scheduled")
    await do(engine, starting.start_due)
    assert await names_of_work(engine) == {"must_enqueue"}

    await execute(engine, "UPDATE mailing SET audience_cursor = audience_until - 1")
    assert "must_enqueue" in await names_of_work(engine)
    await execute(engine, "UPDATE mailing SET audience_cursor = audience_until")
    assert "must_enqueue" not in await names_of_work(engine)


async def test_a_retry_is_pending(engine: AsyncEngine) -> None:
    mailing_id = await add_due_messages(engine, 2)
    await execute(engine, "UPDATE message SET status = 'unknown'")

    await service.retry(engine, mailing_id, COMMAND_LINE)

    assert await names_of_work(engine) == {"must_retry"}


@pytest.mark.parametrize("change", ["status = 'cancelled'", "datetime_end = now()"])
async def test_waiting_messages_of_ended_mailings_are_pending_work(
    engine: AsyncEngine, change: str
) -> None:
    await add_due_messages(engine, 1)
    assert await names_of_work(engine) == set()

    await execute(engine, f"UPDATE mailing SET {change}")  # noqa: S608  # values of the test

    assert await names_of_work(engine) == {"must_end_messages"}


@pytest.mark.parametrize("status", ["running", "paused", "cancelled"])
async def test_finishing_a_complete_mailing_is_pending(engine: AsyncEngine, status: str) -> None:
    await add_complete_mailing(engine, status)

    assert await names_of_work(engine) == {"must_finish"}


@pytest.mark.parametrize("status", ["running", "paused", "cancelled"])
async def test_with_a_message_in_flight_nothing_is_pending(
    engine: AsyncEngine, status: str
) -> None:
    await add_complete_mailing(engine, status)
    await execute(engine, OPEN_WORK["messages in flight"])

    assert await names_of_work(engine) == set()


@pytest.mark.parametrize("change", [SETTLED, "deleted_at = now()"])
async def test_settled_and_deleted_mailings_have_no_pending_work(
    engine: AsyncEngine, change: str
) -> None:
    await add_complete_mailing(engine)
    await add_due_messages(engine, 1)
    open_work = "retry_before = now(), audience_cursor = 0, datetime_end = now()"
    await execute(engine, f"UPDATE mailing SET {open_work}")  # noqa: S608  # values of the test
    await add_mailing(engine, status="scheduled")
    assert await names_of_work(engine) == {
        "must_start",
        "must_enqueue",
        "must_retry",
        "must_end_messages",
    }

    await execute(engine, f"UPDATE mailing SET {change}")  # noqa: S608  # values of the test

    assert await find_work(engine) == PendingWork(**NO_WORK, seconds_until_next=None)


async def test_next_moment_is_the_next_start_or_end_of_a_mailing(
    engine: AsyncEngine,
) -> None:
    now = datetime.now(UTC)
    ended = await add_mailing(engine, start=now - 7 * HOUR)
    await add_messages(engine, ended, await add_clients(engine, 1), "scheduled")
    await claim(engine, ended)  # claims nothing: the mailing has ended
    assert (await find_work(engine)).seconds_until_next is None

    await add_mailing(engine, start=now - HOUR, lasts=4 * HOUR)
    assert (await find_work(engine)).seconds_until_next == pytest.approx(3 * 3600, abs=10)
    await add_mailing(engine, start=now + 2 * HOUR, status="scheduled")
    assert (await find_work(engine)).seconds_until_next == pytest.approx(2 * 3600, abs=10)
    await add_mailing(engine, start=now - HOUR, lasts=2 * HOUR, status="paused")
    assert (await find_work(engine)).seconds_until_next == pytest.approx(3600, abs=10)


async def test_running_mailings_are_read_with_their_permission_to_send(
    engine: AsyncEngine,
) -> None:
    now = datetime.now(UTC)
    for status in ("scheduled", "finished", "cancelled"):
        await add_mailing(engine, start=now - HOUR, status=status)
    ended = await add_mailing(engine, start=now - 7 * HOUR)  # may still have a request to abort
    sending = await add_mailing(engine, start=now - HOUR)
    paused = await add_mailing(engine, start=now - HOUR, status="paused")
    replanning, deleted = [await add_mailing(engine, start=now - HOUR) for _ in range(2)]
    await execute(
        engine,
        f"UPDATE mailing SET is_replanning = true WHERE id = {replanning}",  # noqa: S608  # values of the test
        f"UPDATE mailing SET deleted_at = now() WHERE id = {deleted}",  # noqa: S608  # values of the test
    )

    mailings = await active_mailings(engine)

    assert {mailing.id: mailing.may_send for mailing in mailings} == {
        ended: False,
        sending: True,
        paused: False,
        replanning: False,
    }


# ---- two workers ----------------------------------------------------------------------------


async def test_two_workers_start_each_mailing_once(
    engine: AsyncEngine, other: AsyncConnection
) -> None:
    now = datetime.now(UTC)
    later = await add_mailing(engine, start=now - HOUR, status="scheduled")
    earlier = await add_mailing(engine, start=now - 2 * HOUR, status="scheduled")
    async with asyncio.timeout(EVENT_TIMEOUT):
        assert await starting.start_due(other, 1) == [later]
        assert await do(engine, starting.start_due) == [earlier]
        assert await do(engine, starting.start_due) == []
    await other.commit()

    assert await do(engine, starting.start_due) == []
    assert {mailing.id for mailing in await running(engine)} == {later, earlier}


async def test_a_rolled_back_start_is_repeated(engine: AsyncEngine, other: AsyncConnection) -> None:
    mailing_id = await add_mailing(engine, start=datetime.now(UTC), status="scheduled")
    assert await starting.start_due(other) == [mailing_id]
    await other.rollback()

    assert await do(engine, starting.start_due) == [mailing_id]


async def test_two_workers_cancel_each_waiting_message_once(
    engine: AsyncEngine, other: AsyncConnection
) -> None:
    mailing_id = await add_due_messages(engine, 5)
    await execute(engine, "UPDATE mailing SET status = 'cancelled'")
    assert await finishing.end_scheduled_messages(other, 3)
    # skips the three locked messages, and waits with the other two for the row of the counters
    clearing = asyncio.create_task(clear(engine))
    await asyncio.wait({clearing}, timeout=0.2)
    await other.commit()

    assert await clearing
    assert await mailing_counts(engine, mailing_id) == {"cancelled": 5}
    assert not await clear(engine)
    assert await find_differences(engine) == []


async def test_two_workers_retry_each_message_once(
    engine: AsyncEngine, other: AsyncConnection
) -> None:
    one, two = await add_due_messages(engine, 2), await add_due_messages(engine, 2)
    await execute(engine, "UPDATE message SET status = 'undelivered'")
    for mailing_id in (one, two):
        await service.retry(engine, mailing_id, COMMAND_LINE)
    async with asyncio.timeout(EVENT_TIMEOUT):
        assert await retrying.retry_chunk(other, 9)
        assert await resend(engine)
        assert not await resend(engine)
    await other.commit()

    assert not await resend(engine)
    assert (
        await mailing_counts(engine, one) == await mailing_counts(engine, two) == {"scheduled": 2}
    )


async def test_two_workers_finish_each_mailing_once(
    engine: AsyncEngine, other: AsyncConnection
) -> None:
    mailing_id = await add_complete_mailing(engine)
    assert await finishing.finish(other) == [(mailing_id, "finished")]
    finish_task = asyncio.create_task(do(engine, finishing.finish))
    await asyncio.wait({finish_task}, timeout=0.2)
    await other.commit()

    assert await finish_task == []


async def test_two_workers_purge_each_message_once(
    engine: AsyncEngine, other: AsyncConnection
) -> None:
    mailing_id = await add_due_messages(engine, 5)
    await service.delete(engine, mailing_id, COMMAND_LINE)
    assert await purging.purge(other, 3) == 3
    purge_task = asyncio.create_task(do(engine, lambda db: purging.purge(db, 9)))
    await asyncio.wait({purge_task}, timeout=0.2)
    await other.commit()

    assert await purge_task == 2
    await do(engine, lambda db: purging.purge(db, 9))
    assert await value(engine, "SELECT count(*) FROM mailing") == 0


# ---- cancelling waiting messages ------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ("datetime_end = now()", "expired"),
        ("datetime_end = now(), status = 'paused'", "expired"),
        ("status = 'cancelled'", "mailing_cancelled"),
        ("status = 'cancelled', datetime_end = now()", "mailing_cancelled"),
        ("status = 'cancelled', is_replanning = true, audience_cursor = 0", "mailing_cancelled"),
    ],
)
async def test_waiting_messages_of_ended_mailings_are_cancelled_with_a_reason(
    engine: AsyncEngine, change: str, reason: str
) -> None:
    other = await add_due_messages(engine, 1)
    mailing_id = await add_due_messages(engine, 3)
    (claimed,) = await claim(engine, mailing_id)
    await execute(engine, f"UPDATE mailing SET {change} WHERE id = {mailing_id}")  # noqa: S608  # values of the test

    assert await clear(engine)

    cancelled = f"SELECT count(*) FROM message WHERE status = 'cancelled' AND reason = '{reason}'"  # noqa: S608  # values of the test
    assert await value(engine, cancelled) == 2
    assert await mailing_counts(engine, mailing_id) == {"sending": 1, "cancelled": 2}
    assert await state(engine, claimed.id) == ("sending", None, 1)
    assert await mailing_counts(engine, other) == {"scheduled": 1}
    assert not await clear(engine)


@pytest.mark.parametrize("change", ["", ", is_closed = true", ", deleted_at = now()"])
async def test_messages_of_closed_or_deleted_mailings_are_not_cancelled(
    engine: AsyncEngine, change: str
) -> None:
    await add_due_messages(engine, 2)
    await execute(engine, f"UPDATE mailing SET status = 'cancelled'{change}")  # noqa: S608  # values of the test

    assert await clear(engine) == (change == "")


async def test_waiting_messages_of_all_mailings_are_cancelled_in_chunks(
    engine: AsyncEngine,
) -> None:
    for _ in range(2):
        await add_due_messages(engine, 3)
    await execute(engine, "UPDATE mailing SET datetime_end = now()")
    for remaining in (2, 0):
        assert await clear(engine, 4)
        assert await value(engine, "SELECT sum(scheduled) FROM mailing_counts") == remaining
    assert not await clear(engine, 4)


# ---- finishing ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("status", "expected"),
    [("running", "finished"), ("paused", "finished"), ("cancelled", "cancelled")],
)
async def test_a_complete_mailing_is_closed_and_settled_once(
    engine: AsyncEngine, status: str, expected: str
) -> None:
    mailing_id = await add_complete_mailing(engine, status)

    assert await do(engine, finishing.finish) == [(mailing_id, expected)]

    assert await value(engine, "SELECT is_closed AND is_settled FROM mailing")
    assert await do(engine, finishing.finish) == []


@pytest.mark.parametrize("open_work", OPEN_WORK)
@pytest.mark.parametrize("status", ["running", "paused", "cancelled"])
@pytest.mark.parametrize("end", ["now() + interval '1 hour'", "now()"], ids=["before", "after"])
async def test_a_mailing_with_open_work_is_never_closed(
    engine: AsyncEngine, status: str, open_work: str, end: str
) -> None:
    await add_complete_mailing(engine, status)
    await execute(engine, OPEN_WORK[open_work], f"UPDATE mailing SET datetime_end = {end}")  # noqa: S608  # values of the test

    assert await do(engine, finishing.finish) == []
    assert not await value(engine, "SELECT is_closed OR is_settled FROM mailing")


class StepsWithReceipts(NamedTuple):
    """Two steps of the lifecycle whose SQL treats the status `unknown` as not final."""

    finishing: ModuleType
    pending_work: ModuleType


@pytest.fixture
def with_receipts(monkeypatch: pytest.MonkeyPatch) -> StepsWithReceipts:
    """The steps as they would be if a receipt could still change an unknown message.

    Today no status but those of open messages is "not final". The SQL is built from `NOT_FINAL` at
    import time, so the modules are imported again with one more such status.
    """
    monkeypatch.setattr(statuses, "NOT_FINAL", (*statuses.NOT_FINAL, "unknown"))
    finishing_copy = import_copy(finishing)
    monkeypatch.setitem(sys.modules, finishing.__name__, finishing_copy)
    return StepsWithReceipts(finishing_copy, import_copy(pending_work))


def import_copy(module: ModuleType) -> ModuleType:
    """Import a module a second time, without replacing the first import."""
    spec = importlib.util.find_spec(module.__name__)
    assert spec
    assert spec.loader
    copy = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(copy)
    return copy


@pytest.mark.parametrize("status", ["running", "cancelled"])
async def test_a_closed_mailing_is_settled_when_its_last_message_becomes_final(
    engine: AsyncEngine, with_receipts: StepsWithReceipts, status: str
) -> None:
    mailing_id = await add_complete_mailing(engine, status)
    await execute(engine, "UPDATE message SET status = 'unknown' WHERE client_id % 2 = 0")
    ended = "finished" if status == "running" else status
    assert await do(engine, with_receipts.finishing.finish) == [(mailing_id, ended)]
    assert await value(engine, "SELECT is_closed AND NOT is_settled FROM mailing")
    assert not (await do(engine, with_receipts.pending_work.find_pending_work)).must_finish
    assert await do(engine, with_receipts.finishing.finish) == []

    await execute(engine, "UPDATE message SET status = 'delivered'")

    assert (await do(engine, with_receipts.pending_work.find_pending_work)).must_finish
    assert await do(engine, with_receipts.finishing.finish) == [(mailing_id, "settled")]
    assert await value(engine, f"SELECT is_settled AND status = '{ended}' FROM mailing")  # noqa: S608  # values of the test
    assert not (await do(engine, with_receipts.pending_work.find_pending_work)).has_work
    assert await do(engine, with_receipts.finishing.finish) == []
    assert await find_differences(engine) == []


async def test_a_scheduled_mailing_is_not_closed(engine: AsyncEngine) -> None:
    await add_mailing(engine, start=datetime.now(UTC), status="scheduled")

    assert await do(engine, finishing.finish) == []


async def test_a_mailing_retried_while_finishing_waits_for_another_keeps_running(
    engine: AsyncEngine, other: AsyncConnection
) -> None:
    locked, retried = await add_complete_mailing(engine), await add_complete_mailing(engine)
    await execute(
        engine,
        f"UPDATE message SET status = 'undelivered' WHERE mailing_id = {retried}",  # noqa: S608  # values of the test
    )
    # a change locks the first mailing, so that finishing both waits for it
    await other.execute(text("SELECT FROM mailing WHERE id = :id FOR UPDATE"), {"id": locked})
    finish_task = asyncio.create_task(do(engine, finishing.finish))
    await asyncio.wait({finish_task}, timeout=0.3)
    await service.retry(engine, retried, COMMAND_LINE)
    assert await resend(engine)
    await other.commit()
    await finish_task

    assert await mailing_counts(engine, retried) == {"scheduled": 2}
    assert [mailing.id for mailing in await running(engine) if mailing.id == retried] == [retried]


# ---- all steps ------------------------------------------------------------------------------


@pytest.mark.parametrize("change", [None, "status = 'cancelled'", "status = 'paused'"])
async def test_doing_all_pending_work_settles_every_mailing(
    engine: AsyncEngine, change: str | None
) -> None:
    await add_clients(engine, 7)
    await add_mailing(engine, start=datetime.now(UTC) - HOUR, status="scheduled")
    await do(engine, starting.start_due)
    if change:
        await execute(engine, f"UPDATE mailing SET {change}")  # noqa: S608  # values of the test
    await execute(engine, "UPDATE mailing SET datetime_end = now()")

    await advance(engine, chunk=3)

    assert await value(engine, "SELECT is_settled FROM mailing")
    assert await value(engine, "SELECT cancelled FROM mailing_counts") == 7
    assert await find_work(engine) == PendingWork(**NO_WORK, seconds_until_next=None)
    assert await find_differences(engine) == []
