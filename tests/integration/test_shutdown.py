"""Requests that last longer than the grace period of a stopping worker."""

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

UPLOAD = b"POST /upload HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\nphone"
LARGE = b"GET /large HTTP/1.1\r\nHost: x\r\n\r\n"


@get("/large")
async def large() -> Stream:
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
    """Run a server with a grace period of 0.1 s."""
    app = Litestar(
        [large, upload],
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


async def test_an_unanswered_request_is_503_with_retry_after(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with serving() as (server, stopping, port), talk(port) as client:
        await client.say(UPLOAD)
        with capture_logs() as logs:
            server.stop()
            status, headers, body = await client.answer()
            await stopping
    assert (status, headers["retry-after"]) == (503, "1")
    assert b"send it again" in body
    assert [entry["event"] for entry in logs].count("request_aborted") == 1
    assert [record for record in caplog.records if record.levelno >= logging.ERROR] == []


async def test_a_started_response_stays_incomplete(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with serving() as (server, stopping, port), talk(port, takes_little=True) as client:
        await client.say(LARGE)
        assert await client.reader.readexactly(12) == b"HTTP/1.1 200"
        server.stop()
        await stopping
        await client.ended()
    assert [record for record in caplog.records if record.levelno >= logging.ERROR] == []
