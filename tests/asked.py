"""An application asked without a server."""

from typing import Any

import httpx


def inside(app: Any, **given: Any) -> httpx.ASGITransport:
    """Return what asks `app` in this process; an error in it answers 500."""
    return httpx.ASGITransport(app, raise_app_exceptions=False, **given)
