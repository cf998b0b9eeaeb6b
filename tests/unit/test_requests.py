"""Requests under way are cut on time: at their deadline, with their mailing, with the process."""

import asyncio
import contextlib
import random
from collections.abc import Callable, Iterator
from contextvars import Context
from datetime import UTC, datetime, timedelta
from typing import TypeVarTuple

import pytest

from mailer.clock import elapsed
from mailer.dispatch.requests import Requests
from mailer.gateway.port import Accepted, Outcome, Request, Stopped, Unavailable, Unknown
from mailer.mailing.model import END_MARGIN, RunningMailing

NOW = datetime(2026, 3, 4, 12, tzinfo=UTC)
LATER = 3_600.0
"""Seconds to a deadline that no test waits for."""
Given = TypeVarTuple("Given")


def a_request(within: float, message_id: int = 1) -> Request:
    return Request(message_id, "79161234567", "Hello", elapsed() + within)


def a_mailing(mailing_id: int, left: float, *, may_send: bool = True) -> RunningMailing:
    """A mailing in which a request may be open for that many seconds more."""
    end = NOW + timedelta(seconds=left) + END_MARGIN
    return RunningMailing(mailing_id, "Hello", end, None, "retry", may_send)


class Slow:
    """A gateway that writes a request, or has yet to, and then takes its time."""

    def __init__(self, *, writes: bool = True, takes: float | None = None) -> None:
        self._writes = writes
        self._takes = takes

    async def send(self, request: Request) -> Outcome:
        request.begin()
        if self._writes and not request.write():
            return request.outcome_of_cut() or Accepted()
        try:
            if self._takes is None:
                await asyncio.get_running_loop().create_future()
            await asyncio.sleep(self._takes or 0)
        except asyncio.CancelledError:
            if (outcome := request.outcome_of_cut()) is not None:
                return outcome
            raise
        return Accepted()


async def sent(requests: Requests, request: Request, gateway: Slow, mailing_id: int = 1) -> Outcome:
    requests.add(mailing_id, request)
    try:
        return await gateway.send(request)
    finally:
        requests.remove(request)


async def begun(
    requests: Requests, request: Request, gateway: Slow, mailing_id: int = 1
) -> asyncio.Task[Outcome]:
    task = asyncio.create_task(sent(requests, request, gateway, mailing_id))
    await asyncio.sleep(0)
    return task


# ---- the deadline ---------------------------------------------------------------------------


@pytest.mark.parametrize("writes", [True, False])
async def test_a_request_is_cut_at_its_deadline(*, writes: bool) -> None:
    requests, request = Requests(), a_request(within=0.1)
    outcome = await sent(requests, request, Slow(writes=writes))
    assert outcome == (Unknown("timeout") if writes else Unavailable("connection_failed"))
    assert elapsed() >= request.deadline


async def test_a_request_that_ends_in_time_is_not_cut_and_the_next_one_still_is() -> None:
    requests = Requests()
    assert await sent(requests, a_request(LATER), Slow(takes=0)) == Accepted()
    assert await sent(requests, a_request(within=0.05), Slow()) == Unknown("timeout")
    assert await sent(requests, a_request(LATER), Slow(takes=0)) == Accepted()


async def test_a_request_whose_time_is_up_before_the_write_is_never_written() -> None:
    """As after a process stood still: what is ready runs before the timer."""
    requests = Requests()
    assert await sent(requests, a_request(within=-1), Slow()) == Stopped()


async def test_a_request_is_asked_for_leave_right_before_the_write() -> None:
    may_go = True
    request = a_request(LATER)
    request.may_go = lambda _: may_go
    may_go = False
    assert await sent(Requests(), request, Slow()) == Stopped()
    assert not request.is_written


async def test_many_requests_are_cut_each_at_its_own_deadline() -> None:
    requests, dice = Requests(), random.Random(7)  # noqa: S311  # no secret
    late: list[float] = []

    async def send_one(number: int) -> Outcome:
        await asyncio.sleep(dice.uniform(0, 0.2))
        request = a_request(dice.uniform(0, 0.4), number)
        outcome = await sent(requests, request, Slow())
        late.append(elapsed() - request.deadline)
        return outcome

    outcomes = await asyncio.gather(*(send_one(number) for number in range(500)))
    assert set(outcomes) == {Unknown("timeout")}
    assert min(late) >= 0
    assert len(requests) == 0


class CountingLoop(asyncio.SelectorEventLoop):
    """Keeps the timers that were set."""

    def __init__(self) -> None:
        super().__init__()
        self.timers: list[asyncio.TimerHandle] = []

    def call_at(
        self,
        when: float,
        callback: Callable[[*Given], object],
        *args: *Given,
        context: Context | None = None,
    ) -> asyncio.TimerHandle:
        timer = super().call_at(when, callback, *args, context=context)
        self.timers.append(timer)
        return timer


def test_one_timer_serves_them_all() -> None:
    loop = CountingLoop()

    async def work() -> None:
        requests, dice = Requests(), random.Random(7)  # noqa: S311  # no secret
        tasks = []
        for number in range(1000):
            request = a_request(dice.uniform(60, 70), number)
            tasks.append(await begun(requests, request, Slow()))
            assert len([timer for timer in loop.timers if not timer.cancelled()]) == 1
        assert len(loop.timers) < 50  # an earlier deadline alone sets it anew
        requests.cut_all("connection_lost")
        await asyncio.gather(*tasks)

    with asyncio.Runner(loop_factory=lambda: loop) as runner:
        runner.run(work())


# ---- the mailing ----------------------------------------------------------------------------


@pytest.mark.parametrize("mailings", [{}, {1: a_mailing(1, left=60, may_send=False)}])
async def test_what_is_not_written_stops_with_its_mailing(
    mailings: dict[int, RunningMailing],
) -> None:
    requests = Requests()
    stopped = await begun(requests, a_request(LATER), Slow(writes=False), mailing_id=1)
    others = await begun(requests, a_request(LATER), Slow(writes=False, takes=0.05), 2)
    requests.follow({**mailings, 2: a_mailing(2, left=60)}, NOW)
    assert await stopped == Stopped()
    assert await others == Accepted()


@pytest.mark.parametrize("mailings", [{}, {1: a_mailing(1, left=60, may_send=False)}])
async def test_what_is_written_outlives_its_mailing_up_to_its_own_deadline(
    mailings: dict[int, RunningMailing],
) -> None:
    requests = Requests()
    quick = await begun(requests, a_request(LATER), Slow(takes=0.05))
    slow = await begun(requests, late := a_request(within=0.1), Slow())
    requests.follow(mailings, NOW)
    assert await quick == Accepted()
    assert await slow == Unknown("timeout")
    assert elapsed() >= late.deadline


@contextlib.contextmanager
def moves_to(request: Request, left: float) -> Iterator[None]:
    """Expect that the block brings a request's deadline to so many seconds from now."""
    before = elapsed()
    yield
    assert before + left <= request.deadline <= elapsed() + left


@pytest.mark.parametrize("writes", [True, False])
async def test_an_end_that_moves_closer_is_the_deadline_from_then_on(*, writes: bool) -> None:
    requests, request = Requests(), a_request(LATER)
    task = await begun(requests, request, Slow(writes=writes))
    with moves_to(request, 0.1):
        requests.follow({1: a_mailing(1, left=0.1)}, NOW)
    outcome = await task
    assert outcome == (Unknown("timeout") if writes else Unavailable("connection_failed"))
    assert elapsed() >= request.deadline


async def test_an_end_that_moves_closer_cuts_while_the_mailing_is_paused_too() -> None:
    requests, request = Requests(), a_request(LATER)
    task = await begun(requests, request, Slow())
    with moves_to(request, 0.1):
        requests.follow({1: a_mailing(1, left=0.1, may_send=False)}, NOW)
    assert await task == Unknown("timeout")
    assert elapsed() >= request.deadline


@pytest.mark.parametrize("left", [0, -1])
async def test_an_end_that_has_come_cuts_at_once(left: float) -> None:
    requests = Requests()
    task = await begun(requests, a_request(LATER), Slow())
    requests.follow({1: a_mailing(1, left)}, NOW)
    await asyncio.sleep(0)
    assert task.done()
    assert await task == Unknown("timeout")


async def test_an_end_that_moves_away_gives_a_request_no_more_time() -> None:
    requests, request = Requests(), a_request(within=0.1)
    deadline = request.deadline
    task = await begun(requests, request, Slow())
    requests.follow({1: a_mailing(1, left=3600)}, NOW)
    assert request.deadline == deadline
    assert await task == Unknown("timeout")


async def test_each_request_follows_its_own_mailing() -> None:
    requests, given = Requests(), [a_request(LATER, n) for n in (1, 2, 3)]
    tasks = [await begun(requests, each, Slow(), each.message_id) for each in given]
    ends = {1: 0.2, 2: 0.1, 3: LATER / 2}
    with moves_to(given[0], 0.2), moves_to(given[1], 0.1), moves_to(given[2], LATER / 2):
        requests.follow({n: a_mailing(n, left) for n, left in ends.items()}, NOW)
    assert await tasks[1] == Unknown("timeout")
    assert await tasks[0] == Unknown("timeout")
    assert not tasks[2].done()
    requests.cut_all("connection_lost")
    await tasks[2]


async def test_to_follow_without_requests_is_nothing() -> None:
    requests = Requests()
    requests.follow({}, NOW)
    requests.follow({1: a_mailing(1, left=60)}, NOW)
    requests.cut_all("connection_lost")
    assert len(requests) == 0


# ---- the process's end ----------------------------------------------------------------------


async def test_at_the_end_all_are_cut_and_what_was_not_written_is_as_never_begun() -> None:
    requests = Requests()
    written = [await begun(requests, a_request(LATER, n), Slow()) for n in range(10)]
    waiting = [await begun(requests, a_request(LATER, n), Slow(writes=False)) for n in range(10)]
    assert len(requests) == 20
    requests.cut_all("connection_lost")
    await asyncio.sleep(0)
    assert all(task.done() for task in (*written, *waiting))
    assert await asyncio.gather(*written) == [Unknown("connection_lost")] * 10
    assert await asyncio.gather(*waiting) == [Stopped()] * 10
    assert len(requests) == 0


async def test_what_was_cut_before_keeps_its_reason() -> None:
    requests, request = Requests(), a_request(LATER)
    task = await begun(requests, request, Slow())
    request.cut("timeout")
    requests.cut_all("connection_lost")
    assert await task == Unknown("timeout")
