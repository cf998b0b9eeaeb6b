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


async def test_younger_ones_stay_and_those_that_may_still_be_sent(engine: AsyncEngine) -> None:
    await ended(engine, ago=29 * DAY)
    may_be_retried = await ended(engine, ago=31 * DAY)
    await execute(
        engine,
        f"UPDATE mailing SET datetime_end = now() + interval '1 day' WHERE id = {may_be_retried}",  # noqa: S608  # of a test
    )
    under_way = await ended(engine, ago=31 * DAY)
    await execute(
        engine,
        f"UPDATE mailing SET is_settled = false, status = 'running' WHERE id = {under_way}",  # noqa: S608  # of a test
    )

    assert await retire(engine) == 0
    assert await value(engine, LEFT) == 30


def test_nothing_goes_unless_it_is_set(engine: AsyncEngine) -> None:
    def names(**given: int) -> set[str]:
        settings = Settings(data_dir="/nowhere", **given)  # type: ignore[arg-type]  # of a test
        return {job.name for job in jobs(engine, settings, None)}

    assert names(retention_days=30) - names() == {"retire"}
