"""Tiers of gateways: which gateways would get messages now, and how many a second they can take.

A *tier* is the set of gateways that would share the messages of a route now: its usable gateways of
the lowest order. It is empty if none of the route's gateways is usable.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import msgspec
from msgspec.structs import replace

from mailer.mailing.field_types import NORMAL_WEIGHT

Tier = frozenset[str]
"""The names of the gateways of a tier."""
EMPTY_TIER: Tier = frozenset()
"""The tier of a route without a usable gateway."""


class GatewayThroughput(msgspec.Struct, frozen=True):
    """A usable gateway, and how many messages a second it can take."""

    name: str
    rate: float | None
    """Messages a second; None before the first response when no limit is set."""
    is_limited: bool = False
    """Whether a limit determines the rate, and not the measured speed of the gateway."""
    order: int = 1
    weight: int | None = None


Gateways = Mapping[str, GatewayThroughput]
"""Usable gateways by their names."""


def by_name(*gateways: GatewayThroughput) -> Gateways:
    """Return gateways by their names."""
    return {gateway.name: gateway for gateway in gateways}


def tier_of(names: Iterable[str], gateways: Gateways) -> Tier:
    """Return the tier of a route with the gateways `names`; `gateways` are the usable ones."""
    usable = [gateways[name] for name in names if name in gateways]
    lowest_order = min((gateway.order for gateway in usable), default=0)
    return frozenset(gateway.name for gateway in usable if gateway.order == lowest_order)


def strict_shares(tier: Tier, gateways: Gateways) -> dict[str, float] | None:
    """Return the share of the messages that each gateway of a tier gets by its weight.

    Return None if no gateway has a weight: then each gets as many messages as it can take.
    """
    weights = {name: gateways[name].weight for name in tier}
    if not any(weights.values()):
        return None
    total = sum(weight or 1 for weight in weights.values())
    return {name: (weight or 1) / total for name, weight in weights.items()}


def expected_shares(tier: Tier, gateways: Gateways) -> dict[str, float]:
    """Return the share of the messages that each gateway of a tier will get.

    Without weights, that is in proportion to the rates; equal while a rate is not known.
    """
    shares = strict_shares(tier, gateways)
    if shares is not None:
        return shares
    rates = {name: gateways[name].rate or 0.0 for name in tier}
    if not all(rates.values()):
        rates = dict.fromkeys(tier, 1.0)
    return {name: rate / sum(rates.values()) for name, rate in rates.items()}


def combined_rate(rates: Mapping[str, float], shares: Mapping[str, float] | None) -> float:
    """Return the messages a second that gateways with these rates can take together.

    With strict shares, the gateway that is the slowest for its share limits the others.
    """
    if shares is None:
        return sum(rates.values())
    return min(rate / shares[name] for name, rate in rates.items())


class Pace(NamedTuple):
    """How fast a mailing sends beside others."""

    weight: int = NORMAL_WEIGHT
    """Its part of a gateway's rate, compared with those of the others."""
    rate: float | None = None
    """Most messages a second; None without a limit."""


EQUAL_PACE = Pace()
"""The pace of a mailing of normal priority without a rate."""


class OtherMailing(NamedTuple):
    """What another running mailing still has to send through a tier."""

    messages: float
    """A fraction of a message is an estimate."""
    pace: Pace = EQUAL_PACE
    """Its rate is the part that this tier has of it."""


class Capacity(msgspec.Struct, frozen=True):
    """What all workers together can send, and who shares it."""

    gateways: Gateways
    """The usable gateways, with the rates of all workers together."""
    others: Mapping[Tier, Sequence[OtherMailing]]
    """The other running mailings, by tier."""
    pace: Pace = EQUAL_PACE
    """The pace of the mailing of the forecast."""

    def known_rates(self, tier: Tier) -> dict[str, float]:
        """Return the rates of those gateways of a tier whose rate is known."""
        rates = {name: self.gateways[name].rate for name in tier}
        return {name: rate for name, rate in rates.items() if rate is not None}

    def rate(self, tiers: Iterable[Tier]) -> float | None:
        """Return the messages a second through tiers that nobody else uses; None if not known."""
        used: dict[str, float] = {}
        for tier in tiers:
            rates = self.known_rates(tier)
            if not rates:
                return None
            shares = strict_shares(tier, self.gateways)
            combined = combined_rate(rates, shares)
            for name, rate in rates.items():
                of_gateway = rate if shares is None else combined * shares[name]
                used[name] = max(used.get(name, 0), of_gateway)
        return sum(used.values())


def of_workers(gateways: Gateways, workers: int) -> Gateways:
    """Return gateways with the rates of `workers` equal workers, given the rates of one."""
    return {
        name: replace(gateway, rate=None if gateway.rate is None else gateway.rate * workers)
        for name, gateway in gateways.items()
    }
