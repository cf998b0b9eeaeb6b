"""The throughput that a dispatcher estimates while it sends."""

import asyncio
import itertools
from typing import NamedTuple

import pytest
from tests.event_timeout import EVENT_TIMEOUT
from tests.factories import FakeGateway, add_due_messages, channel_of, do, mailing_counts

from mailer.db import origin
from mailer.db.engine import create_engine
from mailer.dispatch.dispatcher import Dispatcher, DispatcherLimits
from mailer.gateway.channel import Channels
from mailer.gateway.protocol import Accepted, Outcome, Rejected, Request, TemporaryFailure
from mailer.settings import Settings

MESSAGES = 60
"""Number of messages to send."""
CONCURRENCY = 6
"""Number of requests at the same time."""


class Reaction(NamedTuple):
    """How a fake gateway reacts to a request."""

    seconds: float
    outcome: Outcome


class RepeatingGateway(FakeGateway):
    """A gateway that reacts to the requests by each of its reactions in turn, again and again."""

    def __init__(self, *reactions: Reaction) -> None:
        self._reactions = itertools.cycle(reactions)
        self.request_count = 0

    async def send(self, request: Request) -> Outcome:
        request.attach_task()
        self.request_count += 1
        reaction = next(self._reactions)
        await asyncio.sleep(reaction.seconds)
        request.mark_written()
        return reaction.outcome


async def test_only_accepted_and_rejected_messages_count_for_the_throughput(
    database_url: str,
) -> None:
    engine = create_engine(database_url)
    await do(engine, origin.update)  # as at startup, while no message exists
    gateway = RepeatingGateway(
        Reaction(0.2, Accepted()),
        Reaction(0, TemporaryFailure("http_500")),
        Reaction(0.1, Rejected("rejected_400")),
    )
    settings = Settings(gateway_concurrency=CONCURRENCY, retry_base=0.01, retry_cap=0.02)
    channel = channel_of(gateway, settings)
    mailing_id = await add_due_messages(engine, MESSAGES)
    dispatcher = Dispatcher(
        database_url, engine, Channels([channel]), DispatcherLimits.of(settings)
    )
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(dispatcher.run())
        async with asyncio.timeout(EVENT_TIMEOUT):
            while {"scheduled", "sending"} & (await mailing_counts(engine, mailing_id)).keys():
                await asyncio.sleep(0.05)
        dispatcher.stop()
    await engine.dispose()

    assert gateway.request_count > MESSAGES  # so there were temporary failures
    mean_seconds = (0.2 + 0.1) / 2  # of the accepted and the rejected messages
    assert channel.throughput.rate == pytest.approx(CONCURRENCY / mean_seconds, rel=0.25)
