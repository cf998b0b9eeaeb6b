"""Open pages kept up to date: server-sent events, and one look for all who watch the same.

Protocol: https://html.spec.whatwg.org/multipage/server-sent-events.html. An event carries the HTML
of those sections of a page that have changed; `live.js` puts each in the place of its id.
"""

import asyncio
import time
from collections import Counter
from collections.abc import AsyncGenerator, Awaitable, Callable, Hashable, Mapping
from typing import Any

import structlog
from litestar.exceptions import ServiceUnavailableException
from litestar.response import ServerSentEvent
from litestar.response.base import ASGIResponse
from litestar.response.sse import ServerSentEventMessage
from litestar.types import Receive, Scope, Send

from mailer.db.engine import is_away
from mailer.log import describe

log = structlog.get_logger()

PERIOD, LONGEST = 2.0, 15.0
"""Seconds between looks, at least and at most."""
BUDGET = 0.01
"""The part of the time that looks may take together: with many different pages open, each is
looked at less often, and sending goes on undisturbed."""
FRESH = 0.75
"""The part of a period for which what was found is good for others, too."""
QUIET = 20.0
"""Seconds without news after which a line without meaning is sent: proxies cut what is silent."""
MOST, EACH = 200, 20
"""Pages that one process keeps up to date, and of one person; more are told to ask again later."""

Sections = Mapping[str, str]
"""The HTML of each live section of a page, by its id."""
STALE = ServerSentEventMessage("-", event="stale")
FRESH_AGAIN = ServerSentEventMessage("-", event="fresh")
"""What tells a page that it is out of date for now, and that it is not any more."""
LASTS = 60.0
"""Seconds that a stream lasts: then the page asks again, and who has been signed out meanwhile, or
has another role, is told."""
AGAIN = ServerSentEventMessage("-", event="again")
"""What tells a page to ask again."""
Look = Callable[[], Awaitable[Sections]]


class Events(ServerSentEvent):
    """A stream of events that tells its end, however it ends, and if it never began."""

    def __init__(
        self, events: AsyncGenerator[ServerSentEventMessage, None], on_end: Callable[[], None]
    ) -> None:
        super().__init__(events)
        self._on_end = on_end

    def to_asgi_response(self, *args: Any, **options: Any) -> ASGIResponse:  # noqa: ANN401  # ServerSentEvent's
        """As any stream."""
        response = super().to_asgi_response(*args, **options)

        async def respond(scope: Scope, receive: Receive, send: Send) -> None:
            try:
                await response(scope, receive, send)
            finally:
                self._on_end()

        return respond  # type: ignore[return-value]  # all that is done with it is to call it


class Live:
    """Keeps open pages up to date until the process stops."""

    def __init__(self, lasts: float = LASTS) -> None:
        self._lasts = lasts
        self._stopping = asyncio.Event()
        self._open: Counter[Hashable] = Counter()
        """Streams that are answered, by whom they are for; those that are about to begin, too."""
        self._watching: Counter[Hashable] = Counter()
        self._looks: dict[
            Hashable, tuple[asyncio.Future[float], asyncio.Task[Sections | None]]
        ] = {}
        self._costs: dict[Hashable, float] = {}
        self._turn = asyncio.Lock()

    def stop(self) -> None:
        """End every stream: a server waits for what is open."""
        self._stopping.set()

    def stream(self, key: Hashable, look: Look, owner: Hashable | None) -> ServerSentEvent:
        """Answer with what `look` finds, now and whenever it differs.

        Those with the same key see the same: for all of them there is one look. Of those for one
        owner there are at most `EACH`, unless it is None.
        """
        if self._open.total() >= MOST or (owner is not None and self._open[owner] >= EACH):
            raise ServiceUnavailableException("Too many pages are open.")
        self._open[owner] += 1
        return Events(self._events(key, look), lambda: self._close(owner))

    def _close(self, owner: Hashable | None) -> None:
        self._open[owner] -= 1
        if not self._open[owner]:
            del self._open[owner]

    async def _events(
        self, key: Hashable, look: Look
    ) -> AsyncGenerator[ServerSentEventMessage, None]:
        told: dict[str, int] = {}
        began = asyncio.get_running_loop().time()
        silence = 0.0
        is_stale = False
        self._watching[key] += 1
        try:
            while not self._stopping.is_set():
                # one that began before the page was asked for knows less than the page
                sections = await self._look(key, look, began)
                if is_stale != (sections is None):
                    is_stale = not is_stale
                    yield STALE if is_stale else FRESH_AGAIN
                sections = sections or {}
                news = {name: hash(html) for name, html in sections.items()}.items() - told.items()
                told |= dict(news)
                if news:
                    yield ServerSentEventMessage("\n".join(sections[name] for name, _ in news))
                elif silence >= QUIET:
                    yield ServerSentEventMessage(data=None, comment="")
                silence = 0.0 if news or silence >= QUIET else silence + self.period
                await self._rest()
                if asyncio.get_running_loop().time() >= began + self._lasts:
                    yield AGAIN
                    return
        finally:
            self._watching[key] -= 1
            if not self._watching[key]:
                del self._watching[key]
                self._costs.pop(key, None)

    @property
    def period(self) -> float:
        """Seconds between looks: they keep to the budget, whatever is open."""
        return min(LONGEST, max(PERIOD, sum(self._costs.values()) / BUDGET))

    async def _rest(self) -> None:
        try:
            async with asyncio.timeout(self.period):
                await self._stopping.wait()
        except TimeoutError:
            return

    async def _look(self, key: Hashable, look: Look, since: float) -> Sections | None:
        """Return what somebody found a moment ago, but after `since`, or look."""
        since = max(since, asyncio.get_running_loop().time() - self.period * FRESH)
        self._looks = {
            known: (began, task)
            for known, (began, task) in self._looks.items()
            if not (began.done() and began.result() < since and (task.done() or known == key))
        }
        if key not in self._looks:
            began = asyncio.get_running_loop().create_future()
            self._looks[key] = began, asyncio.create_task(self._found(key, look, began))
        return await asyncio.shield(self._looks[key][1])  # who leaves does not end it for others

    async def _found(
        self, key: Hashable, look: Look, started: asyncio.Future[float]
    ) -> Sections | None:
        """Return what is found, one look at a time; None when it fails.

        Then pages stay as they are, and say so, until it does not.
        """
        async with self._turn:
            started.set_result(asyncio.get_running_loop().time())
            began = time.perf_counter()
            try:
                async with asyncio.timeout(LONGEST):
                    return await look()
            except Exception as error:  # noqa: BLE001  # whatever it is, it is logged
                if is_away(error):
                    log.warning("database_away", at="live")
                else:
                    log.error("live_failed", **describe(error))  # noqa: TRY400  # describe leaves out texts
                return None
            finally:
                self._spent(key, time.perf_counter() - began)

    def _spent(self, key: Hashable, seconds: float) -> None:
        """Note what a look took; one that was slow for once counts for little."""
        if key in self._watching:
            self._costs[key] = min(seconds, 2 * self._costs.get(key, seconds))
