"""Messages of a mailing are deleted after its retention period, here 30 days; counters stay."""

from datetime import UTC, datetime, timedelta

import msgspec
import pytest
from sqlalchemy.ext.asyncio import AsyncEngine
from tests.factories import (
    DAY,
    HOUR,
    REOPENED,
    add_clients,
    add_mailing,
    add_messages,
    do,
    execute,
    value,
)

from mailer.dispatch.schedule import JobLimits, jobs
from mailer.gateway.channel import NO_CHANNELS
from mailer.mailing import purging, store
from mailer.mailing.model import Mailing
from mailer.settings import Settings
from mailer.statistics import service as statistics
from mailer.statistics.verify import find_differences

RETENTION_DAYS = 30
COUNT_MESSAGES = "SELECT count(*) FROM message"


async def add_ended_mailing(
    engine: AsyncEngine, *, ago: timedelta, status: str = "finished"
) -> int:
    """Add a mailing of ten messages through `main` that ended `ago`; return its id.

    Its counters changed for the last time at its end.
    """
    clients = await add_clients(engine, 10)
    end = datetime.now(UTC) - ago
    mailing_id = await add_mailing(engine, clients=10, start=end - HOUR, lasts=HOUR)
    await add_messages(engine, mailing_id, clients[:8], "delivered", at=end)
    await add_messages(engine, mailing_id, clients[8:], "undelivered", "rejected_400", at=end)
    finish = f"is_closed = true, is_settled = true, status = '{status}', updated_at = '{end}'"
    await execute(
        engine,
        f"UPDATE message SET gateway = 'main', parts = 2 WHERE mailing_id = {mailing_id}",  # noqa: S608  # a number
        f"UPDATE mailing SET {finish} WHERE id = {mailing_id}",  # noqa: S608  # values of the test
    )
    return mailing_id


async def delete_expired(engine: AsyncEngine, chunk: int = 100) -> int:
    """Delete up to `chunk` messages of one mailing past its retention period; return how many."""
    return await do(engine, lambda db: purging.delete_expired_messages(db, RETENTION_DAYS, chunk))


async def get_mailing(engine: AsyncEngine, mailing_id: int) -> Mailing:
    async with engine.connect() as connection:
        return await store.get(connection, mailing_id)


@pytest.mark.parametrize("status", ["finished", "cancelled"])
async def test_messages_are_deleted_in_batches_and_counters_stay(
    engine: AsyncEngine, status: str
) -> None:
    old = await add_ended_mailing(engine, ago=31 * DAY, status=status)
    mailing_before = await get_mailing(engine, old)
    statistics_before = await statistics.of_mailing(engine, old)

    deleted_per_call = [await delete_expired(engine, chunk=4) for _ in range(4)]

    assert deleted_per_call == [4, 4, 2, 0]
    mailing_without_messages = msgspec.structs.replace(mailing_before, created_messages=0)
    assert await get_mailing(engine, old) == mailing_without_messages
    assert await statistics.of_mailing(engine, old) == statistics_before
    assert await value(engine, COUNT_MESSAGES) == 0
    assert await find_differences(engine) == []


async def test_counters_add_up_during_the_deletion(engine: AsyncEngine) -> None:
    await add_ended_mailing(engine, ago=31 * DAY)
    await delete_expired(engine, chunk=4)
    assert await find_differences(engine) == []


@pytest.mark.parametrize(
    ("status", "end_ago", "counters_changed_ago", "is_kept"),
    [
        ("finished", 29 * DAY, 29 * DAY, True),
        ("finished", 29 * DAY, 99 * DAY, True),  # finished long before its end
        ("finished", -DAY, 99 * DAY, True),
        ("finished", 31 * DAY, 99 * DAY, False),
        ("finished", 99 * DAY, 29 * DAY, True),  # counters changed long after its end
        ("finished", 99 * DAY, 31 * DAY, False),
        ("cancelled", -99 * DAY, 29 * DAY, True),  # ended by the cancellation
        ("cancelled", -99 * DAY, 31 * DAY, False),
        ("cancelled", 29 * DAY, 31 * DAY, False),
    ],
)
async def test_retention_starts_at_the_end_or_at_the_last_change_of_counters_if_later(
    engine: AsyncEngine,
    status: str,
    end_ago: timedelta,
    counters_changed_ago: timedelta,
    *,
    is_kept: bool,
) -> None:
    mailing_id = await add_ended_mailing(engine, ago=counters_changed_ago, status=status)
    end = f"datetime_start = '2020-01-01Z', datetime_end = '{datetime.now(UTC) - end_ago}'"
    await execute(engine, f"UPDATE mailing SET {end} WHERE id = {mailing_id}")  # noqa: S608  # values of the test

    assert await delete_expired(engine) == (0 if is_kept else 10)


async def test_messages_of_a_running_mailing_are_never_deleted(engine: AsyncEngine) -> None:
    running = await add_ended_mailing(engine, ago=31 * DAY)
    await execute(
        engine,
        f"UPDATE mailing SET {REOPENED} WHERE id = {running}",  # noqa: S608  # values of the test
    )
    assert await delete_expired(engine) == 0


async def test_the_mailing_whose_retention_ended_first_is_deleted_first(
    engine: AsyncEngine,
) -> None:
    later = await add_ended_mailing(engine, ago=31 * DAY)
    first = await add_ended_mailing(engine, ago=33 * DAY)

    assert await delete_expired(engine, chunk=4) == 4

    count_of_mailing = f"{COUNT_MESSAGES} WHERE mailing_id = "
    assert await value(engine, f"{count_of_mailing}{first}") == 10 - 4
    assert await value(engine, f"{count_of_mailing}{later}") == 10


def test_only_with_the_setting_a_periodic_job_deletes_messages(engine: AsyncEngine) -> None:
    def job_names(**values: int) -> set[str]:
        settings = Settings(data_dir="/nowhere", **values)  # type: ignore[arg-type]  # values of one type
        return {job.name for job in jobs(engine, NO_CHANNELS, JobLimits.of(settings), None)}

    assert job_names(retention_days=30) - job_names() == {"purge_messages", "purge_replies"}
