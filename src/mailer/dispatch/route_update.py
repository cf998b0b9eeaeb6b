"""Write the routes of this worker's gateways to the database, after the start and each reload."""

from operator import is_

import structlog
from sqlalchemy.ext.asyncio import AsyncEngine

from mailer.gateway import routes
from mailer.gateway.channel import Channels
from mailer.gateway.config import ConfiguredGateway
from mailer.mailing.store import notify_mailings_changed

log = structlog.get_logger()


class RouteUpdate:
    """Applies the routes once after the start, and once after each reload.

    So the worker that was started or reloaded last decides which gateways messages wait for.
    """

    def __init__(self, engine: AsyncEngine, channels: Channels) -> None:
        self._engine = engine
        self._channels = channels
        self._applied: list[ConfiguredGateway] = []

    async def run(self) -> None:
        """Apply the routes if this is the first call, or the first one after a reload."""
        configured = [channel.configured for channel in self._channels]
        # Compared by identity: a reload creates new objects. It counts even if it changes nothing
        # here, because another worker may have applied other routes since.
        if len(configured) == len(self._applied) and all(map(is_, configured, self._applied)):
            return
        wanted = {gateway.config.name: gateway.config.operator_codes for gateway in configured}
        async with self._engine.begin() as connection:
            has_changed = await routes.apply_routes(connection, wanted)
            if has_changed:
                await notify_mailings_changed(connection)
        self._applied = configured
        if has_changed:
            log.info("routes_changed", gateways=sorted(wanted))
