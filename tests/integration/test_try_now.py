"""*Try now* ends the pauses that the gateway asked for, and makes the messages due."""

from datetime import UTC, datetime, timedelta

from sqlalchemy.ext.asyncio import AsyncEngine
from tests.factories import add_due_messages, claim, execute, finish, running, state

from mailer.access.model import COMMAND_LINE
from mailer.dispatch.send_policy import RetryPolicy, decide_after_send, decide_before_send
from mailer.gateway.protocol import TemporaryFailure
from mailer.message import trying
from mailer.message.model import MessageResult

PAUSE = 900.0
"""Seconds for which the gateway asks to wait."""
RETRY_POLICY = RetryPolicy(attempts=8, base=1, cap=1)
CLOSE_WINDOW = """
    UPDATE mailing SET datetime_end = now() + interval '1 hour',
        send_interval_time_start = (now() AT TIME ZONE 'UTC' + interval '2 hours')::time,
        send_interval_time_end = (now() AT TIME ZONE 'UTC' + interval '3 hours')::time"""
"""Change the sending window so that it is closed now and until the mailing's end."""


async def test_a_message_with_a_requested_pause_is_not_cancelled_outside_its_window(
    engine: AsyncEngine,
) -> None:
    mailing_id = await add_due_messages(engine, 1)
    (claimed,) = await claim(engine, mailing_id)
    (mailing,) = await running(engine)
    failure = TemporaryFailure("http_503", retry_after=PAUSE)
    result = decide_after_send(claimed, mailing, failure, datetime.now(UTC), RETRY_POLICY)
    assert await finish(engine, result) == 1
    assert await claim(engine, mailing_id) == []
    await execute(engine, CLOSE_WINDOW)

    await trying.try_now(engine, COMMAND_LINE)

    (claimed_again,) = await claim(engine, mailing_id)
    (mailing,) = await running(engine)
    now = datetime.now(UTC)
    rescheduled = decide_before_send(claimed_again, mailing, now, timeout=10)
    assert isinstance(rescheduled, MessageResult)
    assert await finish(engine, rescheduled) == 1
    assert await state(engine, claimed.id) == ("scheduled", "http_503", 1)
    assert rescheduled.due_at is not None
    assert rescheduled.due_at - now > timedelta(hours=1)  # after the mailing's end
