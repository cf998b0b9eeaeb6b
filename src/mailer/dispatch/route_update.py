"""Write the routes of this worker's gateways to the database, when they have changed."""

import structlog
from sqlalchemy.ext.asyncio import AsyncEngine

from mailer.gateway import routes
from mailer.gateway.channel import Channels
from mailer.mailing.store import notify_mailings_changed

log = structlog.get_logger()


class RouteUpdate:
    """Applies the routes once after the start, and once after each reload.

    So the worker that was started or reloaded last decides which gateways messages wait for.
    """

    def __init__(self, engine: AsyncEngine, channels: Channels) -> None:
        self._engine = engine
        self._channels = channels
        self._applied = 0
        """The number `Channels.replacements` for which the routes are applied."""
        self._must_reroute = False
        """Whether the routes have changed, and open mailings must still be marked."""

    async def run(self) -> None:
        """Apply the routes if the channels were replaced since the last call."""
        replacements = self._channels.replacements
        if not self._channels or replacements == self._applied:
            return
        wanted = {channel.name: channel.config.operator_codes for channel in self._channels}
        async with self._engine.begin() as connection:
            self._must_reroute |= await routes.apply_routes(connection, wanted)
        if self._must_reroute:
            async with self._engine.begin() as connection:
                await routes.reroute_open_mailings(connection)
                await notify_mailings_changed(connection)
            self._must_reroute = False
            log.info("routes_changed", gateways=sorted(wanted))
        self._applied = replacements
