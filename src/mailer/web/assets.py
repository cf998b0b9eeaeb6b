"""Scripts, styles and pictures that pages need, served from the package itself."""

import hashlib
from functools import cache
from pathlib import Path
from typing import Any

from litestar import Request, Router
from litestar.datastructures import CacheControlHeader
from litestar.exceptions import NotFoundException
from litestar.static_files import create_static_files_router

FOLDER = Path(__file__).parent / "static"
YEAR = 365 * 24 * 3600


def static_router() -> Router:
    """Serve the folder under `/static/`; browsers keep a file until its `asset_url` changes.

    Only names of files that are there reach the file system: others it may refuse in ways of its
    own, and Litestar's answer would tell where mailer is installed.
    """
    names = {f"/{file.relative_to(FOLDER)}" for file in FOLDER.rglob("*") if file.is_file()}

    async def know(request: Request[Any, Any, Any]) -> None:
        if str(request.path_params["file_path"]) not in names:
            raise NotFoundException

    return create_static_files_router(
        path="/static",
        directories=[FOLDER],
        cache_control=CacheControlHeader(public=True, max_age=YEAR, immutable=True),
        before_request=know,
        opt={"needs": "nothing"},
    )


@cache
def asset_url(name: str) -> str:
    """Return the URL of the file `name` under `static/`, with a digest of what is in it."""
    digest = hashlib.sha256((FOLDER / name).read_bytes()).hexdigest()
    return f"/static/{name}?v={digest[:12]}"
