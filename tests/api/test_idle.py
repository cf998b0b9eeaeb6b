"""An idle user is signed out, whatever page is open in the browser."""

import pytest
from sqlalchemy.ext.asyncio import AsyncEngine
from tests.api.browser_session import signed_in_browser
from tests.asgi_client import inside
from tests.factories import add_mailing, execute, value

from mailer.access.middleware import IS_POLLED
from mailer.admin.live import LiveUpdates
from mailer.app import create_app

IDLE = "UPDATE session SET seen_at = now() - interval '1 hour 59 minutes'"
IS_SEEN_RECENTLY = "SELECT seen_at > now() - interval '1 minute' FROM session"


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
async def test_only_requests_of_the_user_keep_the_session_alive(
    engine: AsyncEngine, path: str, *, is_seen: bool
) -> None:
    await add_mailing(engine)
    live = LiveUpdates()
    live.stop()
    app = create_app(engine, live=live)
    async with await signed_in_browser(engine, "admin") as browser:
        browser._transport = inside(app)  # noqa: SLF001  # an application whose streams end at once
        await execute(engine, IDLE)
        assert (await browser.get(path)).status_code == 200
        assert await value(engine, IS_SEEN_RECENTLY) is is_seen


def test_every_route_of_live_updates_is_marked_as_polled(engine: AsyncEngine) -> None:
    live = {
        (route.path, handler.opt.get(IS_POLLED))
        for route in create_app(engine).routes
        if route.path.startswith("/live/")
        for handler in getattr(route, "route_handlers", ())
        if "GET" in handler.http_methods
    }
    assert len(live) == 4
    assert {is_polled for _, is_polled in live} == {True}
