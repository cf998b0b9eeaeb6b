"""A channel: a gateway with its limits, and what this worker has measured of it."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import datetime
from typing import Self

import msgspec
import structlog

from mailer import metrics
from mailer.gateway.breaker import BREAKER_STATES, Breaker, Outage
from mailer.gateway.config import ConfiguredGateway
from mailer.gateway.config_table import GatewayConfig
from mailer.gateway.profile import ValidityRange
from mailer.gateway.protocol import NO_RECEIPTS, Gateway
from mailer.gateway.router import Candidate, GatewayTables
from mailer.gateway.throughput import ThroughputEstimate
from mailer.limits import Pacer
from mailer.settings import Settings

log = structlog.get_logger()

PAUSED = "gateway_paused"
"""Reason of an outage: a user has paused the gateway."""


class ChannelLimits(msgspec.Struct, frozen=True, kw_only=True):
    """How many messages a gateway gets, and when its breaker opens."""

    concurrency: int
    """Most requests at the same time."""
    timeout: float
    """Seconds after which a request is aborted."""
    rate: float
    """Most messages a second; 0 for no limit."""
    validity: ValidityRange = ValidityRange()
    """Shortest and longest validity of a message that the gateway takes, in seconds."""
    parts: int = 255
    """Most parts of a text; a text with more would be cut or refused."""
    breaker_failures: int
    """Consecutive failures that open the breaker."""
    breaker_reset: float
    """Seconds for which the breaker is open before a probe, unless the gateway asks for others."""

    @classmethod
    def of(cls, gateway: ConfiguredGateway, settings: Settings) -> Self:
        """Return the limits that the configuration of the gateway and the settings define."""
        return cls(
            concurrency=gateway.concurrency,
            timeout=gateway.config.timeout,
            rate=gateway.rate,
            validity=gateway.profile.limits.validity,
            parts=gateway.parts,
            breaker_failures=settings.breaker_failures,
            breaker_reset=settings.breaker_reset,
        )


class Channel:
    """A gateway with its limits, its breaker, its pacer and its throughput estimate.

    Single messages and requests are not its concern: `dispatch.claims` tracks them.
    """

    def __init__(
        self, gateway: Gateway, configured: ConfiguredGateway, limits: ChannelLimits
    ) -> None:
        self.name = configured.config.name
        self.gateway = gateway
        self.configured = configured
        """A reload may replace it by one that `connects_like` it."""
        self.limits = limits
        self.receipts = NO_RECEIPTS
        """Whether and how the gateway reports the delivery of messages."""
        self.callback_rules = configured.callback_rules()
        """How to read the gateway's calls."""
        self.breaker = Breaker(max_failures=limits.breaker_failures, reset=limits.breaker_reset)
        self.throughput = ThroughputEstimate(limits.concurrency, limit=limits.rate)
        self.pacer = Pacer(limits.rate) if limits.rate else None
        """Spaces the requests evenly; None without a rate limit."""
        self.in_flight = 0
        """Number of requests that have started and have no outcome yet."""
        self.pauses: Mapping[str, datetime] = {}
        """Since when gateways are paused by a user, by name. `Channels` shares it with all
        channels, also replaced ones: a later pause must stop their last requests, too."""
        self.is_replaced = False
        """Whether a reload has removed or replaced it. Its last requests may still end."""
        self._listeners: list[Callable[[], None]] = []
        self._export_breaker()

    @property
    def config(self) -> GatewayConfig:
        """The `[[gateway]]` of the configuration."""
        return self.configured.config

    @property
    def paused_at(self) -> datetime | None:
        """Since when the gateway is paused by a user; None while it is not."""
        return self.pauses.get(self.name)

    @property
    def takes_calls(self) -> bool:
        """Whether the provider may call mailer: its kind has receipts or replies, and a secret."""
        return bool(self.callback_rules.methods) and self.configured.callbacks.can_be_proved

    @property
    def outage(self) -> Outage | None:
        """Since when and why the gateway is not used; None while it is used."""
        if self.paused_at is not None:
            return Outage(self.paused_at, PAUSED)
        return self.breaker.outage

    def candidate(self, capacity: int) -> Candidate:
        """Return the channel as the router sees it, with the messages that it can take now."""
        return Candidate(
            name=self.name,
            order=self.config.order,
            weight=self.config.weight,
            is_usable=self.outage is None,
            capacity=capacity,
        )

    def add_breaker_listener(self, listener: Callable[[], None]) -> None:
        """Call `listener` each time after the breaker has opened or closed."""
        self._listeners.append(listener)

    def report_probe(self) -> None:
        """Log and show in the metrics that the breaker is half-open: a probe starts."""
        self._export_breaker()
        log.info("breaker_half_open", gateway=self.name)

    def report_breaker(self, now: float) -> None:
        """Log and show in the metrics that the breaker has opened or closed; call the listeners."""
        self._export_breaker()
        if self.breaker.outage is not None:
            seconds = round(self.breaker.seconds_to_probe(now), 3)
            reason = self.breaker.outage.reason
            log.warning("breaker_opened", gateway=self.name, reason=reason, seconds=seconds)
        else:
            log.info("breaker_closed", gateway=self.name)
        for listener in self._listeners:
            listener()

    def _export_breaker(self) -> None:
        """Show the state of the breaker in the metrics, which no longer show a replaced channel."""
        if not self.is_replaced:
            metrics.breaker_changed(self.name, self.breaker.state, BREAKER_STATES)


class Channels:
    """The channels of this worker, one for each configured gateway. A reload replaces them."""

    def __init__(self, channels: Iterable[Channel] = ()) -> None:
        self.routes: dict[int, frozenset[str]] = {}
        """The names of the gateways of each route in the database, by the id of the route."""
        self.replacements = 0
        """How often the channels were replaced: at the start and by each reload."""
        self._paused_at: dict[str, datetime] = {}
        self._by_name: dict[str, Channel] = {}
        self.replace(channels)

    def __iter__(self) -> Iterator[Channel]:
        return iter(self._by_name.values())

    def __len__(self) -> int:
        return len(self._by_name)

    def get(self, name: str) -> Channel | None:
        """Return the channel of a gateway; None if it is not configured."""
        return self._by_name.get(name)

    def replace(self, channels: Iterable[Channel]) -> None:
        """Use these channels from now on, and remove the metrics of the other gateways."""
        self.replacements += 1
        former, self._by_name = self._by_name, {channel.name: channel for channel in channels}
        for name, channel in former.items():
            channel.is_replaced = self.get(name) is not channel
        for name in former.keys() - self._by_name.keys():
            metrics.gateway_removed(name)
        for channel in self:
            channel.pauses = self._paused_at
        self._export_pauses()

    def update(self, tables: GatewayTables) -> bool:
        """Apply what the database says of gateways. Return whether anything has changed."""
        if (tables.routes, tables.paused_at) == (self.routes, self._paused_at):
            return False
        self.routes = tables.routes
        self._paused_at.clear()  # not another dict, because the channels have this one
        self._paused_at.update(tables.paused_at)
        self._export_pauses()
        return True

    def _export_pauses(self) -> None:
        """Show in the metrics which gateways are paused."""
        for channel in self:
            metrics.gateway_paused(channel.name, is_paused=channel.paused_at is not None)

    def has_other(self, route: int, name: str) -> bool:
        """Return whether the messages of a route may be sent through another gateway than this."""
        return bool(self.routes.get(route, frozenset()) & self._by_name.keys() - {name})

    def usable_by(self, gateway: str | None) -> list[Channel]:
        """Return the channels that may take messages of a mailing with this gateway of its own.

        None stands for a mailing without one: then these are all channels.
        """
        if gateway is None:
            return list(self)
        channel = self.get(gateway)
        return [] if channel is None else [channel]

    def has_usable(self, names: Iterable[str]) -> bool:
        """Return whether one of the gateways `names` is configured and used."""
        channels = (self.get(name) for name in names)
        return any(channel is not None and channel.outage is None for channel in channels)

    def outage(self, gateway: str | None = None) -> Outage | None:
        """Return since when and why none of the channels `usable_by` is used; None if one is."""
        outages = [channel.outage for channel in self.usable_by(gateway)]
        if None in outages:
            return None
        known = (outage for outage in outages if outage is not None)
        return max(known, key=lambda outage: outage.since, default=None)


NO_CHANNELS = Channels()
"""The channels of a worker without any gateway."""
