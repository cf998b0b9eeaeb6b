"""The sending pipeline: claim due messages, send them with bounded concurrency, record the results.

Bounded queues connect the claimer, the sending tasks and the recorder. So the database is used in
batches, although the gateway takes messages one by one. No database connection is held during a
gateway request.
"""

import asyncio
from collections.abc import Callable

from mailer.dispatch.claimer import Claimer
from mailer.dispatch.claims import WorkerClaims
from mailer.dispatch.loop_failures import log_task_error
from mailer.dispatch.recorder import Recorder
from mailer.dispatch.send_policy import release_untried
from mailer.dispatch.sender import Sender

RESULT_FLUSH_TIMEOUT = 3.0
"""Seconds after the shutdown grace in which the last results may be recorded; others are lost."""


class SendingPipeline:
    """Runs the claimer, the sending tasks and the recorder, and stops them in that order.

    After `stop`, requests in flight may go on for `grace` seconds.
    """

    def __init__(
        self,
        claims: WorkerClaims,
        claimer: Claimer,
        sender: Sender,
        recorder: Recorder,
        grace: float,
    ) -> None:
        self.claimer = claimer
        self._claims = claims
        self._sender = sender
        self._recorder = recorder
        self._grace = grace

    def stop(self) -> None:
        """Stop claiming. `run` then releases unsent messages and waits for requests in flight."""
        self._sender.stop()
        self.claimer.stop()

    async def run(self, on_idle: Callable[[], None]) -> None:
        """Claim and send until `stop` is called. `on_idle` is called when no message is due."""
        async with asyncio.TaskGroup() as tasks:
            recorder = tasks.create_task(self._recorder.run())
            senders = [
                tasks.create_task(self._sender.run()) for _ in range(self._sender.concurrency)
            ]
            await self.claimer.run(on_idle)
            await self._drain(senders, recorder)

    async def _drain(self, senders: list[asyncio.Task[None]], recorder: asyncio.Task[None]) -> None:
        """Release unsent messages, wait for requests in flight, and record all results.

        Requests that are still in flight after the grace are aborted. If the database is
        unavailable for too long, results are lost, and their messages are rescued when the leases
        expire.
        """
        try:
            async with asyncio.timeout(self._grace + RESULT_FLUSH_TIMEOUT):
                for claim in self._claims.prefetch.drain(readers=len(senders)):
                    await self._recorder.put(release_untried(claim))
                await asyncio.wait(senders, timeout=self._grace)
                self._claims.in_flight.abort_all("connection_lost")
                await asyncio.gather(*senders)
                await self._recorder.close()
                await recorder
                await self.claimer.flush()
        except Exception as error:  # the tasks are stopped after any error
            log_task_error(error, at="stop")
        for task in (*senders, recorder):
            task.cancel()
        self.claimer.close()
