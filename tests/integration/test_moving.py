"""What moves mailings on in time, step by step, and from two processes at once."""

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine
from tests.patience import PATIENCE
from tests.sample import (
    add_clients,
    add_due_messages,
    add_mailing,
    add_messages,
    advance,
    claim,
    clear,
    do,
    execute,
    ledger,
    resend,
    running,
    state,
    under_way,
    value,
)

from mailer.access.model import COMMAND_LINE
from mailer.mailing import moving, resending, service
from mailer.mailing.moving import ToDo
from mailer.report.verify import differences

HOUR = timedelta(hours=1)
NOTHING = {
    "begins": False,
    "takes": False,
    "replans": False,
    "retries": False,
    "clears": False,
    "finishes": False,
}
# What may still be to be done for a mailing through which nothing else moves.
UNDONE = {
    "waiting": "UPDATE message SET status = 'scheduled'",
    "sending": "UPDATE message SET status = 'sending', lease_owner = gen_random_uuid(),"
    " lease_expires_at = now()",
    "to retry": "UPDATE mailing SET retry_before = now()",
    "audience to take": "UPDATE mailing SET audience_cursor = audience_until - 1",
    "messages to plan anew": "UPDATE mailing SET replanning = true",
}


@pytest.fixture
async def other(engine: AsyncEngine) -> AsyncIterator[AsyncConnection]:
    """Another process, in the middle of a transaction."""
    async with engine.connect() as connection:
        yield connection


async def look(engine: AsyncEngine) -> ToDo:
    return await do(engine, moving.look)


async def to_do(engine: AsyncEngine) -> set[str]:
    """Return what `look` tells to do."""
    found = await look(engine)
    names = {name for name in NOTHING if getattr(found, name)}
    assert found.is_any == bool(names)
    return names


async def add_done(engine: AsyncEngine, status: str = "running") -> int:
    """Add a mailing under way of which all is sent."""
    mailing_id = await add_due_messages(engine, 2)
    await execute(engine, "UPDATE message SET status = 'delivered', sent_at = now()")
    await execute(engine, f"UPDATE mailing SET status = '{status}' WHERE id = {mailing_id}")  # noqa: S608  # of a test
    return mailing_id


# ---- looking --------------------------------------------------------------------------------


async def test_where_there_is_nothing_there_is_nothing_to_do(engine: AsyncEngine) -> None:
    assert await look(engine) == ToDo(**NOTHING, next_moment=None)


@pytest.mark.parametrize("status", ["scheduled", "paused"])
async def test_mailing_begins_when_its_start_has_come(engine: AsyncEngine, status: str) -> None:
    await add_mailing(engine, start=datetime.now(UTC) + HOUR, status="scheduled")
    await execute(engine, f"UPDATE mailing SET status = '{status}'")  # noqa: S608  # of a test
    found = await look(engine)
    assert not found.is_any
    assert found.next_moment == pytest.approx(3600, abs=10)

    await execute(engine, "UPDATE mailing SET datetime_start = now()")

    assert await to_do(engine) == {"begins"}


async def test_audience_is_to_be_taken_until_its_end(engine: AsyncEngine) -> None:
    await add_clients(engine, 1)
    await add_mailing(engine, start=datetime.now(UTC), status="scheduled")
    await do(engine, moving.begin_due)
    assert await to_do(engine) == {"takes"}

    await execute(engine, "UPDATE mailing SET audience_cursor = audience_until - 1")
    assert "takes" in await to_do(engine)
    await execute(engine, "UPDATE mailing SET audience_cursor = audience_until")
    assert "takes" not in await to_do(engine)


async def test_what_is_to_be_sent_again_is_seen(engine: AsyncEngine) -> None:
    mailing_id = await add_due_messages(engine, 2)
    await execute(engine, "UPDATE message SET status = 'unknown'")

    await service.retry(engine, mailing_id, COMMAND_LINE)

    assert await to_do(engine) == {"retries"}


@pytest.mark.parametrize("change", ["status = 'cancelled'", "datetime_end = now()"])
async def test_what_waits_in_vain_is_to_be_cleared(engine: AsyncEngine, change: str) -> None:
    await add_due_messages(engine, 1)
    assert await to_do(engine) == set()

    await execute(engine, f"UPDATE mailing SET {change}")  # noqa: S608  # of a test

    assert await to_do(engine) == {"clears"}


@pytest.mark.parametrize("status", ["running", "paused", "cancelled"])
async def test_mailing_with_nothing_left_to_do_is_to_be_finished(
    engine: AsyncEngine, status: str
) -> None:
    await add_done(engine, status)

    assert await to_do(engine) == {"finishes"}


@pytest.mark.parametrize("status", ["running", "paused", "cancelled"])
async def test_while_its_last_message_is_being_sent_nothing_is_to_be_done(
    engine: AsyncEngine, status: str
) -> None:
    await add_done(engine, status)
    await execute(engine, UNDONE["sending"])

    assert await to_do(engine) == set()


@pytest.mark.parametrize("change", ["is_settled = true, status = 'finished'", "deleted_at = now()"])
async def test_settled_and_deleted_mailings_are_not_looked_at(
    engine: AsyncEngine, change: str
) -> None:
    await add_done(engine)
    await add_due_messages(engine, 1)
    undone = "retry_before = now(), audience_cursor = 0, datetime_end = now()"
    await execute(engine, f"UPDATE mailing SET {undone}")  # noqa: S608  # of a test
    await add_mailing(engine, status="scheduled")
    assert await to_do(engine) == {"begins", "takes", "retries", "clears"}

    await execute(engine, f"UPDATE mailing SET {change}")  # noqa: S608  # of a test

    assert await look(engine) == ToDo(**NOTHING, next_moment=None)


async def test_next_moment_is_the_first_at_which_a_mailing_begins_or_ends(
    engine: AsyncEngine,
) -> None:
    now = datetime.now(UTC)
    ended = await add_mailing(engine, start=now - 7 * HOUR)
    await add_messages(engine, ended, await add_clients(engine, 1), "scheduled")
    await claim(engine, ended)  # nothing: it has ended
    assert (await look(engine)).next_moment is None

    await add_mailing(engine, start=now - HOUR, lasts=4 * HOUR)
    assert (await look(engine)).next_moment == pytest.approx(3 * 3600, abs=10)
    await add_mailing(engine, start=now + 2 * HOUR, status="scheduled")
    assert (await look(engine)).next_moment == pytest.approx(2 * 3600, abs=10)
    await add_mailing(engine, start=now - HOUR, lasts=2 * HOUR, status="paused")
    assert (await look(engine)).next_moment == pytest.approx(3600, abs=10)


async def test_what_is_under_way_is_told_and_whether_requests_for_it_may_begin(
    engine: AsyncEngine,
) -> None:
    now = datetime.now(UTC)
    for status in ("scheduled", "finished", "cancelled"):
        await add_mailing(engine, start=now - HOUR, status=status)
    over = await add_mailing(engine, start=now - 7 * HOUR)  # and may have a request to be cut
    runs = await add_mailing(engine, start=now - HOUR)
    paused = await add_mailing(engine, start=now - HOUR, status="paused")
    planned, deleted = [await add_mailing(engine, start=now - HOUR) for _ in range(2)]
    await execute(
        engine,
        f"UPDATE mailing SET replanning = true WHERE id = {planned}",  # noqa: S608  # of a test
        f"UPDATE mailing SET deleted_at = now() WHERE id = {deleted}",  # noqa: S608  # of a test
    )

    told = await under_way(engine)

    assert {mailing.id: mailing.may_send for mailing in told} == {
        over: False,
        runs: True,
        paused: False,
        planned: False,
    }


# ---- two processes --------------------------------------------------------------------------


async def test_two_processes_begin_each_mailing_once(
    engine: AsyncEngine, other: AsyncConnection
) -> None:
    now = datetime.now(UTC)
    later = await add_mailing(engine, start=now - HOUR, status="scheduled")
    earlier = await add_mailing(engine, start=now - 2 * HOUR, status="scheduled")
    async with asyncio.timeout(PATIENCE):
        assert await moving.begin_due(other, 1) == [later]
        assert await do(engine, moving.begin_due) == [earlier]
        assert await do(engine, moving.begin_due) == []
    await other.commit()

    assert await do(engine, moving.begin_due) == []
    assert {mailing.id for mailing in await running(engine)} == {later, earlier}


async def test_mailing_whose_beginning_was_rolled_back_begins_again(
    engine: AsyncEngine, other: AsyncConnection
) -> None:
    mailing_id = await add_mailing(engine, start=datetime.now(UTC), status="scheduled")
    assert await moving.begin_due(other) == [mailing_id]
    await other.rollback()

    assert await do(engine, moving.begin_due) == [mailing_id]


async def test_two_processes_clear_each_message_once(
    engine: AsyncEngine, other: AsyncConnection
) -> None:
    mailing_id = await add_due_messages(engine, 5)
    await execute(engine, "UPDATE mailing SET status = 'cancelled'")
    assert await moving.clear(other, 3)
    # it passes over the three and waits with the other two, for the ledger's row
    clearing = asyncio.create_task(clear(engine))
    await asyncio.wait({clearing}, timeout=0.2)
    await other.commit()

    assert await clearing
    assert await ledger(engine, mailing_id) == {"cancelled": 5}
    assert not await clear(engine)
    assert await differences(engine) == []


async def test_two_processes_send_a_mailing_again_once(
    engine: AsyncEngine, other: AsyncConnection
) -> None:
    one, two = await add_due_messages(engine, 2), await add_due_messages(engine, 2)
    await execute(engine, "UPDATE message SET status = 'undelivered'")
    for mailing_id in (one, two):
        await service.retry(engine, mailing_id, COMMAND_LINE)
    async with asyncio.timeout(PATIENCE):
        assert await resending.resend_chunk(other, 9)
        assert await resend(engine)
        assert not await resend(engine)
    await other.commit()

    assert not await resend(engine)
    assert await ledger(engine, one) == await ledger(engine, two) == {"scheduled": 2}


async def test_two_processes_finish_each_mailing_once(
    engine: AsyncEngine, other: AsyncConnection
) -> None:
    mailing_id = await add_done(engine)
    assert await moving.finish(other) == [(mailing_id, "finished")]
    finishing = asyncio.create_task(do(engine, moving.finish))
    await asyncio.wait({finishing}, timeout=0.2)
    await other.commit()

    assert await finishing == []


async def test_two_processes_purge_each_message_once(
    engine: AsyncEngine, other: AsyncConnection
) -> None:
    mailing_id = await add_due_messages(engine, 5)
    await service.delete(engine, mailing_id, COMMAND_LINE)
    assert await moving.purge(other, 3) == 3
    purging = asyncio.create_task(do(engine, lambda db: moving.purge(db, 9)))
    await asyncio.wait({purging}, timeout=0.2)
    await other.commit()

    assert await purging == 2
    await do(engine, lambda db: moving.purge(db, 9))
    assert await value(engine, "SELECT count(*) FROM mailing") == 0


# ---- clearing -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ("datetime_end = now()", "expired"),
        ("datetime_end = now(), status = 'paused'", "expired"),
        ("status = 'cancelled'", "mailing_cancelled"),
        ("status = 'cancelled', datetime_end = now()", "mailing_cancelled"),
        ("status = 'cancelled', replanning = true, audience_cursor = 0", "mailing_cancelled"),
    ],
)
async def test_what_is_cleared_says_why(engine: AsyncEngine, change: str, reason: str) -> None:
    other = await add_due_messages(engine, 1)
    mailing_id = await add_due_messages(engine, 3)
    (claimed,) = await claim(engine, mailing_id)
    await execute(engine, f"UPDATE mailing SET {change} WHERE id = {mailing_id}")  # noqa: S608  # of a test

    assert await clear(engine)

    cleared = f"SELECT count(*) FROM message WHERE status = 'cancelled' AND reason = '{reason}'"  # noqa: S608  # of a test
    assert await value(engine, cleared) == 2
    assert await ledger(engine, mailing_id) == {"sending": 1, "cancelled": 2}
    assert await state(engine, claimed.id) == ("sending", None, 1)
    assert await ledger(engine, other) == {"scheduled": 1}
    assert not await clear(engine)


@pytest.mark.parametrize("change", ["", ", is_settled = true", ", deleted_at = now()"])
async def test_only_what_waits_for_a_live_mailing_is_cleared(
    engine: AsyncEngine, change: str
) -> None:
    await add_due_messages(engine, 2)
    await execute(engine, f"UPDATE mailing SET status = 'cancelled'{change}")  # noqa: S608  # of a test

    assert await clear(engine) == (change == "")


async def test_no_more_than_a_chunk_is_cleared_at_once_over_all_mailings(
    engine: AsyncEngine,
) -> None:
    for _ in range(2):
        await add_due_messages(engine, 3)
    await execute(engine, "UPDATE mailing SET datetime_end = now()")
    for left in (2, 0):
        assert await clear(engine, 4)
        assert await value(engine, "SELECT sum(scheduled) FROM ledger") == left
    assert not await clear(engine, 4)


# ---- finishing ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("status", "becomes"),
    [("running", "finished"), ("paused", "finished"), ("cancelled", "cancelled")],
)
async def test_mailing_with_nothing_left_to_do_is_settled_once(
    engine: AsyncEngine, status: str, becomes: str
) -> None:
    mailing_id = await add_done(engine, status)

    assert await do(engine, moving.finish) == [(mailing_id, becomes)]

    assert await value(engine, "SELECT is_settled FROM mailing")
    assert await do(engine, moving.finish) == []


@pytest.mark.parametrize("undone", UNDONE)
@pytest.mark.parametrize("status", ["running", "paused", "cancelled"])
@pytest.mark.parametrize("end", ["now() + interval '1 hour'", "now()"], ids=["before", "after"])
async def test_mailing_with_something_left_to_do_is_never_settled(
    engine: AsyncEngine, status: str, undone: str, end: str
) -> None:
    await add_done(engine, status)
    await execute(engine, UNDONE[undone], f"UPDATE mailing SET datetime_end = {end}")  # noqa: S608  # of a test

    assert await do(engine, moving.finish) == []
    assert not await value(engine, "SELECT is_settled FROM mailing")


async def test_mailing_that_has_not_begun_is_not_settled(engine: AsyncEngine) -> None:
    await add_mailing(engine, start=datetime.now(UTC), status="scheduled")

    assert await do(engine, moving.finish) == []


async def test_mailing_that_sends_again_while_another_keeps_the_finish_waiting_runs_on(
    engine: AsyncEngine, other: AsyncConnection
) -> None:
    held_up, retried = await add_done(engine), await add_done(engine)
    await execute(
        engine,
        f"UPDATE message SET status = 'undelivered' WHERE mailing_id = {retried}",  # noqa: S608  # of a test
    )
    # somebody changes the first mailing, so that whoever finishes both may have to wait for it
    await other.execute(text("SELECT FROM mailing WHERE id = :id FOR UPDATE"), {"id": held_up})
    finishing = asyncio.create_task(do(engine, moving.finish))
    await asyncio.wait({finishing}, timeout=0.3)
    await service.retry(engine, retried, COMMAND_LINE)
    assert await resend(engine)
    await other.commit()
    await finishing

    assert await ledger(engine, retried) == {"scheduled": 2}
    assert [mailing.id for mailing in await running(engine) if mailing.id == retried] == [retried]


# ---- all of it ------------------------------------------------------------------------------


@pytest.mark.parametrize("change", [None, "status = 'cancelled'", "status = 'paused'"])
async def test_steps_as_they_are_told_lead_every_mailing_to_its_end(
    engine: AsyncEngine, change: str | None
) -> None:
    await add_clients(engine, 7)
    await add_mailing(engine, start=datetime.now(UTC) - HOUR, status="scheduled")
    await do(engine, moving.begin_due)
    if change:
        await execute(engine, f"UPDATE mailing SET {change}")  # noqa: S608  # of a test
    await execute(engine, "UPDATE mailing SET datetime_end = now()")

    await advance(engine, chunk=3)

    assert await value(engine, "SELECT is_settled FROM mailing")
    assert await value(engine, "SELECT cancelled FROM ledger") == 7
    assert await look(engine) == ToDo(**NOTHING, next_moment=None)
    assert await differences(engine) == []
