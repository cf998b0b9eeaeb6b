"""The throughput that a forecast rests on: that of the gateways which would get the messages."""

import msgspec

from mailer.gateway.channel import Channels


class Throughput(msgspec.Struct, frozen=True):
    """How many messages a second one worker can send."""

    rate: float | None
    """Messages a second; None before the first response when no limit is set."""
    is_limited: bool
    """Whether limits determine the rate, and not the measured speed of the gateways."""


def usable_throughput(channels: Channels, gateway: str | None = None) -> Throughput | None:
    """Return the throughput of the gateways that would get the messages of a mailing now.

    These are the usable gateways of the lowest order, or the mailing's own `gateway`. None if there
    is none, when nothing is sent.
    """
    usable = [channel for channel in channels.usable_by(gateway) if channel.outage is None]
    lowest_order = min((channel.config.order for channel in usable), default=None)
    estimates = [channel.throughput for channel in usable if channel.config.order == lowest_order]
    rates = [estimate.rate for estimate in estimates if estimate.rate is not None]
    if not estimates:
        return None
    return Throughput(
        rate=sum(rates) if rates else None,
        is_limited=all(estimate.is_limited for estimate in estimates),
    )
