"""Messages are sent once each, and in turn, while routes differ or change."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator

import pytest
from msgspec.structs import replace
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine
from tests.event_timeout import EVENT_TIMEOUT
from tests.factories import add_due_messages, channel_of, do, execute, rows, value
from tests.integration.test_several_gateways import (
    SETTINGS,
    ScriptedGateway,
    by_gateway,
    dispatching,
    until_done,
)

from mailer.access.model import COMMAND_LINE
from mailer.db import origin
from mailer.db.engine import create_engine
from mailer.gateway import routes
from mailer.gateway.channel import Channels
from mailer.gateway.protocol import Outcome, Rejected, Request
from mailer.mailing import service
from mailer.mailing.mailing_batches import MAILINGS_PER_BATCH
from mailer.mailing.model import MailingChange
from mailer.statistics.verify import find_differences


@pytest.fixture
async def engine(database_url: str) -> AsyncIterator[AsyncEngine]:
    engine = create_engine(database_url)
    await do(engine, origin.update)  # as at startup, while no message exists
    yield engine
    assert await find_differences(engine) == []
    await engine.dispose()


async def test_routes_that_share_a_gateway_alternate(
    engine: AsyncEngine, database_url: str
) -> None:
    shared = ScriptedGateway()
    slow = replace(SETTINGS, gateway_rate=200.0)
    channels = Channels(
        [
            channel_of(shared, slow, name="shared"),
            channel_of(ScriptedGateway(), slow, name="paused"),
        ]
    )
    async with engine.begin() as connection:
        await routes.apply_routes(connection, {"shared": None, "paused": None})
        await routes.pause(connection, "paused", "a user")
        alone = await routes.find_route(connection, ["shared"])
        both = await routes.find_route(connection, ["shared", "paused"])
    large = await add_due_messages(engine, 500)
    small = await add_due_messages(engine, 20)
    for mailing_id, route in ((large, alone), (small, both)):
        await execute(
            engine,
            f"UPDATE message SET route = {route} WHERE mailing_id = {mailing_id}",  # noqa: S608  # numbers
        )
    await execute(engine, "DELETE FROM rerouting")

    async with dispatching(engine, database_url, channels):
        await until_done(engine)

    found = await rows(engine, "SELECT id, mailing_id FROM message")
    mailing_of = {row["id"]: row["mailing_id"] for row in found}
    first_half = Counter(mailing_of[id_] for id_ in shared.requests[:260])
    assert first_half[small] == 20


async def test_message_refused_while_its_route_changes_keeps_a_gateway(
    engine: AsyncEngine, database_url: str
) -> None:
    may_answer = asyncio.Event()

    class SlowGateway(ScriptedGateway):
        async def send(self, request: Request) -> Outcome:
            outcome = await super().send(request)
            await may_answer.wait()
            return outcome

    first = SlowGateway(lambda _: Rejected("rejected_403", other_gateways=True))
    channels = Channels(
        [
            channel_of(first, SETTINGS, name="first"),
            channel_of(ScriptedGateway(), SETTINGS, name="second", order=2),
        ]
    )
    mailing_id = await add_due_messages(engine, 1)

    async with dispatching(engine, database_url, channels):
        async with asyncio.timeout(EVENT_TIMEOUT):
            while not first.requests:
                await asyncio.sleep(0.01)
        await service.change(engine, mailing_id, MailingChange(gateway="first"), COMMAND_LINE)
        async with asyncio.timeout(EVENT_TIMEOUT):
            while await value(engine, "SELECT count(*) FROM rerouting"):
                await asyncio.sleep(0.01)
        may_answer.set()
        await until_done(engine)

    assert await by_gateway(engine) == {("undelivered", "first"): 1}


CLAIM_WAITS = text("""
    SELECT count(*) FROM pg_stat_activity
    WHERE wait_event_type = 'Lock' AND query LIKE '%WITH due AS%' AND pid <> pg_backend_pid()""")
FORGET_ACTIVITY = text("SELECT pg_stat_clear_snapshot()")  # else a transaction sees it once


async def test_messages_claimed_for_a_gateway_that_a_reload_removes_are_released(
    engine: AsyncEngine, database_url: str
) -> None:
    channels = Channels([channel_of(ScriptedGateway(), SETTINGS, name="old")])
    await add_due_messages(engine, 3)
    await execute(engine, "UPDATE message SET due_at = now() + interval '2 seconds'")

    async with dispatching(engine, database_url, channels) as dispatcher:
        async with asyncio.timeout(EVENT_TIMEOUT):
            while not await value(
                engine,
                "SELECT count(*) FROM message JOIN route ON route.id = route"
                " WHERE gateways = '{old}'",
            ):
                await asyncio.sleep(0.01)
            async with engine.begin() as connection:
                await connection.execute(text("LOCK TABLE message IN SHARE MODE"))
                while not (await connection.execute(CLAIM_WAITS)).scalar_one():
                    await connection.execute(FORGET_ACTIVITY)
                    await asyncio.sleep(0.01)
                dispatcher.use([channel_of(ScriptedGateway(), SETTINGS, name="new")])
        await until_done(engine)

    assert await by_gateway(engine) == {("delivered", "new"): 3}


async def test_two_workers_send_each_message_once_while_routes_change(
    engine: AsyncEngine, database_url: str
) -> None:
    slow = replace(SETTINGS, gateway_rate=300.0)
    gateways = [ScriptedGateway() for _ in range(4)]
    one, two, new_one, new_two = (
        channel_of(gateway, slow, name=name)
        for gateway, name in zip(gateways, ("old", "old", "new", "new"), strict=True)
    )
    for _ in range(2 * MAILINGS_PER_BATCH):
        await add_due_messages(engine, 10)
    async with (
        dispatching(engine, database_url, Channels([one])) as first,
        dispatching(engine, database_url, Channels([two])) as second,
    ):
        async with asyncio.timeout(EVENT_TIMEOUT):
            while not gateways[0].requests:
                await asyncio.sleep(0.01)
        first.use([new_one])
        second.use([new_two])
        await until_done(engine)

    sent = [id_ for gateway in gateways for id_ in gateway.requests]
    assert sorted(sent) == sorted(set(sent))
    assert len(sent) == 20 * MAILINGS_PER_BATCH
    delivered = await by_gateway(engine)
    assert delivered["delivered", "new"] == sum(len(new.requests) for new in gateways[2:]) > 0


class HangingGateway(ScriptedGateway):
    """A gateway to which connecting takes until `has_connected` is set."""

    def __init__(self) -> None:
        super().__init__()
        self.is_connecting, self.has_connected = asyncio.Event(), asyncio.Event()

    async def send(self, request: Request) -> Outcome:
        self.is_connecting.set()
        await self.has_connected.wait()
        return await super().send(request)


async def test_pause_stops_the_unwritten_requests_of_a_channel_that_a_reload_has_replaced(
    engine: AsyncEngine, database_url: str
) -> None:
    replaced, current = HangingGateway(), ScriptedGateway()
    channels = Channels([channel_of(replaced, SETTINGS)])
    await add_due_messages(engine, 1)

    async with dispatching(engine, database_url, channels) as dispatcher:
        async with asyncio.timeout(EVENT_TIMEOUT):
            await replaced.is_connecting.wait()
            dispatcher.use([channel_of(current, SETTINGS)])
            await do(engine, lambda db: routes.pause(db, "default", "a user"))
            while channels.outage() is None:
                await asyncio.sleep(0.01)
            replaced.has_connected.set()
            while await value(engine, "SELECT count(*) FROM message WHERE status = 'sending'"):
                await asyncio.sleep(0.01)
        assert replaced.requests == current.requests == []
        await do(engine, lambda db: routes.resume(db, "default"))
        await until_done(engine)

    assert (replaced.requests, len(current.requests)) == ([], 1)
