"""The hot loop: claim due messages, send them with bounded concurrency, record the results.

Claimer, workers and recorder are joined by bounded queues of claimed and of finished messages, so
that the database works in batches while the gateway works one by one; no connection is held
across a request.
"""

import asyncio
from collections.abc import Callable, Iterable
from datetime import datetime, timedelta
from typing import NamedTuple
from uuid import uuid4

import structlog

from mailer import metrics
from mailer.clock import database_clock, elapsed
from mailer.dispatch.claimed import ClaimedQueue
from mailer.dispatch.claimer import Claimer
from mailer.dispatch.failure import log_failure
from mailer.dispatch.giveback import GiveBack
from mailer.dispatch.judge import Send, after_sending, before_sending, end_untried, hand_back
from mailer.dispatch.loop_failures import LoopFailures
from mailer.dispatch.rate import Rate
from mailer.dispatch.recorder import Recorder
from mailer.dispatch.requests import Requests
from mailer.dispatch.retry import RetryPolicy
from mailer.dispatch.watch import MailingWatch
from mailer.gateway.breaker import Breaker
from mailer.gateway.pace import Pace
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
from mailer.message.model import ClaimedMessage, FinishedMessage
from mailer.settings import Settings

log = structlog.get_logger()

LAST_WORDS = 3.0
"""Seconds after the grace to record what became of the last messages."""
STEP = 1.0
"""Most seconds that a worker waits for its turn before it looks whether to stop."""


class Ready(NamedTuple):
    """A claimed message cleared for sending, with its breaker permit."""

    claim: ClaimedMessage
    send: Send
    permit: int
    began: float


class Sender:
    """Sends what is due of the running mailings through a gateway, until told to stop."""

    def __init__(  # noqa: PLR0913, PLR0917  # the parts that it brings together
        self,
        url: str,
        gateway: Gateway,
        breaker: Breaker,
        pace: Pace,
        requests: Requests,
        watch: MailingWatch,
        failures: LoopFailures,
        settings: Settings,
        on_drained: Callable[[], None],
        on_recorded: Callable[[list[FinishedMessage]], None],
    ) -> None:
        self._gateway = gateway
        self._breaker = breaker
        self._pace = pace
        self._requests = requests
        self._watch = watch
        self._timeout = settings.gateway_timeout
        self._concurrency = settings.gateway_concurrency
        self._grace = settings.shutdown_grace
        self._retry = RetryPolicy(settings.retry_attempts, settings.retry_base, settings.retry_cap)
        self._rate = Rate(settings.gateway_rate) if settings.gateway_rate else None
        self._turn = asyncio.Lock()
        self._is_stopping = False
        self._give_back = GiveBack()
        self._claimed = ClaimedQueue(self._concurrency)
        owner = uuid4()
        self._on_recorded = on_recorded
        self._recorder = Recorder(url, owner, failures, self._give_back.forget, self._recorded)
        self._claimer = Claimer(
            url,
            owner,
            timedelta(seconds=settings.lease),
            breaker,
            watch,
            self._claimed,
            self._recorder.held,
            self._give_back,
            failures,
            on_drained,
        )
        metrics.breaker(breaker.state)
        metrics.watch_requests(requests.__len__)

    @property
    def is_busy(self) -> bool:
        """Whether more is claimed than can begin at once."""
        return not self._claimed.is_empty

    def look(self, mailings: Iterable[int]) -> None:
        """Look when these mailings have something due: they have changed."""
        self._claimer.look(mailings)

    def ask(self, mailings: Iterable[int]) -> None:
        """Claim from these mailings: they have new messages."""
        self._claimer.ask(mailings)

    def stop(self) -> None:
        """Claim no more, hand back what has not begun, finish what has."""
        self._is_stopping = True
        self._claimer.stop()

    def _recorded(self, finished: list[FinishedMessage]) -> None:
        if put_back := [done for done in finished if done.status == "scheduled"]:
            self._claimer.recorded(put_back)
        self._on_recorded(finished)

    async def run(self) -> None:
        """Send until told to stop."""
        async with asyncio.TaskGroup() as tasks:
            recorder = tasks.create_task(self._recorder.run())
            workers = [tasks.create_task(self._work()) for _ in range(self._concurrency)]
            await self._claimer.run()
            await self._wind_down(workers, recorder)

    async def _wind_down(
        self, workers: list[asyncio.Task[None]], recorder: asyncio.Task[None]
    ) -> None:
        """Hand back what has not begun, give what has the grace to end, and have it recorded.

        With the database away too long nothing can be recorded: then the leases' end does it.
        """
        try:
            async with asyncio.timeout(self._grace + LAST_WORDS):
                for claim in self._claimed.empty(readers=len(workers)):
                    await self._recorder.put(hand_back(claim))
                await asyncio.wait(workers, timeout=self._grace)
                self._requests.cut_all("connection_lost")
                await asyncio.gather(*workers)
                await self._recorder.close()
                await recorder
                await self._claimer.settle()
        except Exception as error:
            log_failure(error, at="stop")
        for task in (*workers, recorder):
            task.cancel()
        self._claimer.close()

    async def _work(self) -> None:
        while (ready := await self._next()) is not None:
            await self._recorder.put(await self._send(ready))

    async def _next(self) -> Ready | None:
        """Return the next message that may go out, at no more than the rate; None at the end."""
        if self._rate is None:
            return await self._next_ready()
        async with self._turn:  # so that one alone waits, and none with a message in hand
            moment = elapsed()
            moment += self._rate.take(moment)
            while not self._is_stopping and (left := moment - elapsed()) > 0:  # noqa: ASYNC110  # a moment to come, and no event
                await asyncio.sleep(min(left, STEP))
            return await self._next_ready()

    async def _next_ready(self) -> Ready | None:
        """Skip messages that may not be sent; they use no rate slot."""
        while (claim := await self._claimed.get()) is not None:
            ready = self._judge(claim)
            if isinstance(ready, Ready):
                return ready
            await self._recorder.put(ready)
        return None

    def _judge(self, claim: ClaimedMessage) -> Ready | FinishedMessage:
        began = elapsed()  # read once for all that rests on it: each reading costs
        now = database_clock.at(began)
        mailing = self._watch.running.get(claim.mailing_id)
        try:
            send = before_sending(claim, mailing, now, self._timeout)
        except Exception as error:  # not to be tried for ever, and not to stop all others
            log_failure(error, at="judge")
            return end_untried(claim, "undelivered", "internal_error")
        if isinstance(send, FinishedMessage):
            return send
        permit = self._breaker.begin(began)
        if permit is None:
            return hand_back(claim)
        if self._breaker.state == "half_open":
            metrics.breaker("half_open")
            log.info("breaker_probes")
        return Ready(claim, send, permit, began)

    async def _send(self, ready: Ready) -> FinishedMessage:
        claim, mailing, began = ready.claim, ready.send.mailing, ready.began
        deadline = began + ready.send.within
        request = Request(claim.id, ready.send.phone, mailing.text, deadline, self._asks(ready))
        outcome = await self._request(claim.mailing_id, request)
        ended = elapsed()
        now, took = database_clock.at(ended), ended - began
        metrics.request_ended(took)
        if isinstance(outcome, (Accepted, Refused)):
            self._pace.count(took)
        self._claimed.count()
        is_cut_short = request.cut_because is not None and request.deadline < began + self._timeout
        lesson = Stopped() if is_cut_short else outcome  # a mailing's end says nothing of a gateway
        is_free = self._learn(ready, lesson, ended, now)
        return after_sending(claim, mailing, outcome, now, self._retry, is_free=is_free)

    def _asks(self, ready: Ready) -> Callable[[float], bool]:
        """Return a check of breaker, stops and window, run right before the request is written.

        A connection may have taken long to come. No stop is missed while the watch is current.
        """
        window, zone, permit = ready.send.mailing.window, ready.claim.time_zone, ready.permit

        def may_go(now: float) -> bool:
            if not self._breaker.still_permits(permit) or not self._watch.is_current(now):
                return False
            return window is None or window.is_open_in(zone, database_clock.at(now))

        return may_go

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

    def _learn(self, ready: Ready, outcome: Outcome, now: float, at: datetime) -> bool:
        """Tell the breaker; return whether a failure is the gateway's and costs no attempt.

        `at` is the moment `now`, by the database's clock.
        """
        state = self._breaker.state
        is_free = self._breaker.record(ready.permit, outcome, now, at)
        match outcome:
            case Accepted() | Refused():
                self._give_back.succeed(ready.began)
            case Unavailable() | Unknown() if not is_free:
                self._give_back.fail(ready.claim, now)
        if self._breaker.state != state:
            self._give_back.explain()
            self._tell_breaker(now)
        return is_free

    def _tell_breaker(self, now: float) -> None:
        metrics.breaker(self._breaker.state)
        if self._breaker.hold is not None:
            seconds = round(self._breaker.seconds_to_probe(now), 3)
            log.warning("breaker_opened", reason=self._breaker.hold.reason, seconds=seconds)
        else:
            log.info("breaker_closed")
        self._claimer.wake()
