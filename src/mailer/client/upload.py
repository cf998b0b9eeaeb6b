"""A file of clients sent over HTTP: what is taken, how much, and how long it is waited for."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing
from http import HTTPStatus
from typing import Any

from litestar import Request
from litestar.exceptions import HTTPException
from sqlalchemy.ext.asyncio import AsyncEngine

from mailer.access.model import Actor
from mailer.client.importing import ImportReport, import_clients
from mailer.web.body import CLOSE, STALL, StalledUploadError
from mailer.web.turns import Turns

IMPORT_LIMIT = 1024**3
"""Bytes of a file to import: some thirty million clients, whose staged lines PostgreSQL holds."""
IMPORTS = 2
"""Imports at once: each keeps a connection of the pool, which serves every other request too."""
TURNS = Turns(IMPORTS, patience=5.0)
LEAST = 64 * 1024
"""Bytes that must come in each `STALL`: who sends one now and then would keep others from their
turn for ever."""


async def import_upload(
    engine: AsyncEngine, request: Request[Any, Any, Any], by: Actor
) -> ImportReport:
    """Import the CSV file that is the body of a request.

    Raises `InvalidError` when its header is wrong, `StalledUploadError`, `BusyError` when no turn
    comes, and HTTPException 415 when it is something else than CSV in UTF-8.
    """
    media_type, options = request.content_type
    if media_type != "text/csv" or options.get("charset", "utf-8").lower() != "utf-8":
        status = HTTPStatus.UNSUPPORTED_MEDIA_TYPE
        raise HTTPException("Send CSV in UTF-8, as Content-Type: text/csv.", status_code=status)
    async with TURNS.turn(), aclosing(never_stalling(request.stream())) as parts:
        return await import_clients(engine, parts, by)


async def never_stalling(
    stream: AsyncGenerator[bytes, None], patience: float = STALL
) -> AsyncGenerator[bytes, None]:
    """Give the body's parts as they arrive; raises `StalledUploadError` when they come too slowly.

    The time that whoever takes the parts needs for them does not count.
    """
    left, came = patience, 0
    loop = asyncio.get_running_loop()
    async with aclosing(stream):
        while True:
            began = loop.time()
            try:
                async with asyncio.timeout(left):
                    part = await anext(stream)
            except StopAsyncIteration:
                return
            except TimeoutError as error:
                raise StalledUploadError(headers=CLOSE) from error
            left -= loop.time() - began
            came += len(part)
            if came >= LEAST:
                left, came = patience, 0
            yield part
