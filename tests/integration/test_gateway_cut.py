"""Requests taken back and cut, on real sockets: what was not written by then never is."""

import asyncio
import contextlib
import random
from collections import Counter
from collections.abc import Callable

import pytest
from tests.patience import PATIENCE
from tests.wire import (
    OK,
    Silent,
    a_request,
    answer,
    crowded,
    gateway_at,
    request_of,
    send,
    served,
)

from mailer.gateway.http import HttpGateway
from mailer.gateway.port import Accepted, Outcome, Request, Stopped, Unavailable, Unknown

NOT_SENT = Unavailable("connection_failed")
BEFORE_WRITING = ("before it begins", "connecting", "during TLS", "in line for a connection")


async def cut_before_writing(moment: str, cut: Callable[[Request], None]) -> tuple[Outcome, bytes]:
    """Cut a request that has not been written; return what became of it and what arrived."""
    server, request = Silent(), a_request(2)
    async with contextlib.AsyncExitStack() as stack:
        url = await stack.enter_async_context(served(server.talk))
        if moment == "connecting":
            url = stack.enter_context(crowded())
        if moment == "during TLS":
            url = url.replace("http:", "https:")
        gateway = await stack.enter_async_context(gateway_at(url, concurrency=1))
        if moment == "in line for a connection":
            first = a_request(1)
            stack.push_async_callback(asyncio.wait, [asyncio.create_task(send(gateway, first))])
            stack.callback(first.cut, "connection_lost")
            await server.has_request.wait()
            server.received = b""
        if moment == "before it begins":
            cut(request)
        sending = asyncio.create_task(send(gateway, request))
        await asyncio.sleep(0.05)
        cut(request)
        outcome = await sending
    return outcome, server.received


@pytest.mark.parametrize("moment", BEFORE_WRITING)
async def test_a_request_stopped_before_it_is_written_never_is(moment: str) -> None:
    outcome, received = await cut_before_writing(moment, Request.stop)
    assert outcome == Stopped()
    assert b"POST" not in received


@pytest.mark.parametrize("because", ["timeout", "connection_lost"])
@pytest.mark.parametrize("moment", BEFORE_WRITING)
async def test_a_request_cut_before_it_is_written_is_temporary(moment: str, because: str) -> None:
    outcome, received = await cut_before_writing(moment, lambda request: request.cut(because))
    assert outcome == NOT_SENT
    assert b"POST" not in received


async def test_a_request_whose_leave_ends_while_it_connects_is_never_written() -> None:
    """A window that closes: the connection took its time."""
    server, request = Takes(), a_request(2)
    asked = 0

    def may_go(_: float) -> bool:
        nonlocal asked
        asked += 1
        return False

    request.may_go = may_go
    async with served(server.talk) as url, gateway_at(url) as gateway:
        assert await send(gateway, request) == Stopped()
        assert await send(gateway, a_request(3)) == Accepted()
    assert asked == 1
    assert server.arrived == {3: 1}


async def test_a_request_stopped_after_it_was_written_goes_on() -> None:
    is_read, may_answer = asyncio.Event(), asyncio.Event()

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await request_of(reader)
        is_read.set()
        await may_answer.wait()
        writer.write(answer(200, OK))

    async with served(talk) as url, gateway_at(url) as gateway:
        request = a_request()
        sending = asyncio.create_task(send(gateway, request))
        await is_read.wait()
        request.stop()
        await asyncio.sleep(0.02)
        assert not sending.done()
        may_answer.set()
        assert await sending == Accepted()


@pytest.mark.parametrize("because", ["timeout", "connection_lost"])
async def test_a_request_cut_after_it_was_written_is_unknown_and_its_connection_closed(
    because: str,
) -> None:
    server = Silent()
    async with served(server.talk) as url, gateway_at(url) as gateway:
        request = a_request()
        sending = asyncio.create_task(send(gateway, request))
        await server.has_request.wait()
        request.cut(because)
        assert await sending == Unknown(because)
        async with asyncio.timeout(PATIENCE):
            await server.is_left.wait()


async def test_the_first_cut_says_why() -> None:
    server = Silent()
    async with served(server.talk) as url, gateway_at(url) as gateway:
        request = a_request()
        sending = asyncio.create_task(send(gateway, request))
        await server.has_request.wait()
        request.cut("timeout")
        request.cut("connection_lost")
        request.stop()
        assert await sending == Unknown("timeout")


async def test_who_sent_what_was_cut_goes_on_uncancelled() -> None:
    server = Silent()
    cancellations: list[int] = []

    async def work(gateway: HttpGateway, *requests: Request) -> list[Outcome]:
        task = asyncio.current_task()
        assert task is not None
        outcomes = []
        for request in requests:
            outcomes.append(await send(gateway, request))
            cancellations.append(task.cancelling())
            await asyncio.sleep(0)
        return outcomes

    async with served(server.talk) as url, gateway_at(url) as gateway:
        written, unwritten = a_request(1), a_request(2)
        unwritten.cut("timeout")
        working = asyncio.create_task(work(gateway, written, unwritten, a_request(3, within=0.1)))
        await server.has_request.wait()
        written.cut("timeout")
        assert await working == [Unknown("timeout"), NOT_SENT, Unknown("timeout")]
    assert cancellations == [0, 0, 0]


@pytest.mark.parametrize("is_written", [True, False])
async def test_a_cancellation_of_the_task_itself_is_no_outcome(*, is_written: bool) -> None:
    server = Silent()
    async with served(server.talk) as url:
        async with gateway_at(url if is_written else url.replace("http:", "https:")) as gateway:
            sending = asyncio.create_task(send(gateway))
            await server.has_request.wait()
            sending.cancel()
            with pytest.raises(asyncio.CancelledError):
                await sending
        async with asyncio.timeout(PATIENCE):
            await server.is_left.wait()
    assert (b"POST" in server.received) is is_written


# ---- at whatever moment ---------------------------------------------------------------------


class Takes:
    """Answers every request, and counts what arrived of each message."""

    def __init__(self) -> None:
        self.arrived = Counter[int]()

    async def talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            line, _, _ = await request_of(reader)
            self.arrived[int(line.split()[1].rpartition("/")[2])] += 1
            writer.write(answer(200, OK))


@pytest.mark.parametrize("is_kept", [True, False], ids=["kept connection", "new connection"])
async def test_at_whatever_turn_of_the_loop_a_request_is_stopped_it_is_sent_or_never_is(
    *, is_kept: bool
) -> None:
    server = Takes()
    found: dict[int, Outcome] = {}
    async with served(server.talk) as url, gateway_at(url, concurrency=1) as gateway:
        for turns in range(40):
            async with gateway_at(url) as another:
                request = a_request(turns)
                sending = asyncio.create_task(send(gateway if is_kept else another, request))
                for _ in range(turns):
                    await asyncio.sleep(0)
                request.stop()
                found[turns] = await sending
    assert set(found.values()) == {Stopped(), Accepted()}
    assert {turns: server.arrived[turns] for turns in found} == {
        turns: int(outcome == Accepted()) for turns, outcome in found.items()
    }


async def test_whenever_requests_are_cut_what_counts_as_not_sent_never_arrives() -> None:
    server = Takes()
    dice = random.Random(7)  # noqa: S311  # no secret
    reasons = ("stopped", "timeout", "connection_lost")

    async def send_and_cut(gateway: HttpGateway, message_id: int) -> Outcome:
        request = a_request(message_id)
        because = dice.choice(reasons)
        end = request.stop if because == "stopped" else lambda: request.cut(because)
        asyncio.get_running_loop().call_later(dice.uniform(0, 0.02), end)
        return await send(gateway, request)

    async with served(server.talk) as url:
        outcomes: list[Outcome] = []
        for _ in range(10):
            async with gateway_at(url, concurrency=10) as gateway:
                sending = (send_and_cut(gateway, len(outcomes) + n) for n in range(50))
                outcomes += await asyncio.gather(*sending)
        await asyncio.sleep(0.1)  # what was sent would have arrived by now
    arrived = [server.arrived[message_id] for message_id in range(len(outcomes))]
    for outcome, times in zip(outcomes, arrived, strict=True):
        match outcome:
            case Accepted():
                assert times == 1
            case Stopped() | Unavailable():
                assert times == 0
            case _:
                assert times <= 1
    assert {type(outcome) for outcome in outcomes} <= {Accepted, Stopped, Unavailable, Unknown}
