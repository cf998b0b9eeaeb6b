"""Send claimed messages through a channel, as long as breaker, rate limit and mailings permit."""

import asyncio
import math
from collections.abc import Callable
from datetime import datetime, timedelta
from typing import NamedTuple

from msgspec.structs import replace

from mailer import metrics
from mailer.clock import database_clock, elapsed
from mailer.dispatch.claims import WorkerClaims
from mailer.dispatch.loop_failures import log_task_error
from mailer.dispatch.prefetch import PrefetchQueue
from mailer.dispatch.recorder import Recorder
from mailer.dispatch.running_mailings import RunningMailings
from mailer.dispatch.send_policy import (
    RetryPolicy,
    Send,
    decide_after_send,
    decide_before_send,
    end_opted_out,
    end_untried,
    refuse_long_text,
    release_untried,
)
from mailer.gateway.channel import Channel
from mailer.gateway.protocol import (
    Aborted,
    Accepted,
    Outcome,
    OutgoingMessage,
    Rejected,
    Request,
    TemporaryFailure,
    Unknown,
)
from mailer.gateway.router import Candidate
from mailer.message.model import ClaimedMessage, MessageResult

MAX_SLEEP = 1.0
"""Most seconds that a sending task sleeps before it checks again whether to stop."""

MAX_UNRECORDED_WAIT = timedelta(seconds=1)
"""A request that starts longer after the claim of its message, because of the rate limit, has its
start recorded. Of others, the claim counts as the start: to store each start costs time."""


class ReadyMessage(NamedTuple):
    """A claimed message whose request may start, and is permitted by the breaker."""

    claim: ClaimedMessage
    send: Send
    generation: int
    """The breaker's generation in which the request starts."""
    started_at: float
    """The start of the request, a moment of `elapsed()`."""
    at: datetime
    """The same moment by the database's clock."""


class SenderParts(NamedTuple):
    """What the senders of a worker share."""

    claims: WorkerClaims
    running_mailings: RunningMailings
    recorder: Recorder
    retry: RetryPolicy
    has_other_gateway: Callable[[int, str], bool]
    """Whether the messages of a route may be sent through another gateway than the named one."""
    on_capacity: Callable[[], None]
    """Called whenever a sender may take more claimed messages."""


class Sender:
    """Sends claimed messages through a channel, and passes their results to the recorder."""

    def __init__(self, channel: Channel, parts: SenderParts) -> None:
        self.channel = channel
        self.prefetch = PrefetchQueue(channel.limits.concurrency, parts.on_capacity)
        """The claimed messages whose requests have not started."""
        self._breaker = channel.breaker
        self._latency = metrics.gateway_latency(channel.name)
        self._timeout = channel.limits.timeout
        self._validity = channel.limits.validity
        self._max_parts = channel.limits.parts
        self._in_flight = parts.claims.in_flight
        self._lease = parts.claims.lease
        self._opted_out = parts.claims.opted_out
        self._refunds = parts.claims.refunds
        self._running_mailings = parts.running_mailings
        self._recorder = parts.recorder
        self._retry = parts.retry
        self._has_other_gateway = parts.has_other_gateway
        self._pacer_lock = asyncio.Lock()
        self._is_stopping = False
        channel.add_breaker_listener(parts.on_capacity)

    def candidate(self, now: float) -> Candidate:
        """Return how many messages the gateway can take at `now`, for the router.

        During an outage it can take one as a probe, unless one waits for that already.
        """
        is_paused = self.channel.paused_at is not None
        may_send = self.channel.outage is None or (not is_paused and self.prefetch.is_empty)
        capacity = min(self.prefetch.capacity(), self._breaker.capacity(now)) if may_send else 0
        return self.channel.candidate(capacity)

    def seconds_to_probe(self, now: float) -> float:
        """Return the seconds until the breaker permits a probe; infinite without an outage."""
        if self._breaker.state == "closed" or self.channel.paused_at is not None:
            return math.inf
        return self._breaker.seconds_to_probe(now)

    def stop(self) -> None:
        """Stop waiting for the rate limit."""
        self._is_stopping = True

    async def run(self) -> None:
        """Send messages, `concurrency` at the same time, until `drain` is called."""
        metrics.watch_gateway_requests(self.channel.name, lambda: self.channel.in_flight)
        async with self.channel.gateway, asyncio.TaskGroup() as tasks:
            for _ in range(self.channel.limits.concurrency):
                tasks.create_task(self._send_all())

    async def drain(self) -> None:
        """Release the messages whose requests have not started, and make `run` end.

        It ends when the requests in flight have ended.
        """
        self.stop()
        for claim in self.prefetch.drain(readers=self.channel.limits.concurrency):
            await self._recorder.put(release_untried(claim))

    async def _send_all(self) -> None:
        while (ready := await self._next()) is not None:
            await self._recorder.put(await self._send(ready))

    async def _next(self) -> ReadyMessage | None:
        """Wait for the rate limit, and return the next message to send; None at the end."""
        if (pacer := self.channel.pacer) is None:
            return await self._next_ready()
        async with self._pacer_lock:  # one task at a time waits here, and it has no message yet
            now = elapsed()
            slot_start = now + pacer.reserve(now)
            while not self._is_stopping and (pause := slot_start - elapsed()) > 0:  # noqa: ASYNC110  # it waits for a time, not for an event
                await asyncio.sleep(min(pause, MAX_SLEEP))
            return await self._next_ready()

    async def _next_ready(self) -> ReadyMessage | None:
        """Return the next message that may be sent; None at the end.

        A message that may not be sent is released or ended, and the next one is checked. So each
        slot of the rate limit is used for a request.
        """
        while (claim := await self.prefetch.get()) is not None:
            ready_or_result = self._decide(claim)
            if isinstance(ready_or_result, ReadyMessage):
                return ready_or_result
            await self._recorder.put(ready_or_result)
        return None

    def _decide(self, claim: ClaimedMessage) -> ReadyMessage | MessageResult:
        """Return the message if it may be sent and the breaker permits it, or else its result."""
        started_at = elapsed()  # read once for all uses: each reading costs time
        now = database_clock.at(started_at)
        mailing = self._running_mailings.running.get(claim.mailing_id)
        try:
            send = decide_before_send(
                claim, mailing, now, self._timeout, has_opted_out=claim.id in self._opted_out
            )
        except Exception as error:  # else one message would end this worker
            log_task_error(error, at="decide")
            return end_untried(claim, "undelivered", "internal_error")
        if isinstance(send, MessageResult):
            return send
        if send.mailing.parts > self._max_parts:
            has_other_gateway = self._has_other_gateway(claim.route, self.channel.name)
            return refuse_long_text(claim, has_other_gateway=has_other_gateway)
        generation = None if self.channel.paused_at else self._breaker.acquire(started_at)
        if generation is None:
            return release_untried(claim)
        if self._breaker.state == "half_open":
            self.channel.report_probe()
        return ReadyMessage(claim, send, generation, started_at, now)

    async def _send(self, ready: ReadyMessage) -> MessageResult:
        """Send a message; return the result to store."""
        claim, send, started_at = ready.claim, ready.send, ready.started_at
        mailing = send.mailing
        message = OutgoingMessage(
            claim.id,
            send.phone,
            mailing.text,
            mailing.sender or self.channel.config.sender or "",
            self._validity.limit(int(send.seconds_left)),
            ready.at,
            f"{self.channel.receipts.url}{claim.id}" if self.channel.receipts.url else "",
        )
        request = Request(message, started_at + send.timeout, self._create_write_check(ready))
        outcome = await self._request(claim.mailing_id, request)
        ended_at = elapsed()
        now, duration = database_clock.at(ended_at), ended_at - started_at
        self._latency.observe(duration)
        if isinstance(outcome, (Accepted, Rejected)):
            self.channel.throughput.record(duration)
        self.prefetch.record_sent()
        # a request that was aborted early, at its mailing's end, says nothing about the gateway
        is_aborted_early = (
            request.abort_reason is not None and request.deadline < started_at + self._timeout
        )
        breaker_outcome = Aborted() if is_aborted_early else outcome
        is_gateway_failure = self._record_outcome(ready, breaker_outcome, ended_at, now)
        if isinstance(outcome, Aborted) and claim.id in self._opted_out:
            return end_opted_out(claim)
        result = decide_after_send(
            claim,
            mailing,
            outcome,
            now,
            self._retry,
            receipts=self.channel.receipts,
            is_gateway_failure=is_gateway_failure,
            has_other_gateway=isinstance(outcome, Rejected)
            and self._has_other_gateway(claim.route, self.channel.name),
        )
        claimed_at = claim.lease_expires_at - self._lease
        if ready.at - claimed_at < MAX_UNRECORDED_WAIT:
            return result
        return replace(result, started_at=ready.at)

    def _create_write_check(self, ready: ReadyMessage) -> Callable[[float], bool]:
        """Return the check `Request.may_write`, to run right before the request is written.

        It checks the breaker, the sending window and the opt-outs again, because connecting may
        have taken long.
        A stop of the mailing is not checked, because it aborts the request. But that is certain
        only while the running mailings are current, so this is checked instead.
        """
        window, zone = ready.send.mailing.window, ready.claim.time_zone
        generation, message_id = ready.generation, ready.claim.id

        def may_write(now: float) -> bool:
            if self.channel.paused_at or not self._breaker.is_current(generation):
                return False
            if message_id in self._opted_out or not self._running_mailings.is_current(now):
                return False
            return window is None or window.is_open_in(zone, database_clock.at(now))

        return may_write

    async def _request(self, mailing_id: int, request: Request) -> Outcome:
        """Send a request, which is in flight meanwhile; return its outcome."""
        self._in_flight.add(mailing_id, request)
        self.channel.in_flight += 1
        try:
            return await self.channel.gateway.send(request)
        except Exception as error:  # a defect of a gateway must not end the worker
            log_task_error(error, at="send")
            return request.outcome_of_error()
        finally:
            self._in_flight.remove(request)
            self.channel.in_flight -= 1

    def _record_outcome(
        self, ready: ReadyMessage, outcome: Outcome, now: float, at: datetime
    ) -> bool:
        """Record an outcome in the breaker, and a success or failed attempt for later refunds.

        Return whether it is a failure that belongs to an outage and costs no attempt. `at` is the
        moment `now` by the database's clock.
        """
        state_before = self._breaker.state
        is_gateway_failure = self._breaker.record(ready.generation, outcome, now, at)
        match outcome:
            case Accepted() | Rejected():
                self._refunds.record_success(self.channel, ready.started_at)
            case TemporaryFailure() | Unknown() if not is_gateway_failure:
                self._refunds.record_failure(self.channel, ready.claim, now)
        if self._breaker.state != state_before:
            # It has opened or closed. When it has closed, there is no candidate for a refund.
            self._refunds.confirm_outage(self.channel)
            self.channel.report_breaker(now)
        return is_gateway_failure
