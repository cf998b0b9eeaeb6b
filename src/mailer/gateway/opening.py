"""Create the channels of the configured gateways, at the start and when the file has changed."""

from collections.abc import Mapping

from mailer.gateway.channel import Channel, ChannelLimits, Channels
from mailer.gateway.config import ConfiguredGateway, configured_gateways
from mailer.gateway.http import HttpGateway
from mailer.settings import Settings


def open_channels(
    settings: Settings, environ: Mapping[str, str], current: Channels
) -> list[Channel]:
    """Return a channel for each configured gateway; raises `ConfigFileError`.

    A current channel is kept, with what this worker has measured, if the gateway is reached as
    before. Nothing is changed if the configuration has a mistake.
    """
    return [
        _keep_or_create(gateway, settings, current.get(gateway.config.name))
        for gateway in configured_gateways(settings, environ)
    ]


def _keep_or_create(
    gateway: ConfiguredGateway, settings: Settings, current: Channel | None
) -> Channel:
    if current is not None and gateway.connects_like(current.configured):
        channel = current
        channel.configured = gateway
    else:
        http_gateway = HttpGateway(gateway, retry_after_cap=settings.retry_after_cap)
        channel = Channel(http_gateway, gateway, ChannelLimits.of(gateway, settings))
    channel.receipts = gateway.receipt_use(settings.public_url)
    return channel
