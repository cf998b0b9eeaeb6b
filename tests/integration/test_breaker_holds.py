"""A breaker that opens holds what has its permit and is not written yet."""

import asyncio

from tests.patience import PATIENCE
from tests.sample import add_due_messages, do, ledger, value

from mailer.db import origin
from mailer.db.engine import create_engine
from mailer.dispatch.dispatcher import Dispatcher
from mailer.gateway.breaker import Breaker
from mailer.gateway.pace import Pace
from mailer.gateway.port import Outcome, Request, Unavailable, Unknown
from mailer.settings import Settings

BUSY = Unavailable("http_429", 600, affects_all=True)


class SlowToConnect:
    """A gateway that is busy for the first request, while the others still wait to connect."""

    def __init__(self, breaker: Breaker) -> None:
        self._breaker = breaker
        self._connecting = asyncio.Barrier(3)
        self.is_written: list[bool] = []

    async def send(self, request: Request) -> Outcome:
        request.begin()
        if await self._connecting.wait() == 0:
            request.write()
            return BUSY
        while self._breaker.state == "closed":
            await asyncio.sleep(0)
        self.is_written.append(request.write())
        return request.outcome_of_cut() or Unknown("timeout")


async def test_a_request_that_waits_for_its_connection_is_not_written_once_the_breaker_opens(
    database_url: str,
) -> None:
    engine = create_engine(database_url)
    await do(engine, origin.update)  # as a start does, while there is nothing to send
    settings = Settings(gateway_concurrency=3)
    breaker = Breaker(settings.breaker_failures, settings.breaker_reset)
    gateway = SlowToConnect(breaker)
    mailing_id = await add_due_messages(engine, 3)
    dispatcher = Dispatcher(database_url, engine, gateway, breaker, Pace(3), settings)
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(dispatcher.run())
        async with asyncio.timeout(PATIENCE):
            while len(gateway.is_written) < 2 or "sending" in await ledger(engine, mailing_id):
                await asyncio.sleep(0.02)
        dispatcher.stop()

    assert gateway.is_written == [False, False]
    assert await ledger(engine, mailing_id) == {"scheduled": 3}
    assert await value(engine, "SELECT sum(attempts) FROM message") == 0
    await engine.dispose()
