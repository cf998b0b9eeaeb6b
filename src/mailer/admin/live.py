"""Open pages kept up to date: server-sent events, and one look for all who watch the same.

Protocol: https://html.spec.whatwg.org/multipage/server-sent-events.html. An event carries the HTML
of those sections of a page that have changed; `live.js` puts each in the place of its id.
"""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Hashable, Mapping

import structlog
from litestar.exceptions import ServiceUnavailableException
from litestar.response import ServerSentEvent
from litestar.response.sse import ServerSentEventMessage

from mailer.db.engine import is_away
from mailer.log import describe

log = structlog.get_logger()

PERIOD = 2.0
"""Seconds between looks."""
FRESH = 1.5
"""Seconds for which what was found is good for others, too."""
QUIET = 20.0
"""Seconds without news after which a line without meaning is sent: proxies cut what is silent."""
MOST = 200
"""Pages that one process keeps up to date; more are told to ask again later."""

Sections = Mapping[str, str]
"""The HTML of each live section of a page, by its id."""
Look = Callable[[], Awaitable[Sections]]


class Live:
    """Keeps open pages up to date until the process stops."""

    def __init__(self) -> None:
        self._stopping = asyncio.Event()
        self._watching = 0
        self._looks: dict[Hashable, tuple[float, asyncio.Task[Sections]]] = {}

    def stop(self) -> None:
        """End every stream: a server waits for what is open."""
        self._stopping.set()

    def stream(self, key: Hashable, look: Look) -> ServerSentEvent:
        """Answer with what `look` finds, now and whenever it differs.

        Those with the same key see the same: for all of them there is one look.
        """
        if self._watching >= MOST:
            raise ServiceUnavailableException("Too many pages are open.")
        return ServerSentEvent(self._events(key, look))

    async def _events(
        self, key: Hashable, look: Look
    ) -> AsyncGenerator[ServerSentEventMessage, None]:
        told: dict[str, int] = {}
        silence = 0.0
        self._watching += 1
        try:
            while not self._stopping.is_set():
                sections = await self._look(key, look)
                news = {name: hash(html) for name, html in sections.items()}.items() - told.items()
                told |= dict(news)
                if news:
                    yield ServerSentEventMessage("\n".join(sections[name] for name, _ in news))
                elif silence >= QUIET:
                    yield ServerSentEventMessage(data=None, comment="")
                silence = 0.0 if news or silence >= QUIET else silence + PERIOD
                await self._rest()
        finally:
            self._watching -= 1

    async def _rest(self) -> None:
        try:
            async with asyncio.timeout(PERIOD):
                await self._stopping.wait()
        except TimeoutError:
            return

    async def _look(self, key: Hashable, look: Look) -> Sections:
        """Return what somebody found a moment ago, or look."""
        now = asyncio.get_running_loop().time()
        self._looks = {
            known: (at, task) for known, (at, task) in self._looks.items() if now - at < FRESH
        }
        if key not in self._looks:
            self._looks[key] = now, asyncio.create_task(_found(look))
        return await asyncio.shield(self._looks[key][1])  # who leaves does not end it for others


async def _found(look: Look) -> Sections:
    """Return what is found; nothing when it fails: pages stay as they are until it does not."""
    try:
        return await look()
    except Exception as error:  # noqa: BLE001  # whatever it is, it is logged
        if is_away(error):
            log.warning("database_away", at="live")
        else:
            log.error("live_failed", **describe(error))  # noqa: TRY400  # describe leaves out texts
        return {}
