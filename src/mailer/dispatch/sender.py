"""The hot loop: claim what is due, send it with bounded concurrency, record what became of it.

Claimed and finished messages wait in bounded queues, so that the database works in batches while
the gateway works one by one; no connection is held across a request.
"""

import asyncio
import contextlib
import time
from collections import Counter
from collections.abc import Callable
from datetime import datetime, timedelta
from uuid import uuid4

import structlog

from mailer import metrics
from mailer.db.engine import OwnConnection
from mailer.dispatch.failure import log_failure
from mailer.dispatch.judge import Send, after_sending, before_sending, hand_back
from mailer.dispatch.rate import Rate
from mailer.dispatch.recorder import BATCH, Recorder
from mailer.dispatch.requests import Requests
from mailer.dispatch.retry import RetryPolicy
from mailer.dispatch.share import FairShare, Pace
from mailer.dispatch.watch import MailingWatch
from mailer.gateway.breaker import Breaker
from mailer.gateway.port import Accepted, Gateway, Outcome, Refused, Request, Unavailable, Unknown
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

    def __init__(  # noqa: PLR0913, PLR0917  # the parts that it brings together
        self,
        url: str,
        gateway: Gateway,
        breaker: Breaker,
        requests: Requests,
        watch: MailingWatch,
        settings: Settings,
        on_drained: Callable[[], None],
    ) -> None:
        self._connection = OwnConnection(url)
        self._gateway = gateway
        self._breaker = breaker
        self._requests = requests
        self._watch = watch
        self._on_drained = on_drained
        self._timeout = settings.gateway_timeout
        self._concurrency = settings.gateway_concurrency
        self._lease = timedelta(seconds=settings.lease)
        self._grace = settings.shutdown_grace
        self._retry = RetryPolicy(settings.retry_attempts, settings.retry_base, settings.retry_cap)
        self._rate = Rate(settings.gateway_rate) if settings.gateway_rate else None
        self._turn = asyncio.Lock()
        self._owner = uuid4()
        self._recorder = Recorder(url, self._owner)
        self._claimed: asyncio.Queue[ClaimedMessage | None] = asyncio.Queue()
        self._failed: list[tuple[datetime, ClaimedMessage]] = []
        self._blameless: list[ClaimedMessage] = []
        self._share = FairShare(again_after=LOOK)
        self._pace = Pace(seconds=AHEAD, first=self._concurrency, least=LEAST, most=2 * BATCH)
        self._has_room = asyncio.Event()
        self._is_due = asyncio.Event()
        self._is_in_doubt = False
        self._is_stopping = False
        metrics.breaker(breaker.state)
        metrics.watch_requests(requests.__len__)

    @property
    def is_busy(self) -> bool:
        """Whether more is claimed than can begin at once."""
        return not self._claimed.empty()

    def wake(self) -> None:
        """Look at what is due now, of every mailing."""
        self._share.ask_all()
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
                await self._give_back()
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
                await asyncio.wait(workers, timeout=self._grace)
                self._requests.cut_all("connection_lost")
                await asyncio.gather(*workers)
                await self._recorder.close()
                await recorder
                await self._give_back()
        for task in (*workers, recorder):
            task.cancel()
        self._connection.close()

    async def _give_back(self) -> None:
        """Give the attempt back to those that failed with the gateway, once that is recorded.

        Between two claims, so that none of them is claimed meanwhile.
        """
        held = self._recorder.held
        recorded = [claim for claim in self._blameless if claim.id not in held]
        if not recorded:
            return
        self._blameless = [claim for claim in self._blameless if claim.id in held]
        try:
            await store.give_back(await self._connection.get(), recorded)
        except Exception as error:
            log_failure(error, at="give_back")
            self._blameless += recorded

    # ---- claim -------------------------------------------------------------------------------

    async def _claim_due(self) -> bool:
        """Claim as much as there is room for; False when nothing is due, or nothing may begin."""
        room = min(await self._room(), self._breaker.room(self._watch.now()))
        asked, share = self._share.turn(self._watch.running, room, time.monotonic())
        if not asked or self._is_stopping:
            return False
        try:
            claims = await self._claim(asked, share)
        except Exception as error:
            log_failure(error, at="claim")
            self._is_in_doubt = True
            await asyncio.sleep(AWAY)
            return False
        metrics.claimed(len(claims))
        self._share.served(asked, share, Counter(claim.mailing_id for claim in claims))
        for claim in claims:
            self._claimed.put_nowait(claim)
        return bool(claims) or self._share.is_hungry

    async def _claim(self, asked: list[int], share: int) -> list[ClaimedMessage]:
        connection = await self._connection.get()
        if self._is_in_doubt:  # whether the last claim was made before its connection was lost
            await store.let_go(connection, self._owner, self._recorder.held)
            self._is_in_doubt = False
        async with self._watch.claiming:
            claims = await store.claim(connection, asked, share, self._owner, self._lease)
        self._recorder.held.update(claim.id for claim in claims)
        return claims

    async def _room(self) -> int:
        """Wait until half of what is kept claimed has gone; return how much to claim."""
        self._pace.measure(time.monotonic())
        while self._claimed.qsize() > self._pace.ahead // 2 and not self._is_stopping:
            self._has_room.clear()
            await self._has_room.wait()
        return min(BATCH, self._pace.ahead - self._claimed.qsize())

    async def _rest(self) -> None:
        """Wait for a message to be due or the breaker to let one through, or for a signal."""
        held = self._breaker.seconds_to_probe(self._watch.now())
        if not held:
            self._on_drained()
        pause = held or await self._until_due()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._is_due.wait(), min(IDLE, max(BREATH, pause)))
        self._is_due.clear()

    async def _until_due(self) -> float:
        """Return the seconds until the next message is due, or until it is worth a look."""
        running = list(self._watch.running)
        if not running:
            return IDLE
        try:
            due_in = await store.seconds_to_next_due(await self._connection.get(), running)
        except Exception as error:
            log_failure(error, at="claim")
            return AWAY
        return IDLE if due_in is None else due_in

    # ---- send --------------------------------------------------------------------------------

    async def _work(self) -> None:
        while (claim := await self._next_claim()) is not None:
            if self._claimed.qsize() <= self._pace.ahead // 2:
                self._has_room.set()
            await self._recorder.put(await self._handle(claim))

    async def _next_claim(self) -> ClaimedMessage | None:
        """Return the next message, at no more than the rate; None at the end."""
        if self._rate is not None:
            async with self._turn:  # so that one alone waits, and none with a message in hand
                moment = time.monotonic()
                moment += self._rate.take(moment)
                while not self._is_stopping and (left := moment - time.monotonic()) > 0:  # noqa: ASYNC110  # a moment to come, and no event
                    await asyncio.sleep(min(left, IDLE))
                return await self._claimed.get()
        return await self._claimed.get()

    async def _handle(self, claim: ClaimedMessage) -> FinishedMessage:
        mailing = self._watch.running.get(claim.mailing_id)
        now = self._watch.now()
        match before_sending(claim, mailing, now, self._timeout):
            case FinishedMessage() as finished:
                return finished
            case Send() as send:
                permit = self._breaker.begin(now)
                if permit is None:
                    return hand_back(claim)
                if self._breaker.state == "half_open":
                    metrics.breaker("half_open")
                outcome = await self._send(claim, send)
                self._pace.count()
                began, now = now, self._watch.now()
                is_free = self._learn(permit, claim, outcome, began, now)
                return after_sending(
                    claim, send.mailing, outcome, now, self._retry, is_free=is_free
                )

    async def _send(self, claim: ClaimedMessage, send: Send) -> Outcome:
        now = time.monotonic()
        request = Request(claim.id, send.phone, send.mailing.text, now + send.within)
        self._requests.add(claim.mailing_id, request)
        try:
            return await self._gateway.send(request)
        except Exception as error:
            log_failure(error, at="send")
            return Unknown("internal_error")
        finally:
            self._requests.remove(request)
            metrics.request_ended(time.monotonic() - now)

    def _learn(
        self, permit: int, claim: ClaimedMessage, outcome: Outcome, began: datetime, now: datetime
    ) -> bool:
        """Tell the breaker; return whether a failure is the gateway's and costs no attempt.

        So are the failures before it opened, back to the last request that succeeded: it had begun
        when the gateway still was up. An answer to what had begun before a failure says nothing.
        """
        state = self._breaker.state
        is_free = self._breaker.record(permit, outcome, now)
        match outcome:
            case Accepted() | Refused():
                if self._failed:
                    self._failed = [(at, failed) for at, failed in self._failed if at > began]
            case Unavailable() | Unknown() if not is_free:
                self._failed.append((now, claim))
        if self._breaker.state != state:
            self._blameless += [failed for _, failed in self._failed]
            self._failed = []
            self._tell_breaker(now)
        return is_free

    def _tell_breaker(self, now: datetime) -> None:
        metrics.breaker(self._breaker.state)
        if self._breaker.hold is not None:
            seconds = round(self._breaker.seconds_to_probe(now), 3)
            log.warning("breaker_opened", reason=self._breaker.hold.reason, seconds=seconds)
        else:
            log.info("breaker_closed")
        self.wake()
