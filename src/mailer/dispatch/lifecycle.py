"""The lifecycle of mailings: start them, enqueue and replan their messages, and finish them."""

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
    rerouting,
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
"""Most seconds until the next check for pending work, in case a notification is missed."""
MIN_LIFECYCLE_POLL_INTERVAL = 0.02
"""Least seconds until the next check when the last iteration did nothing, as may happen while other
workers do all pending work."""
ENQUEUE_ORDERS: tuple[enqueuing.EnqueueOrder, ...] = ("newest", "partly_enqueued", "lowest_cursor")
"""Which mailing is enqueued next: the newest with nothing enqueued, the least enqueued one with
something enqueued, the least enqueued one of all. They alternate, so that none waits for long."""


class Lifecycle:
    """Starts, enqueues, replans and finishes mailings when due. Several workers share the work.

    `on_messages` is called with the mailings that have got new messages. `is_sending` tells whether
    claimed messages wait in this worker to be sent.
    """

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
        """Whether a step of the current iteration has failed."""
        self._finish_candidates: dict[int, None] = {}
        """Mailings that may be finished, because they or their messages have changed: an ordered
        set, with the latest changes at the end."""
        self._checked_up_to = 0
        """Besides the candidates, each iteration checks some of all mailings, in the order of ids,
        in case a change was missed. This is the id of the last one; 0 at the start of a round."""
        self._enqueue_orders = itertools.cycle(ENQUEUE_ORDERS)
        self._skipped = SkippedMailings()
        self._forget_skipped_at = 0.0
        """When skipped mailings are tried again, a moment of `elapsed()`."""
        self._next_large_at = 0.0
        """When further chunks of an audience may be enqueued again, a moment of `elapsed()`. Until
        then only first chunks are enqueued."""

    def check_finished(self, mailing_ids: Iterable[int]) -> None:
        """Check soon whether these mailings are finished: they or their messages have changed."""
        for mailing_id in mailing_ids:
            self._finish_candidates.pop(mailing_id, None)
            self._finish_candidates[mailing_id] = None

    def wake(self) -> None:
        """Check for pending work now."""
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
        candidates = self._take_finish_candidates()
        check_after = self._checked_up_to
        self._checked_up_to = 0  # if this iteration fails, the next one starts a new round
        if elapsed() >= self._forget_skipped_at:
            self._skipped.clear()
            self._forget_skipped_at = elapsed() + SKIP_SECONDS
        pending = await self._run_step(
            lambda db: pending_work.find_pending_work(db, check_after, candidates, self._skipped)
        )
        if pending is None:
            self.check_finished(candidates)
            return DB_RETRY_DELAY
        has_started = pending.must_start and await self._start_due()
        has_messages = (has_started or pending.must_enqueue) and await self._enqueue()
        self._checked_up_to = pending.last_checked_id
        if pending.must_replan:
            replan = partial(replanning.replan_chunk, skipped=self._skipped)
            has_messages |= bool(await self._run_step(replan))
        if pending.must_reroute:
            has_messages |= bool(await self._run_step(rerouting.reroute_chunk))
        if pending.must_retry:
            retry = partial(retrying.retry_chunk, chunk=LIFECYCLE_BATCH, skipped=self._skipped)
            has_messages |= bool(await self._run_step(retry))
        has_ended_messages = pending.must_end_messages and await self._run_step(
            lambda db: finishing.end_scheduled_messages(db, LIFECYCLE_BATCH)
        )
        has_finished = pending.must_finish and await self._finish(check_after, candidates)
        if has_started or has_messages or has_ended_messages or has_finished:
            return 0
        return self._pause_before_next(pending)

    def _take_finish_candidates(self) -> list[int]:
        """Remove and return at most `MAX_FINISH_CHECKS` candidates.

        The latest ones come first. This matters when all running mailings are candidates, as after
        a full read of the running mailings.
        """
        count = min(MAX_FINISH_CHECKS, len(self._finish_candidates))
        return [self._finish_candidates.popitem()[0] for _ in range(count)]

    def _pause_before_next(self, pending: pending_work.PendingWork) -> float:
        """Return the seconds until the next iteration, after one that changed nothing."""
        if pending.has_work:  # others are doing it, or the pause after a large chunk is not over
            pause = self._next_large_at - elapsed()
        elif pending.seconds_until_next is None:
            pause = MAX_LIFECYCLE_POLL_INTERVAL
        else:
            pause = pending.seconds_until_next
        return min(MAX_LIFECYCLE_POLL_INTERVAL, max(MIN_LIFECYCLE_POLL_INTERVAL, pause))

    async def _start_due(self) -> bool:
        """Start mailings whose start has come. Return whether there were any."""
        step = partial(starting.start_due, skipped=self._skipped)
        started = await self._run_step(step) or []
        for mailing_id in started:
            log.info("mailing_started", mailing_id=mailing_id)
        return bool(started)

    async def _enqueue(self) -> bool:
        """Enqueue some small audiences, each of them whole, and one chunk of a large audience.

        Return whether anything was enqueued.
        """
        small = (
            await self._run_step(partial(small_audiences.enqueue_small, skipped=self._skipped))
            or []
        )
        self._announce(small)
        large = await self._enqueue_large()
        return bool(small or large)

    async def _enqueue_large(self) -> bool:
        """Enqueue the next chunk of one audience. Return whether there was one.

        During the pause after a large chunk, only the first chunk of an audience is enqueued.
        """
        started = elapsed()
        is_pause = started < self._next_large_at
        order = "newest" if is_pause else next(self._enqueue_orders)
        chunk = await self._enqueue_chunk(order)
        if chunk is None and order != "lowest_cursor" and not is_pause:
            chunk = await self._enqueue_chunk("lowest_cursor")  # considers every mailing
        if chunk is None:
            return False
        if chunk.is_large and self._is_sending():
            # A large chunk keeps the database busy. Pause for as long as it took, to leave half of
            # the time to the sending of messages.
            now = elapsed()
            self._next_large_at = now + (now - started)
        self._announce([chunk])
        return True

    async def _enqueue_chunk(self, order: enqueuing.EnqueueOrder) -> enqueuing.EnqueuedChunk | None:
        """Enqueue the next chunk of the mailing that `order` chooses; None when there is none."""
        return await self._run_step(
            partial(enqueuing.enqueue_chunk, order=order, skipped=self._skipped)
        )

    def _announce(self, chunks: list[enqueuing.EnqueuedChunk]) -> None:
        """Pass mailings with new messages to the claimer; log audiences that are enqueued whole."""
        for chunk in chunks:
            if chunk.is_last:
                self.check_finished([chunk.mailing_id])
                log.info(
                    "audience_enqueued", mailing_id=chunk.mailing_id, clients=chunk.clients_count
                )
        if chunks:
            self._on_messages([chunk.mailing_id for chunk in chunks])

    async def _finish(self, check_after: int, candidates: list[int]) -> bool:
        """Close and settle mailings. Return whether there were any."""
        finished = await self._run_step(lambda db: finishing.finish(db, check_after, candidates))
        if finished is None or len(finished) == mailing_batches.MAILINGS_PER_BATCH:
            self.check_finished(candidates)  # it failed, or there may be more than fit in a batch
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
