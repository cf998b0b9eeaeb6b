"""Requests in flight are aborted at their deadline, with their mailing, and at shutdown."""

import asyncio
import contextlib
import random
from collections.abc import Callable, Iterator
from contextvars import Context
from datetime import UTC, datetime, timedelta
from typing import TypeVarTuple

import pytest

from mailer.clock import elapsed
from mailer.dispatch.in_flight import InFlightRequests
from mailer.gateway.protocol import (
    Aborted,
    Accepted,
    Outcome,
    OutgoingMessage,
    Request,
    TemporaryFailure,
    Unknown,
)
from mailer.mailing.model import END_MARGIN, RunningMailing

NOW = datetime(2026, 3, 4, 12, tzinfo=UTC)
"""The time by the database's clock."""
LATER = 3_600.0
"""Seconds until a deadline that no test reaches."""
Args = TypeVarTuple("Args")


def create_request(within: float, message_id: int = 1) -> Request:
    """Return a request with a deadline `within` seconds from now."""
    message = OutgoingMessage(id=message_id, phone="79161234567", text="Hello")
    return Request(message, elapsed() + within)


def create_mailing(
    mailing_id: int, seconds_left: float, *, may_send: bool = True
) -> RunningMailing:
    """Return a mailing whose requests may stay open for `seconds_left`."""
    end = NOW + timedelta(seconds=seconds_left) + END_MARGIN
    return RunningMailing(
        mailing_id,
        text="Hello",
        datetime_end=end,
        window=None,
        on_unknown="retry",
        may_send=may_send,
    )


class SlowGateway:
    """A gateway that accepts after `seconds`, or never if None.

    With `writes` false it never marks a request as written, as if it were still connecting.
    """

    def __init__(self, *, writes: bool = True, seconds: float | None = None) -> None:
        self._writes = writes
        self._seconds = seconds

    async def send(self, request: Request) -> Outcome:
        request.attach_task()
        if self._writes and not request.mark_written():
            return request.outcome_of_abort() or Accepted()
        try:
            if self._seconds is None:
                await asyncio.get_running_loop().create_future()
            await asyncio.sleep(self._seconds or 0)
        except asyncio.CancelledError:
            if (outcome := request.outcome_of_abort()) is not None:
                return outcome
            raise
        return Accepted()


async def send(
    requests: InFlightRequests, request: Request, gateway: SlowGateway, mailing_id: int = 1
) -> Outcome:
    """Send a request, which is in flight meanwhile; return its outcome."""
    requests.add(mailing_id, request)
    try:
        return await gateway.send(request)
    finally:
        requests.remove(request)


async def start_sending(
    requests: InFlightRequests, request: Request, gateway: SlowGateway, mailing_id: int = 1
) -> asyncio.Task[Outcome]:
    """Start a task that sends a request, and return it when the request is in flight."""
    task = asyncio.create_task(send(requests, request, gateway, mailing_id))
    await asyncio.sleep(0)
    return task


def outcome_of_timeout(*, is_written: bool) -> Outcome:
    return Unknown("timeout") if is_written else TemporaryFailure("connection_failed")


# ---- the deadline ---------------------------------------------------------------------------


@pytest.mark.parametrize("writes", [True, False])
async def test_request_is_aborted_at_its_deadline(*, writes: bool) -> None:
    requests, request = InFlightRequests(), create_request(within=0.1)
    outcome = await send(requests, request, SlowGateway(writes=writes))
    assert outcome == outcome_of_timeout(is_written=writes)
    assert elapsed() >= request.deadline


async def test_request_that_ends_in_time_does_not_affect_the_next_deadline() -> None:
    requests = InFlightRequests()
    assert await send(requests, create_request(LATER), SlowGateway(seconds=0)) == Accepted()
    assert await send(requests, create_request(within=0.05), SlowGateway()) == Unknown("timeout")
    assert await send(requests, create_request(LATER), SlowGateway(seconds=0)) == Accepted()


async def test_request_past_its_deadline_is_never_written() -> None:
    """After a suspension of the process, a task may write before the deadline's timer runs."""
    requests = InFlightRequests()
    assert await send(requests, create_request(within=-1), SlowGateway()) == Aborted()


async def test_request_is_not_written_when_its_check_refuses_right_before_the_write() -> None:
    request = create_request(LATER)
    request.may_write = lambda _: False
    assert await send(InFlightRequests(), request, SlowGateway()) == Aborted()
    assert not request.is_written


async def test_each_of_many_requests_is_aborted_at_its_own_deadline() -> None:
    requests, rng = InFlightRequests(), random.Random(7)  # noqa: S311  # no secret
    seconds_after_deadline: list[float] = []

    async def send_one(number: int) -> Outcome:
        await asyncio.sleep(rng.uniform(0, 0.2))
        request = create_request(rng.uniform(0, 0.4), number)
        outcome = await send(requests, request, SlowGateway())
        seconds_after_deadline.append(elapsed() - request.deadline)
        return outcome

    outcomes = await asyncio.gather(*(send_one(number) for number in range(500)))
    assert set(outcomes) == {Unknown("timeout")}
    assert min(seconds_after_deadline) >= 0
    assert len(requests) == 0


class TimerRecordingLoop(asyncio.SelectorEventLoop):
    """An event loop that records all its timers."""

    def __init__(self) -> None:
        super().__init__()
        self.timers: list[asyncio.TimerHandle] = []

    def call_at(
        self,
        when: float,
        callback: Callable[[*Args], object],
        *args: *Args,
        context: Context | None = None,
    ) -> asyncio.TimerHandle:
        timer = super().call_at(when, callback, *args, context=context)
        self.timers.append(timer)
        return timer


def test_all_requests_share_one_timer() -> None:
    loop = TimerRecordingLoop()

    async def send_many() -> None:
        requests, rng = InFlightRequests(), random.Random(7)  # noqa: S311  # no secret
        tasks = []
        for number in range(1000):
            request = create_request(rng.uniform(60, 70), number)
            tasks.append(await start_sending(requests, request, SlowGateway()))
            assert len([timer for timer in loop.timers if not timer.cancelled()]) == 1
        # a request sets a new timer only if its deadline is earlier than all others
        assert len(loop.timers) < 50
        requests.abort_all("connection_lost")
        await asyncio.gather(*tasks)

    with asyncio.Runner(loop_factory=lambda: loop) as runner:
        runner.run(send_many())


# ---- the mailing ----------------------------------------------------------------------------


NOT_SENDING: list[dict[int, RunningMailing]] = [
    {},
    {1: create_mailing(1, seconds_left=60, may_send=False)},
]
"""Mailing 1 is ended or deleted; mailing 1 is paused."""


@pytest.mark.parametrize("mailings", NOT_SENDING, ids=["ended", "paused"])
async def test_unwritten_request_is_aborted_when_its_mailing_stops(
    mailings: dict[int, RunningMailing],
) -> None:
    requests = InFlightRequests()
    stopped = await start_sending(
        requests, create_request(LATER), SlowGateway(writes=False), mailing_id=1
    )
    other = await start_sending(
        requests, create_request(LATER), SlowGateway(writes=False, seconds=0.05), mailing_id=2
    )
    requests.apply_mailing_changes({**mailings, 2: create_mailing(2, seconds_left=60)}, NOW)
    assert await stopped == Aborted()
    assert await other == Accepted()


@pytest.mark.parametrize("mailings", NOT_SENDING, ids=["ended", "paused"])
async def test_written_request_continues_to_its_deadline_when_its_mailing_stops(
    mailings: dict[int, RunningMailing],
) -> None:
    requests = InFlightRequests()
    quick_task = await start_sending(requests, create_request(LATER), SlowGateway(seconds=0.05))
    late_request = create_request(within=0.1)
    late_task = await start_sending(requests, late_request, SlowGateway())
    requests.apply_mailing_changes(mailings, NOW)
    assert await quick_task == Accepted()
    assert await late_task == Unknown("timeout")
    assert elapsed() >= late_request.deadline


@contextlib.contextmanager
def expect_deadline_in(request: Request, seconds: float) -> Iterator[None]:
    """Assert that the block moves a request's deadline to `seconds` from now."""
    before = elapsed()
    yield
    assert before + seconds <= request.deadline <= elapsed() + seconds


@pytest.mark.parametrize("writes", [True, False])
async def test_earlier_end_becomes_the_deadline(*, writes: bool) -> None:
    requests, request = InFlightRequests(), create_request(LATER)
    task = await start_sending(requests, request, SlowGateway(writes=writes))
    with expect_deadline_in(request, 0.1):
        requests.apply_mailing_changes({1: create_mailing(1, seconds_left=0.1)}, NOW)
    outcome = await task
    assert outcome == outcome_of_timeout(is_written=writes)
    assert elapsed() >= request.deadline


async def test_earlier_end_of_a_paused_mailing_becomes_the_deadline() -> None:
    requests, request = InFlightRequests(), create_request(LATER)
    task = await start_sending(requests, request, SlowGateway())
    with expect_deadline_in(request, 0.1):
        requests.apply_mailing_changes(
            {1: create_mailing(1, seconds_left=0.1, may_send=False)}, NOW
        )
    assert await task == Unknown("timeout")
    assert elapsed() >= request.deadline


@pytest.mark.parametrize("seconds_left", [0, -1])
async def test_end_in_the_past_aborts_at_once(seconds_left: float) -> None:
    requests = InFlightRequests()
    task = await start_sending(requests, create_request(LATER), SlowGateway())
    requests.apply_mailing_changes({1: create_mailing(1, seconds_left)}, NOW)
    await asyncio.sleep(0)
    assert task.done()
    assert await task == Unknown("timeout")


async def test_later_end_does_not_extend_the_deadline() -> None:
    requests, request = InFlightRequests(), create_request(within=0.1)
    deadline = request.deadline
    task = await start_sending(requests, request, SlowGateway())
    requests.apply_mailing_changes({1: create_mailing(1, seconds_left=3600)}, NOW)
    assert request.deadline == deadline
    assert await task == Unknown("timeout")


async def test_each_request_gets_the_deadline_of_its_own_mailing() -> None:
    requests = InFlightRequests()
    soon, sooner, later = [create_request(LATER) for _ in range(3)]
    soon_task = await start_sending(requests, soon, SlowGateway(), mailing_id=1)
    sooner_task = await start_sending(requests, sooner, SlowGateway(), mailing_id=2)
    later_task = await start_sending(requests, later, SlowGateway(), mailing_id=3)
    seconds_left = {1: 0.2, 2: 0.1, 3: LATER / 2}
    mailings = {id_: create_mailing(id_, seconds) for id_, seconds in seconds_left.items()}

    with (
        expect_deadline_in(soon, 0.2),
        expect_deadline_in(sooner, 0.1),
        expect_deadline_in(later, LATER / 2),
    ):
        requests.apply_mailing_changes(mailings, NOW)

    assert await sooner_task == Unknown("timeout")
    assert not soon_task.done()
    assert await soon_task == Unknown("timeout")
    assert not later_task.done()
    requests.abort_all("connection_lost")
    await later_task


async def test_changes_without_requests_do_nothing() -> None:
    requests = InFlightRequests()
    requests.apply_mailing_changes({}, NOW)
    requests.apply_mailing_changes({1: create_mailing(1, seconds_left=60)}, NOW)
    requests.abort_all("connection_lost")
    assert len(requests) == 0


# ---- shutdown -------------------------------------------------------------------------------


async def test_at_shutdown_written_requests_end_as_unknown_and_unwritten_ones_as_aborted() -> None:
    requests = InFlightRequests()
    written = [
        await start_sending(requests, create_request(LATER), SlowGateway()) for _ in range(10)
    ]
    unwritten = [
        await start_sending(requests, create_request(LATER), SlowGateway(writes=False))
        for _ in range(10)
    ]
    assert len(requests) == 20
    requests.abort_all("connection_lost")
    await asyncio.sleep(0)
    assert all(task.done() for task in (*written, *unwritten))
    assert await asyncio.gather(*written) == [Unknown("connection_lost")] * 10
    assert await asyncio.gather(*unwritten) == [Aborted()] * 10
    assert len(requests) == 0


async def test_first_abort_reason_is_kept() -> None:
    requests, request = InFlightRequests(), create_request(LATER)
    task = await start_sending(requests, request, SlowGateway())
    request.abort("timeout")
    requests.abort_all("connection_lost")
    assert await task == Unknown("timeout")
