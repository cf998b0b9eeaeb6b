"""Looking at pages as a browser does, without one."""

from functools import lru_cache
from typing import Any

import httpx
from litestar import Litestar
from sqlalchemy.ext.asyncio import AsyncEngine
from tests.api.calls import DUE, create
from tests.asked import inside
from tests.sample import begin

from mailer.access import accounts, service
from mailer.access.cookie import COOKIE
from mailer.access.model import COMMAND_LINE
from mailer.app import create_app
from mailer.settings import Role, Settings

BROWSER = {
    "Accept": "text/html,application/xhtml+xml,*/*;q=0.8",
    "Sec-Fetch-Site": "same-origin",
}
SITE = "http://mailer"
HOSTILE = "\"'><script>alert(1)</script>"
ESCAPED = "&#34;&#39;&gt;&lt;script&gt;alert(1)&lt;/script&gt;"


async def page(api: httpx.AsyncClient, path: str, status: int = 200) -> str:
    answer = await api.get(f"{SITE}{path}", headers=BROWSER)
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "text/html; charset=utf-8"
    text = answer.text.replace("<bdi>", "").replace("</bdi>", "")  # which nobody sees
    return " ".join(text.split())


async def post(api: httpx.AsyncClient, path: str) -> httpx.Response:
    return await api.post(f"{SITE}{path}", headers=BROWSER)


async def under_way(api: httpx.AsyncClient, engine: AsyncEngine, **given: Any) -> int:
    """Return a mailing that has begun."""
    mailing_id = int((await create(api, DUE | given))["id"])
    await begin(engine)
    return mailing_id


def visitor(
    engine: AsyncEngine, settings: Settings | None = None, secret: str | None = None
) -> httpx.AsyncClient:
    """Return a browser at an application that asks who comes; paths are the site's."""
    app = app_of(engine, settings or Settings())
    browser = httpx.AsyncClient(
        transport=inside(app),
        base_url=SITE,
        headers=BROWSER,
    )
    if secret is not None:
        browser.cookies.set(COOKIE, secret, domain="mailer.local")  # as the jar calls the host
    return browser


@lru_cache(maxsize=8)
def app_of(engine: AsyncEngine, settings: Settings) -> Litestar:
    """Return an application that tests of a file share: to make one takes longer than a test."""
    return create_app(engine, settings=settings)


async def signed_in(
    engine: AsyncEngine, role: Role, name: str | None = None, settings: Settings | None = None
) -> httpx.AsyncClient:
    """Return a browser in which somebody of a role is signed in, whose account is made for it.

    The account is named after its role unless a name is given, and no password fits.
    """
    async with engine.begin() as connection:
        who = await accounts.add(connection, name or role, role, "no hash", COMMAND_LINE)
        secret = await service.begin(connection, who, "127.0.0.1", "a browser")
    return visitor(engine, settings, secret)
