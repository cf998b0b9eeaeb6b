"""Answers in CSV, sent in parts as they are read."""

import asyncio
from collections.abc import AsyncGenerator, Hashable
from contextlib import aclosing
from typing import Any

from litestar import MediaType, Request
from litestar.response import Stream
from litestar.response.base import ASGIResponse
from litestar.types import Receive, Scope, Send

from mailer.db.copying import CsvPart
from mailer.web.turns import Turns

JSON, CSV = "application/json", "text/csv"
DOWNLOADS = Turns(32, each=4, patience=5.0)
"""Downloads at once, and of one owner: each keeps a megabyte until its reader has taken it."""
READS = asyncio.Semaphore(3)
"""Parts that are read at once, each on a connection of the pool, which serves all others too."""


class Download(Stream):
    """A stream of CSV, also from a route that answers in JSON: Stream's own would say JSON."""

    def __init__(self, name: str, first: bytes, rest: AsyncGenerator[bytes, None]) -> None:
        async def whole() -> AsyncGenerator[bytes, None]:
            yield first
            async for part in rest:
                yield part

        headers = {"Content-Disposition": f'attachment; filename="{name}"'}
        super().__init__(whole(), media_type=f"{CSV}; header=present", headers=headers)
        self._rest = rest

    def to_asgi_response(
        self,
        *args: Any,  # noqa: ANN401  # Stream's
        media_type: MediaType | str | None = None,  # noqa: ARG002  # the route's
        **options: Any,  # noqa: ANN401  # Stream's
    ) -> ASGIResponse:
        """As any stream, under its own media type; its turn ends with it, however it ends."""
        response = super().to_asgi_response(*args, media_type=self.media_type, **options)

        async def respond(scope: Scope, receive: Receive, send: Send) -> None:
            async with aclosing(self._rest):
                await response(scope, receive, send)

        return respond  # type: ignore[return-value]  # all that is done with it is to call it


def wants_csv(request: Request[Any, Any, Any]) -> bool:
    """Whether a request would rather have CSV than JSON, by its Accept header."""
    return request.accept.best_match([JSON, CSV]) == CSV


async def csv_answer(
    name: str,
    parts: AsyncGenerator[CsvPart, None],
    owner: Hashable | None,
    turns: Turns = DOWNLOADS,
) -> Download:
    """Return an answer of these parts, to be saved by `owner` as a file of that name.

    The first part is there before the answer begins: what fails at once gets its own status. A
    download that fails later is broken off, so that nobody takes it for the whole. Raises
    `BusyError` when no turn comes.
    """
    contents = _in_turn(parts, owner, turns)
    return Download(name, await anext(contents), contents)


async def _in_turn(
    parts: AsyncGenerator[CsvPart, None], owner: Hashable | None, turns: Turns
) -> AsyncGenerator[bytes, None]:
    async with turns.turn(owner), aclosing(parts):
        while True:
            async with READS:
                part = await anext(parts, None)
            if part is None:
                return
            yield part.content
