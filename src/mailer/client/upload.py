"""A file of clients sent over HTTP: what is taken, how much, and how long it is waited for."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing
from http import HTTPStatus
from typing import Any

from litestar import Request
from litestar.exceptions import ClientException, HTTPException
from sqlalchemy.ext.asyncio import AsyncEngine

from mailer.access.model import Actor
from mailer.client.importing import ImportReport, import_clients

IMPORT_LIMIT = 1024**3
"""Bytes of a file to import: some thirty million clients, whose staged lines PostgreSQL holds."""
IMPORTS = 2
"""Imports at once: each keeps a connection of the pool, which serves every other request too."""
STALL = 60.0
"""Seconds after which an upload that sends nothing is given up."""

_turns = asyncio.Semaphore(IMPORTS)


class StalledUploadError(ClientException):
    """Nothing more of the body came for a minute; nothing was stored."""

    status_code = HTTPStatus.REQUEST_TIMEOUT
    detail = "Nothing more of the body came for a minute; nothing was stored."


async def import_upload(
    engine: AsyncEngine, request: Request[Any, Any, Any], by: Actor
) -> ImportReport:
    """Import the CSV file that is the body of a request.

    Raises `InvalidError` when its header is wrong, `StalledUploadError`, and HTTPException 415 when
    it is something else than CSV in UTF-8.
    """
    media_type, options = request.content_type
    if media_type != "text/csv" or options.get("charset", "utf-8").lower() != "utf-8":
        status = HTTPStatus.UNSUPPORTED_MEDIA_TYPE
        raise HTTPException("Send CSV in UTF-8, as Content-Type: text/csv.", status_code=status)
    async with _turns, aclosing(_never_stalling(request)) as parts:
        return await import_clients(engine, parts, by)


async def _never_stalling(request: Request[Any, Any, Any]) -> AsyncGenerator[bytes, None]:
    """Give the body's parts as they arrive; raises `StalledUploadError` when they stop."""
    async with aclosing(request.stream()) as stream:
        while True:
            try:
                async with asyncio.timeout(STALL):
                    part = await anext(stream)
            except StopAsyncIteration:
                return
            except TimeoutError as error:
                raise StalledUploadError from error
            yield part
