"""A small application for tests of connections: it needs no database."""

import asyncio
from collections.abc import AsyncIterator

from litestar import Litestar, get
from litestar.response import ServerSentEvent, Stream

LARGE = 64 * 1024 * 1024
"""Bytes of a response that does not fit into any buffer."""
STREAM_PART = 65_536  # bytes
streaming: set[str] = set()
"""Names of the responses that are being streamed."""


@get("/large")
async def large() -> Stream:
    """Stream a large response in parts."""

    async def chunks() -> AsyncIterator[bytes]:
        streaming.add("large")
        try:
            for _ in range(LARGE // STREAM_PART):
                yield b"x" * STREAM_PART
        finally:
            streaming.discard("large")

    return Stream(chunks())


@get("/at-once")
async def at_once() -> bytes:
    """Send a large response as one part."""
    return b"x" * LARGE


@get("/events")
async def events() -> ServerSentEvent:
    """Send the numbers from 0 to 99, one every 0.3 seconds."""

    async def chunks() -> AsyncIterator[str]:
        for number in range(100):
            yield str(number)
            await asyncio.sleep(0.3)

    return ServerSentEvent(chunks())


@get("/health/live")
async def live() -> str:
    return "ok"


def small_app() -> Litestar:
    """Return an application that needs no database."""
    return Litestar([large, at_once, events, live], logging_config=None, openapi_config=None)
