"""Answers in CSV, sent as the database gives them: nothing is held but a few parts on the way."""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine
from typing import Any

from litestar import MediaType, Request
from litestar.response import Stream
from litestar.response.base import ASGIResponse

AHEAD = 8
"""Parts that may wait for a reader."""
STALL = 60.0
"""Seconds for which a reader may take nothing before the download is broken off."""
DOWNLOADS = asyncio.Semaphore(2)
"""At once in this process: each keeps a connection to the database; others wait for their turn."""

JSON, CSV = "application/json", "text/csv"

Write = Callable[[bytes], Coroutine[Any, Any, None]]


class Download(Stream):
    """A stream of CSV, also from a route that answers in JSON: Stream's own would say JSON."""

    def to_asgi_response(
        self,
        *args: Any,  # noqa: ANN401  # Stream's
        media_type: MediaType | str | None = None,  # noqa: ARG002  # the route's
        **options: Any,  # noqa: ANN401  # Stream's
    ) -> ASGIResponse:
        """As any stream, under its own media type."""
        return super().to_asgi_response(*args, media_type=self.media_type, **options)


def wants_csv(request: Request[Any, Any, Any]) -> bool:
    """Whether a request would rather have CSV than JSON, by its Accept header."""
    return request.accept.best_match([JSON, CSV]) == CSV


async def csv_answer(name: str, write_all: Callable[[Write], Awaitable[object]]) -> Download:
    """Return an answer of what `write_all` writes, to be saved as a file of that name.

    The first part is there before the answer begins: what fails at once gets its own status. A
    download that fails later is broken off, so that nobody takes it for the whole.
    """
    parts = _parts(write_all)
    first = await anext(parts, b"")

    async def whole() -> AsyncGenerator[bytes, None]:
        try:
            yield first
            async for part in parts:
                yield part
        finally:
            await parts.aclose()

    headers = {"Content-Disposition": f'attachment; filename="{name}"', "Vary": "Accept"}
    return Download(whole(), media_type=f"{CSV}; header=present", headers=headers)


async def _parts(write_all: Callable[[Write], Awaitable[object]]) -> AsyncGenerator[bytes, None]:
    waiting: asyncio.Queue[bytes | None] = asyncio.Queue(AHEAD)

    async def write(part: bytes) -> None:
        async with asyncio.timeout(STALL):
            await waiting.put(bytes(part))  # asyncpg gives a buffer of its own

    async def run() -> None:
        try:
            async with DOWNLOADS:
                await write_all(write)
        finally:
            await waiting.put(None)

    running = asyncio.create_task(run())
    try:
        while (part := await waiting.get()) is not None:
            yield part
        await running
    finally:
        running.cancel()
        await asyncio.wait([running])
