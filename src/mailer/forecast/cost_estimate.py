"""Estimate what a mailing will cost: the gateways that would get the messages of its audience."""

from collections import defaultdict
from collections.abc import Mapping

from sqlalchemy.ext.asyncio import AsyncConnection

from mailer.forecast import store
from mailer.forecast.cost import Cost, cost_of, has_prices
from mailer.forecast.routing import Routing
from mailer.forecast.throughput import configured_gateways, usable_gateways
from mailer.forecast.tiers import Gateways, Tier, expected_shares
from mailer.gateway.channel import Channels
from mailer.mailing.client_filter import ClientFilter


async def estimate_cost(  # noqa: PLR0913  # what the cost depends on
    connection: AsyncConnection,
    client_filter: ClientFilter,
    own_gateway: str | None,
    parts: float,
    channels: Channels,
    *,
    opted_out: bool | None = None,
) -> Cost | None:
    """Return the cost of one message of `parts` parts to each client whom a filter matches now.

    With placeholders, `parts` is the average of all clients.
    `opted_out` is whether these clients have opted out; None for both.
    The messages go to the gateways that would get them now; if none of a client's gateways is
    usable, to those that would get them if all were. `own_gateway` is the gateway that the mailing
    names for all its messages, if any. Return None if no gateway has a price.
    """
    if not has_prices(channels):
        return None
    usable, configured = usable_gateways(channels), configured_gateways(channels)
    gateways_by_code = await store.read_operator_routes(connection)
    by_code_and_zone = await store.count_by_code_and_zone(
        connection, client_filter, opted_out=opted_out
    )
    routings = [Routing(gateways_by_code, gateways) for gateways in (usable, configured)]
    clients_by_tier: dict[Tier, int] = defaultdict(int)
    for (code, _), clients in by_code_and_zone.items():
        tiers = (routing.tier(code, own_gateway) for routing in routings)
        clients_by_tier[next(filter(None, tiers), frozenset())] += clients
    return cost_of(_parts_by_gateway(clients_by_tier, parts, configured), channels)


def _parts_by_gateway(
    clients_by_tier: Mapping[Tier, int], parts: float, gateways: Gateways
) -> dict[str, float]:
    by_gateway: dict[str, float] = defaultdict(float)
    for tier, clients in clients_by_tier.items():
        for name, share in expected_shares(tier, gateways).items():
            by_gateway[name] += clients * parts * share
    return by_gateway
