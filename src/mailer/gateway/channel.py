"""A channel: a gateway with its limits, and what this worker has measured of it."""

from collections.abc import Callable
from datetime import datetime
from typing import Self

import msgspec
import structlog

from mailer import metrics
from mailer.gateway.breaker import BREAKER_STATES, Breaker, GatewayStatus
from mailer.gateway.config import ConfiguredGateway
from mailer.gateway.profile import ValidityRange
from mailer.gateway.protocol import Gateway, OutgoingMessage
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
    validity: ValidityRange = ValidityRange()
    """Shortest and longest validity of a message that the gateway takes, in seconds."""
    breaker_failures: int
    """Consecutive failures that open the breaker."""
    breaker_reset: float
    """Seconds for which the breaker is open before a probe, unless the gateway asks for others."""

    @classmethod
    def of(cls, gateway: ConfiguredGateway, settings: Settings) -> Self:
        """Return the limits that the configuration of the gateway and the settings define."""
        return cls(
            concurrency=gateway.config.concurrency,
            timeout=gateway.config.timeout,
            rate=gateway.rate,
            validity=gateway.profile.limits.validity,
            breaker_failures=settings.breaker_failures,
            breaker_reset=settings.breaker_reset,
        )


class Channel:
    """A gateway with its limits, its breaker, its pacer and its throughput estimate.

    Single messages and requests are not its concern: `dispatch.claims` tracks them.
    """

    def __init__(self, gateway: Gateway, limits: ChannelLimits, sender: str = "") -> None:
        self.gateway = gateway
        self.sender = sender
        """Name or number that the client sees; "" for the gateway's default."""
        self.limits = limits
        self.breaker = Breaker(max_failures=limits.breaker_failures, reset=limits.breaker_reset)
        self.throughput = ThroughputEstimate(limits.concurrency, limit=limits.rate)
        self.pacer = Pacer(limits.rate) if limits.rate else None
        """Spaces the requests evenly; None without a rate limit."""
        self._listeners: list[Callable[[], None]] = []
        metrics.breaker_changed(self.breaker.state, BREAKER_STATES)

    def compose(
        self, message_id: int, phone: str, text: str, seconds_left: float, now: datetime
    ) -> OutgoingMessage:
        """Return a message for the gateway, whose mailing ends in `seconds_left`."""
        return OutgoingMessage(
            id=message_id,
            phone=phone,
            text=text,
            sender=self.sender,
            validity=self.limits.validity.limit(int(seconds_left)),
            valid_from=now,
        )

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
