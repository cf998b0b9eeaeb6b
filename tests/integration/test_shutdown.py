"""HTTP requests of clients that last longer than the grace period of a stopping worker."""

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator
from typing import Any

import pytest
from litestar import Litestar, Request, get, post
from litestar.response import Stream
from structlog.testing import capture_logs
from tests.served import talk

from mailer.errors import MailerError
from mailer.server import listen
from mailer.web.problems import on_mailer_error
from mailer.web.server.connection import ConnectionLimits
from mailer.web.server.uvicorn_server import Server
from mailer.web.shutdown import AnswerAbortedRequests

UNFINISHED_UPLOAD = b"POST /upload HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\nphone"
"""A request of which four bytes are missing."""
ENDLESS_DOWNLOAD = b"GET /endless HTTP/1.1\r\nHost: x\r\n\r\n"


@get("/endless")
async def endless() -> Stream:
    async def chunks() -> AsyncIterator[bytes]:
        while True:
            await asyncio.sleep(0)
            yield b"x" * 65_536

    return Stream(chunks())


@post("/upload")
async def upload(request: Request[Any, Any, Any]) -> bytes:
    return await request.body()


@contextlib.asynccontextmanager
async def serving() -> AsyncIterator[tuple[Server, asyncio.Task[None], int]]:
    """Run a server with a grace period of 0.1 s; yield it, its task and its port.

    At the end, wait until it has stopped.
    """
    app = Litestar(
        [endless, upload],
        middleware=[AnswerAbortedRequests()],
        exception_handlers={MailerError: on_mailer_error},
        logging_config=None,
        openapi_config=None,
    )
    server = Server(app, ConnectionLimits(), grace=0.1)
    with listen("127.0.0.1", 0) as listening:
        task = asyncio.create_task(server.serve(sockets=[listening]))
        yield server, task, listening.getsockname()[1]
        await task


def has_errors(caplog: pytest.LogCaptureFixture) -> bool:
    return any(record.levelno >= logging.ERROR for record in caplog.records)


async def test_a_request_without_a_response_gets_503_with_retry_after(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with serving() as (server, running, port), talk(port) as client:
        await client.say(UNFINISHED_UPLOAD)
        with capture_logs() as logs:
            server.stop()
            status, headers, body = await client.answer()
            await running
    assert (status, headers["retry-after"]) == (503, "1")
    assert b"send it again" in body
    assert [entry["event"] for entry in logs].count("request_aborted") == 1
    assert not has_errors(caplog)


async def test_a_started_response_stays_incomplete(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with serving() as (server, running, port), talk(port, takes_little=True) as client:
        await client.say(ENDLESS_DOWNLOAD)
        assert await client.reader.readexactly(12) == b"HTTP/1.1 200"
        server.stop()
        await running
        await client.ended()
    assert not has_errors(caplog)
