"""Downloads, streamed while they are read from the database."""

import asyncio
from collections.abc import AsyncGenerator, Hashable
from contextlib import AsyncExitStack, aclosing
from typing import Any

from litestar import MediaType, Request
from litestar.response import Stream
from litestar.response.base import ASGIResponse

from mailer.db.csv_export import CsvPart
from mailer.limits import ConcurrencyLimiter
from mailer.web.litestar_internals import close_after

CSV = "text/csv"
DOWNLOAD_LIMITER = ConcurrencyLimiter(32, per_owner=4, timeout=5.0)
"""Downloads at once: each holds about a megabyte in memory until its client has received it."""
DATABASE_READS = asyncio.Semaphore(3)
"""Reads of the database at once, over all downloads. Each needs one of the few connections that all
requests share."""


class Download(Stream):
    """A streamed response, which browsers save as the file `name`.

    It may come from a route whose media type is JSON; a plain `Stream` would be sent as JSON there.
    """

    def __init__(
        self,
        name: str,
        first_part: bytes,
        other_parts: AsyncGenerator[bytes, None],
        media_type: str = f"{CSV}; header=present",
    ) -> None:
        async def all_parts() -> AsyncGenerator[bytes, None]:
            yield first_part
            async for part in other_parts:
                yield part

        headers = {"Content-Disposition": f'attachment; filename="{name}"'}
        super().__init__(all_parts(), media_type=media_type, headers=headers)
        self._other_parts = other_parts

    def to_asgi_response(
        self,
        *args: Any,  # noqa: ANN401  # as in Stream
        media_type: MediaType | str | None = None,  # noqa: ARG002  # the route's, which is ignored
        **options: Any,  # noqa: ANN401  # as in Stream
    ) -> ASGIResponse:
        """Return the response. However it ends, it closes the parts, which frees the slot."""
        response = super().to_asgi_response(*args, media_type=self.media_type, **options)
        stack = AsyncExitStack()
        stack.push_async_callback(self._other_parts.aclose)
        return close_after(response, stack)


def wants_csv(request: Request[Any, Any, Any]) -> bool:
    """Return whether the Accept header of a request prefers CSV to JSON."""
    return request.accept.best_match([MediaType.JSON, CSV]) == CSV


async def csv_answer(
    name: str,
    parts: AsyncGenerator[CsvPart, None],
    owner: Hashable | None,
    limiter: ConcurrencyLimiter = DOWNLOAD_LIMITER,
) -> Download:
    """Return a response that downloads `parts` as a file with this name.

    The first part is read before the response starts, so that an error there gets its own status.
    After an error in a later part the connection is aborted, so that the client notices that the
    file is incomplete. Raises `BusyError` if there is no slot for `owner`, who downloads.
    """
    contents = read_in_slot(parts, owner, limiter)
    return Download(name, await anext(contents), contents)


async def read_in_slot(
    parts: AsyncGenerator[CsvPart, None], owner: Hashable | None, limiter: ConcurrencyLimiter
) -> AsyncGenerator[bytes, None]:
    """Yield the contents of `parts`; hold a slot from the first part until the end."""
    async with limiter.slot(owner), aclosing(parts):
        while True:
            async with DATABASE_READS:
                part = await anext(parts, None)
            if part is None:
                return
            yield part.content
