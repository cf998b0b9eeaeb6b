"""Which requests keep a session alive: those of the user, but not those of an open page.

A session without requests for two hours ends. A page that is open polls for live updates; it must
not keep the session of an absent user alive.
"""

import pytest
from sqlalchemy.ext.asyncio import AsyncEngine
from tests.api.browser_session import signed_in_browser
from tests.asgi_client import inside
from tests.factories import NOON, add_mailing, create_channels, execute, value
from tests.webhook_receiver import add_webhook

from mailer.access.middleware import IS_POLLED
from mailer.admin.live import LiveUpdates
from mailer.app import create_app
from mailer.gateway.callback import Reply
from mailer.reply.rules import ReplyRules
from mailer.reply.store import add_replies
from mailer.settings import Settings

MAKE_ALMOST_EXPIRED = "UPDATE session SET seen_at = now() - interval '1 hour 59 minutes'"
IS_SEEN_RECENTLY = "SELECT seen_at > now() - interval '1 minute' FROM session"


@pytest.mark.parametrize(
    ("path", "is_seen"),
    [
        ("/mailings", True),
        ("/mailings/1", True),
        ("/live/overview", False),
        ("/live/mailings?ids=1", False),
        ("/live/mailings/1", False),
        ("/live/gateways", False),
        ("/live/gateways/default", False),
        ("/live/system", False),
        ("/live/replies", False),
        ("/live/replies/1", False),
        ("/live/webhooks/1", False),
    ],
)
async def test_only_requests_of_the_user_keep_the_session_alive(
    engine: AsyncEngine, path: str, *, is_seen: bool
) -> None:
    await add_mailing(engine)
    await add_webhook(engine, "https://example.com/", ["test"])
    async with engine.begin() as connection:
        rules = ReplyRules.of(Settings())
        await add_replies(connection, "main", [Reply("79160000001", "Yes")], NOON, rules)
    live = LiveUpdates()
    live.stop()  # event streams end at once
    app = create_app(engine, create_channels(), live=live)
    async with await signed_in_browser(engine, "admin") as browser:
        browser._transport = inside(app)  # noqa: SLF001  # instead of an application with streams
        await execute(engine, MAKE_ALMOST_EXPIRED)
        assert (await browser.get(path)).status_code == 200
        assert await value(engine, IS_SEEN_RECENTLY) is is_seen


def test_every_route_of_live_updates_is_marked_as_polled(engine: AsyncEngine) -> None:
    is_polled = {
        route.path: handler.opt.get(IS_POLLED)
        for route in create_app(engine).routes
        if route.path.startswith("/live/")
        for handler in getattr(route, "route_handlers", ())
        if "GET" in handler.http_methods
    }
    assert len(is_polled) == 9  # the routes in the test above
    assert set(is_polled.values()) == {True}
