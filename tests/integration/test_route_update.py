"""The routes in the database are those of the worker that was started or reloaded last."""

from collections.abc import Callable
from datetime import UTC, datetime

import asyncpg
import pytest
from sqlalchemy.ext.asyncio import AsyncEngine
from tests.factories import channel_of
from tests.integration.test_several_gateways import SETTINGS, ScriptedGateway

from mailer.db.engine import connect
from mailer.db.workers import session_name
from mailer.dispatch.route_update import ABSENCE_TIMEOUT, RouteUpdate
from mailer.gateway import routes
from mailer.gateway.channel import Channels


class Clock:
    """A clock that the test moves."""

    def __init__(self) -> None:
        self.seconds = 100.0

    def __call__(self) -> float:
        return self.seconds


@pytest.fixture
def clock() -> Clock:
    return Clock()


def name_of(host: str) -> str:
    """Return the name of a worker on this host."""
    return session_name(host, 7, datetime(2026, 3, 4, 12, tzinfo=UTC))


def channels_of(name: str) -> Channels:
    """Return the channels of a worker whose file has one gateway."""
    return Channels([channel_of(ScriptedGateway(), SETTINGS, name=name)])


async def start(
    engine: AsyncEngine, host: str, gateway: str, clock: Callable[[], float]
) -> RouteUpdate:
    """Let a worker with one gateway apply its routes; return its job."""
    update = RouteUpdate(engine, channels_of(gateway), lambda: name_of(host), clock)
    await update.run()
    return update


async def open_session(database_url: str, host: str) -> asyncpg.Connection:
    """Open the session by which a worker is active."""
    session = await connect(database_url, application_name=name_of(host))
    await session.execute("SELECT 1")
    return session


async def gateway_names(engine: AsyncEngine) -> list[str]:
    async with engine.connect() as connection:
        return await routes.gateway_names(connection)


async def test_reload_of_an_unchanged_file_replaces_the_routes_of_another_worker(
    engine: AsyncEngine,
) -> None:
    channels = channels_of("old")
    update = RouteUpdate(engine, channels)
    await update.run()
    await RouteUpdate(engine, channels_of("new")).run()
    await update.run()
    assert await gateway_names(engine) == ["new"]
    channels.replace(list(channels))
    await update.run()
    assert await gateway_names(engine) == ["old"]


async def test_a_worker_applies_its_routes_when_the_one_that_decided_is_gone(
    engine: AsyncEngine, clock: Clock
) -> None:
    living = await start(engine, "living", "right", clock)
    await start(engine, "killed", "wrong", clock)

    await living.run()
    clock.seconds += ABSENCE_TIMEOUT - 1
    await living.run()
    assert await gateway_names(engine) == ["wrong"]

    clock.seconds += 1
    await living.run()
    assert await gateway_names(engine) == ["right"]


async def test_a_worker_that_is_active_keeps_deciding(
    engine: AsyncEngine, shared_database_url: str, clock: Clock
) -> None:
    earlier = await start(engine, "earlier", "old", clock)
    await start(engine, "later", "new", clock)
    await earlier.run()  # the later one has no session yet
    session = await open_session(shared_database_url, "later")

    for _ in range(3):
        clock.seconds += ABSENCE_TIMEOUT
        await earlier.run()
        assert await gateway_names(engine) == ["new"]
    await session.close()


async def test_the_worker_before_the_one_that_is_gone_decides(
    engine: AsyncEngine, shared_database_url: str, clock: Clock
) -> None:
    first = await start(engine, "first", "a", clock)
    second = await start(engine, "second", "b", clock)
    sessions = [await open_session(shared_database_url, host) for host in ("first", "second")]
    await start(engine, "third", "c", clock)

    for update in (first, second):
        await update.run()
    clock.seconds += ABSENCE_TIMEOUT
    await first.run()
    assert await gateway_names(engine) == ["c"]
    await second.run()
    assert await gateway_names(engine) == ["b"]
    for session in sessions:
        await session.close()


async def test_a_worker_that_seemed_gone_decides_again_when_the_others_are(
    engine: AsyncEngine, clock: Clock
) -> None:
    first = await start(engine, "first", "a", clock)
    second = await start(engine, "second", "b", clock)

    for update, gateway in ((first, "a"), (second, "b")):
        await update.run()
        clock.seconds += ABSENCE_TIMEOUT
        await update.run()
        assert await gateway_names(engine) == [gateway]
