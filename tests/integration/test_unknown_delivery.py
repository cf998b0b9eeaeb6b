"""A message that may have been accepted never counts as cancelled or undelivered.

`state` returns the status, the reason and the number of attempts of a message.
"""

from collections.abc import AsyncIterator, Awaitable, Callable
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
from mailer.dispatch.send_policy import release_untried
from mailer.erasure import erase_client
from mailer.mailing import service
from mailer.mailing.client_filter import AudienceLists
from mailer.mailing.errors import MailingEndedError
from mailer.mailing.model import MailingChange
from mailer.message import recovery
from mailer.message.model import MessageResult
from mailer.statistics.verify import find_differences
from mailer.statuses import MessageStatus

LATER = datetime(2100, 1, 1, tzinfo=UTC)
"""The end of a pause that lasts longer than any test."""
MATCHING_FILTER = AudienceLists(operator_codes=["916"])
OTHER_FILTER = AudienceLists(operator_codes=["999"])

End = Callable[[AsyncEngine, int], Awaitable[None]]
"""An event after which no message of a mailing is sent any more."""


async def add_waiting_messages(engine: AsyncEngine, reason: str = "timeout") -> tuple[int, int]:
    """Add a mailing with two requeued messages: one after an unknown attempt, one after a failure.

    `reason` is why the attempt is unknown. Return the ids of the mailing and of the message with
    the unknown attempt.
    """
    mailing_id = await add_due_messages(engine, 2)
    unknown, failed = await claim(engine, mailing_id, count=2)
    requeued_unknown = MessageResult(
        unknown,
        "scheduled",
        attempts=1,
        reason=reason,
        due_at=LATER,
        last_failure=reason,
        unknown_reason=reason,
        retry_at=LATER,
    )
    requeued_failed = MessageResult(
        failed,
        "scheduled",
        attempts=1,
        reason="http_503",
        due_at=LATER,
        last_failure="http_503",
        retry_at=LATER,
    )
    await finish(engine, requeued_unknown, requeued_failed)
    return mailing_id, unknown.id


async def make_due(engine: AsyncEngine, message_id: int) -> None:
    """End the pause of a message."""
    await execute(engine, f"UPDATE message SET due_at = now() WHERE id = {message_id}")  # noqa: S608  # values of the test


async def cancel(engine: AsyncEngine, mailing_id: int) -> None:
    await service.cancel(engine, mailing_id, COMMAND_LINE)
    await advance(engine)


async def end_mailing(engine: AsyncEngine, mailing_id: int) -> None:
    del mailing_id  # it is the only one
    await execute(engine, "UPDATE mailing SET datetime_end = now()")
    await advance(engine)


async def change_filter(engine: AsyncEngine, mailing_id: int) -> None:
    change = MailingChange(client_filter=OTHER_FILTER)
    await service.change(engine, mailing_id, change, COMMAND_LINE)
    await advance(engine)


async def delete_clients(engine: AsyncEngine, mailing_id: int) -> None:
    del mailing_id  # clients 1 and 2, the only ones, are those of its messages
    for client_id in (1, 2):
        await erase_client(engine, client_id, COMMAND_LINE)


async def cancel_while_replanning(engine: AsyncEngine, mailing_id: int) -> None:
    """Cancel right after a change of the filter, before any message is replanned."""
    change = MailingChange(client_filter=MATCHING_FILTER)
    await service.change(engine, mailing_id, change, COMMAND_LINE)
    await cancel(engine, mailing_id)


ENDS: list[tuple[End, str]] = [
    (cancel, "mailing_cancelled"),
    (end_mailing, "expired"),
    (change_filter, "filter_changed"),
    (delete_clients, "client_deleted"),
    (cancel_while_replanning, "mailing_cancelled"),
]
"""Each event, with the reason that a message without an unknown attempt gets from it."""


@pytest.fixture
async def connection(engine: AsyncEngine) -> AsyncIterator[asyncpg.Connection]:
    """A connection of a worker, apart from the engine's."""
    async with engine.connect() as pooled:
        yield await asyncpg_connection(pooled)


@pytest.mark.parametrize(("end", "reason"), ENDS)
async def test_a_message_that_may_have_been_accepted_ends_as_unknown_and_others_are_cancelled(
    engine: AsyncEngine, end: End, reason: str
) -> None:
    mailing_id, message_id = await add_waiting_messages(engine)
    await end(engine, mailing_id)

    assert await mailing_counts(engine, mailing_id) == {"unknown": 1, "cancelled": 1}
    assert await state(engine, message_id) == ("unknown", "timeout", 1)
    reason_of_other = f"SELECT reason FROM message WHERE id <> {message_id}"  # noqa: S608  # values of the test
    assert await value(engine, reason_of_other) == reason
    assert await find_differences(engine) == []


@pytest.mark.parametrize("end", [end for end, _ in ENDS])
async def test_sent_at_of_a_message_that_ends_as_unknown_is_its_claim_time(
    engine: AsyncEngine, end: End
) -> None:
    mailing_id, message_id = await add_waiting_messages(engine)
    await end(engine, mailing_id)
    is_claim_time = f"SELECT sent_at = claimed_at FROM message WHERE id = {message_id}"  # noqa: S608  # values of the test
    assert await value(engine, is_claim_time) is True


@pytest.mark.parametrize("reason", ["connection_lost", "lease_expired", "internal_error"])
async def test_the_reason_is_that_of_the_unknown_attempt(engine: AsyncEngine, reason: str) -> None:
    mailing_id, message_id = await add_waiting_messages(engine, reason)
    await cancel(engine, mailing_id)
    assert await state(engine, message_id) == ("unknown", reason, 1)


@pytest.mark.parametrize("end", [end for end, _ in ENDS])
async def test_a_later_failure_does_not_reset_the_unknown_reason(
    engine: AsyncEngine, end: End
) -> None:
    mailing_id, message_id = await add_waiting_messages(engine)
    await make_due(engine, message_id)
    (claimed_again,) = await claim(engine, mailing_id)
    assert claimed_again.unknown_reason == "timeout"
    failed = MessageResult(
        claimed_again,
        "scheduled",
        attempts=2,
        reason="http_503",
        due_at=LATER,
        last_failure="http_503",
    )
    await finish(engine, failed)
    await end(engine, mailing_id)
    assert await state(engine, message_id) == ("unknown", "timeout", 2)


async def test_the_unknown_reason_stays_after_a_release(engine: AsyncEngine) -> None:
    mailing_id, message_id = await add_waiting_messages(engine)
    await make_due(engine, message_id)
    (claimed_again,) = await claim(engine, mailing_id)

    await finish(engine, release_untried(claimed_again))

    (claimed_after_release,) = await claim(engine, mailing_id)
    assert claimed_after_release.unknown_reason == "timeout"


async def test_the_unknown_reason_stays_after_an_orphaned_claim(
    engine: AsyncEngine, connection: asyncpg.Connection
) -> None:
    mailing_id, message_id = await add_waiting_messages(engine)
    await make_due(engine, message_id)
    await claim(engine, mailing_id)

    assert await recovery.release_orphaned(connection, OWNER, []) == 1

    (claimed_after_release,) = await claim(engine, mailing_id)
    assert claimed_after_release.unknown_reason == "timeout"


async def test_the_unknown_reason_stays_after_a_refund(
    engine: AsyncEngine, connection: asyncpg.Connection
) -> None:
    mailing_id, message_id = await add_waiting_messages(engine)
    await make_due(engine, message_id)
    (claimed_again,) = await claim(engine, mailing_id)
    failed = MessageResult(
        claimed_again, "scheduled", attempts=2, reason="http_503", last_failure="http_503"
    )
    await finish(engine, failed)

    await recovery.refund_attempts(connection, [claimed_again])
    assert await state(engine, message_id) == ("scheduled", "http_503", 1)

    await cancel(engine, mailing_id)
    assert await state(engine, message_id) == ("unknown", "timeout", 1)


@pytest.mark.parametrize("end", [end for end, _ in ENDS])
async def test_a_message_of_a_dead_worker_ends_as_unknown(engine: AsyncEngine, end: End) -> None:
    mailing_id = await add_due_messages(engine, 2)
    claims_of_dead_worker = await claim(engine, mailing_id, count=2, lease=-LEASE)
    await do(engine, lambda db: recovery.rescue(db, max_attempts=8, chunk=100))
    for claimed in claims_of_dead_worker:
        assert await state(engine, claimed.id) == ("scheduled", "lease_expired", 1)

    await end(engine, mailing_id)

    for claimed in claims_of_dead_worker:
        assert await state(engine, claimed.id) == ("unknown", "lease_expired", 1)


async def test_a_sending_window_that_never_opens_does_not_cancel_tried_messages(
    engine: AsyncEngine,
) -> None:
    """They wait for the end, and are sent if a later change opens the sending window."""
    mailing_id, message_id = await add_waiting_messages(engine)
    now = datetime.now(UTC)
    close_window = MailingChange(
        datetime_end=now + HOUR,
        send_interval_time_start=f"{(now + 3 * HOUR):%H:%M}",
        send_interval_time_end=f"{(now + 4 * HOUR):%H:%M}",
    )
    await service.change(engine, mailing_id, close_window, COMMAND_LINE)
    await advance(engine)
    assert await mailing_counts(engine, mailing_id) == {"scheduled": 2}
    assert await state(engine, message_id) == ("scheduled", "timeout", 1)

    await execute(engine, "UPDATE message SET retry_at = now()")
    remove_window = MailingChange(send_interval_time_start=None, send_interval_time_end=None)
    await service.change(engine, mailing_id, remove_window, COMMAND_LINE)
    await advance(engine)
    assert len(await claim(engine, mailing_id, count=2)) == 2


async def test_a_pause_beyond_the_end_continues_when_the_end_is_moved(engine: AsyncEngine) -> None:
    mailing_id, _ = await add_waiting_messages(engine)
    await advance(engine)
    assert await value(engine, "SELECT status FROM mailing") == "running"

    move_end = MailingChange(datetime_end=LATER + HOUR)
    await service.change(engine, mailing_id, move_end, COMMAND_LINE)
    await advance(engine)

    assert await mailing_counts(engine, mailing_id) == {"scheduled": 2}
    assert await value(engine, "SELECT min(due_at) FROM message") == LATER


async def test_an_unknown_message_of_a_client_outside_the_audience_is_not_retried(
    engine: AsyncEngine,
) -> None:
    mailing_id, message_id = await add_waiting_messages(engine)
    await change_filter(engine, mailing_id)
    await service.retry(engine, mailing_id, COMMAND_LINE)
    await advance(engine)
    assert await state(engine, message_id) == ("unknown", "timeout", 1)


async def test_a_retried_unknown_message_that_is_not_sent_again_is_unknown_as_before(
    engine: AsyncEngine,
) -> None:
    mailing_id, message_id = await add_waiting_messages(engine)
    await change_filter(engine, mailing_id)
    # a finished mailing keeps its filter, so the clients change to be in its audience again
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
async def test_a_final_result_of_a_later_attempt_resets_the_unknown_reason(
    engine: AsyncEngine, status: MessageStatus
) -> None:
    mailing_id, message_id = await add_waiting_messages(engine)
    await make_due(engine, message_id)
    (claimed_again,) = await claim(engine, mailing_id)
    await finish(engine, MessageResult(claimed_again, status, attempts=2))
    assert await state(engine, message_id) == (status, None, 2)
    assert await value(engine, "SELECT count(unknown_reason) FROM message") == 0


@pytest.mark.parametrize("status", ["cancelled", "delivered", "undelivered"])
async def test_the_database_refuses_a_final_status_other_than_unknown_with_an_unknown_reason(
    engine: AsyncEngine, status: str
) -> None:
    await add_waiting_messages(engine)
    with pytest.raises(DBAPIError):
        await execute(engine, f"UPDATE message SET status = '{status}'")  # noqa: S608  # values of the test
