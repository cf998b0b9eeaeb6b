"""The routes in the database are those of the worker that was started or reloaded last."""

import asyncio
from datetime import UTC, datetime, timedelta

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine
from tests.event_timeout import let_run
from tests.factories import (
    add_clients,
    add_due_messages,
    advance,
    channel_of,
    rows,
    start_and_enqueue,
)
from tests.integration.test_several_gateways import SETTINGS, ScriptedGateway

from mailer.access.model import COMMAND_LINE
from mailer.dispatch.route_update import RouteUpdate
from mailer.gateway import routes
from mailer.gateway.channel import Channels
from mailer.mailing import service
from mailer.mailing.model import NewMailing


def channels_of(name: str) -> Channels:
    """Return the channels of a worker whose file has one gateway."""
    return Channels([channel_of(ScriptedGateway(), SETTINGS, name=name)])


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


async def test_mailing_that_starts_while_routes_change_gets_the_new_routes(
    engine: AsyncEngine,
) -> None:
    locked_id = await add_due_messages(engine, 1)
    await add_clients(engine, 3)
    async with engine.begin() as connection:
        lock = text("SELECT FROM mailing WHERE id = :id FOR UPDATE")
        await connection.execute(lock, {"id": locked_id})
        update = asyncio.create_task(RouteUpdate(engine, channels_of("new")).run())
        await let_run(update)  # it waits for the lock
        now = datetime.now(UTC)
        new = NewMailing(
            datetime_start=now - timedelta(hours=1),
            datetime_end=now + timedelta(hours=1),
            text="Hello",
        )
        await service.create(engine, new, COMMAND_LINE)
        await start_and_enqueue(engine)
    await update
    await advance(engine)
    found = await rows(
        engine,
        "SELECT gateways, count(*) AS messages FROM message JOIN route ON route.id = route"
        " GROUP BY gateways",
    )
    assert {tuple(row["gateways"]): row["messages"] for row in found} == {("new",): 5}
