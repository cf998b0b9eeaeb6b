"""The claimer: claims due messages, as many as the gateway can take, for all mailings fairly.

It also refunds the attempts that an outage cost, between two claims, on the same connection.
"""

import asyncio
import contextlib
from collections import Counter
from collections.abc import Callable, Iterable

from mailer import metrics
from mailer.clock import database_clock, elapsed
from mailer.db.engine import DedicatedConnection, is_unavailable
from mailer.dispatch.claims import WorkerClaims
from mailer.dispatch.due import DueMailings
from mailer.dispatch.fair_scheduler import FairScheduler, MailingBatch
from mailer.dispatch.loop_failures import DB_RETRY_DELAY, LoopFailures, log_task_error
from mailer.dispatch.message_log import log_claimed
from mailer.dispatch.running_mailings import RunningMailings
from mailer.gateway.channel import Channel
from mailer.message import store
from mailer.message.model import ClaimedMessage, MessageResult

MAX_CLAIM_POLL_INTERVAL = 1.0
"""Most seconds until the next check for due messages, in case a notification is missed."""
MIN_CLAIM_POLL_INTERVAL = 0.01
"""Least seconds until the next check when the last one found nothing to claim, as may happen while
other workers claim all due messages."""


class Claimer:
    """Keeps the prefetch queue filled with due messages, while the breaker permits requests."""

    def __init__(
        self,
        url: str,
        channel: Channel,
        claims: WorkerClaims,
        running_mailings: RunningMailings,
        failures: LoopFailures,
    ) -> None:
        self._connection = DedicatedConnection(url)
        self._breaker = channel.breaker
        self._claims = claims
        self._running_mailings = running_mailings
        self._failures = failures
        self._scheduler = FairScheduler()
        self._due = DueMailings(self._scheduler, running_mailings.running)
        self._has_work = asyncio.Event()
        self._may_have_orphans = False
        """Whether a claim has failed, so that its messages may be leased by this worker although it
        does not know them."""
        self._is_stopping = False
        channel.add_breaker_listener(self._has_work.set)

    def recheck(self, mailing_ids: Iterable[int]) -> None:
        """Find out again when the next messages of these mailings are due: they have changed."""
        self._due.recheck(mailing_ids)
        self._has_work.set()

    def add_mailings(self, mailing_ids: Iterable[int]) -> None:
        """Claim from these mailings next, because they have new messages."""
        self._scheduler.add(mailing_ids)
        self._has_work.set()

    def record_results(self, results: list[MessageResult]) -> None:
        """Plan new claims of the messages that these results have released or requeued."""
        if rescheduled := [result for result in results if result.status == "scheduled"]:
            self._due.record_rescheduled(rescheduled)
            self._has_work.set()

    def stop(self) -> None:
        """Make `run` end, and close the prefetch queue."""
        self._is_stopping = True
        self._has_work.set()
        self._claims.prefetch.close()

    async def run(self, on_idle: Callable[[], None]) -> None:
        """Claim until `stop` is called. `on_idle` is called when no message is due."""
        while not self._is_stopping:
            await self._refund_attempts()
            if not await self._claim_due():
                await self._wait_for_work(on_idle)

    async def flush(self) -> None:
        """Refund attempts and release orphans. Call it last, when all results are stored."""
        await self._refund_attempts()
        if self._may_have_orphans:
            await self._release_orphans()

    def close(self) -> None:
        """Close the connection."""
        self._connection.close()

    async def _refund_attempts(self) -> None:
        """Refund the attempts that an outage cost.

        Call it between two claims only, so that this worker claims none of the messages meanwhile.
        """
        refunds = self._claims.refunds
        claims = refunds.take_refundable(self._claims.unrecorded)
        if not claims:
            return
        try:
            await store.refund_attempts(await self._connection.get(), claims)
        except Exception as error:  # any error ends this step only
            log_task_error(error, at="refund")
            if is_unavailable(error):  # another error would only occur again
                refunds.put_back(claims)

    async def _claim_due(self) -> bool:
        """Claim due messages. Return whether there may be more to claim now."""
        prefetch_capacity = await self._claims.prefetch.wait_for_capacity()
        capacity = min(prefetch_capacity, self._breaker.capacity(elapsed()))
        try:
            may_have_more = await self._claim_up_to(capacity)
        except Exception as error:  # any error ends this claim only
            log_task_error(error, at="claim")
            self._failures.record("claim", has_failed=True)
            self._may_have_orphans = True
            await asyncio.sleep(DB_RETRY_DELAY)
            return False
        self._failures.record("claim", has_failed=False)
        return may_have_more

    async def _claim_up_to(self, capacity: int) -> bool:
        """Claim at most `capacity` due messages. Return whether there may be more to claim now."""
        await self._due.refresh(await self._connection.get())
        batch = self._scheduler.next_batch(self._running_mailings.running, capacity, elapsed())
        if self._is_stopping:
            return False
        if not batch.mailing_ids:
            return self._due.has_unchecked
        claims = await self._claim(batch)
        metrics.messages_claimed(len(claims))
        for claim in claims:
            log_claimed(claim)
        return bool(claims) or self._scheduler.has_queued or self._due.has_unchecked

    async def _claim(self, batch: MailingBatch) -> list[ClaimedMessage]:
        """Claim messages of a batch of mailings, and plan the next claims from them."""
        try:
            connection = await self._connection.get()
            if self._may_have_orphans:
                await self._release_orphans()
            claimed_at = database_clock.now()
            cursors = {mailing_id: self._due.cursor(mailing_id) for mailing_id in batch.mailing_ids}
            async with self._running_mailings.claiming:
                claims = await store.claim(
                    connection, cursors, batch.share, self._claims.owner, self._claims.lease
                )
        except BaseException:
            # They are in no queue of the scheduler now, and it is unknown what was claimed.
            self._due.recheck(batch.mailing_ids)
            raise
        self._claims.add(claims)
        below_share = self._scheduler.record_claimed(
            batch, Counter(claim.mailing_id for claim in claims)
        )
        self._due.record_claimed(claims, below_share, claimed_at)
        return claims

    async def _release_orphans(self) -> None:
        """Release messages that are leased by this worker although it does not know them.

        This happens when the connection is lost after the database has made a claim.
        """
        connection = await self._connection.get()
        await store.release_orphaned(connection, self._claims.owner, self._claims.unrecorded)
        self._may_have_orphans = False

    async def _wait_for_work(self, on_idle: Callable[[], None]) -> None:
        """Wait until a message is due, the breaker permits a request, or `_has_work` is set."""
        seconds_to_probe = self._breaker.seconds_to_probe(elapsed())
        if seconds_to_probe > 0:
            pause = seconds_to_probe
        else:  # requests are permitted, so nothing was claimed because nothing is due
            on_idle()
            due_at = self._scheduler.next_due()
            pause = MAX_CLAIM_POLL_INTERVAL if due_at is None else due_at - elapsed()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(
                min(MAX_CLAIM_POLL_INTERVAL, max(MIN_CLAIM_POLL_INTERVAL, pause))
            ):
                await self._has_work.wait()
        self._has_work.clear()
