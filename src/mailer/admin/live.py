"""Live updates of open pages by server-sent events; equal pages are rendered once for all viewers.

Each open page has a stream of events. While it is open, its sections are rendered again every few
seconds, which is called a refresh here. An event contains the HTML of the sections that have
changed; `pages.js` replaces the sections with the same ids. Protocol:
https://html.spec.whatwg.org/multipage/server-sent-events.html.
"""

import asyncio
import time
from collections import Counter
from collections.abc import AsyncGenerator, Awaitable, Callable, Hashable, Mapping
from contextlib import AsyncExitStack
from typing import Any, NamedTuple

import structlog
from litestar.exceptions import ServiceUnavailableException
from litestar.response import ServerSentEvent
from litestar.response.base import ASGIResponse
from litestar.response.sse import ServerSentEventMessage

from mailer.db.engine import is_unavailable
from mailer.log import describe
from mailer.web.litestar_internals import close_after

log = structlog.get_logger()

MIN_REFRESH_INTERVAL, MAX_REFRESH_INTERVAL = 2.0, 15.0
"""Seconds between two refreshes of a page, at least and at most."""
MAX_TIME_SHARE = 0.01
"""The share of a worker's time that refreshes of all pages may take together, including the wait
for their queries. With many different pages open, each is refreshed less often, so that sending is
not slowed down. `MAX_REFRESH_INTERVAL` has priority: very many pages take more than this share."""
SHARED_RESULT_FRACTION = 0.75
"""The share of the refresh interval for which a result is reused for other viewers of the page."""
KEEPALIVE_INTERVAL = 20.0
"""Seconds without an event before an empty comment is sent: proxies close silent connections."""
MAX_STREAMS, MAX_STREAMS_PER_OWNER = 200, 20
"""Maximum number of open streams of a worker, and of one user. Further requests are refused; the
page repeats them."""
STREAM_LIFETIME = 60.0
"""Seconds that a stream lasts. Then the page reconnects, and the request is authorized again: the
user may have been signed out or may have another role."""

STALE_EVENT = ServerSentEventMessage("-", event="stale")
"""Makes a page show that it is out of date: a refresh has failed."""
FRESH_EVENT = ServerSentEventMessage("-", event="fresh")
"""Makes a page show that it is up to date again."""
RECONNECT_EVENT = ServerSentEventMessage("-", event="reconnect")
"""Makes a page reconnect."""

Sections = Mapping[str, str]
"""The HTML of each live section of a page, by its id."""
RenderSections = Callable[[], Awaitable[Sections]]
"""Queries the database and renders the live sections of a page."""


class Refresh(NamedTuple):
    """One rendering of the sections of a page; it may wait for other refreshes before it starts."""

    started_at: asyncio.Future[float]
    """The start, in seconds on the clock of the event loop."""
    result: asyncio.Task[Sections | None]
    """The sections; None if rendering failed."""

    def started_before(self, moment: float) -> bool:
        """Return whether the refresh has started before a moment on the clock of the loop."""
        return self.started_at.done() and self.started_at.result() < moment


class LiveStream(ServerSentEvent):
    """A stream of events that calls `on_end` once, even if the client leaves before its start."""

    def __init__(
        self, events: AsyncGenerator[ServerSentEventMessage, None], on_end: Callable[[], None]
    ) -> None:
        super().__init__(events)
        self._on_end = on_end

    def to_asgi_response(self, *args: Any, **options: Any) -> ASGIResponse:  # noqa: ANN401  # ServerSentEvent's
        """Return the ASGI response, which calls `on_end` at its end."""
        stack = AsyncExitStack()
        stack.callback(self._on_end)
        return close_after(super().to_asgi_response(*args, **options), stack)


class LiveUpdates:
    """Keeps open pages up to date until the worker stops.

    Streams of pages with the same content have the same key and share each refresh. `clock` returns
    seconds, and measures how long a refresh takes.
    """

    def __init__(
        self, lifetime: float = STREAM_LIFETIME, clock: Callable[[], float] = time.perf_counter
    ) -> None:
        self._lifetime = lifetime
        self._clock = clock
        self._stopping = asyncio.Event()
        self._streams_by_owner: Counter[Hashable] = Counter()
        """Number of streams, including those whose response has not started yet."""
        self._streams_by_key: Counter[Hashable] = Counter()
        """Number of streams that send events."""
        self._refreshes: dict[Hashable, Refresh] = {}
        """The newest refresh by key."""
        self._refresh_seconds: dict[Hashable, float] = {}
        """Duration of a refresh by key."""
        self._refresh_lock = asyncio.Lock()
        """Held by the refresh that is running: refreshes run one after the other."""

    def stop(self) -> None:
        """End every stream, because the server waits for open responses when it stops."""
        self._stopping.set()

    def stream(
        self, key: Hashable, render: RenderSections, owner: Hashable | None
    ) -> ServerSentEvent:
        """Return a stream of the sections that `render` returns, now and whenever they change.

        Streams with the same key show the same content. `owner` is the user: one owner may have
        `MAX_STREAMS_PER_OWNER` open streams, but None is not limited. Raises
        `ServiceUnavailableException` when too many streams are open.
        """
        is_owner_full = owner is not None and self._streams_by_owner[owner] >= MAX_STREAMS_PER_OWNER
        if self._streams_by_owner.total() >= MAX_STREAMS or is_owner_full:
            raise ServiceUnavailableException("Too many pages are open.")
        self._streams_by_owner[owner] += 1
        return LiveStream(self._events(key, render), lambda: self._release_stream(owner))

    def _release_stream(self, owner: Hashable | None) -> None:
        """Count one stream less for an owner."""
        self._streams_by_owner[owner] -= 1
        if not self._streams_by_owner[owner]:
            del self._streams_by_owner[owner]

    async def _events(
        self, key: Hashable, render: RenderSections
    ) -> AsyncGenerator[ServerSentEventMessage, None]:
        """Yield the events of one stream: at first all sections, later those that changed."""
        sent_hashes: dict[str, int] = {}  # by section
        started_at = asyncio.get_running_loop().time()
        silent_seconds = 0.0  # since the last event
        is_stale = False  # whether the page shows that it is out of date
        self._streams_by_key[key] += 1
        try:
            while not self._stopping.is_set():
                # a refresh that started before the page was requested may be older than the page
                sections = await self._get_sections(key, render, min_start=started_at)
                has_failed = sections is None
                if has_failed != is_stale:
                    is_stale = has_failed
                    yield STALE_EVENT if is_stale else FRESH_EVENT
                sections = sections or {}
                hashes = {name: hash(html) for name, html in sections.items()}
                changed = [name for name in sections if hashes[name] != sent_hashes.get(name)]
                sent_hashes |= hashes
                needs_keepalive = not changed and silent_seconds >= KEEPALIVE_INTERVAL
                if changed:
                    yield ServerSentEventMessage("\n".join(sections[name] for name in changed))
                elif needs_keepalive:
                    yield ServerSentEventMessage(data=None, comment="")
                is_silent = not changed and not needs_keepalive
                silent_seconds = silent_seconds + self.refresh_interval if is_silent else 0.0
                await self._wait_for_next_refresh()
                if asyncio.get_running_loop().time() >= started_at + self._lifetime:
                    yield RECONNECT_EVENT
                    return
        finally:
            self._streams_by_key[key] -= 1
            if not self._streams_by_key[key]:
                del self._streams_by_key[key]
                self._refresh_seconds.pop(key, None)

    @property
    def refresh_interval(self) -> float:
        """Seconds between two refreshes of a page; keeps all pages within `MAX_TIME_SHARE`.

        But it is never longer than `MAX_REFRESH_INTERVAL`.
        """
        seconds_for_all_pages = sum(self._refresh_seconds.values())
        interval = seconds_for_all_pages / MAX_TIME_SHARE
        return min(MAX_REFRESH_INTERVAL, max(MIN_REFRESH_INTERVAL, interval))

    async def _wait_for_next_refresh(self) -> None:
        """Wait for one refresh interval, or until `stop` is called."""
        try:
            async with asyncio.timeout(self.refresh_interval):
                await self._stopping.wait()
        except TimeoutError:
            return

    async def _get_sections(
        self, key: Hashable, render: RenderSections, min_start: float
    ) -> Sections | None:
        """Return a page's sections from its newest refresh, or from a new one if that is too old.

        A refresh is too old if it started before `min_start`, in seconds on the clock of the loop,
        or longer ago than results are shared. Returns None if rendering failed.
        """
        loop = asyncio.get_running_loop()
        min_start = max(min_start, loop.time() - self.refresh_interval * SHARED_RESULT_FRACTION)
        # drop what is too old, but not a running refresh of another page: its viewers wait for it
        self._refreshes = {
            page_key: refresh
            for page_key, refresh in self._refreshes.items()
            if not refresh.started_before(min_start)
            or (page_key != key and not refresh.result.done())
        }
        if key not in self._refreshes:
            start = loop.create_future()
            task = asyncio.create_task(self._refresh(key, render, start))
            self._refreshes[key] = Refresh(start, task)
        # shielded: a viewer that leaves must not cancel the refresh for the others
        return await asyncio.shield(self._refreshes[key].result)

    async def _refresh(
        self, key: Hashable, render: RenderSections, start: asyncio.Future[float]
    ) -> Sections | None:
        """Wait for other refreshes, set the result of `start`, and return the rendered sections.

        Returns None if rendering failed: then the pages show that they are out of date.
        """
        async with self._refresh_lock:
            start.set_result(asyncio.get_running_loop().time())
            rendering_start = self._clock()
            try:
                async with asyncio.timeout(MAX_REFRESH_INTERVAL):
                    return await render()
            except Exception as error:  # noqa: BLE001  # a failed refresh must not end the stream
                if is_unavailable(error):
                    log.warning("database_unavailable", at="live")
                else:
                    log.error("live_failed", **describe(error))  # noqa: TRY400  # describe leaves out texts
                return None
            finally:
                self._record_duration(key, self._clock() - rendering_start)

    def _record_duration(self, key: Hashable, seconds: float) -> None:
        """Record the duration of a refresh, at most twice the one recorded before.

        So a single slow refresh makes updates less frequent only a little.
        """
        if key in self._streams_by_key:
            self._refresh_seconds[key] = min(seconds, 2 * self._refresh_seconds.get(key, seconds))
