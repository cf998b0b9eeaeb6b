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
from tests.event_timeout import EVENT_TIMEOUT
from tests.factories import LEASE, NOON, OPEN, create_channel

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
from mailer.message.model import ClaimedMessage, MessageResult

CLAIM = ClaimedMessage(1, 1, 1, NOON, "79161234567", "UTC")
"""A message for whose result the recorder needs the database."""
Run = Callable[[], Coroutine[Any, Any, None]]


@pytest.fixture
def failures() -> LoopFailures:
    """The record of failures, to which each loop reports success and failure."""
    return LoopFailures()


@asynccontextmanager
async def running_loop(loop: Loop, url: str, failures: LoopFailures) -> AsyncIterator[None]:
    """Run one loop of the dispatcher on the database at `url` while the block lasts."""
    engine = create_engine(url)
    claims = WorkerClaims(LEASE, prefetch_size=1)
    mailings = RunningMailings(url, claims.in_flight, failures, lambda _: None)
    recorder = Recorder(url, claims, failures, lambda _: None)
    await recorder.put(MessageResult(CLAIM, "delivered", 1))
    claimer = Claimer(url, create_channel(), claims, mailings, failures)
    run: Run = {
        "watch_running_mailings": mailings.run,
        "lifecycle": Lifecycle(engine, failures, lambda _: None, lambda: False).run,
        "claim": lambda: claimer.run(lambda: None),
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

    async def wait_for_reason(expected: str | None) -> None:
        async with asyncio.timeout(EVENT_TIMEOUT):
            while lasting_reason() != expected:
                await asyncio.sleep(0.02)

    assert lasting_reason() is None
    missing_database = urlunsplit(urlsplit(shared_database_url)._replace(path="/nowhere"))
    async with running_loop(loop, missing_database, failures):
        await wait_for_reason(LOOP_FAILURE_REASONS[loop])
        assert failures.reason(elapsed() - FAILING_AFTER) is None  # too short a failure then
    async with running_loop(loop, shared_database_url, failures):
        await wait_for_reason(None)


async def test_readiness_names_the_failing_loop(
    engine: AsyncEngine, failures: LoopFailures
) -> None:
    app = create_app(
        engine, settings=OPEN, why_not_ready=lambda: failures.reason(elapsed() + FAILING_AFTER)
    )
    async with httpx.AsyncClient(transport=inside(app), base_url="http://127.0.0.1") as client:
        assert (await client.get("/health/ready")).status_code == 200
        failures.record("watch_running_mailings", has_failed=True)
        answer = await client.get("/health/ready")
        assert answer.status_code == 503
        assert answer.json()["detail"] == LOOP_FAILURE_REASONS["watch_running_mailings"]
        assert (await client.get("/health/live")).status_code == 200
        failures.record("watch_running_mailings", has_failed=False)
        assert (await client.get("/health/ready")).status_code == 200


def test_an_idle_loop_does_not_count_as_failing(failures: LoopFailures) -> None:
    failures.record("record", has_failed=True)
    assert failures.reason(elapsed() + FAILING_AFTER) == LOOP_FAILURE_REASONS["record"]
    assert failures.reason(elapsed() + IDLE_AFTER) is None
