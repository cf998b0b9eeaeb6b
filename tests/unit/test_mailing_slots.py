"""How many messages of mailings with a rate a worker claims, by the slots that it has reserved."""

from datetime import UTC, datetime, timedelta
from typing import Any, cast

import asyncpg
import pytest

from mailer.clock import database_clock, elapsed
from mailer.dispatch.fair_scheduler import MailingBatch
from mailer.dispatch.mailing_slots import ASK_AHEAD, LimitedBatch, MailingSlots
from mailer.mailing.model import RunningMailing

RATE = 100.0


class FakeConnection:
    """A database in which at most `free` slots of each mailing are free, from now on."""

    def __init__(self, free: int) -> None:
        self.free = free
        self.wanted: list[dict[int, int]] = []
        """What each statement asked for."""

    async def fetch(self, _: str, ids: list[int], slots: list[int], *_args: object) -> Any:
        self.wanted.append(dict(zip(ids, slots, strict=True)))
        now = database_clock.now()
        granted = [min(self.free, wanted) for wanted in slots]
        return [
            (mailing_id, RATE, now, count, now + timedelta(seconds=count / RATE))
            for mailing_id, count in zip(ids, granted, strict=True)
        ]


def mailing(mailing_id: int, rate: float | None) -> RunningMailing:
    end = datetime(2040, 1, 1, tzinfo=UTC)
    return RunningMailing(mailing_id, "Hello", end, None, "retry", rate=rate)


RUNNING = {1: mailing(1, None), 2: mailing(2, RATE)}


async def limit(
    slots: MailingSlots,
    connection: FakeConnection,
    running: dict[int, RunningMailing] | None = None,
    *,
    is_late: bool = False,
) -> LimitedBatch:
    """Limit a batch with 50 messages of each of two mailings."""
    batch = MailingBatch(dict.fromkeys(RUNNING, 50))
    database = cast("asyncpg.Connection", connection)
    return await slots.limit(database, batch, running or RUNNING, is_late=is_late)


async def test_mailings_without_a_rate_cost_no_statement() -> None:
    connection = FakeConnection(free=10)
    running = {mailing_id: mailing(mailing_id, None) for mailing_id in RUNNING}
    limited = await limit(MailingSlots(), connection, running)
    assert limited.batch.shares == {1: 50, 2: 50}
    assert connection.wanted == []


async def test_mailing_with_a_rate_gets_as_many_messages_as_slots_are_free() -> None:
    connection = FakeConnection(free=10)
    limited = await limit(MailingSlots(), connection)
    assert limited.batch.shares == {1: 50, 2: 10}
    assert connection.wanted == [{2: 50}]
    moments = limited.slots[2]
    assert [round(moment - moments[0], 6) for moment in moments] == [n / RATE for n in range(10)]


async def test_mailing_whose_slots_are_all_reserved_waits_for_the_next_one() -> None:
    slots, connection = MailingSlots(), FakeConnection(free=20)
    now = elapsed()
    taken = await limit(slots, connection)
    taken.slots[2].clear()  # messages have used all
    [(mailing_id, resume_at)] = slots.resume(taken).items()
    assert mailing_id == 2
    assert now < resume_at + ASK_AHEAD - 20 / RATE < elapsed()
    limited = await limit(slots, connection)
    assert limited.batch.shares == {1: 50}
    assert limited.waiting == {2: resume_at}
    assert len(connection.wanted) == 1  # the worker knows when the next slot comes


async def test_slots_that_no_message_used_are_used_by_the_next_claim() -> None:
    slots, connection = MailingSlots(), FakeConnection(free=20)
    taken = await limit(slots, connection)
    unused = taken.slots[2][5:]
    del taken.slots[2][:5]
    assert slots.resume(taken) == {}
    assert (await limit(slots, connection)).slots[2] == pytest.approx(unused)
    assert len(connection.wanted) == 1


async def test_new_rate_makes_the_slots_of_the_old_one_worthless() -> None:
    slots, connection = MailingSlots(), FakeConnection(free=20)
    await limit(slots, connection)
    await limit(slots, connection, RUNNING | {2: mailing(2, 2 * RATE)})
    assert len(connection.wanted) == 2


async def test_nothing_is_claimed_while_messages_whose_slots_have_come_wait() -> None:
    connection = FakeConnection(free=20)
    limited = await limit(MailingSlots(), connection, is_late=True)
    assert limited.batch.shares == {1: 50}
    assert limited.waiting.keys() == {2}
    assert connection.wanted == []
