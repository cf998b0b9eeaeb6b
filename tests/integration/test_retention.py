"""Messages of mailings that ended long ago go; what was counted stays."""

from datetime import UTC, datetime, timedelta

import msgspec
import pytest
from sqlalchemy.ext.asyncio import AsyncEngine
from tests.sample import add_clients, add_mailing, add_messages, do, execute, value

from mailer.dispatch.schedule import jobs
from mailer.mailing import moving, store
from mailer.mailing.model import Mailing
from mailer.report import statistics
from mailer.report.verify import differences
from mailer.settings import Settings

HOUR = timedelta(hours=1)
DAY = 24 * HOUR
LEFT = "SELECT count(*) FROM message"


async def ended(engine: AsyncEngine, *, ago: timedelta, status: str = "finished") -> int:
    """A mailing of ten messages that ended that long ago."""
    clients = await add_clients(engine, 10)
    end = datetime.now(UTC) - ago
    mailing_id = await add_mailing(engine, clients=10, start=end - HOUR, lasts=HOUR)
    await add_messages(engine, mailing_id, clients[:8], "delivered", at=end)
    await add_messages(engine, mailing_id, clients[8:], "undelivered", "rejected_400", at=end)
    ends = f"is_settled = true, status = '{status}', updated_at = '{end}'"
    await execute(engine, f"UPDATE mailing SET {ends} WHERE id = {mailing_id}")  # noqa: S608  # of a test
    return mailing_id


async def retire(engine: AsyncEngine, chunk: int = 100) -> int:
    return await do(engine, lambda db: moving.retire(db, 30, chunk))


async def get(engine: AsyncEngine, mailing_id: int) -> Mailing:
    async with engine.connect() as connection:
        return await store.get(connection, mailing_id)


@pytest.mark.parametrize("status", ["finished", "cancelled"])
async def test_messages_go_in_small_batches_and_the_counts_stay(
    engine: AsyncEngine, status: str
) -> None:
    old = await ended(engine, ago=31 * DAY, status=status)
    before = await get(engine, old), await statistics.of_mailing(engine, old)

    assert [await retire(engine, chunk=4) for _ in range(4)] == [4, 4, 2, 0]

    after = await get(engine, old), await statistics.of_mailing(engine, old)
    assert after[0] == msgspec.structs.replace(before[0], created_messages=0)
    assert after[1] == before[1]
    assert await value(engine, LEFT) == 0
    assert await differences(engine) == []


async def test_half_way_the_ledgers_still_add_up(engine: AsyncEngine) -> None:
    await ended(engine, ago=31 * DAY)
    await retire(engine, chunk=4)
    assert await differences(engine) == []


@pytest.mark.parametrize(
    ("status", "end_was", "counts_changed", "is_kept"),
    [
        ("finished", 29 * DAY, 29 * DAY, True),
        ("finished", 29 * DAY, 99 * DAY, True),  # it was through long before its end
        ("finished", -DAY, 99 * DAY, True),
        ("finished", 31 * DAY, 99 * DAY, False),
        ("finished", 99 * DAY, 29 * DAY, True),  # something of it changed long after its end
        ("finished", 99 * DAY, 31 * DAY, False),
        ("cancelled", -99 * DAY, 29 * DAY, True),  # it ended when it was cancelled
        ("cancelled", -99 * DAY, 31 * DAY, False),
        ("cancelled", 29 * DAY, 31 * DAY, False),
    ],
)
async def test_retention_counts_from_the_end_or_from_the_last_change_of_counts_if_later(
    engine: AsyncEngine,
    status: str,
    end_was: timedelta,
    counts_changed: timedelta,
    *,
    is_kept: bool,
) -> None:
    mailing_id = await ended(engine, ago=counts_changed, status=status)
    end = f"datetime_start = '2020-01-01Z', datetime_end = '{datetime.now(UTC) - end_was}'"
    await execute(engine, f"UPDATE mailing SET {end} WHERE id = {mailing_id}")  # noqa: S608  # of a test

    assert await retire(engine) == (0 if is_kept else 10)


async def test_what_is_under_way_stays_however_long_ago_it_changed(engine: AsyncEngine) -> None:
    under_way = await ended(engine, ago=31 * DAY)
    await execute(
        engine,
        f"UPDATE mailing SET is_settled = false, status = 'running' WHERE id = {under_way}",  # noqa: S608  # of a test
    )
    assert await retire(engine) == 0


async def test_the_one_whose_retention_is_over_first_goes_first(engine: AsyncEngine) -> None:
    later, first = await ended(engine, ago=31 * DAY), await ended(engine, ago=33 * DAY)
    assert await retire(engine, chunk=4) == 4
    left = "SELECT count(*) FROM message WHERE mailing_id = "
    assert (await value(engine, f"{left}{first}"), await value(engine, f"{left}{later}")) == (6, 10)


def test_nothing_goes_unless_it_is_set(engine: AsyncEngine) -> None:
    def names(**given: int) -> set[str]:
        settings = Settings(data_dir="/nowhere", **given)  # type: ignore[arg-type]  # of a test
        return {job.name for job in jobs(engine, settings, None)}

    assert names(retention_days=30) - names() == {"retire"}
