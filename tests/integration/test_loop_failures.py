"""The readiness probe fails while a background loop of the dispatcher keeps failing."""

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import httpx
import pytest
from sqlalchemy.ext.asyncio import AsyncEngine
from tests.asgi_client import inside
from tests.factories import GATEWAY, LEASE, NOON, OPEN, ROUTE, create_channel
from tests.processes import until_true

from mailer.app import create_app
from mailer.clock import elapsed
from mailer.db.engine import create_engine
from mailer.dispatch.claimer import Claimer
from mailer.dispatch.claims import WorkerClaims
from mailer.dispatch.lifecycle import Lifecycle
from mailer.dispatch.loop_failures import (
    FAILING_AFTER,
    IDLE_AFTER,
    LOOP_FAILURE_REASONS,
    Loop,
    LoopFailures,
)
from mailer.dispatch.recorder import Recorder
from mailer.dispatch.running_mailings import RunningMailings
from mailer.dispatch.send_policy import RetryPolicy
from mailer.dispatch.sender import Sender, SenderParts
from mailer.gateway.channel import Channels
from mailer.gateway.router import GatewayTables
from mailer.message.model import ClaimedMessage, MessageResult

CLAIM = ClaimedMessage(
    id=1,
    mailing_id=1,
    attempts=1,
    lease_expires_at=NOON,
    phone="79161234567",
    time_zone="UTC",
)
"""A claim whose result the recorder writes, so that it needs the database."""
Run = Callable[[], Coroutine[Any, Any, None]]
"""Starts a loop, which ends when it is cancelled."""


@pytest.fixture
def failures() -> LoopFailures:
    """The record of failures, to which each loop reports success and failure."""
    return LoopFailures()


def create_claimer(
    url: str, claims: WorkerClaims, mailings: RunningMailings, failures: LoopFailures
) -> Claimer:
    """Return a claimer for one channel."""
    channels = Channels([create_channel()])
    channels.update(GatewayTables(routes={ROUTE: frozenset({GATEWAY})}, paused_at={}))
    claimer = Claimer(url, channels, claims, mailings, failures)
    recorder = Recorder(url, claims, failures, on_recorded=lambda _: None)
    parts = SenderParts(
        claims,
        mailings,
        recorder,
        RetryPolicy(attempts=1, base=1, cap=1),
        channels.has_other,
        claimer.wake,
    )
    claimer.use(Sender(channel, parts) for channel in channels)
    return claimer


@asynccontextmanager
async def running_loop(loop: Loop, url: str, failures: LoopFailures) -> AsyncIterator[None]:
    """Run one loop of the dispatcher on the database at `url` while the block lasts."""
    engine = create_engine(url)
    claims = WorkerClaims(LEASE)
    mailings = RunningMailings(url, claims.in_flight, failures, on_change=lambda _: None)
    lifecycle = Lifecycle(engine, failures, on_messages=lambda _: None, is_sending=lambda: False)
    recorder = Recorder(url, claims, failures, on_recorded=lambda _: None)
    await recorder.put(MessageResult(CLAIM, "delivered", attempts=1))
    claimer = create_claimer(url, claims, mailings, failures)
    run: Run = {
        "watch_running_mailings": mailings.run,
        "lifecycle": lifecycle.run,
        "claim": lambda: claimer.run(on_idle=lambda: None),
        "record": recorder.run,
    }[loop]
    running = asyncio.create_task(run())
    try:
        yield
    finally:
        running.cancel()
        await asyncio.wait({running})
        claimer.close()
        await engine.dispose()


@pytest.mark.usefixtures("engine")
@pytest.mark.parametrize("loop", LOOP_FAILURE_REASONS)
async def test_a_failing_loop_is_reported_until_it_succeeds(
    shared_database_url: str, failures: LoopFailures, loop: Loop
) -> None:
    def lasting_reason() -> str | None:
        """Return what is reported if the present state lasts for `FAILING_AFTER`."""
        return failures.reason(elapsed() + FAILING_AFTER)

    async def is_reported() -> bool:
        return lasting_reason() == LOOP_FAILURE_REASONS[loop]

    async def is_not_reported() -> bool:
        return lasting_reason() is None

    assert await is_not_reported()
    url_of_no_database = urlunsplit(urlsplit(shared_database_url)._replace(path="/nowhere"))
    async with running_loop(loop, url_of_no_database, failures):
        await until_true(is_reported)
    async with running_loop(loop, shared_database_url, failures):
        await until_true(is_not_reported)


async def test_readiness_names_the_failing_loop(
    engine: AsyncEngine, failures: LoopFailures
) -> None:
    app = create_app(
        engine, settings=OPEN, why_not_ready=lambda: failures.reason(elapsed() + FAILING_AFTER)
    )
    async with httpx.AsyncClient(transport=inside(app), base_url="http://127.0.0.1") as client:
        assert (await client.get("/health/ready")).status_code == 200
        failures.record("watch_running_mailings", has_failed=True)
        not_ready = await client.get("/health/ready")
        assert not_ready.status_code == 503
        assert not_ready.json()["detail"] == LOOP_FAILURE_REASONS["watch_running_mailings"]
        assert (await client.get("/health/live")).status_code == 200
        failures.record("watch_running_mailings", has_failed=False)
        assert (await client.get("/health/ready")).status_code == 200


def test_a_loop_that_has_just_failed_does_not_count_as_failing(failures: LoopFailures) -> None:
    failures.record("record", has_failed=True)
    assert failures.reason(elapsed()) is None


def test_an_idle_loop_does_not_count_as_failing(failures: LoopFailures) -> None:
    failures.record("record", has_failed=True)
    assert failures.reason(elapsed() + FAILING_AFTER) == LOOP_FAILURE_REASONS["record"]
    assert failures.reason(elapsed() + IDLE_AFTER) is None
