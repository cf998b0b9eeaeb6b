"""What a mailing costs, by gateway: the parts of its messages times the price of a part.

Prices are those of the configuration now.
"""

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar

import msgspec
from msgspec import Meta

from mailer.gateway.channel import Channels
from mailer.statuses import Total

DECIMALS = 6
"""Decimals to which costs are rounded; prices of a part may have several."""


class GatewayCost(msgspec.Struct, frozen=True):
    """The parts that go through one gateway, and their cost."""

    gateway: str
    parts: Total
    cost: Annotated[float | None, Meta(description="Null if the gateway has no price.")]


class Cost(msgspec.Struct, frozen=True):
    """The cost of a mailing, in the currency of the prices."""

    EXAMPLE: ClassVar[dict[str, Any]] = {
        "total": 1.68,
        "gateways": [{"gateway": "main", "parts": 480, "cost": 1.68}],
    }

    total: Annotated[
        float | None,
        Meta(description="Null if no gateway has a price, or one with parts has none."),
    ]
    gateways: list[GatewayCost]


def cost_of(parts: Mapping[str, float], channels: Channels) -> Cost:
    """Return the cost of numbers of parts by gateway. Gateways without parts are left out."""
    prices = part_prices(channels)
    gateways = [
        GatewayCost(
            name,
            round(count),
            None if (price := prices.get(name)) is None else round(count * price, DECIMALS),
        )
        for name, count in sorted(parts.items())
        if count
    ]
    costs = [gateway.cost for gateway in gateways if gateway.cost is not None]
    is_known = has_prices(channels) and len(costs) == len(gateways)
    return Cost(round(sum(costs), DECIMALS) if is_known else None, gateways)


def part_prices(channels: Channels) -> dict[str, float | None]:
    """Return the price of a part by gateway; None for one without a price."""
    return {channel.name: channel.config.price for channel in channels}


def has_prices(channels: Channels) -> bool:
    """Return whether any gateway has a price."""
    return any(channel.config.price is not None for channel in channels)
