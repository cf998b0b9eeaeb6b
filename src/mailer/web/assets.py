"""Scripts, styles and images of the pages, served from the package."""

import hashlib
from functools import cache
from pathlib import Path
from typing import Any

from litestar import Request, Router
from litestar.datastructures import CacheControlHeader
from litestar.exceptions import NotFoundException
from litestar.static_files import create_static_files_router

ASSETS = Path(__file__).parent / "static"
"""The folder of all these files."""
CACHE_SECONDS = 365 * 24 * 3600
"""A year, the usual value for files that never change under their URL."""


def static_router() -> Router:
    """Return a router for `/static/`; browsers cache a file until its `asset_url` changes.

    A name is used in the file system only if it is that of an existing file. Other names could
    cause errors there, and Litestar's response to these would show where mailer is installed.
    """
    names = {f"/{file.relative_to(ASSETS)}" for file in ASSETS.rglob("*") if file.is_file()}

    async def require_known_name(request: Request[Any, Any, Any]) -> None:
        if str(request.path_params["file_path"]) not in names:
            raise NotFoundException

    return create_static_files_router(
        path="/static",
        directories=[ASSETS],
        cache_control=CacheControlHeader(public=True, max_age=CACHE_SECONDS, immutable=True),
        before_request=require_known_name,
        opt={"required_scope": "nothing"},
    )


@cache
def asset_url(name: str) -> str:
    """Return the URL of the file `name` in `static/`; it contains a digest of the content."""
    digest = hashlib.sha256((ASSETS / name).read_bytes()).hexdigest()
    return f"/static/{name}?v={digest[:12]}"
