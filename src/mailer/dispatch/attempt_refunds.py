"""Attempts to refund: failed attempts that were the fault of a gateway outage, not of a message.

The breaker opens only after several failures. When it does, the failures before it also belong to
the outage, and their attempts are refunded.
"""

from collections.abc import Collection, Hashable
from datetime import datetime
from typing import NamedTuple

from mailer.message.model import ClaimedMessage


class RefundCandidate(NamedTuple):
    """A failed attempt, which is refunded if the breaker of its channel opens.

    `failed_at` is a moment of `elapsed()`, in seconds.
    """

    channel: Hashable
    failed_at: float
    claim: ClaimedMessage


class AttemptRefunds:
    """The failed attempts of this worker that may be refunded, and those that will be.

    A failure is a candidate until a request that started after it succeeds. When the breaker of the
    channel opens, all candidates of the channel are to be refunded. All times are moments of
    `elapsed()`. A channel is identified by any hashable value.
    """

    def __init__(self) -> None:
        self._candidates: list[RefundCandidate] = []
        self._to_refund: list[ClaimedMessage] = []

    def record_failure(self, channel: Hashable, claim: ClaimedMessage, failed_at: float) -> None:
        """Record a failed attempt as a candidate."""
        self._candidates.append(RefundCandidate(channel, failed_at, claim))

    def record_success(self, channel: Hashable, started_at: float) -> None:
        """Record a successful request: failures before its start belong to no outage."""
        if self._candidates:
            self._candidates = [
                candidate
                for candidate in self._candidates
                if candidate.channel != channel or candidate.failed_at > started_at
            ]

    def discard(self, claims: Collection[ClaimedMessage]) -> None:
        """Never refund these claims: their leases were lost, or their results cannot be written.

        Another worker may have claimed their messages since.
        """
        if claims:
            keys = {_lease_key(claim) for claim in claims}
            self._candidates = [
                candidate
                for candidate in self._candidates
                if _lease_key(candidate.claim) not in keys
            ]
            self._to_refund = [claim for claim in self._to_refund if _lease_key(claim) not in keys]

    def confirm_outage(self, channel: Hashable) -> None:
        """Mark all candidates of a channel for a refund: its breaker has opened."""
        self._to_refund += [
            candidate.claim for candidate in self._candidates if candidate.channel == channel
        ]
        self._candidates = [
            candidate for candidate in self._candidates if candidate.channel != channel
        ]

    def take_refundable(self, unrecorded: Collection[int]) -> list[ClaimedMessage]:
        """Remove and return the claims to refund now.

        Claims of messages in `unrecorded`, whose results are not stored yet, are left for a later
        call.
        """
        claims = [claim for claim in self._to_refund if claim.id not in unrecorded]
        self._to_refund = [claim for claim in self._to_refund if claim.id in unrecorded]
        return claims

    def put_back(self, claims: list[ClaimedMessage]) -> None:
        """Let the next `take_refundable` return these claims again: they could not be refunded."""
        self._to_refund += claims


def _lease_key(claim: ClaimedMessage) -> tuple[int, datetime]:
    """Return a key that is unique for each claim and fast to compare."""
    return claim.id, claim.lease_expires_at
