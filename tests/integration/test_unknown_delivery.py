"""A message that may have been accepted never counts as cancelled or undelivered."""

from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta

import asyncpg
import pytest
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncEngine
from tests.sample import (
    LEASE,
    OWNER,
    add_due_messages,
    advance,
    claim,
    do,
    execute,
    finish,
    ledger,
    state,
    value,
)

from mailer.access.model import COMMAND_LINE
from mailer.client import service as clients
from mailer.db.engine import raw
from mailer.mailing import service
from mailer.mailing.model import AudienceLists, MailingChange, MailingEndedError
from mailer.message import store
from mailer.message.model import FinishedMessage
from mailer.report.verify import differences

HOUR = timedelta(hours=1)
LATER = datetime(2100, 1, 1, tzinfo=UTC)
BY_LIST = AudienceLists(operator_codes=["916"])

End = Callable[[AsyncEngine, int], Awaitable[None]]


async def waiting(engine: AsyncEngine, reason: str = "timeout") -> tuple[int, int]:
    """A mailing with two messages that wait: one after an unknown attempt, one after a failure."""
    mailing_id = await add_due_messages(engine, 2)
    unknown, failed = await claim(engine, mailing_id, 2)
    again = FinishedMessage(unknown, "scheduled", 1, reason, LATER, None, reason, reason, LATER)
    later = FinishedMessage(
        failed, "scheduled", 1, "http_503", LATER, None, "http_503", None, LATER
    )
    await finish(engine, again, later)
    return mailing_id, unknown.id


async def cancelled(engine: AsyncEngine, mailing_id: int) -> None:
    await service.cancel(engine, mailing_id, COMMAND_LINE)
    await advance(engine)


async def ended(engine: AsyncEngine, mailing_id: int) -> None:
    del mailing_id
    await execute(engine, "UPDATE mailing SET datetime_end = now()")
    await advance(engine)


async def filtered_out(engine: AsyncEngine, mailing_id: int) -> None:
    change = MailingChange(client_filter=AudienceLists(operator_codes=["999"]))
    await service.change(engine, mailing_id, change, COMMAND_LINE)
    await advance(engine)


async def client_deleted(engine: AsyncEngine, mailing_id: int) -> None:
    del mailing_id
    for client_id in (1, 2):
        await clients.erase(engine, client_id, COMMAND_LINE)


async def cancelled_while_planned_anew(engine: AsyncEngine, mailing_id: int) -> None:
    change = MailingChange(client_filter=BY_LIST)
    await service.change(engine, mailing_id, change, COMMAND_LINE)
    await cancelled(engine, mailing_id)


WAYS: list[tuple[End, str]] = [
    (cancelled, "mailing_cancelled"),
    (ended, "expired"),
    (filtered_out, "filter_changed"),
    (client_deleted, "client_deleted"),
    (cancelled_while_planned_anew, "mailing_cancelled"),
]


@pytest.mark.parametrize(("end", "reason"), WAYS)
async def test_whatever_ends_a_message_one_that_may_have_been_accepted_is_unknown(
    engine: AsyncEngine, end: End, reason: str
) -> None:
    mailing_id, message_id = await waiting(engine)
    await end(engine, mailing_id)

    assert await ledger(engine, mailing_id) == {"unknown": 1, "cancelled": 1}
    assert await state(engine, message_id) == ("unknown", "timeout", 1)
    of_the_other = f"SELECT reason FROM message WHERE id <> {message_id}"  # noqa: S608  # of a test
    assert await value(engine, of_the_other) == reason
    sent = await value(engine, "SELECT sent_at = claimed_at FROM message WHERE status = 'unknown'")
    assert sent is True
    assert await differences(engine) == []


@pytest.mark.parametrize("reason", ["connection_lost", "lease_expired", "internal_error"])
async def test_the_reason_is_that_of_the_unknown_attempt(engine: AsyncEngine, reason: str) -> None:
    mailing_id, message_id = await waiting(engine, reason)
    await cancelled(engine, mailing_id)
    assert await state(engine, message_id) == ("unknown", reason, 1)


@pytest.mark.parametrize(("end", "_"), WAYS)
async def test_a_failure_after_it_does_not_make_an_unknown_attempt_known(
    engine: AsyncEngine, end: End, _: str
) -> None:
    mailing_id, message_id = await waiting(engine)
    await execute(engine, f"UPDATE message SET due_at = now() WHERE id = {message_id}")  # noqa: S608  # of a test
    (again,) = await claim(engine, mailing_id)
    assert again.unknown_reason == "timeout"
    later = FinishedMessage(again, "scheduled", 2, "http_503", LATER, last_failure="http_503")
    await finish(engine, later)
    await end(engine, mailing_id)
    assert await state(engine, message_id) == ("unknown", "timeout", 2)


async def test_that_an_attempt_is_unknown_survives_a_release_a_refund_and_a_lost_claim(
    engine: AsyncEngine,
) -> None:
    mailing_id, message_id = await waiting(engine)
    due = f"UPDATE message SET due_at = now() WHERE id = {message_id}"  # noqa: S608  # of a test
    await execute(engine, due)
    (again,) = await claim(engine, mailing_id)
    await finish(engine, FinishedMessage(again, "scheduled", again.attempts - 1))
    (again,) = await claim(engine, mailing_id)
    assert again.unknown_reason == "timeout"
    async with engine.connect() as pooled:
        connection: asyncpg.Connection = await raw(pooled)
        assert await store.let_go(connection, OWNER, []) == 1
        (again,) = await claim(engine, mailing_id)
        failed = FinishedMessage(
            again, "scheduled", again.attempts, "http_503", last_failure="http_503"
        )
        await finish(engine, failed)
        await store.give_back(connection, [again])
    assert await state(engine, message_id) == ("scheduled", "http_503", 1)

    await cancelled(engine, mailing_id)
    assert await state(engine, message_id) == ("unknown", "timeout", 1)


@pytest.mark.parametrize("end", [end for end, _ in WAYS])
async def test_a_message_of_a_dead_worker_ends_as_unknown(engine: AsyncEngine, end: End) -> None:
    mailing_id = await add_due_messages(engine, 1)
    (lost,) = await claim(engine, mailing_id, lease=-LEASE)
    await do(engine, lambda db: store.rescue(db, 8, 100))
    assert await state(engine, lost.id) == ("scheduled", "lease_expired", 1)
    if end is client_deleted:
        await clients.erase(engine, 1, COMMAND_LINE)
    else:
        await end(engine, mailing_id)
    assert await state(engine, lost.id) == ("unknown", "lease_expired", 1)


async def test_a_change_of_the_window_that_leaves_no_opening_ends_nothing_that_was_tried(
    engine: AsyncEngine,
) -> None:
    """It waits for the end, and goes out when a later change opens its window again."""
    mailing_id, message_id = await waiting(engine)
    now = datetime.now(UTC)
    closed = MailingChange(
        datetime_end=now + HOUR,
        send_interval_time_start=f"{(now + 3 * HOUR):%H:%M}",
        send_interval_time_end=f"{(now + 4 * HOUR):%H:%M}",
    )
    await service.change(engine, mailing_id, closed, COMMAND_LINE)
    await advance(engine)
    assert await ledger(engine, mailing_id) == {"scheduled": 2}
    assert await state(engine, message_id) == ("scheduled", "timeout", 1)

    await execute(engine, "UPDATE message SET retry_at = now()")
    opened = MailingChange(send_interval_time_start=None, send_interval_time_end=None)
    await service.change(engine, mailing_id, opened, COMMAND_LINE)
    await advance(engine)
    assert len(await claim(engine, mailing_id, 2)) == 2


async def test_a_pause_past_the_end_goes_on_when_the_end_is_moved(engine: AsyncEngine) -> None:
    mailing_id, _ = await waiting(engine)
    await advance(engine)
    assert await value(engine, "SELECT status FROM mailing") == "running"
    await service.change(engine, mailing_id, MailingChange(datetime_end=LATER + HOUR), COMMAND_LINE)
    await advance(engine)
    assert await ledger(engine, mailing_id) == {"scheduled": 2}
    assert await value(engine, "SELECT min(due_at) FROM message") == LATER


async def test_what_is_unknown_is_sent_again_when_asked_and_stays_so_until_it_is_known(
    engine: AsyncEngine,
) -> None:
    mailing_id, message_id = await waiting(engine)
    await filtered_out(engine, mailing_id)
    await service.retry(engine, mailing_id, COMMAND_LINE)
    await advance(engine)
    # not in the audience any more
    assert await state(engine, message_id) == ("unknown", "timeout", 1)

    # the mailing has finished before its end, so that its filter stays: the client changed
    await execute(engine, "UPDATE client SET operator_code = '999'")
    await service.retry(engine, mailing_id, COMMAND_LINE)
    await advance(engine)
    assert await state(engine, message_id) == ("scheduled", None, 0)

    await ended(engine, mailing_id)
    assert await state(engine, message_id) == ("unknown", "timeout", 0)
    assert await differences(engine) == []


async def test_what_is_unknown_is_not_sent_again_after_a_cancel(engine: AsyncEngine) -> None:
    mailing_id, _ = await waiting(engine)
    await cancelled(engine, mailing_id)
    with pytest.raises(MailingEndedError):
        await service.retry(engine, mailing_id, COMMAND_LINE)


@pytest.mark.parametrize("status", ["delivered", "undelivered"])
async def test_the_gateways_word_makes_it_known(engine: AsyncEngine, status: str) -> None:
    mailing_id, message_id = await waiting(engine)
    await execute(engine, "UPDATE message SET due_at = now()")
    for again in await claim(engine, mailing_id, 2):
        await finish(engine, FinishedMessage(again, status, 2))  # type: ignore[arg-type]  # a status
    assert await state(engine, message_id) == (status, None, 2)
    assert await value(engine, "SELECT count(unknown_reason) FROM message") == 0


@pytest.mark.parametrize("status", ["cancelled", "delivered", "undelivered"])
async def test_the_database_refuses_to_forget_it(engine: AsyncEngine, status: str) -> None:
    await waiting(engine)
    with pytest.raises(DBAPIError):
        await execute(engine, f"UPDATE message SET status = '{status}'")  # noqa: S608  # of a test
