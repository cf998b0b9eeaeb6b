"""When the breaker opens, requests that have started and are not written yet are not sent."""

import asyncio

from tests.event_timeout import EVENT_TIMEOUT
from tests.factories import (
    FakeGateway,
    add_due_messages,
    channel_of,
    do,
    mailing_counts,
    value,
)

from mailer.db import origin
from mailer.db.engine import create_engine
from mailer.dispatch.dispatcher import Dispatcher, DispatcherLimits
from mailer.gateway.channel import Channel, Channels
from mailer.gateway.protocol import Outcome, Request, TemporaryFailure, Unknown
from mailer.settings import Settings

BUSY = TemporaryFailure("http_429", retry_after=600, affects_all=True)
"""An outcome that opens the breaker."""


class SlowToConnect(FakeGateway):
    """A gateway that responds to one of three requests while the two others still connect.

    The response opens the breaker. After that, the two others are connected.
    """

    def __init__(self) -> None:
        self.channel: Channel | None = None
        """The channel to this gateway, with its breaker; the test sets it."""
        self.were_written: list[bool] = []
        """For each of the two others, whether it could be written when it was connected."""
        self._all_started = asyncio.Barrier(3)

    async def send(self, request: Request) -> Outcome:
        request.attach_task()
        number = await self._all_started.wait()  # of this request, from 0 to 2
        if number == 0:
            request.mark_written()
            return BUSY
        while self.channel is None or self.channel.breaker.state == "closed":
            await asyncio.sleep(0)
        self.were_written.append(request.mark_written())
        return request.outcome_of_abort() or Unknown("timeout")


async def test_requests_waiting_for_a_connection_are_not_written_after_the_breaker_opens(
    database_url: str,
) -> None:
    engine = create_engine(database_url)
    await do(engine, origin.update)  # as at startup, while no message exists
    settings = Settings(gateway_concurrency=3)
    gateway = SlowToConnect()
    channel = gateway.channel = channel_of(gateway, settings)
    mailing_id = await add_due_messages(engine, 3)
    dispatcher = Dispatcher(
        database_url, engine, Channels([channel]), DispatcherLimits.of(settings)
    )
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(dispatcher.run())
        async with asyncio.timeout(EVENT_TIMEOUT):
            while len(gateway.were_written) < 2 or "sending" in await mailing_counts(
                engine, mailing_id
            ):
                await asyncio.sleep(0.02)
        dispatcher.stop()

    assert gateway.were_written == [False, False]
    assert await mailing_counts(engine, mailing_id) == {"scheduled": 3}
    assert await value(engine, "SELECT sum(attempts) FROM message") == 0
    await engine.dispose()
