"""Write the results of claimed messages in batches, through every outage of the database."""

import asyncio
from collections import defaultdict
from collections.abc import Callable, Iterable
from uuid import UUID

import structlog

from mailer import metrics
from mailer.clock import database_clock
from mailer.db.engine import OwnConnection, is_away
from mailer.dispatch.failure import log_failure
from mailer.dispatch.loop_failures import LoopFailures
from mailer.dispatch.story import tell_finished
from mailer.message import store
from mailer.message.model import ClaimedMessage, FinishedMessage

log = structlog.get_logger()

BATCH = 500
"""Most messages in one statement: larger ones gain nothing and hold locks longer."""
GATHER = 0.02
"""Seconds that outcomes are gathered before they are written."""
AWAY = 0.5
"""Seconds between attempts while the database is away."""
UNTIL_RESCUED = 60.0
"""Seconds after the end of its lease by which a message has been rescued."""


class Recorder:
    """A bounded queue of finished messages and the task that writes them.

    While the database is away results are kept; when the queue is full, senders wait.
    """

    def __init__(
        self,
        url: str,
        owner: UUID,
        failures: LoopFailures,
        on_late: Callable[[list[ClaimedMessage]], None],
        on_recorded: Callable[[list[FinishedMessage]], None],
    ) -> None:
        self.held: dict[int, ClaimedMessage] = {}
        """Claims by message id whose result is not written yet."""
        self._connection = OwnConnection(url)
        self._owner = owner
        self._failures = failures
        self._on_late = on_late
        self._on_recorded = on_recorded
        self._finished: asyncio.Queue[FinishedMessage | None] = asyncio.Queue(maxsize=4 * BATCH)

    async def put(self, finished: FinishedMessage) -> None:
        """Have a result written; wait while too many are waiting."""
        tell_finished(finished)
        await self._finished.put(finished)

    async def close(self) -> None:
        """Let `run` end when all that was put is written."""
        await self._finished.put(None)

    async def run(self) -> None:
        """Write what is put, until closed."""
        try:
            await self._run()
        finally:
            self._connection.close()

    async def _run(self) -> None:
        is_open = True
        while is_open:
            batch = [await self._finished.get()]
            if self._finished.qsize() < BATCH:
                await asyncio.sleep(GATHER)
            while len(batch) < BATCH and not self._finished.empty():
                batch.append(self._finished.get_nowait())
            is_open = None not in batch
            if outcomes := [finished for finished in batch if finished is not None]:
                await self._write(outcomes)

    async def _write(self, results: list[FinishedMessage]) -> None:
        """Write results; drop those of the mailings that the database refuses.

        So the spoilt row of one mailing costs no other mailing a result. Dropped messages are
        rescued when their leases expire.
        """
        if await self._is_written(results):
            return
        of_mailings: dict[int, list[FinishedMessage]] = defaultdict(list)
        for done in results:
            of_mailings[done.claim.mailing_id].append(done)
        for part in of_mailings.values():
            if len(of_mailings) == 1 or not await self._is_written(part):
                self._drop(part)

    async def _is_written(self, results: list[FinishedMessage]) -> bool:
        """Write results, again and again while the database is away; False when it refuses them.

        To write them twice does no harm: a message that is written is no longer under the lease.
        """
        while True:
            try:
                written = await store.finish(await self._connection.get(), self._owner, results)
            except Exception as error:
                log_failure(error, at="record")
                self._failures.record("record", has_failed=True)
                if not is_away(error):
                    return False
                await asyncio.sleep(AWAY)
            else:
                self._failures.record("record", has_failed=False)
                self._forget(results)
                late = [done.claim for done in results if done.claim.id not in written]
                self._on_late(late)
                self._on_recorded(results)
                metrics.finished(
                    ((done.status, done.reason, done.attempts) for done in results), late=len(late)
                )
                log.debug("messages_recorded", outcomes=len(results), late=len(late))
                return True

    def _drop(self, results: list[FinishedMessage]) -> None:
        """Drop results that cannot be written.

        The messages stay held until they are rescued: those that are not held may be released as
        if nothing had been sent.
        """
        claims = [done.claim for done in results]
        log.error("results_dropped", mailing_id=claims[0].mailing_id, messages=len(claims))
        self._on_late(claims)
        leases = max(claim.lease_expires_at for claim in claims) - database_clock.now()
        pause = max(0.0, leases.total_seconds()) + UNTIL_RESCUED
        asyncio.get_running_loop().call_later(pause, self._forget, results)

    def _forget(self, results: Iterable[FinishedMessage]) -> None:
        for done in results:
            if self.held.get(done.claim.id) is done.claim:  # and not claimed once more
                del self.held[done.claim.id]
