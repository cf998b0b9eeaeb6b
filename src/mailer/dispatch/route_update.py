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
        self._applied: dict[str, list[str] | None] = {}

    async def run(self) -> None:
        """Apply the routes if the gateways of this worker have changed since the last call."""
        wanted = {channel.name: channel.config.operator_codes for channel in self._channels}
        if not wanted or wanted == self._applied:
            return
        async with self._engine.begin() as connection:
            has_changed = await routes.apply_routes(connection, wanted)
            if has_changed:
                await notify_mailings_changed(connection)
        self._applied = wanted
        if has_changed:
            log.info("routes_changed", gateways=sorted(wanted))
