"""The sandbox gateway's HTTP server: listening, responses, and connections that are reset."""

import asyncio
import logging
import socket
import struct
from typing import NoReturn

from aiohttp import web

from mailer.errors import UnavailableError
from mailer.gateway.aiohttp_connection import is_parse_error
from mailer.gateway.sandbox_responses import SandboxResponse

_RESET_ON_CLOSE = struct.pack("ii", 1, 0)
"""Value of the socket option SO_LINGER: on, 0 s. Closing the socket then sends RST, not FIN."""


async def listen(site: web.TCPSite, host: str, port: int) -> None:
    """Start to listen. Raises UnavailableError, which says why it cannot."""
    try:
        await site.start()
    except OSError as error:
        message = f"cannot listen on {host}:{port}: {error.strerror or error}"
        raise UnavailableError(message) from error


def to_http(response: SandboxResponse) -> web.Response:
    """Convert a response for aiohttp."""
    return web.Response(status=response.status, body=response.body, headers=response.headers)


def reset(transport: asyncio.Transport | None) -> None:
    """Close a connection by RST."""
    if transport is not None:
        connection = transport.get_extra_info("socket")
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
        transport.abort()


async def wait_for_cancellation() -> NoReturn:
    """Wait until the server cancels the task, which it does when the connection is lost."""
    while True:
        await asyncio.get_running_loop().create_future()


def drop_parse_error(record: logging.LogRecord) -> bool:
    """Remove aiohttp's parse errors from a log record: their text may contain a phone."""
    if record.exc_info and is_parse_error(record.exc_info[1]):
        record.exc_info = None
    return True
