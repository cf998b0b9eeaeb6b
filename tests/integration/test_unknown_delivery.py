"""A message that may have been accepted never counts as cancelled or undelivered."""

from collections.abc import Awaitable, Callable
from datetime import UTC, datetime

import asyncpg
import pytest
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncEngine
from tests.factories import (
    HOUR,
    LEASE,
    OWNER,
    add_due_messages,
    advance,
    claim,
    do,
    execute,
    finish,
    mailing_counts,
    state,
    value,
)

from mailer.access.model import COMMAND_LINE
from mailer.db.engine import asyncpg_connection
from mailer.erasure import erase_client
from mailer.mailing import service
from mailer.mailing.client_filter import AudienceLists
from mailer.mailing.model import MailingChange, MailingEndedError
from mailer.message import store
from mailer.message.model import MessageResult
from mailer.statistics.verify import find_differences

LATER = datetime(2100, 1, 1, tzinfo=UTC)
BY_LIST = AudienceLists(operator_codes=["916"])

End = Callable[[AsyncEngine, int], Awaitable[None]]


async def add_waiting_messages(engine: AsyncEngine, reason: str = "timeout") -> tuple[int, int]:
    """Add a mailing with two waiting messages: one after an unknown attempt, one after a failure.

    Return the ids of the mailing and of the message with the unknown attempt.
    """
    mailing_id = await add_due_messages(engine, 2)
    unknown, failed = await claim(engine, mailing_id, 2)
    retry = MessageResult(unknown, "scheduled", 1, reason, LATER, None, reason, reason, LATER)
    retry_of_failed = MessageResult(
        failed, "scheduled", 1, "http_503", LATER, None, "http_503", None, LATER
    )
    await finish(engine, retry, retry_of_failed)
    return mailing_id, unknown.id


async def cancel(engine: AsyncEngine, mailing_id: int) -> None:
    await service.cancel(engine, mailing_id, COMMAND_LINE)
    await advance(engine)


async def end_mailing(engine: AsyncEngine, mailing_id: int) -> None:
    del mailing_id
    await execute(engine, "UPDATE mailing SET datetime_end = now()")
    await advance(engine)


async def change_filter(engine: AsyncEngine, mailing_id: int) -> None:
    change = MailingChange(client_filter=AudienceLists(operator_codes=["999"]))
    await service.change(engine, mailing_id, change, COMMAND_LINE)
    await advance(engine)


async def delete_clients(engine: AsyncEngine, mailing_id: int) -> None:
    del mailing_id
    for client_id in (1, 2):
        await erase_client(engine, client_id, COMMAND_LINE)


async def cancel_while_replanning(engine: AsyncEngine, mailing_id: int) -> None:
    change = MailingChange(client_filter=BY_LIST)
    await service.change(engine, mailing_id, change, COMMAND_LINE)
    await cancel(engine, mailing_id)


ENDS: list[tuple[End, str]] = [
    (cancel, "mailing_cancelled"),
    (end_mailing, "expired"),
    (change_filter, "filter_changed"),
    (delete_clients, "client_deleted"),
    (cancel_while_replanning, "mailing_cancelled"),
]


@pytest.mark.parametrize(("end", "reason"), ENDS)
async def test_a_message_that_may_have_been_accepted_ends_as_unknown(
    engine: AsyncEngine, end: End, reason: str
) -> None:
    mailing_id, message_id = await add_waiting_messages(engine)
    await end(engine, mailing_id)

    assert await mailing_counts(engine, mailing_id) == {"unknown": 1, "cancelled": 1}
    assert await state(engine, message_id) == ("unknown", "timeout", 1)
    reason_of_other = f"SELECT reason FROM message WHERE id <> {message_id}"  # noqa: S608  # values of the test
    assert await value(engine, reason_of_other) == reason
    sent = await value(engine, "SELECT sent_at = claimed_at FROM message WHERE status = 'unknown'")
    assert sent is True
    assert await find_differences(engine) == []


@pytest.mark.parametrize("reason", ["connection_lost", "lease_expired", "internal_error"])
async def test_the_reason_is_that_of_the_unknown_attempt(engine: AsyncEngine, reason: str) -> None:
    mailing_id, message_id = await add_waiting_messages(engine, reason)
    await cancel(engine, mailing_id)
    assert await state(engine, message_id) == ("unknown", reason, 1)


@pytest.mark.parametrize(("end", "_"), ENDS)
async def test_a_later_failure_does_not_reset_the_unknown_reason(
    engine: AsyncEngine, end: End, _: str
) -> None:
    mailing_id, message_id = await add_waiting_messages(engine)
    await execute(engine, f"UPDATE message SET due_at = now() WHERE id = {message_id}")  # noqa: S608  # values of the test
    (claimed_again,) = await claim(engine, mailing_id)
    assert claimed_again.unknown_reason == "timeout"
    later = MessageResult(claimed_again, "scheduled", 2, "http_503", LATER, last_failure="http_503")
    await finish(engine, later)
    await end(engine, mailing_id)
    assert await state(engine, message_id) == ("unknown", "timeout", 2)


async def test_the_unknown_reason_survives_a_release_a_refund_and_an_orphaned_claim(
    engine: AsyncEngine,
) -> None:
    mailing_id, message_id = await add_waiting_messages(engine)
    due = f"UPDATE message SET due_at = now() WHERE id = {message_id}"  # noqa: S608  # values of the test
    await execute(engine, due)
    (claimed_again,) = await claim(engine, mailing_id)
    await finish(engine, MessageResult(claimed_again, "scheduled", claimed_again.attempts - 1))
    (claimed_again,) = await claim(engine, mailing_id)
    assert claimed_again.unknown_reason == "timeout"
    async with engine.connect() as pooled:
        connection: asyncpg.Connection = await asyncpg_connection(pooled)
        assert await store.release_orphaned(connection, OWNER, []) == 1
        (claimed_again,) = await claim(engine, mailing_id)
        failed = MessageResult(
            claimed_again, "scheduled", claimed_again.attempts, "http_503", last_failure="http_503"
        )
        await finish(engine, failed)
        await store.refund_attempts(connection, [claimed_again])
    assert await state(engine, message_id) == ("scheduled", "http_503", 1)

    await cancel(engine, mailing_id)
    assert await state(engine, message_id) == ("unknown", "timeout", 1)


@pytest.mark.parametrize("end", [end for end, _ in ENDS])
async def test_a_message_of_a_dead_worker_ends_as_unknown(engine: AsyncEngine, end: End) -> None:
    mailing_id = await add_due_messages(engine, 1)
    (lost,) = await claim(engine, mailing_id, lease=-LEASE)
    await do(engine, lambda db: store.rescue(db, 8, 100))
    assert await state(engine, lost.id) == ("scheduled", "lease_expired", 1)
    if end is delete_clients:
        await erase_client(engine, 1, COMMAND_LINE)
    else:
        await end(engine, mailing_id)
    assert await state(engine, lost.id) == ("unknown", "lease_expired", 1)


async def test_a_sending_window_that_never_opens_does_not_cancel_tried_messages(
    engine: AsyncEngine,
) -> None:
    """They wait for the end, and are sent if a later change opens the sending window."""
    mailing_id, message_id = await add_waiting_messages(engine)
    now = datetime.now(UTC)
    closed = MailingChange(
        datetime_end=now + HOUR,
        send_interval_time_start=f"{(now + 3 * HOUR):%H:%M}",
        send_interval_time_end=f"{(now + 4 * HOUR):%H:%M}",
    )
    await service.change(engine, mailing_id, closed, COMMAND_LINE)
    await advance(engine)
    assert await mailing_counts(engine, mailing_id) == {"scheduled": 2}
    assert await state(engine, message_id) == ("scheduled", "timeout", 1)

    await execute(engine, "UPDATE message SET retry_at = now()")
    opened = MailingChange(send_interval_time_start=None, send_interval_time_end=None)
    await service.change(engine, mailing_id, opened, COMMAND_LINE)
    await advance(engine)
    assert len(await claim(engine, mailing_id, 2)) == 2


async def test_a_pause_beyond_the_end_continues_when_the_end_is_moved(engine: AsyncEngine) -> None:
    mailing_id, _ = await add_waiting_messages(engine)
    await advance(engine)
    assert await value(engine, "SELECT status FROM mailing") == "running"
    await service.change(engine, mailing_id, MailingChange(datetime_end=LATER + HOUR), COMMAND_LINE)
    await advance(engine)
    assert await mailing_counts(engine, mailing_id) == {"scheduled": 2}
    assert await value(engine, "SELECT min(due_at) FROM message") == LATER


async def test_a_retried_unknown_message_stays_unknown_until_the_gateway_answers(
    engine: AsyncEngine,
) -> None:
    mailing_id, message_id = await add_waiting_messages(engine)
    await change_filter(engine, mailing_id)
    await service.retry(engine, mailing_id, COMMAND_LINE)
    await advance(engine)
    # not retried: no longer in the audience
    assert await state(engine, message_id) == ("unknown", "timeout", 1)

    # a finished mailing keeps its filter, so the clients change instead
    await execute(engine, "UPDATE client SET operator_code = '999'")
    await service.retry(engine, mailing_id, COMMAND_LINE)
    await advance(engine)
    assert await state(engine, message_id) == ("scheduled", None, 0)

    await end_mailing(engine, mailing_id)
    assert await state(engine, message_id) == ("unknown", "timeout", 0)
    assert await find_differences(engine) == []


async def test_unknown_messages_cannot_be_retried_after_a_cancellation(engine: AsyncEngine) -> None:
    mailing_id, _ = await add_waiting_messages(engine)
    await cancel(engine, mailing_id)
    with pytest.raises(MailingEndedError):
        await service.retry(engine, mailing_id, COMMAND_LINE)


@pytest.mark.parametrize("status", ["delivered", "undelivered"])
async def test_a_later_response_of_the_gateway_resets_the_unknown_reason(
    engine: AsyncEngine, status: str
) -> None:
    mailing_id, message_id = await add_waiting_messages(engine)
    await execute(engine, "UPDATE message SET due_at = now()")
    for claimed_again in await claim(engine, mailing_id, 2):
        await finish(engine, MessageResult(claimed_again, status, 2))  # type: ignore[arg-type]  # a status
    assert await state(engine, message_id) == (status, None, 2)
    assert await value(engine, "SELECT count(unknown_reason) FROM message") == 0


@pytest.mark.parametrize("status", ["cancelled", "delivered", "undelivered"])
async def test_the_database_refuses_other_statuses_for_an_unknown_attempt(
    engine: AsyncEngine, status: str
) -> None:
    await add_waiting_messages(engine)
    with pytest.raises(DBAPIError):
        await execute(engine, f"UPDATE message SET status = '{status}'")  # noqa: S608  # values of the test
