"""Messages of ended mailings are cancelled, and mailings with nothing left to do are closed."""

import importlib.util
import sys
from datetime import UTC, datetime
from types import ModuleType
from typing import NamedTuple

import pytest
from sqlalchemy import ARRAY, BigInteger, bindparam, text
from sqlalchemy.ext.asyncio import AsyncEngine
from tests.factories import (
    add_delivered_mailing,
    add_due_messages,
    add_mailing,
    claim,
    do,
    end_messages,
    execute,
    mailing_counts,
    state,
    value,
)

from mailer import statuses
from mailer.mailing import finishing, pending_work
from mailer.statistics.verify import find_differences

PENDING_CHANGES = {
    "scheduled messages": "UPDATE message SET status = 'scheduled'",
    "messages in flight": "UPDATE message SET status = 'sending', lease_owner = gen_random_uuid(),"
    " lease_expires_at = now()",
    "messages to retry": "UPDATE mailing SET retry_before = now()",
    "audience to enqueue": "UPDATE mailing SET audience_cursor = audience_until - 1",
    "messages to replan": "UPDATE mailing SET is_replanning = true",
}
"""Changes after which a mailing whose messages were all sent has something left to do."""

# ---- cancelling scheduled messages ----------------------------------------------------------


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
async def test_scheduled_messages_of_ended_mailings_are_cancelled_with_a_reason(
    engine: AsyncEngine, change: str, reason: str
) -> None:
    running = await add_due_messages(engine, 1)
    mailing_id = await add_due_messages(engine, 3)
    (claimed,) = await claim(engine, mailing_id)
    await execute(engine, f"UPDATE mailing SET {change} WHERE id = {mailing_id}")  # noqa: S608  # values of the test

    assert await end_messages(engine)

    cancelled = f"SELECT count(*) FROM message WHERE status = 'cancelled' AND reason = '{reason}'"  # noqa: S608  # values of the test
    assert await value(engine, cancelled) == 2
    assert await mailing_counts(engine, mailing_id) == {"sending": 1, "cancelled": 2}
    assert await state(engine, claimed.id) == ("sending", None, 1)
    assert await mailing_counts(engine, running) == {"scheduled": 1}
    assert not await end_messages(engine)


@pytest.mark.parametrize("change", ["", ", is_closed = true", ", deleted_at = now()"])
async def test_messages_of_closed_or_deleted_mailings_are_not_cancelled(
    engine: AsyncEngine, change: str
) -> None:
    await add_due_messages(engine, 2)
    await execute(engine, f"UPDATE mailing SET status = 'cancelled'{change}")  # noqa: S608  # values of the test

    assert await end_messages(engine) == (change == "")


async def test_scheduled_messages_of_all_mailings_are_cancelled_in_chunks(
    engine: AsyncEngine,
) -> None:
    for _ in range(2):
        await add_due_messages(engine, 3)
    await execute(engine, "UPDATE mailing SET datetime_end = now()")
    for remaining in (6 - 4, 0):
        assert await end_messages(engine, chunk=4)
        assert await value(engine, "SELECT sum(scheduled) FROM mailing_counts") == remaining
    assert not await end_messages(engine, chunk=4)


# ---- finishing ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("status", "expected"),
    [("running", "finished"), ("paused", "finished"), ("cancelled", "cancelled")],
)
async def test_a_mailing_whose_messages_are_delivered_is_closed_and_settled_once(
    engine: AsyncEngine, status: str, expected: str
) -> None:
    mailing_id = await add_delivered_mailing(engine, status)

    assert await do(engine, finishing.finish) == [(mailing_id, expected)]

    assert await value(engine, "SELECT is_closed AND is_settled FROM mailing")
    assert await do(engine, finishing.finish) == []


@pytest.mark.parametrize("pending", PENDING_CHANGES)
@pytest.mark.parametrize("status", ["running", "paused", "cancelled"])
@pytest.mark.parametrize("end", ["now() + interval '1 hour'", "now()"], ids=["before", "after"])
async def test_a_mailing_with_something_left_to_do_is_never_closed(
    engine: AsyncEngine, status: str, pending: str, end: str
) -> None:
    await add_delivered_mailing(engine, status)
    await execute(engine, PENDING_CHANGES[pending], f"UPDATE mailing SET datetime_end = {end}")  # noqa: S608  # values of the test

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
    mailing_id = await add_delivered_mailing(engine, status)
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


# ---- cost -----------------------------------------------------------------------------------


async def test_check_for_awaited_receipts_reads_an_index_although_most_messages_await_one(
    engine: AsyncEngine,
) -> None:
    await add_due_messages(engine, 3_000)
    await execute(engine, "UPDATE message SET status = 'sent', sent_at = now()", "ANALYZE message")
    explain = text(f"EXPLAIN {finishing.FINISH.text}").bindparams(
        bindparam("check_ids", type_=ARRAY(BigInteger))
    )
    async with engine.connect() as connection:
        plan = await connection.scalars(explain, {"after": 0, "check_ids": []})
        assert not [line for line in plan if "Seq Scan on message" in line.split("(")[0]]
