"""Answers in CSV, sent in parts as they are read."""

from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

from litestar import MediaType, Request
from litestar.response import Stream
from litestar.response.base import ASGIResponse

from mailer.db.copying import CsvPart

JSON, CSV = "application/json", "text/csv"


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


async def csv_answer(name: str, parts: AsyncGenerator[CsvPart, None]) -> Download:
    """Return an answer of these parts, to be saved as a file of that name.

    The first part is there before the answer begins: what fails at once gets its own status. A
    download that fails later is broken off, so that nobody takes it for the whole.
    """
    first = await anext(parts)

    async def whole() -> AsyncGenerator[bytes, None]:
        yield first.content
        async with aclosing(parts):
            async for part in parts:
                yield part.content

    headers = {"Content-Disposition": f'attachment; filename="{name}"'}
    return Download(whole(), media_type=f"{CSV}; header=present", headers=headers)
