"""Messages go through several gateways: by operator code, order and weight, and around outages."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta

import pytest
from msgspec.structs import replace
from sqlalchemy.ext.asyncio import AsyncEngine
from tests.event_timeout import EVENT_TIMEOUT
from tests.factories import (
    FakeGateway,
    add_clients,
    add_due_messages,
    add_mailing,
    add_messages,
    channel_of,
    do,
    execute,
    rows,
    value,
)

from mailer.db import origin
from mailer.db.engine import create_engine
from mailer.dispatch.dispatcher import Dispatcher, DispatcherLimits
from mailer.gateway import routes
from mailer.gateway.channel import Channels
from mailer.gateway.protocol import (
    Accepted,
    Outcome,
    Rejected,
    Request,
    TemporaryFailure,
    Unknown,
)
from mailer.mailing.store import notify_mailings_changed
from mailer.settings import Settings
from mailer.statistics.verify import find_differences

SETTINGS = Settings(
    gateway_concurrency=4,
    breaker_failures=5,
    breaker_reset=0.2,
    retry_base=0.01,
    retry_cap=0.02,
)
DEAD = TemporaryFailure("connection_failed")


class ScriptedGateway(FakeGateway):
    """A gateway that answers each request with what `answer` returns for it."""

    def __init__(self, answer: Callable[[Request], Outcome] = lambda _: Accepted()) -> None:
        self.answer = answer
        self.requests: list[int] = []
        """The ids of the messages, in the order of the requests."""

    async def send(self, request: Request) -> Outcome:
        request.attach_task()
        await asyncio.sleep(0.001)
        if not request.mark_written():
            return request.outcome_of_abort() or Unknown("timeout")
        self.requests.append(request.message.id)
        return self.answer(request)


@pytest.fixture
async def engine(database_url: str) -> AsyncIterator[AsyncEngine]:
    engine = create_engine(database_url)
    await do(engine, origin.update)  # as at startup, while no message exists
    yield engine
    assert await find_differences(engine) == []
    await engine.dispose()


@asynccontextmanager
async def dispatching(
    engine: AsyncEngine, url: str, channels: Channels
) -> AsyncIterator[Dispatcher]:
    dispatcher = Dispatcher(url, engine, channels, DispatcherLimits.of(SETTINGS))
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(dispatcher.run())
        try:
            yield dispatcher
        finally:
            dispatcher.stop()


async def until_done(engine: AsyncEngine) -> None:
    """Wait until no message is open."""
    async with asyncio.timeout(EVENT_TIMEOUT):
        while await value(
            engine, "SELECT count(*) FROM message WHERE status IN ('scheduled', 'sending')"
        ):
            await asyncio.sleep(0.02)


async def by_gateway(engine: AsyncEngine) -> dict[tuple[str, str], int]:
    """Return the number of messages by status and gateway."""
    found = await rows(
        engine, "SELECT status, gateway, count(*) AS messages FROM message GROUP BY 1, 2"
    )
    return {(row["status"], row["gateway"]): row["messages"] for row in found}


async def test_messages_of_a_dead_gateway_go_to_the_next_order(
    engine: AsyncEngine, database_url: str
) -> None:
    first, second = ScriptedGateway(lambda _: DEAD), ScriptedGateway()
    channels = Channels(
        [
            channel_of(first, SETTINGS, name="first", order=1),
            channel_of(second, SETTINGS, name="second", order=2),
        ]
    )
    await add_due_messages(engine, 200)

    async with dispatching(engine, database_url, channels):
        await until_done(engine)

    assert await by_gateway(engine) == {("delivered", "second"): 200}
    assert sorted(second.requests) == sorted(set(second.requests))
    assert await value(engine, "SELECT max(attempts) FROM message") == 1


async def test_gateways_of_one_order_share_messages_by_weight(
    engine: AsyncEngine, database_url: str
) -> None:
    channels = Channels(
        [
            channel_of(ScriptedGateway(), SETTINGS, name="one", weight=1),
            channel_of(ScriptedGateway(), SETTINGS, name="three", weight=3),
        ]
    )
    await add_due_messages(engine, 800)

    async with dispatching(engine, database_url, channels):
        await until_done(engine)

    shares = await by_gateway(engine)
    assert shares["delivered", "one"] == pytest.approx(200, abs=60)
    assert shares["delivered", "three"] == pytest.approx(600, abs=60)


async def test_operator_codes_choose_the_gateway(engine: AsyncEngine, database_url: str) -> None:
    channels = Channels(
        [
            channel_of(ScriptedGateway(), SETTINGS, name="beeline", operator_codes=["903"]),
            channel_of(ScriptedGateway(), SETTINGS, name="other", order=2),
        ]
    )
    await add_due_messages(engine, 60)
    start = datetime.now(UTC) - timedelta(hours=1)
    mailing_id = await add_mailing(engine, clients=30, start=start)
    ids = await add_clients(engine, 30, operator_code="903")
    await add_messages(engine, mailing_id, ids, "scheduled")

    async with dispatching(engine, database_url, channels):
        await until_done(engine)

    gateways = await rows(
        engine, "SELECT operator_code, gateway, count(*) AS n FROM message GROUP BY 1, 2"
    )
    assert Counter((row["operator_code"], row["gateway"]) for row in gateways) == {
        ("903", "beeline"): 1,
        ("916", "other"): 1,
    }


async def test_unknown_message_stays_with_its_gateway(
    engine: AsyncEngine, database_url: str
) -> None:
    tried: set[int] = set()

    def lose_first_answer(request: Request) -> Outcome:
        if request.message.id in tried:
            return Accepted("again")
        tried.add(request.message.id)
        return Unknown("timeout")

    first, second = ScriptedGateway(lose_first_answer), ScriptedGateway()
    channels = Channels(
        [
            channel_of(first, SETTINGS, name="first"),
            channel_of(second, SETTINGS, name="second", order=2),
        ]
    )
    await add_due_messages(engine, 100)

    async with dispatching(engine, database_url, channels):
        await until_done(engine)

    assert not set(first.requests) & set(second.requests)
    result = await by_gateway(engine)
    assert sum(result.values()) == 100
    assert result["delivered", "first"] == len(set(first.requests))
    assert result["delivered", "second"] == len(second.requests)


async def test_message_refused_by_one_gateway_alone_is_tried_through_another(
    engine: AsyncEngine, database_url: str
) -> None:
    first = ScriptedGateway(lambda _: Rejected("rejected_403", other_gateways=True))
    second = ScriptedGateway()
    channels = Channels(
        [
            channel_of(first, SETTINGS, name="first"),
            channel_of(second, SETTINGS, name="second", order=2),
        ]
    )
    await add_due_messages(engine, 20)

    async with dispatching(engine, database_url, channels):
        await until_done(engine)

    assert sorted(first.requests) == sorted(second.requests)
    assert len(first.requests) == 20
    assert await by_gateway(engine) == {("delivered", "second"): 20}


async def test_text_of_too_many_parts_goes_through_a_gateway_that_takes_it(
    engine: AsyncEngine, database_url: str
) -> None:
    short = channel_of(ScriptedGateway(), SETTINGS, name="short")
    short.limits = replace(short.limits, parts=1)
    long = channel_of(ScriptedGateway(), SETTINGS, name="long", order=2)
    await add_due_messages(engine, 10)
    await execute(engine, "UPDATE mailing SET text = repeat('x', 161)")

    async with dispatching(engine, database_url, Channels([short, long])):
        await until_done(engine)
    assert await by_gateway(engine) == {("delivered", "long"): 10}
    assert await value(engine, "SELECT max(attempts) FROM message") == 1


async def test_text_of_too_many_parts_for_every_gateway_is_undelivered(
    engine: AsyncEngine, database_url: str
) -> None:
    gateway = ScriptedGateway()
    channel = channel_of(gateway, SETTINGS)
    channel.limits = replace(channel.limits, parts=1)
    await add_due_messages(engine, 3)
    await execute(engine, "UPDATE mailing SET text = repeat('x', 161)")

    async with dispatching(engine, database_url, Channels([channel])):
        await until_done(engine)
    assert gateway.requests == []
    assert await value(engine, "SELECT DISTINCT reason FROM message") == "too_many_parts"


async def test_paused_gateway_sends_nothing_until_it_is_resumed(
    engine: AsyncEngine, database_url: str
) -> None:
    gateway = ScriptedGateway()
    channels = Channels([channel_of(gateway, SETTINGS)])
    async with engine.begin() as connection:
        assert await routes.pause(connection, "default", "a user")
    await add_due_messages(engine, 10)

    async with dispatching(engine, database_url, channels):
        async with asyncio.timeout(EVENT_TIMEOUT):
            while channels.outage() is None:
                await asyncio.sleep(0.01)
        assert gateway.requests == []
        async with engine.begin() as connection:
            assert await routes.resume(connection, "default")
            await notify_mailings_changed(connection)
        await until_done(engine)

    assert len(gateway.requests) == 10


async def test_reload_moves_waiting_messages_to_the_new_gateways(
    engine: AsyncEngine, database_url: str
) -> None:
    dead = ScriptedGateway(lambda _: TemporaryFailure("no_credit", affects_all=True))
    channels = Channels([channel_of(dead, SETTINGS, name="old")])
    await add_due_messages(engine, 50)

    async with dispatching(engine, database_url, channels) as dispatcher:
        async with asyncio.timeout(EVENT_TIMEOUT):
            while channels.outage() is None:
                await asyncio.sleep(0.01)
        dispatcher.use([channel_of(ScriptedGateway(), SETTINGS, name="new")])
        await until_done(engine)

    assert await by_gateway(engine) == {("delivered", "new"): 50}
