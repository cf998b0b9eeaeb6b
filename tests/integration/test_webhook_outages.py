"""The events `gateway.down`, `gateway.up` and `mailing.held`, once for all workers."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from sqlalchemy.ext.asyncio import AsyncEngine
from tests.factories import (
    HOUR,
    NOON,
    UnusedGateway,
    add_clients,
    add_mailing,
    add_messages,
    channel_of,
    execute,
    value,
)
from tests.webhook_receiver import add_webhook, deliveries

from mailer.clock import database_clock
from mailer.gateway.channel import Channels
from mailer.gateway.protocol import Accepted, TemporaryFailure
from mailer.mailing import store
from mailer.mailing.activity import with_holds
from mailer.settings import Settings
from mailer.webhook.outages import OutageWatch

URL = "https://shop.example/"
DOWN = TemporaryFailure("http_503", affects_all=True)


class Worker:
    """A worker with the gateways `main` and `spare`, whose breakers the test opens and closes."""

    def __init__(self, engine: AsyncEngine, *names: str) -> None:
        settings = Settings()
        self.channels = Channels(
            channel_of(UnusedGateway(), settings, name=name) for name in names or ("main", "spare")
        )
        self.watch = OutageWatch(engine, self.channels)

    def record(self, name: str, outcome: TemporaryFailure | Accepted) -> None:
        """Open or close the breaker of a gateway."""
        channel = self.channels.get(name)
        assert channel is not None
        generation = channel.breaker.acquire(1e9)
        assert generation is not None
        channel.breaker.record(generation, outcome, 0.0, database_clock.now())

    async def run(self) -> None:
        """Run the periodic job once."""
        await self.watch.run()


@pytest.fixture
def workers(engine: AsyncEngine) -> tuple[Worker, Worker]:
    """Two workers with the same gateways."""
    return Worker(engine), Worker(engine)


async def events(engine: AsyncEngine) -> list[tuple[str, Any]]:
    """Return the types and the subjects of all events."""
    return [
        (
            row["type"],
            row["data"].get("gateway") if "gateway." in row["type"] else row["data"]["id"],
        )
        for row in await deliveries(engine)
    ]


async def pass_seconds(engine: AsyncEngine, seconds: int) -> None:
    """Act as if so many seconds had passed since the reports of outages."""
    await execute(
        engine,
        f"UPDATE gateway_outage SET seen_at = seen_at - interval '{seconds} s'",  # noqa: S608  # a number
    )


async def test_a_gateway_is_down_once_and_up_once_for_all_workers(
    engine: AsyncEngine, workers: tuple[Worker, Worker]
) -> None:
    first, second = workers
    await add_webhook(engine, URL)
    for worker in workers:
        await worker.run()
    assert await events(engine) == []
    first.record("main", DOWN)
    for worker in (first, second, first):
        await worker.run()
    second.record("main", DOWN)
    await second.run()
    assert await events(engine) == [("gateway.down", "main")]
    [row] = await deliveries(engine)
    assert row["data"]["reason"] == "http_503"
    assert row["data"]["since"].endswith("Z")
    first.record("main", Accepted())
    for _ in range(3):  # the second worker still does not use it
        await pass_seconds(engine, 4)
        await second.run()
        await first.run()
    assert len(await events(engine)) == 1
    second.record("main", Accepted())
    await pass_seconds(engine, 6)
    for worker in (*workers, *workers):
        await worker.run()
    assert await events(engine) == [("gateway.down", "main"), ("gateway.up", "main")]
    assert (await deliveries(engine))[1]["data"]["down_since"] == row["data"]["since"]


async def test_a_pause_by_a_user_is_an_outage(
    engine: AsyncEngine, workers: tuple[Worker, Worker]
) -> None:
    await add_webhook(engine, URL, ["gateway.down"])
    for worker in workers:
        channel = worker.channels.get("main")
        assert channel is not None
        channel.pauses = {"main": NOON}
        await worker.run()
    [row] = await deliveries(engine)
    assert row["data"] == {
        "gateway": "main",
        "reason": "gateway_paused",
        "since": "2020-01-15T12:00:00.000000Z",
    }


async def test_a_gateway_that_was_removed_is_forgotten_in_silence(engine: AsyncEngine) -> None:
    await add_webhook(engine, URL)
    worker = Worker(engine)
    worker.record("main", DOWN)
    await worker.run()
    await pass_seconds(engine, 6)
    await Worker(engine, "spare").run()
    assert await events(engine) == [("gateway.down", "main")]
    assert await value(engine, "SELECT count(*) FROM gateway_outage") == 0


async def test_a_mailing_is_held_once_each_time_all_its_gateways_are_out(
    engine: AsyncEngine, workers: tuple[Worker, Worker]
) -> None:
    await add_webhook(engine, URL, ["mailing.held"])
    any_gateway, on_main = [await add_mailing(engine, start=NOON, lasts=LONG) for _ in range(2)]
    paused = await add_mailing(engine, start=NOON, lasts=LONG, status="paused")
    await execute(engine, f"UPDATE mailing SET gateway = 'main' WHERE id = {on_main}")  # noqa: S608  # a number
    for worker in workers:
        worker.record("main", DOWN)
        await worker.run()
        await worker.run()
    assert await events(engine) == [("mailing.held", on_main)]
    for worker in workers:
        worker.record("spare", DOWN)
        await worker.run()
    held = [("mailing.held", on_main), ("mailing.held", any_gateway)]
    assert await events(engine) == held
    late = await add_mailing(engine, start=NOON, lasts=LONG)  # one that starts meanwhile
    await execute(engine, f"UPDATE mailing SET status = 'running' WHERE id = {paused}")  # noqa: S608  # a number
    await workers[0].run()
    held += [("mailing.held", paused), ("mailing.held", late)]
    assert sorted(await events(engine)) == sorted(held)
    for worker in workers:
        for name in ("main", "spare"):
            worker.record(name, Accepted())
    await pass_seconds(engine, 6)
    await workers[0].run()
    assert await value(engine, "SELECT count(*) FROM mailing_hold") == 0
    for worker in workers:
        worker.record("main", DOWN)
        await worker.run()
    assert sorted(await events(engine)) == sorted([*held, ("mailing.held", on_main)])


async def test_a_mailing_that_waits_for_its_sending_window_is_no_event(engine: AsyncEngine) -> None:
    await add_webhook(engine, URL, ["mailing.held"])
    mailing_id = await add_mailing(engine, clients=1, start=NOON, lasts=LONG)
    opens = datetime.now(UTC) + HOUR
    await add_messages(engine, mailing_id, await add_clients(engine, 1), "scheduled", at=opens)
    worker = Worker(engine, "default")
    async with engine.connect() as connection:
        mailing = await store.get(connection, mailing_id)
        [mailing] = await with_holds(connection, [mailing], worker.channels)
    assert mailing.held is not None
    assert mailing.held.reason == "window_closed"

    await worker.run()

    assert await events(engine) == []


async def test_a_worker_without_gateways_holds_mailings(engine: AsyncEngine) -> None:
    await add_webhook(engine, URL, ["mailing.held", "gateway.down"])
    mailing_id = await add_mailing(engine, start=NOON, lasts=LONG)
    watch = OutageWatch(engine, Channels())
    await watch.run()
    await watch.run()
    [row] = await deliveries(engine)
    assert (row["type"], row["data"]["id"]) == ("mailing.held", mailing_id)
    assert row["data"]["reason"] == "no_gateway"


async def test_nothing_is_kept_of_mailings_without_a_subscriber(engine: AsyncEngine) -> None:
    await add_webhook(engine, URL, ["gateway.up"])
    await add_mailing(engine, start=NOON, lasts=LONG)
    await OutageWatch(engine, Channels()).run()
    assert await value(engine, "SELECT count(*) FROM mailing_hold") == 0
    assert await events(engine) == []


LONG = timedelta(days=36_500)
"""Duration of a mailing that has not ended yet."""
