"""The hot loop: claim what is due, send it with bounded concurrency, record what became of it.

Claimed and finished messages wait in bounded queues, so that the database works in batches while
the gateway works one by one; no connection is held across a request.
"""

import asyncio
import contextlib
import time
from collections import Counter
from collections.abc import Callable
from datetime import timedelta
from uuid import uuid4

import structlog
from aiolimiter import AsyncLimiter

from mailer import metrics
from mailer.db.engine import OwnConnection
from mailer.dispatch.failure import log_failure
from mailer.dispatch.judge import Send, after_sending, before_sending, hand_back
from mailer.dispatch.recorder import BATCH, Recorder
from mailer.dispatch.retry import RetryPolicy
from mailer.dispatch.share import FairShare, Pace
from mailer.dispatch.watch import MailingWatch
from mailer.gateway.port import Gateway, Outcome, Unknown
from mailer.message import store
from mailer.message.model import ClaimedMessage, FinishedMessage
from mailer.settings import Settings

log = structlog.get_logger()

AHEAD = 0.25
"""Seconds of work to keep claimed: enough to hide the database, little to lose in a crash."""
LEAST = 10
"""Messages to keep claimed at least, however slow the gateway is."""
LOOK = 0.5
"""Seconds after which a mailing that had nothing due is asked again while others are busy."""
IDLE = 1.0
"""Most seconds between looks at what is due: the backstop behind every signal."""
LAST_WORDS = 3.0
"""Seconds after the grace to record what became of the last messages."""
BREATH = 0.01
"""Least seconds between looks, when what is due is in other hands."""
AWAY = 0.5
"""Seconds between attempts while the database is away."""


class Sender:
    """Sends what is due of the running mailings through a gateway, until told to stop."""

    def __init__(
        self,
        url: str,
        gateway: Gateway,
        watch: MailingWatch,
        settings: Settings,
        on_drained: Callable[[], None],
    ) -> None:
        self._connection = OwnConnection(url)
        self._gateway = gateway
        self._watch = watch
        self._on_drained = on_drained
        self._timeout = settings.gateway_timeout
        self._concurrency = settings.gateway_concurrency
        self._lease = timedelta(seconds=settings.lease)
        self._grace = settings.shutdown_grace
        self._retry = RetryPolicy(settings.retry_attempts, settings.retry_base, settings.retry_cap)
        rate = settings.gateway_rate
        self._limiter = AsyncLimiter(1, 1 / rate) if rate else None
        self._turn = asyncio.Lock()
        self._owner = uuid4()
        self._recorder = Recorder(url, self._owner)
        self._claimed: asyncio.Queue[ClaimedMessage | None] = asyncio.Queue()
        self._share = FairShare(again_after=LOOK)
        self._pace = Pace(seconds=AHEAD, first=self._concurrency, least=LEAST, most=2 * BATCH)
        self._has_room = asyncio.Event()
        self._is_due = asyncio.Event()
        self._is_stopping = False

    def wake(self) -> None:
        """Look at what is due now."""
        self._is_due.set()

    def stop(self) -> None:
        """Claim no more, hand back what has not begun, finish what has."""
        self._is_stopping = True
        self._is_due.set()
        self._has_room.set()

    async def run(self) -> None:
        """Send until told to stop."""
        async with asyncio.TaskGroup() as tasks:
            recorder = tasks.create_task(self._recorder.run())
            workers = [tasks.create_task(self._work()) for _ in range(self._concurrency)]
            while not self._is_stopping:
                if not await self._claim_due():
                    await self._rest()
            await self._wind_down(workers, recorder)

    async def _wind_down(
        self, workers: list[asyncio.Task[None]], recorder: asyncio.Task[None]
    ) -> None:
        """Hand back what has not begun, give what has the grace to end, and have it recorded.

        With the database away too long nothing can be recorded: then the leases' end does it.
        """
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._grace + LAST_WORDS):
                while not self._claimed.empty():
                    claim = self._claimed.get_nowait()
                    if claim is not None:
                        await self._recorder.put(hand_back(claim))
                for _ in workers:
                    self._claimed.put_nowait(None)
                _, still_sending = await asyncio.wait(workers, timeout=self._grace)
                for worker in still_sending:
                    worker.cancel()
                await asyncio.gather(*still_sending, return_exceptions=True)
                await self._recorder.close()
                await recorder
        for task in (*workers, recorder):
            task.cancel()
        self._connection.close()

    # ---- claim -------------------------------------------------------------------------------

    async def _claim_due(self) -> bool:
        """Claim as much as there is room for; False when nothing is due."""
        room = await self._room()
        asked, share = self._share.turn(self._watch.running, room, time.monotonic())
        if not asked or self._is_stopping:
            return False
        try:
            connection = await self._connection.get()
            async with self._watch.claiming:
                claims = await store.claim(connection, asked, share, self._owner, self._lease)
        except Exception as error:
            log_failure(error, at="claim")
            await asyncio.sleep(AWAY)
            return False
        metrics.claimed(len(claims))
        self._share.served(asked, share, Counter(claim.mailing_id for claim in claims))
        for claim in claims:
            self._claimed.put_nowait(claim)
        return bool(claims) or self._share.is_hungry

    async def _room(self) -> int:
        """Wait until half of what is kept claimed has gone; return how much to claim."""
        self._pace.measure(time.monotonic())
        while self._claimed.qsize() > self._pace.ahead // 2 and not self._is_stopping:
            self._has_room.clear()
            await self._has_room.wait()
        return min(BATCH, self._pace.ahead - self._claimed.qsize())

    async def _rest(self) -> None:
        """Wait for the next message to be due, for word of a change, or for the backstop."""
        self._on_drained()
        pause = await self._until_due()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._is_due.wait(), pause)
        self._is_due.clear()

    async def _until_due(self) -> float:
        try:
            running = list(self._watch.running)
            due_in = await store.seconds_to_next_due(await self._connection.get(), running)
        except Exception as error:
            log_failure(error, at="claim")
            return AWAY
        return IDLE if due_in is None else min(IDLE, max(BREATH, due_in))

    # ---- send --------------------------------------------------------------------------------

    async def _work(self) -> None:
        while (claim := await self._next_claim()) is not None:
            if self._claimed.qsize() <= self._pace.ahead // 2:
                self._has_room.set()
            await self._recorder.put(await self._handle(claim))

    async def _next_claim(self) -> ClaimedMessage | None:
        """Return the next message, at no more than the rate; None at the end."""
        if self._limiter is None:
            return await self._claimed.get()
        async with self._turn:  # so that one alone waits for the rate, and none with a message
            if not self._is_stopping:
                await self._limiter.acquire()
            return await self._claimed.get()

    async def _handle(self, claim: ClaimedMessage) -> FinishedMessage:
        mailing = self._watch.running.get(claim.mailing_id)
        match before_sending(claim, mailing, self._watch.now(), self._timeout):
            case FinishedMessage() as finished:
                return finished
            case Send() as send:
                outcome = await self._send(claim, send)
                self._pace.count()
                now = self._watch.now()
                return after_sending(claim, send.mailing, outcome, now, self._retry)

    async def _send(self, claim: ClaimedMessage, send: Send) -> Outcome:
        try:
            with self._watch.sending(claim.mailing_id), metrics.gateway_request():
                text, within = send.mailing.text, send.within
                return await self._gateway.send(claim.id, send.phone, text, within)
        except asyncio.CancelledError:
            if self._is_stopping:  # the grace is over, and what was written stays written
                return Unknown("connection_lost")
            raise
        except Exception as error:
            log_failure(error, at="send")
            return Unknown("internal_error")
