"""Readiness says when the loops that everything rests on fail again and again."""

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import httpx
import pytest
from sqlalchemy.ext.asyncio import AsyncEngine
from tests.asked import inside
from tests.processes import until
from tests.sample import LEASE, NOON, OPEN, OWNER

from mailer.app import create_app
from mailer.clock import elapsed
from mailer.db.engine import create_engine
from mailer.dispatch.claimed import ClaimedQueue
from mailer.dispatch.claimer import Claimer
from mailer.dispatch.giveback import GiveBack
from mailer.dispatch.lifecycle import Lifecycle
from mailer.dispatch.loop_failures import LAPSE, LIMIT, REASONS, Loop, LoopFailures
from mailer.dispatch.recorder import Recorder
from mailer.dispatch.requests import Requests
from mailer.dispatch.watch import MailingWatch
from mailer.gateway.breaker import Breaker
from mailer.message.model import ClaimedMessage, FinishedMessage

CLAIM = ClaimedMessage(1, 1, 1, NOON, "79161234567", "UTC")
Run = Callable[[], Coroutine[Any, Any, None]]


@pytest.fixture
def failures() -> LoopFailures:
    return LoopFailures()


@asynccontextmanager
async def loop_over(loop: Loop, url: str, failures: LoopFailures) -> AsyncIterator[None]:
    """Run a loop on a database."""
    engine = create_engine(url)
    watch = MailingWatch(url, Requests(), failures, lambda _: None)
    recorder = Recorder(url, OWNER, failures, lambda _: None, lambda _: None)
    await recorder.put(FinishedMessage(CLAIM, "delivered", 1))
    claimer = Claimer(
        *(url, OWNER, LEASE, Breaker(5, 1), watch, ClaimedQueue(1), {}),
        *(GiveBack(), failures, lambda: None),
    )
    run: Run = {
        "watch": watch.run,
        "lifecycle": Lifecycle(engine, failures, lambda _: None, lambda: False).run,
        "claim": claimer.run,
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
@pytest.mark.parametrize("loop", REASONS)
async def test_loop_that_keeps_failing_is_told_until_it_succeeds(
    shared_database_url: str, failures: LoopFailures, loop: Loop
) -> None:
    async def is_told() -> bool | None:
        return failures.reason(elapsed() + LIMIT) == REASONS[loop] or None

    async def is_well() -> bool | None:
        return failures.reason(elapsed() + LIMIT) is None or None

    assert await is_well()
    nowhere = urlunsplit(urlsplit(shared_database_url)._replace(path="/nowhere"))
    async with loop_over(loop, nowhere, failures):
        await until(is_told)
        assert failures.reason(elapsed() - LIMIT) is None  # one failure is not told
    async with loop_over(loop, shared_database_url, failures):
        await until(is_well)


async def test_readiness_says_what_keeps_failing(
    engine: AsyncEngine, failures: LoopFailures
) -> None:
    app = create_app(
        engine, settings=OPEN, why_not_ready=lambda: failures.reason(elapsed() + LIMIT)
    )
    async with httpx.AsyncClient(transport=inside(app), base_url="http://127.0.0.1") as client:
        assert (await client.get("/health/ready")).status_code == 200
        failures.record("watch", has_failed=True)
        answer = await client.get("/health/ready")
        assert answer.status_code == 503
        assert answer.json()["detail"] == REASONS["watch"]
        assert (await client.get("/health/live")).status_code == 200
        failures.record("watch", has_failed=False)
        assert (await client.get("/health/ready")).status_code == 200


def test_loop_that_has_nothing_to_do_since_it_failed_counts_as_well(failures: LoopFailures) -> None:
    failures.record("record", has_failed=True)
    assert failures.reason(elapsed() + LIMIT) == REASONS["record"]
    assert failures.reason(elapsed() + LAPSE) is None
