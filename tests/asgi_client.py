"""Calls of an ASGI application (a web application in Python) without a server."""

from typing import Any

import httpx


def inside(app: Any, **options: Any) -> httpx.ASGITransport:
    """Return a transport that calls `app` in this process; an exception in `app` answers 500."""
    return httpx.ASGITransport(app, raise_app_exceptions=False, **options)
