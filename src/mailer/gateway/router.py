"""Choose the gateway that gets the next messages of a route. It does no I/O."""

import math
from collections.abc import Iterable
from datetime import datetime

import msgspec


class GatewayTables(msgspec.Struct, frozen=True):
    """What the database says of gateways."""

    routes: dict[int, frozenset[str]]
    """The names of the gateways that may take the messages of a route, by the route's id."""
    paused_at: dict[str, datetime]
    """Since when a user has paused a gateway, by its name."""


class Candidate(msgspec.Struct, frozen=True):
    """A gateway that may take the messages of a route, and how many it can take now."""

    name: str
    order: int
    """Gateways with the lowest order are used first; the next ones when these are out."""
    weight: int
    """Share of the messages among gateways of the same order."""
    is_usable: bool
    """Whether it is neither paused nor in an outage."""
    capacity: int
    """Most messages that it can take now. During an outage, 1 if a probe is due, else 0."""


class Choice(msgspec.Struct, frozen=True):
    """The gateway that gets the next messages, and how many at most."""

    name: str
    capacity: int


class Router:
    """Shares messages among gateways by `order` and `weight`.

    Only the gateways of the lowest order with a usable one are used. They share the messages by
    weight, as long as each has capacity. A gateway that is busy does not make messages wait for
    another order, but leaves its share to the others of its own order. A gateway that was out, and
    is usable again, is not compensated for the time before.

    The shares are those of stride scheduling (C. Waldspurger, W. Weihl, 1995): each gateway has a
    *pass*, which grows by `messages / weight`, and the gateway with the lowest pass comes next.
    """

    def __init__(self) -> None:
        self._passes: dict[str, float] = {}
        self._lowest_pass = 0.0
        """The pass of the gateway that was chosen last, before it took its messages."""

    def choose(self, candidates: Iterable[Candidate]) -> Choice | None:
        """Return the gateway for the next messages; None if they must wait.

        A gateway in an outage whose probe is due comes first and gets one message, unless usable
        gateways of a lower order make it needless.
        """
        candidates = list(candidates)
        tier = min((each.order for each in candidates if each.is_usable), default=math.inf)
        probes = [
            each
            for each in candidates
            if not each.is_usable and each.capacity > 0 and each.order <= tier
        ]
        if probes:
            return Choice(min(probes, key=lambda each: (each.order, each.name)).name, 1)
        ready = [
            each
            for each in candidates
            if each.is_usable and each.order == tier and each.capacity > 0
        ]
        if not ready:
            return None
        for each in ready:
            self._passes[each.name] = max(self._passes.get(each.name, 0.0), self._lowest_pass)
        chosen = min(ready, key=lambda each: (self._passes[each.name], each.name))
        self._lowest_pass = self._passes[chosen.name]
        return Choice(chosen.name, chosen.capacity)

    def record(self, candidate_name: str, messages: int, weight: int) -> None:
        """Record that a gateway was given `messages`, so that others come next."""
        passed = self._passes.get(candidate_name, self._lowest_pass)
        self._passes[candidate_name] = passed + messages / weight
