"""The contact cap while two workers send two mailings to the same clients."""

import asyncio
from collections import Counter
from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy.ext.asyncio import AsyncEngine
from tests.event_timeout import EVENT_TIMEOUT
from tests.factories import FakeGateway, add_clients, add_mailing, add_messages, channel_of, value

from mailer.dispatch.dispatcher import Dispatcher, DispatcherLimits
from mailer.gateway.channel import Channels
from mailer.gateway.protocol import Accepted, Outcome, Rejected, Request
from mailer.settings import Settings
from mailer.statistics.verify import find_differences

OPEN = "SELECT count(*) FROM message WHERE status IN ('scheduled', 'sending')"
STATUS = "SELECT count(*) FROM message WHERE status = '{}'"
OVER_CAP = "SELECT count(*) FROM message WHERE status = 'cancelled' AND reason = 'contact_cap'"
RUNNING = "SELECT count(*) FROM mailing WHERE status = 'running'"


class CountingGateway(FakeGateway):
    """A gateway that accepts all messages but the first ones, and counts them by phone."""

    def __init__(self, rejected: int = 0) -> None:
        self.accepted: Counter[str] = Counter()
        self._rejected = rejected

    async def send(self, request: Request) -> Outcome:
        request.attach_task()
        await asyncio.sleep(0.002)
        assert request.mark_written()
        if self._rejected:
            self._rejected -= 1
            return Rejected("rejected_400")
        self.accepted[request.message.phone] += 1
        return Accepted()


async def send_all(engine: AsyncEngine, url: str, gateways: list[CountingGateway]) -> None:
    """Send with one worker for each gateway until no message is left, and all mailings finish."""
    settings = Settings(gateway_concurrency=4, contact_cap="1/1d")
    limits = DispatcherLimits.of(settings)
    dispatchers = [
        Dispatcher(url, engine, Channels([channel_of(gateway, settings)]), limits)
        for gateway in gateways
    ]
    async with asyncio.TaskGroup() as tasks:
        for dispatcher in dispatchers:
            tasks.create_task(dispatcher.run())
        try:
            async with asyncio.timeout(EVENT_TIMEOUT):
                while await value(engine, OPEN) or await value(engine, RUNNING):
                    await asyncio.sleep(0.05)
        finally:
            for dispatcher in dispatchers:
                dispatcher.stop()


async def add_mailings_to(engine: AsyncEngine, clients: list[int], mailings: int) -> None:
    """Create running mailings with due messages to the same clients."""
    start = datetime.now(UTC) - timedelta(hours=1)
    for _ in range(mailings):
        mailing_id = await add_mailing(engine, clients=len(clients), start=start)
        await add_messages(engine, mailing_id, clients, "scheduled", at=start)


@pytest.mark.parametrize("clients", [1, 200])
async def test_each_client_gets_exactly_one_of_two_mailings(
    engine: AsyncEngine, shared_database_url: str, clients: int
) -> None:
    await add_mailings_to(engine, await add_clients(engine, clients), 2)
    gateways = [CountingGateway(), CountingGateway()]

    await send_all(engine, shared_database_url, gateways)

    assert set((gateways[0].accepted + gateways[1].accepted).values()) == {1}
    assert await value(engine, STATUS.format("delivered")) == clients
    assert await value(engine, OVER_CAP) == clients
    attempts = await value(engine, "SELECT sum(attempts) FROM message")
    assert attempts == clients  # the cancelled messages cost none
    assert await find_differences(engine) == []


async def test_rejected_messages_do_not_use_up_the_cap(
    engine: AsyncEngine, shared_database_url: str
) -> None:
    clients = await add_clients(engine, 3)
    await add_mailings_to(engine, clients, 1)
    await send_all(engine, shared_database_url, [CountingGateway(rejected=3)])
    await add_mailings_to(engine, clients, 2)
    gateway = CountingGateway()
    await send_all(engine, shared_database_url, [gateway])
    assert sorted(gateway.accepted.values()) == [1, 1, 1]
    assert await value(engine, OVER_CAP) == 3
