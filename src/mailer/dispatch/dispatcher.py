"""The dispatcher: what moves mailings on and sends their messages, in this process."""

import asyncio
from collections.abc import Awaitable, Callable, Collection

from sqlalchemy.ext.asyncio import AsyncEngine

from mailer.clock import database_clock, elapsed
from mailer.dispatch.lifecycle import Lifecycle
from mailer.dispatch.loop_failures import LoopFailures
from mailer.dispatch.requests import Requests
from mailer.dispatch.schedule import jobs, run_jobs
from mailer.dispatch.sender import Sender
from mailer.dispatch.watch import MailingWatch
from mailer.gateway.breaker import Breaker
from mailer.gateway.pace import Pace
from mailer.gateway.port import Gateway
from mailer.message.model import FinishedMessage
from mailer.settings import Settings

LAST_STATEMENT = 15.0
"""Seconds beyond the grace for the last statements to end."""


class Dispatcher:
    """Start the sender, lifecycle, watch and periodic jobs, and connect their events.

    Without a gateway nothing is sent.
    """

    def __init__(  # noqa: PLR0913, PLR0917  # all that it runs
        self,
        url: str,
        engine: AsyncEngine,
        gateway: Gateway | None,
        breaker: Breaker,
        pace: Pace,
        settings: Settings,
        *,
        report: Callable[[], Awaitable[object]] | None = None,
    ) -> None:
        requests = Requests()
        self._breaker = breaker
        self._failures = LoopFailures()
        self._watch = MailingWatch(url, requests, self._failures, self._look, self._try_now)
        self._lifecycle = Lifecycle(engine, self._failures, self._ask, self._is_sending)
        self._sender = (
            None
            if gateway is None
            else Sender(
                url,
                gateway,
                breaker,
                pace,
                requests,
                self._watch,
                self._failures,
                settings,
                self._lifecycle.wake,
                self._note_results,
            )
        )
        self._jobs = jobs(engine, settings, report)
        self._grace = settings.shutdown_grace + LAST_STATEMENT
        self._stopping = asyncio.Event()

    def why_not_ready(self) -> str | None:
        """Return what has not worked for a while, as a sentence; None while all does."""
        return self._failures.reason(elapsed())

    def stop(self) -> None:
        """Begin no more, and let `run` end when what has begun is finished."""
        self._stopping.set()

    async def run(self) -> None:
        """Dispatch until told to stop."""
        async with asyncio.TaskGroup() as tasks:
            followers = [
                tasks.create_task(self._watch.run()),
                tasks.create_task(self._lifecycle.run()),
            ]
            sending = tasks.create_task(self._sender.run()) if self._sender else None
            repeating = tasks.create_task(run_jobs(self._jobs))
            await self._stopping.wait()
            repeating.cancel()
            if self._sender is not None and sending is not None:
                self._sender.stop()
                await asyncio.wait([sending], timeout=self._grace)
                sending.cancel()  # in vain if it has ended
            for follower in followers:
                follower.cancel()

    def _is_sending(self) -> bool:
        return self._sender is not None and self._sender.is_busy

    def _try_now(self) -> None:
        self._breaker.try_now(elapsed(), database_clock.now())
        if self._sender is not None:
            self._sender.look(self._watch.running)

    def _note_results(self, finished: list[FinishedMessage]) -> None:
        self._lifecycle.touch({one.claim.mailing_id for one in finished})

    def _look(self, changed: Collection[int]) -> None:
        self._lifecycle.touch(changed)
        self._lifecycle.wake()
        if self._sender is not None:
            self._sender.look(changed)

    def _ask(self, mailings: Collection[int]) -> None:
        if self._sender is not None:
            self._sender.ask(mailings)
