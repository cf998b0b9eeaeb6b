"""A file of clients sent over HTTP: what is taken, how much, and how long it is waited for."""

from contextlib import aclosing
from http import HTTPStatus
from typing import Any, get_args

from litestar import Request
from litestar.exceptions import HTTPException
from sqlalchemy.ext.asyncio import AsyncEngine

from mailer.access.model import Actor
from mailer.client.decoding import Encoding
from mailer.client.importing import ImportReport, import_clients
from mailer.web.body import never_stalling
from mailer.web.turns import Turns

IMPORT_LIMIT = 1024**3
"""Bytes of a file to import: some thirty million clients, whose staged lines PostgreSQL holds."""
IMPORTS = 2
"""Imports at once: each keeps a connection of the pool, which serves every other request too.
Of one key or person there is one."""
CHARSETS = frozenset({"utf8", "cp1251", *(name.lower() for name in get_args(Encoding))})
"""What an import's Content-Type may name, whichever of them the file is in."""
TURNS = Turns(IMPORTS, each=1, patience=5.0)


async def import_upload(
    engine: AsyncEngine, request: Request[Any, Any, Any], by: Actor
) -> ImportReport:
    """Import the CSV file that is the body of a request.

    Raises `InvalidError` when its header is wrong, `StalledUploadError`, `LongUploadError`,
    `BusyError` when no turn comes, and HTTPException 415 when it says that it is something else
    than CSV in one of the encodings that an import knows; which of them it is in, the file tells.
    """
    media_type, options = request.content_type
    if media_type != "text/csv" or options.get("charset", "utf-8").lower() not in CHARSETS:
        status = HTTPStatus.UNSUPPORTED_MEDIA_TYPE
        raise HTTPException(
            "Send CSV (UTF-8, UTF-16 or windows-1251) as Content-Type: text/csv.",
            status_code=status,
        )
    async with TURNS.turn(by.caller), aclosing(never_stalling(request.stream())) as parts:
        return await import_clients(engine, parts, by)
