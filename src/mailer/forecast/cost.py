"""What a mailing costs, by gateway: the parts of its messages times the price of a part.

Prices are those of the configuration now.
"""

from collections import defaultdict
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar

import msgspec
from msgspec import Meta
from sqlalchemy.ext.asyncio import AsyncConnection

from mailer.forecast import store
from mailer.forecast.routing import Routing
from mailer.forecast.throughput import configured_gateways, usable_gateways
from mailer.forecast.tiers import Gateways, Tier, expected_shares
from mailer.gateway.channel import Channels
from mailer.mailing.client_filter import ClientFilter
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
    prices = {channel.name: channel.config.price for channel in channels}
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


def has_prices(channels: Channels) -> bool:
    """Return whether any gateway has a price."""
    return any(channel.config.price is not None for channel in channels)


async def estimate(
    connection: AsyncConnection,
    client_filter: ClientFilter,
    own_gateway: str | None,
    parts: int,
    channels: Channels,
) -> Cost | None:
    """Return the cost of one message of `parts` parts to each client whom a filter matches now.

    The messages go to the gateways that would get them now; if none of a client's gateways is
    usable, to those that would get them if all were. `own_gateway` is the gateway that the mailing
    names for all its messages, if any. Return None if no gateway has a price.
    """
    if not has_prices(channels):
        return None
    usable, configured = usable_gateways(channels), configured_gateways(channels)
    gateways_by_code = await store.read_operator_routes(connection)
    by_code_and_zone = await store.count_by_code_and_zone(connection, client_filter)
    routings = [Routing(gateways_by_code, gateways) for gateways in (usable, configured)]
    clients_by_tier: dict[Tier, int] = defaultdict(int)
    for (code, _), clients in by_code_and_zone.items():
        tiers = (routing.tier(code, own_gateway) for routing in routings)
        clients_by_tier[next(filter(None, tiers), frozenset())] += clients
    return cost_of(_parts_by_gateway(clients_by_tier, parts, configured), channels)


def _parts_by_gateway(
    clients_by_tier: Mapping[Tier, int], parts: int, gateways: Gateways
) -> dict[str, float]:
    by_gateway: dict[str, float] = defaultdict(float)
    for tier, clients in clients_by_tier.items():
        for name, share in expected_shares(tier, gateways).items():
            by_gateway[name] += clients * parts * share
    return by_gateway
