"""Send the answers to replies, as long as breaker, pause and rate of their gateways permit.

Answers are few, and each matters to a person who waits. So they do not queue behind the messages of
mailings: each is sent over a connection of its own, soon after it was written.
"""

import asyncio
from collections import Counter
from datetime import datetime, timedelta
from typing import assert_never
from uuid import UUID, uuid4

import structlog
from sqlalchemy.ext.asyncio import AsyncEngine

from mailer import metrics
from mailer.clock import database_clock, elapsed
from mailer.dispatch.attempt_refunds import AttemptRefunds
from mailer.dispatch.loop_failures import DB_RETRY_DELAY, log_task_error
from mailer.dispatch.send_policy import TOO_MANY_PARTS, RetryPolicy
from mailer.gateway.channel import Channel, Channels
from mailer.gateway.protocol import (
    Aborted,
    Accepted,
    Outcome,
    Rejected,
    Request,
    TemporaryFailure,
    Unknown,
)
from mailer.gateway.single_message import send_request, single_message
from mailer.gateway.sms_parts import count_parts
from mailer.reply import outbox
from mailer.reply.outbox import AnswerResult, ClaimedAnswer
from mailer.reply.rules import sender_of_answer

log = structlog.get_logger()

POLL_INTERVAL = 1.0
"""Seconds between two looks at the outbox."""
MAX_IN_FLIGHT = 8
"""Most answers that a worker sends through one gateway at the same time."""
MAX_WAIT = 20.0
"""Seconds for which a claimed answer waits for the gateway's rate; then it is released."""
RESULT_MARGIN = 30.0
"""Seconds of a lease after the wait and the timeout of the request, to record the result."""


def decide_result(
    answer: ClaimedAnswer,
    outcome: Outcome,
    parts: int,
    policy: RetryPolicy,
    *,
    is_gateway_failure: bool,
) -> AnswerResult:
    """Return the result of an answer whose request had this outcome.

    Unlike a message, an answer is not sent again when delivery is unknown. With
    `is_gateway_failure` a failure belongs to an outage of the gateway, and costs no attempt.
    """
    attempts = answer.attempts
    match outcome:
        case Accepted(gateway_message_id=gateway_message_id):
            return AnswerResult(
                status="accepted",
                attempts=attempts,
                gateway_message_id=gateway_message_id,
                parts=parts,
            )
        case Rejected(reason=reason, is_opt_out=is_opt_out):
            return AnswerResult(
                status="failed", attempts=attempts, reason=reason, is_opt_out=is_opt_out
            )
        case Unknown(reason=reason):
            return AnswerResult(status="unknown", attempts=attempts, reason=reason)
        case Aborted():
            return release(answer)
        case TemporaryFailure(reason=reason) if (
            policy.is_exhausted(attempts) and not is_gateway_failure
        ):
            return AnswerResult(status="failed", attempts=attempts, reason=reason)
        case TemporaryFailure(reason=reason, retry_after=retry_after):
            pause = max(policy.pause(attempts), retry_after or 0.0)
            counted = attempts - 1 if is_gateway_failure else attempts
            return AnswerResult(status="waiting", attempts=counted, reason=reason, pause=pause)
        case _:
            assert_never(outcome)


def release(answer: ClaimedAnswer) -> AnswerResult:
    """Return the result of an answer that was not sent, and costs no attempt."""
    return AnswerResult(status="waiting", attempts=answer.attempts - 1)


class AnswerSender:
    """Sends the answers of the outbox until `stop` is called.

    Requests in flight may then go on for `grace` seconds.
    """

    def __init__(
        self,
        engine: AsyncEngine,
        channels: Channels,
        refunds: AttemptRefunds,
        policy: RetryPolicy,
        grace: float,
    ) -> None:
        self._engine = engine
        self._channels = channels
        self._refunds = refunds
        self._policy = policy
        self._grace = grace
        self._owner: UUID = uuid4()
        self._stopping = asyncio.Event()
        self._claimed: Counter[str] = Counter()
        """Answers that this worker has claimed, by gateway."""
        self._requests: set[Request] = set()
        """The requests in flight."""

    def stop(self) -> None:
        """Claim no more answers. `run` ends when the requests in flight have ended."""
        self._stopping.set()

    async def run(self) -> None:
        """Claim and send answers until `stop` is called."""
        async with asyncio.TaskGroup() as tasks:
            while not self._stopping.is_set():
                try:
                    await self._claim(tasks)
                except Exception as error:  # the next look must follow any error
                    log_task_error(error, at="claim_answers")
                await self._wait()
            timer = asyncio.get_running_loop().call_later(self._grace, self._abort_all)
        timer.cancel()

    async def _wait(self) -> None:
        """Wait for the next look at the outbox, or until `stop` is called."""
        try:
            async with asyncio.timeout(POLL_INTERVAL):
                await self._stopping.wait()
        except TimeoutError:
            return

    def _abort_all(self) -> None:
        for request in self._requests:
            request.abort("connection_lost")

    async def _claim(self, tasks: asyncio.TaskGroup) -> None:
        """Claim due answers, as many as their gateways can take now, and start to send them."""
        async with self._engine.begin() as connection:
            due = await outbox.find_due(connection)
        for name in due:
            channel = self._channels.get(name)
            capacity = 0 if channel is None else self._capacity(channel)
            if channel is None or capacity <= 0:
                continue
            lease = timedelta(seconds=MAX_WAIT + channel.limits.timeout + RESULT_MARGIN)
            async with self._engine.begin() as connection:
                claimed = await outbox.claim(connection, name, self._owner, lease, capacity)
            for answer in claimed:
                self._claimed[name] += 1
                tasks.create_task(self._process(channel, answer, elapsed() + MAX_WAIT))

    def _capacity(self, channel: Channel) -> int:
        """Return how many answers may be claimed for a channel now: one as a probe."""
        if channel.paused_at is not None:
            return 0
        most = min(MAX_IN_FLIGHT, channel.limits.concurrency) - self._claimed[channel.name]
        return min(most, channel.breaker.capacity(elapsed()))

    async def _process(self, channel: Channel, answer: ClaimedAnswer, start_until: float) -> None:
        """Send a claimed answer and record its result. An error ends no other task."""
        try:
            result = await self._send(channel, answer, start_until)
            await self._record(answer, result, start_until + channel.limits.timeout + RESULT_MARGIN)
        except Exception as error:  # a defect must not end the loop that sends answers
            log_task_error(error, at="send_answers")
        finally:
            self._claimed[channel.name] -= 1

    async def _send(
        self, channel: Channel, answer: ClaimedAnswer, start_until: float
    ) -> AnswerResult:
        """Send an answer unless its gateway is out; return its result.

        It starts before the moment `start_until` of `elapsed()`, or is released.
        """
        parts = count_parts(answer.text).parts
        if parts > channel.limits.parts:
            return AnswerResult(status="failed", attempts=answer.attempts, reason=TOO_MANY_PARTS)
        if not await self._wait_for_rate(channel, start_until) or channel.paused_at is not None:
            return release(answer)
        started_at = elapsed()
        generation = channel.breaker.acquire(started_at)
        if generation is None:
            return release(answer)
        if channel.breaker.state == "half_open":
            channel.report_probe()
        request = self._create_request(channel, answer, generation, started_at)
        outcome = await self._request(channel, request)
        is_gateway_failure = self._record_outcome(channel, generation, outcome, started_at)
        return decide_result(
            answer, outcome, parts, self._policy, is_gateway_failure=is_gateway_failure
        )

    async def _wait_for_rate(self, channel: Channel, start_until: float) -> bool:
        """Wait for a slot of the gateway's rate; return False if none starts in time."""
        if channel.pacer is None:
            return True
        now = elapsed()
        pause = channel.pacer.reserve(now)
        if now + pause >= start_until:
            return False
        try:
            async with asyncio.timeout(pause):
                await self._stopping.wait()
        except TimeoutError:
            return True
        return False

    def _create_request(
        self, channel: Channel, answer: ClaimedAnswer, generation: int, started_at: float
    ) -> Request:
        default_sender = channel.config.sender or ""
        message = single_message(
            channel.configured,
            answer.phone,
            answer.text,
            message_id=answer.id,
            sender=sender_of_answer(answer.recipient, answer.mailing_sender, default_sender),
        )

        def may_write(_: float) -> bool:
            return channel.paused_at is None and channel.breaker.is_current(generation)

        return Request(message, started_at + channel.limits.timeout, may_write)

    async def _request(self, channel: Channel, request: Request) -> Outcome:
        """Send a request, which is in flight meanwhile; return its outcome."""
        self._requests.add(request)
        channel.in_flight += 1
        try:
            return await send_request(channel.configured, request, channel.limits.timeout)
        except Exception as error:  # a defect of a gateway must not end the worker
            log_task_error(error, at="send_answer")
            return request.outcome_of_error()
        finally:
            channel.in_flight -= 1
            self._requests.discard(request)

    def _record_outcome(
        self, channel: Channel, generation: int, outcome: Outcome, started_at: float
    ) -> bool:
        """Record an outcome in the breaker; return whether it is a failure of an outage."""
        now, state_before = elapsed(), channel.breaker.state
        at: datetime = database_clock.at(now)
        is_gateway_failure = channel.breaker.record(generation, outcome, now, at)
        if isinstance(outcome, Accepted | Rejected):
            self._refunds.record_success(channel, started_at)
        if channel.breaker.state != state_before:
            self._refunds.confirm_outage(channel)
            channel.report_breaker(now)
        return is_gateway_failure

    async def _record(self, answer: ClaimedAnswer, result: AnswerResult, until: float) -> None:
        """Record a result; while the database is unavailable, try again until the lease ends."""
        while True:
            try:
                async with self._engine.begin() as connection:
                    is_recorded = await outbox.record(connection, answer, self._owner, result)
                break
            except Exception as error:  # after any error, record again while the lease lasts
                log_task_error(error, at="record_answers")
                if elapsed() + DB_RETRY_DELAY >= until:
                    return
                await asyncio.sleep(DB_RETRY_DELAY)
        if is_recorded:
            metrics.answer_recorded(answer.gateway, result.status)
        event = "answer_recorded" if is_recorded else "answer_lease_lost"
        log.info(event, answer_id=answer.id, status=result.status, reason=result.reason)
