"""Start mailings, enqueue their audiences, and finish them when due."""

import asyncio
import contextlib
import itertools
from collections.abc import Awaitable, Callable, Iterable
from functools import partial
from typing import TypeVar

import structlog
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from mailer.clock import elapsed
from mailer.dispatch.loop_failures import DB_RETRY_DELAY, LoopFailures, log_task_error
from mailer.mailing import (
    enqueuing,
    finishing,
    mailing_batches,
    pending_work,
    replanning,
    retrying,
    small_audiences,
    starting,
)
from mailer.mailing.skipped import SKIP_SECONDS, SkippedMailings

log = structlog.get_logger()

Result = TypeVar("Result")

LIFECYCLE_BATCH = 5_000
"""Most messages that one transaction ends or retries."""
MAX_FINISH_CHECKS = 200
"""Most changed mailings that one iteration checks for being finished."""
MAX_LIFECYCLE_POLL_INTERVAL = 1.0
"""Most seconds to wait for work, in case a signal is missed."""
MIN_LIFECYCLE_POLL_INTERVAL = 0.02
"""Least seconds to wait for work: other workers may be doing all of it now."""
ENQUEUE_ORDERS: tuple[enqueuing.EnqueueOrder, ...] = ("newest", "partly_enqueued", "lowest_cursor")
"""Orders in which chunks of large audiences are enqueued, one after the other."""


class Lifecycle:
    """Starts, enqueues, replans and finishes mailings when due. Several workers share the work."""

    def __init__(
        self,
        engine: AsyncEngine,
        failures: LoopFailures,
        on_messages: Callable[[list[int]], None],
        is_sending: Callable[[], bool],
    ) -> None:
        self._engine = engine
        self._failures = failures
        self._on_messages = on_messages
        self._is_sending = is_sending
        self._has_work = asyncio.Event()
        self._has_failed = False
        self._finish_candidates: dict[int, None] = {}
        self._checked_up_to = 0
        self._orders = itertools.cycle(ENQUEUE_ORDERS)
        self._skipped = SkippedMailings()
        self._skip_until = 0.0
        self._next_large_at = 0.0

    def check_finished(self, mailing_ids: Iterable[int]) -> None:
        """Check soon whether these mailings are finished: they or their messages have changed."""
        for mailing_id in mailing_ids:
            self._finish_candidates.pop(mailing_id, None)
            self._finish_candidates[mailing_id] = None

    def wake(self) -> None:
        """Start the next iteration now."""
        self._has_work.set()

    async def run(self) -> None:
        """Run until cancelled."""
        while True:
            self._has_work.clear()
            self._has_failed = False
            pause = await self._advance()
            self._failures.record("lifecycle", has_failed=self._has_failed)
            if self._has_failed:
                pause = max(pause, DB_RETRY_DELAY)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(pause):  # asyncio.wait_for can miss a cancellation
                    await self._has_work.wait()

    async def _advance(self) -> float:
        """Do some of the pending work. Return the seconds until there may be more."""
        # the latest first: a full read of the mailings makes all running mailings candidates
        candidates = [
            self._finish_candidates.popitem()[0]
            for _ in range(min(MAX_FINISH_CHECKS, len(self._finish_candidates)))
        ]
        after, self._checked_up_to = self._checked_up_to, 0
        if elapsed() >= self._skip_until:
            self._skipped.clear()
            self._skip_until = elapsed() + SKIP_SECONDS
        to_do = await self._run_step(
            lambda db: pending_work.find_pending_work(db, after, candidates, self._skipped)
        )
        if to_do is None:
            self.check_finished(candidates)
            return DB_RETRY_DELAY
        has_started = to_do.must_start and await self._start_due()
        has_messages = (has_started or to_do.must_enqueue) and await self._enqueue()
        self._checked_up_to = to_do.last_checked_id
        if to_do.must_replan:
            replan = partial(replanning.replan_chunk, skipped=self._skipped)
            has_messages |= bool(await self._run_step(replan))
        if to_do.must_retry:
            retry = partial(retrying.retry_chunk, chunk=LIFECYCLE_BATCH, skipped=self._skipped)
            has_messages |= bool(await self._run_step(retry))
        has_ended_messages = to_do.must_end_messages and await self._run_step(
            lambda db: finishing.end_scheduled_messages(db, LIFECYCLE_BATCH)
        )
        has_finished = to_do.must_finish and await self._finish(after, candidates)
        if has_started or has_messages or has_ended_messages or has_finished:
            return 0
        if to_do.has_work:
            return max(
                MIN_LIFECYCLE_POLL_INTERVAL,
                min(MAX_LIFECYCLE_POLL_INTERVAL, self._next_large_at - elapsed()),
            )
        return (
            MAX_LIFECYCLE_POLL_INTERVAL
            if to_do.seconds_until_next is None
            else min(
                MAX_LIFECYCLE_POLL_INTERVAL,
                max(MIN_LIFECYCLE_POLL_INTERVAL, to_do.seconds_until_next),
            )
        )

    async def _start_due(self) -> bool:
        step = partial(starting.start_due, skipped=self._skipped)
        started = await self._run_step(step) or []
        for mailing_id in started:
            log.info("mailing_started", mailing_id=mailing_id)
        return bool(started)

    async def _enqueue(self) -> bool:
        """Enqueue some small audiences, each of them whole, and one chunk of a large audience."""
        small = (
            await self._run_step(partial(small_audiences.enqueue_small, skipped=self._skipped))
            or []
        )
        self._announce(small)
        large = await self._enqueue_large()
        return bool(small or large)

    async def _enqueue_large(self) -> bool:
        started = elapsed()
        order = "newest" if started < self._next_large_at else next(self._orders)
        chunk = await self._enqueue_chunk(order)
        if chunk is None and order != "lowest_cursor" and started >= self._next_large_at:
            chunk = await self._enqueue_chunk("lowest_cursor")
        if chunk is None:
            return False
        if chunk.is_large and self._is_sending():
            # it keeps the database busy, so leave half of the time to the sending of messages
            now = elapsed()
            self._next_large_at = now + (now - started)
        self._announce([chunk])
        return True

    async def _enqueue_chunk(self, order: enqueuing.EnqueueOrder) -> enqueuing.EnqueuedChunk | None:
        return await self._run_step(
            partial(enqueuing.enqueue_chunk, order=order, skipped=self._skipped)
        )

    def _announce(self, chunks: list[enqueuing.EnqueuedChunk]) -> None:
        for chunk in chunks:
            if chunk.is_last:
                self.check_finished([chunk.mailing_id])
                log.info(
                    "audience_enqueued", mailing_id=chunk.mailing_id, clients=chunk.clients_count
                )
        if chunks:
            self._on_messages([chunk.mailing_id for chunk in chunks])

    async def _finish(self, after: int, candidates: list[int]) -> bool:
        finished = await self._run_step(lambda db: finishing.finish(db, after, candidates))
        if finished is None or len(finished) == mailing_batches.MAILINGS_PER_BATCH:
            self.check_finished(candidates)  # more of them may be finished
            finished = finished or []
        for mailing_id, change in finished:
            if change == "settled":
                log.info("mailing_settled", mailing_id=mailing_id)
            else:
                log.info("mailing_ended", mailing_id=mailing_id, status=change)
        return bool(finished)

    async def _run_step(
        self, step: Callable[[AsyncConnection], Awaitable[Result]]
    ) -> Result | None:
        """Run a step in a transaction and return its result; None when it fails.

        A failure is logged and does not keep other steps from running.
        """
        try:
            async with self._engine.begin() as connection:
                return await step(connection)
        except Exception as error:  # any error ends this step only
            log_task_error(error, at="lifecycle")
            self._has_failed = True
            return None
