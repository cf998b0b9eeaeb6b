"""The application inside all ASGI wrappers, as a worker serves it, and clients of it.

`peer` is the address from which a request comes: that of a client or of a proxy.
"""

from functools import lru_cache

import httpx
from litestar import Litestar
from litestar.types import ASGIApp
from sqlalchemy.ext.asyncio import AsyncEngine
from tests.asgi_client import inside
from tests.factories import OPEN

from mailer.admin.live import LiveUpdates
from mailer.app import create_app
from mailer.settings import Settings
from mailer.web.asgi_wrappers import wrap_asgi

# the headers of every response, with the same values in all of them
COMMON_VALUES = {
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
}
FORWARDED = {"x-forwarded-proto": "https", "x-forwarded-for": "evil, 203.0.113.9"}
"""Headers of a proxy that says: the request came by https from 203.0.113.9."""


@lru_cache(maxsize=1)
def app_without_streams(engine: AsyncEngine) -> Litestar:
    """Return an application that the tests share: creating one takes longer than a test."""
    live = LiveUpdates()
    live.stop()  # event streams end at once
    return create_app(engine, live=live, settings=OPEN)


def wrapped(app: Litestar, settings: Settings) -> ASGIApp:
    """Return an application inside all ASGI wrappers, as a worker serves it."""
    return wrap_asgi(app, settings.proxies, is_auth_enabled=settings.is_auth_enabled)


def client_of(
    engine: AsyncEngine, settings: Settings, peer: str = "127.0.0.1", host: str = "mailer"
) -> httpx.AsyncClient:
    """Return a client with the address `peer`. It calls the application under the name `host`."""
    transport = inside(wrapped(app_without_streams(engine), settings), client=(peer, 1234))
    return httpx.AsyncClient(transport=transport, base_url=f"http://{host}")


async def url_of_next_page(client: httpx.AsyncClient) -> httpx.URL:
    """Return the URL of the next page in a response to a request with the headers `FORWARDED`.

    Its scheme and host are those that mailer takes for the request's own.
    """
    for digit in range(2):  # two clients, one on each page
        await client.post("/api/v1/clients", json={"phone": f"7916000000{digit}"})
    answer = await client.get("/api/v1/clients?limit=1", headers=FORWARDED)
    return httpx.URL(answer.json()["next"])
