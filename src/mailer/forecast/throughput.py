"""The throughput of this worker's gateways, on which forecasts rest."""

from mailer.forecast.tiers import Gateways, GatewayThroughput, by_name
from mailer.gateway.channel import Channel, Channels


def usable_gateways(channels: Channels) -> Gateways:
    """Return the gateways that are neither paused nor in an outage, with the rates of this worker.

    There are none when nothing is sent.
    """
    return by_name(*(_throughput(channel) for channel in channels if channel.outage is None))


def _throughput(channel: Channel) -> GatewayThroughput:
    return GatewayThroughput(
        channel.name,
        channel.throughput.rate,
        channel.throughput.is_limited,
        channel.config.order,
        channel.config.weight,
    )
