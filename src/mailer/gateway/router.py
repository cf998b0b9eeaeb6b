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
    weight: int | None
    """Share of the messages among gateways of the same order; None if none is configured."""
    is_usable: bool
    """Whether it is neither paused nor in an outage."""
    capacity: int
    """Most messages that it can take now. During an outage, 1 if a probe is due, else 0."""


class Choice(msgspec.Struct, frozen=True):
    """The gateway that gets the next messages, and how many at most."""

    name: str
    capacity: int
    weights: frozenset[tuple[str, int]] = frozenset()
    """The gateways that share the messages, each with its weight. Empty for a probe."""


class Router:
    """Shares messages among gateways by `order` and `weight`.

    Only the gateways of the lowest order with a usable one are used. Without weights, each of them
    gets as many messages as it can take. If one of them has a weight, they share the messages
    strictly by weight (1 for those without one), and a slow gateway slows the others. A gateway
    that was out, and is usable again, is not compensated for the time before.

    The shares are those of stride scheduling (C. Waldspurger, W. Weihl, 1995): each gateway has a
    *pass*, which grows by `messages / weight`, and the gateway with the lowest pass comes next.
    """

    def __init__(self) -> None:
        self._passes: dict[frozenset[tuple[str, int]], dict[str, float]] = {}
        """The pass of each gateway, for each set of gateways that have shared messages."""

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
        usable = [each for each in candidates if each.is_usable and each.order == tier]
        is_strict = any(each.weight for each in usable)
        ready = [each for each in usable if is_strict or each.capacity > 0]
        if not ready:
            return None
        weights = frozenset((each.name, each.weight or 1) for each in usable)
        passes = self._passes.get(weights, {})
        chosen = min(ready, key=lambda each: (passes.get(each.name, 0.0), each.name))
        if not chosen.capacity:
            return None  # the others wait too, so that the shares hold
        if not is_strict:
            return Choice(chosen.name, chosen.capacity, weights)
        share = (chosen.weight or 1) / sum(weight for _, weight in weights)
        return Choice(chosen.name, max(1, int(chosen.capacity * share)), weights)

    def record(self, choice: Choice, messages: int) -> None:
        """Record that `messages` were given to the gateway of a choice, so that others are next."""
        if len(choice.weights) > 1:
            passes = self._passes.setdefault(choice.weights, {})
            weight = dict(choice.weights)[choice.name]
            passes[choice.name] = passes.get(choice.name, 0.0) + messages / weight
