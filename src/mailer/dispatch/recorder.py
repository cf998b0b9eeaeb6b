"""Writes back what became of claimed messages, in batches, whatever happens to the database."""

import asyncio
from collections.abc import Callable
from uuid import UUID

import structlog

from mailer import metrics
from mailer.db.engine import OwnConnection, is_away
from mailer.dispatch.failure import log_failure
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


class Recorder:
    """A bounded queue of finished messages and the task that writes them.

    While the database is away outcomes are kept; when the queue is full, senders wait.
    """

    def __init__(
        self,
        url: str,
        owner: UUID,
        on_late: Callable[[list[ClaimedMessage]], None],
        on_recorded: Callable[[list[FinishedMessage]], None],
    ) -> None:
        self.held: dict[int, ClaimedMessage] = {}
        """What was claimed, by message, and of which nothing is written yet."""
        self._connection = OwnConnection(url)
        self._owner = owner
        self._on_late = on_late
        self._on_recorded = on_recorded
        self._finished: asyncio.Queue[FinishedMessage | None] = asyncio.Queue(maxsize=4 * BATCH)

    async def put(self, finished: FinishedMessage) -> None:
        """Have an outcome written; waits while too many are waiting."""
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

    async def _write(self, outcomes: list[FinishedMessage]) -> None:
        """Write outcomes, again and again while the database is away.

        To write them twice does no harm: what is written is no longer under the lease.
        """
        while True:
            try:
                written = await store.finish(await self._connection.get(), self._owner, outcomes)
            except Exception as error:
                log_failure(error, at="record")
                if not is_away(error):
                    return  # what cannot be written is taken over when its lease expires
                await asyncio.sleep(AWAY)
            else:
                for done in outcomes:
                    if self.held.get(done.claim.id) is done.claim:  # and not claimed once more
                        del self.held[done.claim.id]
                late = [done.claim for done in outcomes if done.claim.id not in written]
                self._on_late(late)
                self._on_recorded(outcomes)
                metrics.finished(
                    ((done.status, done.reason, done.attempts) for done in outcomes), late=len(late)
                )
                log.debug("messages_recorded", outcomes=len(outcomes), late=len(late))
                return
