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
from typing import NamedTuple
from uuid import uuid4

import structlog

from mailer import metrics
from mailer.db.engine import OwnConnection, is_away
from mailer.dispatch.failure import log_failure
from mailer.dispatch.giveback import GiveBack
from mailer.dispatch.judge import Send, after_sending, before_sending, hand_back
from mailer.dispatch.rate import Rate
from mailer.dispatch.recorder import BATCH, Recorder
from mailer.dispatch.requests import Requests
from mailer.dispatch.retry import RetryPolicy
from mailer.dispatch.share import FairShare, Pace
from mailer.dispatch.watch import MailingWatch
from mailer.gateway.breaker import Breaker
from mailer.gateway.port import (
    Accepted,
    Gateway,
    Outcome,
    Refused,
    Request,
    Stopped,
    Unavailable,
    Unknown,
)
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


class Ready(NamedTuple):
    """A claimed message that may go out at once, and what the breaker calls it."""

    claim: ClaimedMessage
    send: Send
    permit: int
    began: datetime


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
        self._give_back = GiveBack()
        self._recorder = Recorder(url, self._owner, self._give_back.forget)
        self._claimed: asyncio.Queue[ClaimedMessage | None] = asyncio.Queue()
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
                await self._write_give_back()
                if not await self._claim_due():
                    await self._rest()
            await self._wind_down(workers, recorder)

    async def _wind_down(
        self, workers: list[asyncio.Task[None]], recorder: asyncio.Task[None]
    ) -> None:
        """Hand back what has not begun, give what has the grace to end, and have it recorded.

        With the database away too long nothing can be recorded: then the leases' end does it.
        """
        try:
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
                await self._write_give_back()
                if self._is_in_doubt:
                    await self._let_go()
        except Exception as error:
            log_failure(error, at="stop")
        for task in (*workers, recorder):
            task.cancel()
        self._connection.close()

    async def _write_give_back(self) -> None:
        """Between two claims, so that none of the messages is claimed meanwhile."""
        claims = self._give_back.take(self._recorder.held)
        if not claims:
            return
        try:
            await store.give_back(await self._connection.get(), claims)
        except Exception as error:
            log_failure(error, at="give_back")
            if is_away(error):
                self._give_back.add(claims)

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
        if self._is_in_doubt:
            await self._let_go()
        async with self._watch.claiming:
            claims = await store.claim(connection, asked, share, self._owner, self._lease)
        self._recorder.held.update((claim.id, claim) for claim in claims)
        return claims

    async def _let_go(self) -> None:
        """Return what the last claim took, if it was made before its connection was lost."""
        await store.let_go(await self._connection.get(), self._owner, self._recorder.held)
        self._is_in_doubt = False

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
            async with asyncio.timeout(min(IDLE, max(BREATH, pause))):
                await self._is_due.wait()
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
        while (ready := await self._next()) is not None:
            await self._recorder.put(await self._send(ready))

    async def _next(self) -> Ready | None:
        """Return the next message that may go out, at no more than the rate; None at the end."""
        if self._rate is None:
            return await self._next_ready()
        async with self._turn:  # so that one alone waits, and none with a message in hand
            moment = time.monotonic()
            moment += self._rate.take(moment)
            while not self._is_stopping and (left := moment - time.monotonic()) > 0:  # noqa: ASYNC110  # a moment to come, and no event
                await asyncio.sleep(min(left, IDLE))
            return await self._next_ready()

    async def _next_ready(self) -> Ready | None:
        """Pass over what may not go out: it takes nobody's turn."""
        while (claim := await self._claimed.get()) is not None:
            if self._claimed.qsize() <= self._pace.ahead // 2:
                self._has_room.set()
            ready = self._judge(claim)
            if isinstance(ready, Ready):
                return ready
            await self._recorder.put(ready)
        return None

    def _judge(self, claim: ClaimedMessage) -> Ready | FinishedMessage:
        now = self._watch.now()
        mailing = self._watch.running.get(claim.mailing_id)
        try:
            send = before_sending(claim, mailing, now, self._timeout)
        except Exception as error:  # not to be tried for ever, and not to stop all others
            log_failure(error, at="judge")
            return FinishedMessage(claim, "undelivered", claim.attempts - 1, "internal_error")
        if isinstance(send, FinishedMessage):
            return send
        permit = self._breaker.begin(now)
        if permit is None:
            return hand_back(claim)
        if self._breaker.state == "half_open":
            metrics.breaker("half_open")
        return Ready(claim, send, permit, now)

    async def _send(self, ready: Ready) -> FinishedMessage:
        claim, mailing = ready.claim, ready.send.mailing
        began = time.monotonic()
        deadline = began + ready.send.within
        request = Request(claim.id, ready.send.phone, mailing.text, deadline, self._asks(ready))
        outcome = await self._request(claim.mailing_id, request)
        metrics.request_ended(time.monotonic() - began)
        self._pace.count()
        now = self._watch.now()
        is_cut_short = request.cut_because is not None and request.deadline < began + self._timeout
        lesson = Stopped() if is_cut_short else outcome  # a mailing's end says nothing of a gateway
        is_free = self._learn(ready, lesson, now)
        return after_sending(claim, mailing, outcome, now, self._retry, is_free=is_free)

    def _asks(self, ready: Ready) -> Callable[[], bool] | None:
        """Return what tells right before the write whether the client's window still is open."""
        window, zone = ready.send.mailing.window, ready.claim.time_zone
        if window is None:
            return None
        return lambda: window.is_open_in(zone, self._watch.now())

    async def _request(self, mailing_id: int, request: Request) -> Outcome:
        self._requests.add(mailing_id, request)
        try:
            return await self._gateway.send(request)
        except Exception as error:
            log_failure(error, at="send")
            reason = "internal_error"
            return Unknown(reason) if request.is_written else Unavailable(reason)
        finally:
            self._requests.remove(request)

    def _learn(self, ready: Ready, outcome: Outcome, now: datetime) -> bool:
        """Tell the breaker; return whether a failure is the gateway's and costs no attempt."""
        state = self._breaker.state
        is_free = self._breaker.record(ready.permit, outcome, now)
        match outcome:
            case Accepted() | Refused():
                self._give_back.succeed(ready.began)
            case Unavailable() | Unknown() if not is_free:
                self._give_back.fail(ready.claim, now)
        if self._breaker.state != state:
            self._give_back.explain()
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
