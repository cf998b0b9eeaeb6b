"""Answers of the server itself to frequent requests of programs.

A request to an ASGI application costs a task and several events. That is half of the cost of a
request that brings little, and is only stored.
"""

import asyncio
from collections.abc import Callable, Sequence
from typing import NamedTuple

from litestar.types import HTTPScope


class DirectResponse(NamedTuple):
    """A response that is sent at once and complete."""

    status: int
    headers: Sequence[tuple[bytes, bytes]]
    """Among them is the length of the body."""
    body: bytes


class DirectAnswer(NamedTuple):
    """The answer to a request: its response may be sent when `ready` has ended."""

    ready: asyncio.Future[None]
    respond: Callable[[], DirectResponse]
    """Called when `ready` has ended. If it has failed, the ASGI application gets the request."""


class DirectAnswers(NamedTuple):
    """The requests that the server answers directly."""

    path_prefix: str
    """Start of the paths of all such requests, and of few others."""
    answer: Callable[[HTTPScope, bytes], DirectAnswer | None]
    """Called with a request, whose scope has the address of the connection, and its body. If it
    returns None, the ASGI application gets the request."""
