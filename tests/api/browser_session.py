"""An HTTP client that sends the headers of a browser, for tests of pages."""

from functools import lru_cache
from typing import Any

import httpx
from litestar import Litestar
from sqlalchemy.ext.asyncio import AsyncEngine
from tests.api.calls import DUE, create_mailing
from tests.asgi_client import inside
from tests.factories import start_and_enqueue

from mailer.access import service, users
from mailer.access.model import COMMAND_LINE
from mailer.app import create_app
from mailer.roles import Role
from mailer.settings import Settings
from mailer.web.cookie import SESSION_COOKIE

BROWSER = {
    "Accept": "text/html,application/xhtml+xml,*/*;q=0.8",
    "Sec-Fetch-Site": "same-origin",
}
"""Headers of a browser that sends a request from a page of mailer."""
SITE = "http://mailer"
HOST_IN_COOKIES = "mailer.local"
"""The host of `SITE` as cookies name it: Python appends .local to a name without a dot."""
HOSTILE = "\"'><script>alert(1)</script>"
"""A text that runs a script on a page that does not escape it."""
ESCAPED = "&#34;&#39;&gt;&lt;script&gt;alert(1)&lt;/script&gt;"
"""`HOSTILE` as HTML that shows it as text."""


async def get_page(api: httpx.AsyncClient, path: str, status: int = 200) -> str:
    """Return the HTML of a page, with every run of blanks as one space."""
    response = await api.get(f"{SITE}{path}", headers=BROWSER)
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "text/html; charset=utf-8"
    text = response.text.replace("<bdi>", "").replace("</bdi>", "")  # invisible
    return " ".join(text.split())


async def post(api: httpx.AsyncClient, path: str) -> httpx.Response:
    """Send an empty form, as a button without fields does."""
    return await api.post(f"{SITE}{path}", headers=BROWSER)


async def create_running_mailing(api: httpx.AsyncClient, engine: AsyncEngine, **values: Any) -> int:
    """Create a mailing whose start has passed, start it, and return its id."""
    mailing_id = int((await create_mailing(api, DUE | values))["id"])
    await start_and_enqueue(engine)
    return mailing_id


def create_browser(
    engine: AsyncEngine, settings: Settings | None = None, secret: str | None = None
) -> httpx.AsyncClient:
    """Return a browser for an application, by default one with authentication.

    Paths start at the root of the site. `secret` is the secret of the session in which a user is
    signed in.
    """
    app = shared_app(engine, settings or Settings())
    browser = httpx.AsyncClient(transport=inside(app), base_url=SITE, headers=BROWSER)
    if secret is not None:
        browser.cookies.set(SESSION_COOKIE, secret, domain=HOST_IN_COOKIES)
    return browser


@lru_cache(maxsize=8)
def shared_app(engine: AsyncEngine, settings: Settings) -> Litestar:
    """Return an application that the tests of a file share: creating one is slower than a test."""
    return create_app(engine, settings=settings)


async def signed_in_browser(
    engine: AsyncEngine, role: Role, name: str | None = None, settings: Settings | None = None
) -> httpx.AsyncClient:
    """Return a browser in which a new user with a role is signed in.

    The name of the user is the role unless a name is given. The user has no password.
    """
    async with engine.begin() as connection:
        user = await users.create(connection, name or role, role, "no hash", COMMAND_LINE)
        secret = await service.begin_session(connection, user, "127.0.0.1", "a browser")
    return create_browser(engine, settings, secret)
