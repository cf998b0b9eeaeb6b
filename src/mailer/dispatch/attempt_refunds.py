"""Attempts to refund: failures that belong to a gateway outage."""

from collections.abc import Collection, Hashable
from datetime import datetime
from typing import NamedTuple

from mailer.message.model import ClaimedMessage


class RefundCandidate(NamedTuple):
    """A failure at a moment of a clock that never steps, in seconds."""

    channel: Hashable
    at: float
    claim: ClaimedMessage


class AttemptRefunds:
    """Failed attempts, which are refunded when the breaker of their channel opens.

    Failures after the start of the channel's last successful request belong to the outage. All
    times are seconds on a clock that never steps. A channel is identified by any hashable value.
    """

    def __init__(self) -> None:
        self._failed: list[RefundCandidate] = []
        self._confirmed: list[ClaimedMessage] = []

    def record_failure(self, channel: Hashable, claim: ClaimedMessage, at: float) -> None:
        """Record a failure that costs an attempt."""
        self._failed.append(RefundCandidate(channel, at, claim))

    def record_success(self, channel: Hashable, started: float) -> None:
        """Record a successful request: failures before its start belong to no outage."""
        if self._failed:
            self._failed = [
                failed
                for failed in self._failed
                if failed.channel != channel or failed.at > started
            ]

    def discard(self, claims: Collection[ClaimedMessage]) -> None:
        """Forget claims whose lease was lost: another worker may own the message now."""
        if claims:
            keys = {_lease_key(claim) for claim in claims}
            self._failed = [
                failed for failed in self._failed if _lease_key(failed.claim) not in keys
            ]
            self._confirmed = [claim for claim in self._confirmed if _lease_key(claim) not in keys]

    def confirm_outage(self, channel: Hashable) -> None:
        """Mark all recorded failures of a channel for a refund: its breaker has opened."""
        self.add([failed.claim for failed in self._failed if failed.channel == channel])
        self._failed = [failed for failed in self._failed if failed.channel != channel]

    def add(self, claims: list[ClaimedMessage]) -> None:
        """Mark claims for a refund."""
        self._confirmed += claims

    def drain(self, unrecorded: Collection[int]) -> list[ClaimedMessage]:
        """Remove and return the claims to refund.

        Claims of messages in `unrecorded` stay for a later call: their results are not stored yet.
        """
        claims = [claim for claim in self._confirmed if claim.id not in unrecorded]
        self._confirmed = [claim for claim in self._confirmed if claim.id in unrecorded]
        return claims


def _lease_key(claim: ClaimedMessage) -> tuple[int, datetime]:
    """Return a key that is unique for each claim and fast to compare."""
    return claim.id, claim.lease_expires_at
