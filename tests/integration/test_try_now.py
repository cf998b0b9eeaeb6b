"""*Try now* makes messages due whose gateway asked for a pause, and ends none of them."""

from datetime import UTC, datetime, timedelta

from sqlalchemy.ext.asyncio import AsyncEngine
from tests.sample import add_due_messages, claim, execute, finish, running, state

from mailer.access.model import COMMAND_LINE
from mailer.dispatch.judge import after_sending, before_sending
from mailer.dispatch.retry import RetryPolicy
from mailer.gateway.port import Unavailable
from mailer.message import trying
from mailer.message.model import FinishedMessage

PAUSE = 900.0
ONCE_MORE = RetryPolicy(attempts=8, base=1, cap=1)
# closed now, and until after the end of the mailing
CLOSED = """
    UPDATE mailing SET datetime_end = now() + interval '1 hour',
        send_interval_time_start = (now() AT TIME ZONE 'UTC' + interval '2 hours')::time,
        send_interval_time_end = (now() AT TIME ZONE 'UTC' + interval '3 hours')::time"""


async def test_message_that_its_gateway_told_to_wait_is_not_cancelled_outside_its_window(
    engine: AsyncEngine,
) -> None:
    mailing_id = await add_due_messages(engine, 1)
    (claimed,) = await claim(engine, mailing_id)
    (mailing,) = await running(engine)
    asked = Unavailable("http_503", PAUSE)
    waiting = after_sending(claimed, mailing, asked, datetime.now(UTC), ONCE_MORE)
    assert await finish(engine, waiting) == 1
    assert await claim(engine, mailing_id) == []
    await execute(engine, CLOSED)

    await trying.try_now(engine, COMMAND_LINE)

    (again,) = await claim(engine, mailing_id)
    (mailing,) = await running(engine)
    now = datetime.now(UTC)
    put_back = before_sending(again, mailing, now, 10)
    assert isinstance(put_back, FinishedMessage)
    assert await finish(engine, put_back) == 1
    assert await state(engine, claimed.id) == ("scheduled", "http_503", 1)
    assert put_back.due_at is not None
    assert put_back.due_at - now > timedelta(hours=1)
