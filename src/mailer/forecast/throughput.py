"""The gateways of this worker with their throughput, on which forecasts rest."""

from mailer.forecast.tiers import Gateways, GatewayThroughput, by_name
from mailer.gateway.channel import Channel, Channels


def usable_gateways(channels: Channels) -> Gateways:
    """Return the gateways that are neither paused nor in an outage, with the rates of this worker.

    There are none when nothing is sent.
    """
    return by_name(*(_throughput(channel) for channel in channels if channel.outage is None))


def configured_gateways(channels: Channels) -> Gateways:
    """Return all gateways, usable or not, with the rates of this worker."""
    return by_name(*map(_throughput, channels))


def _throughput(channel: Channel) -> GatewayThroughput:
    return GatewayThroughput(
        channel.name,
        channel.throughput.rate,
        channel.throughput.is_limited,
        channel.config.order,
        channel.config.weight,
    )
