"""How the messages of mailings are split among tiers of gateways."""

from collections import defaultdict
from collections.abc import Mapping
from functools import cached_property

from mailer.forecast.tiers import Gateways, Tier, tier_of
from mailer.gateway.routes import OTHER_CODES

Shares = Mapping[Tier, float]
"""The share of the messages of a mailing that goes through each tier; they add up to 1."""


class Routing:
    """The tier of each operator code, by the routes in the database and the usable gateways.

    The routes of single messages are not considered: some messages wait for one gateway alone, or
    avoid one that has refused them.
    """

    def __init__(self, gateways_by_code: Mapping[str, frozenset[str]], gateways: Gateways) -> None:
        self._gateways = gateways
        self._tiers = {code: tier_of(names, gateways) for code, names in gateways_by_code.items()}

    def tier(self, operator_code: str, own_gateway: str | None = None) -> Tier:
        """Return the tier of a mailing's clients with an operator code.

        `own_gateway` is the gateway that the mailing names for all its messages, if any.
        """
        if own_gateway is not None:
            return tier_of([own_gateway], self._gateways)
        tier = self._tiers.get(operator_code)
        return self._tiers.get(OTHER_CODES, frozenset()) if tier is None else tier

    @cached_property
    def _tier_of_all(self) -> Tier | None:
        """The tier of all operator codes; None if they have different ones."""
        tiers = set(self._tiers.values())
        return tiers.pop() if len(tiers) == 1 else None

    def single_tier(self, own_gateway: str | None) -> Tier | None:
        """Return the tier of all messages of a mailing; None if that depends on the client.

        `own_gateway` is as in `tier`.
        """
        return self._tier_of_all if own_gateway is None else tier_of([own_gateway], self._gateways)

    def shares(self, by_code: Mapping[str, float]) -> Shares:
        """Return how the messages to clients with these operator codes are split.

        `by_code` has the number of messages of each operator code. Empty if there are none.
        """
        by_tier: dict[Tier, float] = defaultdict(float)
        for operator_code, messages in by_code.items():
            by_tier[self.tier(operator_code)] += messages
        total = sum(by_tier.values())
        return {tier: messages / total for tier, messages in by_tier.items() if total}
