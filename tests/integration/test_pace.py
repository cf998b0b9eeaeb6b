"""The pace that a dispatcher learns while it sends."""

import asyncio

import pytest
from tests.patience import PATIENCE
from tests.sample import add_due_messages, do, ledger

from mailer.db import origin
from mailer.db.engine import create_engine
from mailer.dispatch.dispatcher import Dispatcher
from mailer.gateway.breaker import Breaker
from mailer.gateway.pace import Pace
from mailer.gateway.port import Accepted, Outcome, Refused, Request, Unavailable
from mailer.settings import Settings

MESSAGES = 60


class Answering:
    """A gateway that answers in turn."""

    def __init__(self, *answers: tuple[float, Outcome]) -> None:
        self._answers = answers
        self.asked = 0

    async def send(self, request: Request) -> Outcome:
        request.begin()
        seconds, outcome = self._answers[self.asked % len(self._answers)]
        self.asked += 1
        await asyncio.sleep(seconds)
        request.write()
        return outcome


async def test_only_answers_make_the_pace(database_url: str) -> None:
    engine = create_engine(database_url)
    await do(engine, origin.update)  # as a start does, while there is nothing to send
    gateway = Answering((0.2, Accepted()), (0, Unavailable("http_500")), (0.1, Refused("no")))
    settings = Settings(gateway_concurrency=6, retry_base=0.01, retry_cap=0.02)
    pace = Pace(settings.gateway_concurrency)
    mailing_id = await add_due_messages(engine, MESSAGES)
    breaker = Breaker(settings.breaker_failures, settings.breaker_reset)
    dispatcher = Dispatcher(database_url, engine, gateway, breaker, pace, settings)
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(dispatcher.run())
        async with asyncio.timeout(PATIENCE):
            while "scheduled" in (found := await ledger(engine, mailing_id)) or "sending" in found:
                await asyncio.sleep(0.05)
        dispatcher.stop()
    await engine.dispose()

    assert gateway.asked > MESSAGES
    assert pace.rate == pytest.approx(6 / 0.15, rel=0.25)
