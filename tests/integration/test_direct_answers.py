"""Requests that the server answers without an ASGI task, over real sockets."""

import asyncio
from http import HTTPStatus
from typing import Any

import pytest
from litestar.types import HTTPScope
from tests.event_timeout import EVENT_TIMEOUT
from tests.served import GET, RawConnection, listening, talk

from mailer.server import listen
from mailer.web.server.connection import ConnectionLimits
from mailer.web.server.direct import DirectAnswer, DirectAnswers, DirectResponse
from mailer.web.server.uvicorn_server import Server

HEAD = b"POST /direct/%d HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n%s\r\n"


def request(number: int, headers: bytes = b"") -> bytes:
    """Return a complete request to a path that is answered directly."""
    return HEAD % (number, headers) + b"{}"


async def application(_: Any, receive: Any, send: Any) -> None:
    """Read the whole body, and answer `application`."""
    while (await receive()).get("more_body"):
        pass
    length = [(b"content-length", b"11")]
    await send({"type": "http.response.start", "status": 200, "headers": length})
    await send({"type": "http.response.body", "body": b"application"})


class Direct:
    """Answers `direct N` to `/direct/N`, except to 0, when the test sets the future `ready`."""

    def __init__(self) -> None:
        self.ready: list[asyncio.Future[None]] = []
        self.bodies: list[bytes] = []
        self.has_new = asyncio.Event()
        self.answers = DirectAnswers("/direct/", self._answer)

    def _answer(self, scope: HTTPScope, body: bytes) -> DirectAnswer | None:
        number = scope["path"].rpartition("/")[2]
        if number == "0":
            return None
        self.bodies.append(body)
        self.ready.append(asyncio.get_running_loop().create_future())
        self.has_new.set()
        content = f"direct {number}".encode()
        headers = [(b"content-length", str(len(content)).encode())]
        response = DirectResponse(HTTPStatus.OK, headers, content)
        return DirectAnswer(self.ready[-1], lambda: response)

    async def next(self) -> asyncio.Future[None]:
        """Wait for the next request; return its future."""
        async with asyncio.timeout(EVENT_TIMEOUT):
            await self.has_new.wait()
        self.has_new.clear()
        return self.ready[-1]


@pytest.fixture
def direct() -> Direct:
    return Direct()


async def body_of_answer(connection: RawConnection) -> bytes:
    async with asyncio.timeout(EVENT_TIMEOUT):
        response = await connection.answer()
    assert response.status == HTTPStatus.OK
    assert "date" in response.headers
    return response.body


async def test_direct_answers_wait_until_they_are_ready_and_keep_the_connection(
    direct: Direct,
) -> None:
    async with (
        listening(application, direct_answers=direct.answers) as port,
        talk(port) as client,
    ):
        for number in (1, 2):
            await client.say(request(number))
            ready = await direct.next()
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(client.reader.read(1), 0.05)
            ready.set_result(None)
            assert await body_of_answer(client) == b"direct %d" % number
        await client.say(GET)
        assert await body_of_answer(client) == b"application"
    assert direct.bodies == [b"{}", b"{}"]


async def test_requests_sent_together_are_answered_in_their_order(direct: Direct) -> None:
    async with (
        listening(application, direct_answers=direct.answers) as port,
        talk(port) as client,
    ):
        await client.say(request(1) + GET + request(2) + request(0))
        (await direct.next()).set_result(None)
        bodies = [await body_of_answer(client), await body_of_answer(client)]
        (await direct.next()).set_result(None)
        bodies += [await body_of_answer(client), await body_of_answer(client)]
    assert bodies == [b"direct 1", b"application", b"direct 2", b"application"]


async def test_application_gets_a_body_that_comes_in_parts(direct: Direct) -> None:
    async with (
        listening(application, direct_answers=direct.answers) as port,
        talk(port) as client,
    ):
        await client.say(request(1)[:-1])
        await asyncio.sleep(0.05)
        await client.say(b"}")
        assert await body_of_answer(client) == b"application"
    assert direct.ready == []


async def test_application_gets_a_request_whose_client_waits_for_100_continue(
    direct: Direct,
) -> None:
    async with (
        listening(application, direct_answers=direct.answers) as port,
        talk(port) as client,
    ):
        await client.say(HEAD % (1, b"Expect: 100-continue\r\n"))
        assert (await client.answer()).status == HTTPStatus.CONTINUE
        await client.say(b"{}")
        assert await body_of_answer(client) == b"application"


async def test_application_gets_a_request_that_has_no_direct_answer(direct: Direct) -> None:
    async with (
        listening(application, direct_answers=direct.answers) as port,
        talk(port) as client,
    ):
        await client.say(request(0))
        assert await body_of_answer(client) == b"application"


async def test_application_gets_a_request_whose_direct_answer_fails(direct: Direct) -> None:
    async with (
        listening(application, direct_answers=direct.answers) as port,
        talk(port) as client,
    ):
        await client.say(request(1))
        (await direct.next()).set_exception(OSError())
        assert await body_of_answer(client) == b"application"


async def test_failed_answer_to_a_client_that_has_gone_is_dropped(direct: Direct) -> None:
    async with listening(application, direct_answers=direct.answers) as port:
        async with talk(port) as client:
            await client.say(request(1))
            ready = await direct.next()
        await asyncio.sleep(0.05)
        ready.set_exception(OSError())
        async with talk(port) as client:
            await client.say(GET)
            assert await body_of_answer(client) == b"application"


@pytest.mark.parametrize("end", [b"Connection: close\r\n", b""], ids=["close", "HTTP/1.0"])
async def test_connection_is_closed_if_its_client_does_not_keep_it(
    direct: Direct, end: bytes
) -> None:
    content = request(1, end) if end else request(1).replace(b"HTTP/1.1", b"HTTP/1.0")
    async with (
        listening(application, direct_answers=direct.answers) as port,
        talk(port) as client,
    ):
        await client.say(content)
        (await direct.next()).set_result(None)
        response = await client.answer()
        assert (response.body, response.headers["connection"]) == (b"direct 1", "close")
        await client.ended()


async def test_malformed_data_after_a_request_does_not_stop_its_answer(direct: Direct) -> None:
    async with (
        listening(application, direct_answers=direct.answers) as port,
        talk(port) as client,
    ):
        await client.say(request(1) + b"no HTTP\r\n\r\n")
        (await direct.next()).set_result(None)
        assert await body_of_answer(client) == b"direct 1"
        await client.ended()


async def test_client_that_reads_no_responses_gets_no_direct_answers(direct: Direct) -> None:
    async with (
        listening(application, direct_answers=direct.answers) as port,
        talk(port, takes_little=True) as client,
    ):
        answered = 0
        while True:
            client.writer.write(request(1))
            try:
                ready = await asyncio.wait_for(direct.next(), 1)
            except TimeoutError:
                break  # its requests go to the application, which waits until the client reads
            ready.set_result(None)
            answered += 1
        assert 0 < answered < 1_000_000


async def test_grace_period_of_a_stop_ends_a_request_that_is_not_ready(direct: Direct) -> None:
    server = Server(application, ConnectionLimits(), grace=0.1, direct_answers=direct.answers)
    server.config.lifespan = "off"
    with listen("127.0.0.1", 0) as listening_socket:
        running = asyncio.create_task(server.serve(sockets=[listening_socket]))
        async with talk(listening_socket.getsockname()[1]) as client:
            await client.say(request(1))
            await direct.next()
            server.stop()
            await client.ended()
            async with asyncio.timeout(EVENT_TIMEOUT):
                await running


async def test_stop_waits_for_a_direct_answer(direct: Direct) -> None:
    server = Server(application, ConnectionLimits(), grace=5, direct_answers=direct.answers)
    server.config.lifespan = "off"
    with listen("127.0.0.1", 0) as listening_socket:
        running = asyncio.create_task(server.serve(sockets=[listening_socket]))
        async with talk(listening_socket.getsockname()[1]) as client:
            await client.say(request(1))
            ready = await direct.next()
            server.stop()
            await asyncio.sleep(0.3)
            ready.set_result(None)
            assert await body_of_answer(client) == b"direct 1"
            await client.ended()
            await running
