"""Import of clients uploaded over HTTP: accepted types, maximum size and concurrency."""

from contextlib import aclosing
from http import HTTPStatus
from typing import Any, get_args

from litestar import Request
from litestar.exceptions import HTTPException
from sqlalchemy.ext.asyncio import AsyncEngine

from mailer.access.model import Actor
from mailer.client.decoding import Encoding
from mailer.client.importing import ImportReport, import_clients
from mailer.limits import ConcurrencyLimiter
from mailer.web.body import read_with_stall_timeout

MAX_IMPORT_BYTES = 1024**3
"""Bytes of a file: about thirty million clients, whose staged lines PostgreSQL can hold."""
MAX_CONCURRENT_IMPORTS = 2
"""Imports at once, and one per API key or user. Each occupies a connection of the pool that all
requests share."""
CHARSETS = frozenset({"utf8", "cp1251", *(name.lower() for name in get_args(Encoding))})
"""Charsets accepted in Content-Type. The encoding itself is detected from the file."""
LIMITER = ConcurrencyLimiter(MAX_CONCURRENT_IMPORTS, per_owner=1, timeout=5.0)


async def import_upload(
    engine: AsyncEngine, request: Request[Any, Any, Any], actor: Actor
) -> ImportReport:
    """Import the CSV file in the body of a request.

    Raises `InvalidError` when the header of the file is wrong; `StalledUploadError` and
    `LongUploadError` when the upload takes too long; `BusyError` when no slot becomes free;
    HTTPException 415 when the Content-Type is not text/csv or names a charset not in `CHARSETS`.
    """
    media_type, options = request.content_type
    if media_type != "text/csv" or options.get("charset", "utf-8").lower() not in CHARSETS:
        raise HTTPException(
            "Send CSV (UTF-8, UTF-16 or windows-1251) as Content-Type: text/csv.",
            status_code=HTTPStatus.UNSUPPORTED_MEDIA_TYPE,
        )
    async with (
        LIMITER.slot(actor.quota_key),
        aclosing(read_with_stall_timeout(request.stream())) as parts,
    ):
        return await import_clients(engine, parts, actor)
