"""Aborting requests, over real sockets.

A request that is not written before its abort is never written. Delivery of a written request is
unknown after its abort.
"""

import asyncio
import contextlib
import random
from collections import Counter
from collections.abc import Callable

import pytest
from tests.event_timeout import EVENT_TIMEOUT
from tests.fault_servers import (
    OK,
    AcceptingServer,
    SilentServer,
    create_request,
    gateway_at,
    http_response,
    read_request,
    send,
    served,
    server_with_full_backlog,
)

from mailer.gateway.http import HttpGateway
from mailer.gateway.protocol import Aborted, Accepted, Outcome, Request, TemporaryFailure, Unknown

NOT_SENT = TemporaryFailure("connection_failed")
UNWRITTEN_STATES = ("before the start", "connecting", "during TLS", "waiting for a connection")


async def abort_unwritten_request(
    state: str, abort: Callable[[Request], None]
) -> tuple[Outcome, bytes]:
    """Abort a request that is not written yet, because it is in one of `UNWRITTEN_STATES`.

    Return its outcome and the bytes that a server received.
    """
    server, request = SilentServer(), create_request(message_id=2)
    async with contextlib.AsyncExitStack() as stack:
        url = await stack.enter_async_context(served(server.talk))
        if state == "connecting":
            url = stack.enter_context(server_with_full_backlog())
        if state == "during TLS":  # the silent server does not answer the handshake
            url = url.replace("http:", "https:")
        gateway = await stack.enter_async_context(gateway_at(url, concurrency=1))
        if state == "waiting for a connection":
            first = create_request(1)  # has the only connection; it is aborted at the end
            stack.push_async_callback(asyncio.wait, [asyncio.create_task(send(gateway, first))])
            stack.callback(first.abort, "connection_lost")
            await server.has_received.wait()
            server.received = b""
        if state == "before the start":
            abort(request)
        sending = asyncio.create_task(send(gateway, request))
        await asyncio.sleep(0.05)  # until the request is in the state
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


async def test_a_request_that_may_not_be_written_after_connecting_is_never_written() -> None:
    """For example when the sending window closes while the connection is made."""
    server, request = AcceptingServer(), create_request(2)
    check_count = 0

    def may_write(_: float) -> bool:
        nonlocal check_count
        check_count += 1
        return False

    request.may_write = may_write
    async with served(server.talk) as url, gateway_at(url) as gateway:
        assert await send(gateway, request) == Aborted()
        assert await send(gateway, create_request(3)) == Accepted()
    assert check_count == 1
    assert server.counts_by_message == {3: 1}


async def test_abort_unwritten_does_not_abort_a_written_request() -> None:
    is_read, may_respond = asyncio.Event(), asyncio.Event()

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        is_read.set()
        await may_respond.wait()
        writer.write(http_response(200, OK))

    async with served(talk) as url, gateway_at(url) as gateway:
        request = create_request()
        sending = asyncio.create_task(send(gateway, request))
        await is_read.wait()
        request.abort_unwritten()
        await asyncio.sleep(0.02)
        assert not sending.done()
        may_respond.set()
        assert await sending == Accepted()


@pytest.mark.parametrize("reason", ["timeout", "connection_lost"])
async def test_a_request_aborted_after_it_is_written_is_unknown_and_its_connection_closed(
    reason: str,
) -> None:
    server = SilentServer()
    async with served(server.talk) as url, gateway_at(url) as gateway:
        request = create_request()
        sending = asyncio.create_task(send(gateway, request))
        await server.has_received.wait()
        request.abort(reason)
        assert await sending == Unknown(reason)
        async with asyncio.timeout(EVENT_TIMEOUT):
            await server.is_disconnected.wait()


async def test_the_reason_of_the_first_abort_is_kept() -> None:
    server = SilentServer()
    async with served(server.talk) as url, gateway_at(url) as gateway:
        request = create_request()
        sending = asyncio.create_task(send(gateway, request))
        await server.has_received.wait()
        request.abort("timeout")
        request.abort("connection_lost")
        request.abort_unwritten()
        assert await sending == Unknown("timeout")


async def test_aborting_a_request_does_not_cancel_the_sending_task() -> None:
    """One task sends three requests, which are aborted in different ways."""
    server = SilentServer()
    cancellation_counts: list[int] = []

    async def send_all(gateway: HttpGateway, *requests: Request) -> list[Outcome]:
        task = asyncio.current_task()
        assert task is not None
        outcomes = []
        for request in requests:
            outcomes.append(await send(gateway, request))
            cancellation_counts.append(task.cancelling())
            await asyncio.sleep(0)
        return outcomes

    async with served(server.talk) as url, gateway_at(url) as gateway:
        written, unwritten = create_request(1), create_request(2)
        unwritten.abort("timeout")
        overdue = create_request(3, within=0.1)
        sending = asyncio.create_task(send_all(gateway, written, unwritten, overdue))
        await server.has_received.wait()
        written.abort("timeout")
        assert await sending == [Unknown("timeout"), NOT_SENT, Unknown("timeout")]
    assert cancellation_counts == [0, 0, 0]


@pytest.mark.parametrize("is_written", [True, False])
async def test_cancelling_the_sending_task_raises_cancelled_error(*, is_written: bool) -> None:
    server = SilentServer()
    async with served(server.talk) as url:
        async with gateway_at(url if is_written else url.replace("http:", "https:")) as gateway:
            sending = asyncio.create_task(send(gateway))
            await server.has_received.wait()
            sending.cancel()
            with pytest.raises(asyncio.CancelledError):
                await sending
        async with asyncio.timeout(EVENT_TIMEOUT):
            await server.is_disconnected.wait()
    assert (b"POST" in server.received) is is_written


# ---- at any time ----------------------------------------------------------------------------


@pytest.mark.parametrize("is_kept", [True, False], ids=["kept connection", "new connection"])
async def test_a_request_aborted_at_any_iteration_of_the_loop_is_sent_only_if_it_is_accepted(
    *, is_kept: bool
) -> None:
    """The message's id is the number of iterations from the start of its request to the abort."""
    server = AcceptingServer()
    outcomes: dict[int, Outcome] = {}
    async with served(server.talk) as url, gateway_at(url, concurrency=1) as kept_gateway:
        for iterations in range(40):
            async with gateway_at(url) as new_gateway:
                request = create_request(iterations)
                gateway = kept_gateway if is_kept else new_gateway
                sending = asyncio.create_task(send(gateway, request))
                for _ in range(iterations):
                    await asyncio.sleep(0)
                request.abort_unwritten()
                outcomes[iterations] = await sending
    assert set(outcomes.values()) == {Aborted(), Accepted()}
    accepted_ids = [id_ for id_, outcome in outcomes.items() if outcome == Accepted()]
    assert server.counts_by_message == Counter(accepted_ids)


async def test_requests_aborted_at_random_times_never_arrive_if_they_count_as_not_sent() -> None:
    server = AcceptingServer()
    generator = random.Random(7)  # noqa: S311  # not for security
    reasons = ("stopped", "timeout", "connection_lost")

    async def send_and_abort(gateway: HttpGateway, message_id: int) -> Outcome:
        request = create_request(message_id)
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
    arrived_counts = server.counts_by_message
    for message_id, outcome in enumerate(outcomes):
        match outcome:
            case Accepted():
                assert arrived_counts[message_id] == 1
            case Aborted() | TemporaryFailure():
                assert arrived_counts[message_id] == 0
            case _:
                assert arrived_counts[message_id] <= 1
    assert {type(outcome) for outcome in outcomes} <= {Accepted, Aborted, TemporaryFailure, Unknown}
