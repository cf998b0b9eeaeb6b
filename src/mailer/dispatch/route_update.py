"""Write the routes of this worker's gateways to the database, when this worker decides them."""

from collections.abc import Callable

import structlog
from sqlalchemy.ext.asyncio import AsyncEngine

from mailer.clock import elapsed
from mailer.db.workers import active_workers, own_session_name
from mailer.gateway import routes
from mailer.gateway.channel import Channels
from mailer.mailing.store import notify_mailings_changed

log = structlog.get_logger()

ABSENCE_TIMEOUT = 30.0
"""Seconds for which the workers that have applied their routes later must have been gone, so that
this worker applies its own. A restart takes less."""


class RouteUpdate:
    """Applies the routes once after the start, and once after each reload.

    So the worker that was started or reloaded last decides which gateways messages wait for. When
    it has ended, the one before it decides again.
    """

    def __init__(
        self,
        engine: AsyncEngine,
        channels: Channels,
        worker_name: Callable[[], str] = own_session_name,
        clock: Callable[[], float] = elapsed,
    ) -> None:
        self._engine = engine
        self._channels = channels
        self._worker_name = worker_name
        self._clock = clock
        self._applied = 0
        """The number `Channels.replacements` for which the routes are applied."""
        self._gone_since: float | None = None
        """Since when no later worker is active, a moment of the clock; None while one is."""

    async def run(self) -> None:
        """Apply the routes if the channels were replaced, or all later workers have ended."""
        replacements = self._channels.replacements
        if not self._channels:
            return
        if replacements != self._applied or await self._are_later_ones_gone():
            await self._apply()
            self._applied = replacements
            self._gone_since = None

    async def _apply(self) -> None:
        """Write the routes to the database."""
        wanted = {channel.name: channel.config.operator_codes for channel in self._channels}
        async with self._engine.begin() as connection:
            has_changed = await routes.apply_routes(connection, wanted)
            active = {worker.session_name for worker in await active_workers(connection)}
            await routes.record_applied(connection, self._worker_name(), active)
            if has_changed:
                await notify_mailings_changed(connection)
        if has_changed:
            log.info("routes_changed", gateways=sorted(wanted))

    async def _are_later_ones_gone(self) -> bool:
        """Return whether all workers that have applied their routes later have been gone for long.

        A worker that has just started may not be active yet.
        """
        async with self._engine.connect() as connection:
            later = await routes.applied_later(connection, self._worker_name())
            if not later:
                return False
            active = {worker.session_name for worker in await active_workers(connection)}
        now = self._clock()
        if later & active:
            self._gone_since = None
        elif self._gone_since is None:
            self._gone_since = now
        return self._gone_since is not None and now - self._gone_since >= ABSENCE_TIMEOUT
