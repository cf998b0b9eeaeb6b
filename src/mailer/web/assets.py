"""Scripts, styles and pictures that pages need, served from the package itself."""

import hashlib
from functools import cache
from pathlib import Path

from litestar import Router
from litestar.datastructures import CacheControlHeader
from litestar.static_files import create_static_files_router

FOLDER = Path(__file__).parent / "static"
YEAR = 365 * 24 * 3600


def static_router() -> Router:
    """Serve the folder under `/static/`; browsers keep a file until its `asset_url` changes."""
    return create_static_files_router(
        path="/static",
        directories=[FOLDER],
        cache_control=CacheControlHeader(public=True, max_age=YEAR, immutable=True),
        opt={"needs": "nothing"},
    )


@cache
def asset_url(name: str) -> str:
    """Return the URL of the file `name` under `static/`, with a digest of what is in it."""
    digest = hashlib.sha256((FOLDER / name).read_bytes()).hexdigest()
    return f"/static/{name}?v={digest[:12]}"
