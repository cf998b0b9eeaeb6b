"""Attempts to refund: failures that belong to a gateway outage."""

from collections.abc import Collection
from datetime import datetime

from mailer.message.model import ClaimedMessage


class GiveBack:
    """Failed attempts to refund when the breaker opens.

    Failures since the start of the last successful request belong to the outage. A success of an
    older request proves nothing. Moments are seconds on a clock that never steps.
    """

    def __init__(self) -> None:
        self._failed: list[tuple[float, ClaimedMessage]] = []
        self._explained: list[ClaimedMessage] = []

    def fail(self, claim: ClaimedMessage, at: float) -> None:
        """Note a failure that costs an attempt."""
        self._failed.append((at, claim))

    def succeed(self, began: float) -> None:
        """Note a success: what had failed before it began was not an outage."""
        if self._failed:
            self._failed = [(at, claim) for at, claim in self._failed if at > began]

    def forget(self, late: Collection[ClaimedMessage]) -> None:
        """Discard results written after the lease was lost; another worker now owns the message."""
        if late:
            gone = {_lease(claim) for claim in late}
            self._failed = [each for each in self._failed if _lease(each[1]) not in gone]
            self._explained = [claim for claim in self._explained if _lease(claim) not in gone]

    def explain(self) -> None:
        """Note that the breaker has opened: all that is noted failed with the gateway."""
        self.add([claim for _, claim in self._failed])
        self._failed = []

    def add(self, claims: list[ClaimedMessage]) -> None:
        """Have the attempts of these given back."""
        self._explained += claims

    def take(self, held: Collection[int]) -> list[ClaimedMessage]:
        """Take out what is to be given back, but for messages in `held`: they still change."""
        taken = [claim for claim in self._explained if claim.id not in held]
        self._explained = [claim for claim in self._explained if claim.id in held]
        return taken


def _lease(claim: ClaimedMessage) -> tuple[int, datetime]:
    """Return what no two claims share, and is compared at once."""
    return claim.id, claim.lease_expires_at
