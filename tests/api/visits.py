"""Looking at pages as a browser does, without one."""

from typing import Any

import httpx
from sqlalchemy.ext.asyncio import AsyncEngine
from tests.api.calls import DUE, create
from tests.sample import begin

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
