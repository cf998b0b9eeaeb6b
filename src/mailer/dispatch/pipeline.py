"""The sending pipeline: claim due messages, send them with bounded concurrency, record the results.

Bounded queues connect the claimer, the senders and the recorder. So the database is used in
batches, although the gateways take messages one by one. No database connection is held during a
gateway request.
"""

import asyncio
from collections.abc import Callable, Iterable

from mailer.dispatch.claimer import Claimer
from mailer.dispatch.claims import WorkerClaims
from mailer.dispatch.loop_failures import log_task_error
from mailer.dispatch.recorder import Recorder
from mailer.dispatch.sender import Sender
from mailer.gateway.channel import Channel

RESULT_FLUSH_TIMEOUT = 3.0
"""Seconds after the shutdown grace in which the last results may be recorded; others are lost."""


class SendingPipeline:
    """Runs the claimer, a sender for each channel and the recorder, and stops them in that order.

    After `stop`, requests in flight may go on for `grace` seconds.
    """

    def __init__(
        self,
        claims: WorkerClaims,
        claimer: Claimer,
        recorder: Recorder,
        create_sender: Callable[[Channel], Sender],
        grace: float,
    ) -> None:
        self.claimer = claimer
        self._claims = claims
        self._recorder = recorder
        self._create_sender = create_sender
        self._grace = grace
        self._senders: dict[Channel, Sender] = {}
        self._tasks: asyncio.TaskGroup | None = None
        """Runs the senders; None before `run`."""
        self._sending: set[asyncio.Task[None]] = set()
        """The tasks of all senders, including those that `use` has stopped."""

    @property
    def has_prefetched(self) -> bool:
        """Whether claimed messages wait for their requests to start."""
        return any(not sender.prefetch.is_empty for sender in self._senders.values())

    def use(self, channels: Iterable[Channel]) -> None:
        """Send through these channels from now on.

        The other senders release their unsent messages. Their requests in flight go on.
        """
        old = self._senders
        self._senders = {
            channel: old.get(channel) or self._create_sender(channel) for channel in channels
        }
        self.claimer.use(self._senders.values())
        if self._tasks is not None:
            for channel, sender in self._senders.items():
                if channel not in old:
                    self._start(self._tasks, sender)
            for channel, sender in old.items():
                if channel not in self._senders:
                    self._tasks.create_task(sender.drain())

    def _start(self, tasks: asyncio.TaskGroup, sender: Sender) -> None:
        task = tasks.create_task(sender.run())
        self._sending.add(task)
        task.add_done_callback(self._sending.discard)

    def stop(self) -> None:
        """Stop claiming. `run` then releases unsent messages and waits for requests in flight."""
        for sender in self._senders.values():
            sender.stop()
        self.claimer.stop()

    async def run(self, on_idle: Callable[[], None]) -> None:
        """Claim and send until `stop` is called. `on_idle` is called when no message is due."""
        async with asyncio.TaskGroup() as tasks:
            recorder = tasks.create_task(self._recorder.run())
            self._tasks = tasks
            for sender in self._senders.values():
                self._start(tasks, sender)
            await self.claimer.run(on_idle)
            self._tasks = None
            await self._drain(recorder)

    async def _drain(self, recorder: asyncio.Task[None]) -> None:
        """Release unsent messages, wait for requests in flight, and record all results.

        Requests that are still in flight after the grace are aborted. If the database is
        unavailable for too long, results are lost, and their messages are rescued when the leases
        expire.
        """
        sending = list(self._sending)
        try:
            async with asyncio.timeout(self._grace + RESULT_FLUSH_TIMEOUT):
                for sender in self._senders.values():
                    await sender.drain()
                if sending:
                    await asyncio.wait(sending, timeout=self._grace)
                self._claims.in_flight.abort_all("connection_lost")
                await asyncio.gather(*sending)
                await self._recorder.close()
                await recorder
                await self.claimer.flush()
        except Exception as error:  # the tasks are stopped after any error
            log_task_error(error, at="stop")
        for task in (*sending, recorder):
            task.cancel()
        self.claimer.close()
