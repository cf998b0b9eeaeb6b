"""Aborting requests, over real sockets: a request not written before the abort is never sent."""

import asyncio
import contextlib
import random
from collections import Counter
from collections.abc import Callable

import pytest
from tests.event_timeout import EVENT_TIMEOUT
from tests.fault_servers import (
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
from mailer.gateway.protocol import Aborted, Accepted, Outcome, Request, TemporaryFailure, Unknown

NOT_SENT = TemporaryFailure("connection_failed")
UNWRITTEN_STATES = ("before the start", "connecting", "during TLS", "waiting for a connection")


async def abort_unwritten_request(
    state: str, abort: Callable[[Request], None]
) -> tuple[Outcome, bytes]:
    """Abort a request that is not written; return its outcome and the bytes that arrived."""
    server, request = Silent(), a_request(2)
    async with contextlib.AsyncExitStack() as stack:
        url = await stack.enter_async_context(served(server.talk))
        if state == "connecting":
            url = stack.enter_context(crowded())
        if state == "during TLS":
            url = url.replace("http:", "https:")
        gateway = await stack.enter_async_context(gateway_at(url, concurrency=1))
        if state == "waiting for a connection":
            first = a_request(1)
            stack.push_async_callback(asyncio.wait, [asyncio.create_task(send(gateway, first))])
            stack.callback(first.abort, "connection_lost")
            await server.has_request.wait()
            server.received = b""
        if state == "before the start":
            abort(request)
        sending = asyncio.create_task(send(gateway, request))
        await asyncio.sleep(0.05)
        abort(request)
        outcome = await sending
    return outcome, server.received


@pytest.mark.parametrize("state", UNWRITTEN_STATES)
async def test_a_request_aborted_before_it_is_written_is_never_written(state: str) -> None:
    outcome, received = await abort_unwritten_request(state, Request.abort_unwritten)
    assert outcome == Aborted()
    assert b"POST" not in received


@pytest.mark.parametrize("reason", ["timeout", "connection_lost"])
@pytest.mark.parametrize("state", UNWRITTEN_STATES)
async def test_a_request_aborted_with_a_reason_before_it_is_written_is_a_temporary_failure(
    state: str, reason: str
) -> None:
    outcome, received = await abort_unwritten_request(state, lambda request: request.abort(reason))
    assert outcome == NOT_SENT
    assert b"POST" not in received


async def test_a_request_whose_precondition_fails_after_connecting_is_never_written() -> None:
    """For example when the sending window closes while the connection is made."""
    server, request = AcceptingServer(), a_request(2)
    checks = 0

    def precondition(_: float) -> bool:
        nonlocal checks
        checks += 1
        return False

    request.precondition = precondition
    async with served(server.talk) as url, gateway_at(url) as gateway:
        assert await send(gateway, request) == Aborted()
        assert await send(gateway, a_request(3)) == Accepted()
    assert checks == 1
    assert server.arrived == {3: 1}


async def test_abort_unwritten_does_not_abort_a_written_request() -> None:
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
        request.abort_unwritten()
        await asyncio.sleep(0.02)
        assert not sending.done()
        may_answer.set()
        assert await sending == Accepted()


@pytest.mark.parametrize("reason", ["timeout", "connection_lost"])
async def test_a_request_aborted_after_it_is_written_is_unknown_and_its_connection_closed(
    reason: str,
) -> None:
    server = Silent()
    async with served(server.talk) as url, gateway_at(url) as gateway:
        request = a_request()
        sending = asyncio.create_task(send(gateway, request))
        await server.has_request.wait()
        request.abort(reason)
        assert await sending == Unknown(reason)
        async with asyncio.timeout(EVENT_TIMEOUT):
            await server.is_left.wait()


async def test_the_reason_of_the_first_abort_is_kept() -> None:
    server = Silent()
    async with served(server.talk) as url, gateway_at(url) as gateway:
        request = a_request()
        sending = asyncio.create_task(send(gateway, request))
        await server.has_request.wait()
        request.abort("timeout")
        request.abort("connection_lost")
        request.abort_unwritten()
        assert await sending == Unknown("timeout")


async def test_aborting_a_request_does_not_cancel_the_sending_task() -> None:
    server = Silent()
    cancellations: list[int] = []

    async def send_all(gateway: HttpGateway, *requests: Request) -> list[Outcome]:
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
        unwritten.abort("timeout")
        working = asyncio.create_task(
            send_all(gateway, written, unwritten, a_request(3, within=0.1))
        )
        await server.has_request.wait()
        written.abort("timeout")
        assert await working == [Unknown("timeout"), NOT_SENT, Unknown("timeout")]
    assert cancellations == [0, 0, 0]


@pytest.mark.parametrize("is_written", [True, False])
async def test_cancelling_the_sending_task_raises_cancelled_error(*, is_written: bool) -> None:
    server = Silent()
    async with served(server.talk) as url:
        async with gateway_at(url if is_written else url.replace("http:", "https:")) as gateway:
            sending = asyncio.create_task(send(gateway))
            await server.has_request.wait()
            sending.cancel()
            with pytest.raises(asyncio.CancelledError):
                await sending
        async with asyncio.timeout(EVENT_TIMEOUT):
            await server.is_left.wait()
    assert (b"POST" in server.received) is is_written


# ---- at any time ----------------------------------------------------------------------------


class AcceptingServer:
    """Accept every request and count the requests of each message."""

    def __init__(self) -> None:
        self.arrived = Counter[int]()

    async def talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            line, _, _ = await request_of(reader)
            self.arrived[int(line.split()[1].rpartition("/")[2])] += 1
            writer.write(answer(200, OK))


@pytest.mark.parametrize("is_kept", [True, False], ids=["kept connection", "new connection"])
async def test_a_request_aborted_at_any_iteration_of_the_loop_is_either_sent_or_never_sent(
    *, is_kept: bool
) -> None:
    server = AcceptingServer()
    outcomes: dict[int, Outcome] = {}
    async with served(server.talk) as url, gateway_at(url, concurrency=1) as gateway:
        for iterations in range(40):
            async with gateway_at(url) as other_gateway:
                request = a_request(iterations)
                sending = asyncio.create_task(send(gateway if is_kept else other_gateway, request))
                for _ in range(iterations):
                    await asyncio.sleep(0)
                request.abort_unwritten()
                outcomes[iterations] = await sending
    assert set(outcomes.values()) == {Aborted(), Accepted()}
    assert {iterations: server.arrived[iterations] for iterations in outcomes} == {
        iterations: int(outcome == Accepted()) for iterations, outcome in outcomes.items()
    }


async def test_requests_aborted_at_random_times_never_arrive_if_they_count_as_not_sent() -> None:
    server = AcceptingServer()
    generator = random.Random(7)  # noqa: S311  # not for security
    reasons = ("stopped", "timeout", "connection_lost")

    async def send_and_abort(gateway: HttpGateway, message_id: int) -> Outcome:
        request = a_request(message_id)
        reason = generator.choice(reasons)
        abort = request.abort_unwritten if reason == "stopped" else lambda: request.abort(reason)
        asyncio.get_running_loop().call_later(generator.uniform(0, 0.02), abort)
        return await send(gateway, request)

    async with served(server.talk) as url:
        outcomes: list[Outcome] = []
        for _ in range(10):
            async with gateway_at(url, concurrency=10) as gateway:
                sending = (send_and_abort(gateway, len(outcomes) + n) for n in range(50))
                outcomes += await asyncio.gather(*sending)
        await asyncio.sleep(0.1)  # sent requests have arrived by now
    arrived = [server.arrived[message_id] for message_id in range(len(outcomes))]
    for outcome, times in zip(outcomes, arrived, strict=True):
        match outcome:
            case Accepted():
                assert times == 1
            case Aborted() | TemporaryFailure():
                assert times == 0
            case _:
                assert times <= 1
    assert {type(outcome) for outcome in outcomes} <= {Accepted, Aborted, TemporaryFailure, Unknown}
