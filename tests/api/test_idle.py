"""Who is away is signed out, whatever page they have left open."""

import pytest
from sqlalchemy.ext.asyncio import AsyncEngine
from tests.api.visits import signed_in
from tests.asked import inside
from tests.sample import add_mailing, execute, value

from mailer.access.gate import BY_ITSELF
from mailer.admin.live import Live
from mailer.app import create_app

AWAY = "UPDATE session SET seen_at = now() - interval '1 hour 59 minutes'"
LATELY = "SELECT seen_at > now() - interval '1 minute' FROM session"


@pytest.mark.parametrize(
    ("path", "is_seen"),
    [
        ("/mailings", True),
        ("/mailings/1", True),
        ("/live/overview", False),
        ("/live/mailings?ids=1", False),
        ("/live/mailings/1", False),
        ("/live/system", False),
    ],
)
async def test_only_what_a_person_asks_for_keeps_them_signed_in(
    engine: AsyncEngine, path: str, *, is_seen: bool
) -> None:
    await add_mailing(engine)
    live = Live()
    live.stop()
    app = create_app(engine, live=live)
    async with await signed_in(engine, "admin") as browser:
        browser._transport = inside(app)  # noqa: SLF001  # one whose streams end at once
        await execute(engine, AWAY)
        assert (await browser.get(path)).status_code == 200
        assert await value(engine, LATELY) is is_seen


def test_every_live_page_asks_by_itself(engine: AsyncEngine) -> None:
    live = {
        (route.path, handler.opt.get(BY_ITSELF))
        for route in create_app(engine).routes
        if route.path.startswith("/live/")
        for handler in getattr(route, "route_handlers", ())
        if "GET" in handler.http_methods
    }
    assert len(live) == 4
    assert {is_by_itself for _, is_by_itself in live} == {True}
