"""A channel: a gateway with its limits, and what this worker has measured of it."""

from collections.abc import Callable
from typing import Self

import msgspec
import structlog

from mailer import metrics
from mailer.gateway.breaker import BREAKER_STATES, Breaker, GatewayStatus
from mailer.gateway.protocol import Gateway
from mailer.gateway.throughput import ThroughputEstimate
from mailer.limits import Pacer
from mailer.settings import Settings

log = structlog.get_logger()


class ChannelLimits(msgspec.Struct, frozen=True, kw_only=True):
    """How many messages a gateway gets, and when its breaker opens."""

    concurrency: int
    """Most requests at the same time."""
    timeout: float
    """Seconds after which a request is aborted."""
    rate: float
    """Most messages a second; 0 for no limit."""
    breaker_failures: int
    """Consecutive failures that open the breaker."""
    breaker_reset: float
    """Seconds for which the breaker is open before a probe, unless the gateway asks for others."""

    @classmethod
    def of(cls, settings: Settings) -> Self:
        """Return the limits that the settings define."""
        return cls(
            concurrency=settings.gateway_concurrency,
            timeout=settings.gateway_timeout,
            rate=settings.gateway_rate,
            breaker_failures=settings.breaker_failures,
            breaker_reset=settings.breaker_reset,
        )


class Channel:
    """A gateway with its limits, its breaker, its pacer and its throughput estimate.

    Single messages and requests are not its concern: `dispatch.claims` tracks them.
    """

    def __init__(self, gateway: Gateway, limits: ChannelLimits) -> None:
        self.gateway = gateway
        self.limits = limits
        self.breaker = Breaker(max_failures=limits.breaker_failures, reset=limits.breaker_reset)
        self.throughput = ThroughputEstimate(limits.concurrency, limit=limits.rate)
        self.pacer = Pacer(limits.rate) if limits.rate else None
        """Spaces the requests evenly; None without a rate limit."""
        self._listeners: list[Callable[[], None]] = []
        metrics.breaker_changed(self.breaker.state, BREAKER_STATES)

    def add_breaker_listener(self, listener: Callable[[], None]) -> None:
        """Call `listener` each time after the breaker has opened or closed."""
        self._listeners.append(listener)

    def report_probe(self) -> None:
        """Log and show in the metrics that the breaker is half-open: a probe starts."""
        metrics.breaker_changed(self.breaker.state, BREAKER_STATES)
        log.info("breaker_half_open")

    def report_breaker(self, now: float) -> None:
        """Log and show in the metrics that the breaker has opened or closed; call the listeners."""
        metrics.breaker_changed(self.breaker.state, BREAKER_STATES)
        if self.breaker.outage is not None:
            seconds = round(self.breaker.seconds_to_probe(now), 3)
            log.warning("breaker_opened", reason=self.breaker.outage.reason, seconds=seconds)
        else:
            log.info("breaker_closed")
        for listener in self._listeners:
            listener()


def gateway_status(channel: Channel | None) -> GatewayStatus:
    """Return the status of the gateway; `channel` is None if no gateway is configured."""
    return GatewayStatus(is_set=False) if channel is None else channel.breaker.status()
