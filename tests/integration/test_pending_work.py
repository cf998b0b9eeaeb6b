"""Which work the dispatcher finds for mailings, and which of them it may send for."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from sqlalchemy.ext.asyncio import AsyncEngine
from tests.factories import (
    HOUR,
    SETTLED,
    active_mailings,
    add_clients,
    add_delivered_mailing,
    add_due_messages,
    add_mailing,
    add_messages,
    advance,
    do,
    execute,
    value,
)

from mailer.access.model import COMMAND_LINE
from mailer.mailing import pending_work, service, starting
from mailer.mailing.pending_work import PendingWork
from mailer.statistics.verify import find_differences

NO_WORK = {
    "must_start": False,
    "must_enqueue": False,
    "must_replan": False,
    "must_reroute": False,
    "must_retry": False,
    "must_end_messages": False,
    "must_finish": False,
}


async def find_work(engine: AsyncEngine) -> PendingWork:
    return await do(engine, pending_work.find_pending_work)


def about(duration: timedelta) -> Any:
    """Return the seconds of a duration, to compare; the test itself may take some of them."""
    return pytest.approx(duration.total_seconds(), abs=10)


async def names_of_work(engine: AsyncEngine) -> set[str]:
    """Return the names of the fields of `PendingWork` that are true."""
    work = await find_work(engine)
    names = {name for name in NO_WORK if getattr(work, name)}
    assert work.has_work == bool(names)
    return names


async def test_without_mailings_there_is_no_pending_work(engine: AsyncEngine) -> None:
    assert await find_work(engine) == PendingWork(**NO_WORK, seconds_until_next=None)


@pytest.mark.parametrize("status", ["scheduled", "paused"])
async def test_a_mailing_is_due_at_its_start(engine: AsyncEngine, status: str) -> None:
    await add_mailing(engine, start=datetime.now(UTC) + HOUR, status="scheduled")
    await execute(engine, f"UPDATE mailing SET status = '{status}'")  # noqa: S608  # values of the test
    work = await find_work(engine)
    assert not work.has_work
    assert work.seconds_until_next == about(HOUR)

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


async def test_a_retry_is_pending_when_a_user_requests_it(engine: AsyncEngine) -> None:
    mailing_id = await add_due_messages(engine, 2)
    await execute(engine, "UPDATE message SET status = 'unknown'")

    await service.retry(engine, mailing_id, COMMAND_LINE)

    assert await names_of_work(engine) == {"must_retry"}


@pytest.mark.parametrize("change", ["status = 'cancelled'", "datetime_end = now()"])
async def test_ending_the_scheduled_messages_of_an_ended_mailing_is_pending(
    engine: AsyncEngine, change: str
) -> None:
    await add_due_messages(engine, 1)
    assert await names_of_work(engine) == set()

    await execute(engine, f"UPDATE mailing SET {change}")  # noqa: S608  # values of the test

    assert await names_of_work(engine) == {"must_end_messages"}


@pytest.mark.parametrize("status", ["running", "paused", "cancelled"])
async def test_finishing_a_mailing_without_open_messages_is_pending(
    engine: AsyncEngine, status: str
) -> None:
    await add_delivered_mailing(engine, status)

    assert await names_of_work(engine) == {"must_finish"}


@pytest.mark.parametrize("status", ["running", "paused", "cancelled"])
async def test_with_a_message_in_flight_nothing_is_pending(
    engine: AsyncEngine, status: str
) -> None:
    await add_due_messages(engine, 1)
    in_flight = "status = 'sending', lease_owner = gen_random_uuid(), lease_expires_at = now()"
    await execute(
        engine,
        f"UPDATE message SET {in_flight}",  # noqa: S608  # values of the test
        f"UPDATE mailing SET status = '{status}'",  # noqa: S608  # values of the test
    )

    assert await names_of_work(engine) == set()


@pytest.mark.parametrize("change", [SETTLED, "deleted_at = now()"])
async def test_settled_and_deleted_mailings_have_no_pending_work(
    engine: AsyncEngine, change: str
) -> None:
    await add_delivered_mailing(engine)
    await add_due_messages(engine, 1)
    has_all_work = "retry_before = now(), audience_cursor = 0, datetime_end = now()"
    await execute(engine, f"UPDATE mailing SET {has_all_work}")  # noqa: S608  # values of the test
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
    ended = await add_mailing(engine, start=now - 7 * HOUR, lasts=6 * HOUR)
    await add_messages(engine, ended, await add_clients(engine, 1), "scheduled")
    assert (await find_work(engine)).seconds_until_next is None

    await add_mailing(engine, start=now - HOUR, lasts=4 * HOUR)  # its end is next
    assert (await find_work(engine)).seconds_until_next == about(3 * HOUR)
    await add_mailing(engine, start=now + 2 * HOUR, status="scheduled")  # its start is next
    assert (await find_work(engine)).seconds_until_next == about(2 * HOUR)
    await add_mailing(engine, start=now - HOUR, lasts=2 * HOUR, status="paused")  # its end
    assert (await find_work(engine)).seconds_until_next == about(HOUR)


async def test_running_and_paused_mailings_are_read_with_whether_they_may_send(
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

    await advance(engine, chunk=3)  # chunks of messages, fewer than the clients

    assert await value(engine, "SELECT is_settled FROM mailing")
    assert await value(engine, "SELECT cancelled FROM mailing_counts") == 7
    assert await find_work(engine) == PendingWork(**NO_WORK, seconds_until_next=None)
    assert await find_differences(engine) == []
