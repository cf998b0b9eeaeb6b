"""The messages that this worker has claimed, from the claim until their results are recorded."""

from collections.abc import Collection, Hashable, KeysView, Sequence
from datetime import timedelta
from uuid import uuid4

from mailer.dispatch.attempt_refunds import AttemptRefunds
from mailer.dispatch.in_flight import InFlightRequests
from mailer.dispatch.prefetch import PrefetchQueue
from mailer.message.model import ClaimedMessage, MessageResult


class WorkerClaims:
    """All claims of this worker, which the claimer, the senders and the recorder share.

    A claimed message waits in the prefetch queue until its request starts. The request is in flight
    until it has an outcome. Then the result waits until it is recorded in the database. From the
    claim until then, the message is in `unrecorded`. A failed attempt may be refunded afterwards.

    `prefetch_size` is the number of messages to keep claimed at first.
    """

    def __init__(self, lease: timedelta, prefetch_size: int) -> None:
        self.owner = uuid4()
        """The owner of the leases: it identifies this worker in the database."""
        self.lease = lease
        """Duration of a lease."""
        self.prefetch = PrefetchQueue(prefetch_size)
        """The claimed messages whose requests have not started."""
        self.in_flight = InFlightRequests()
        """The requests that have started and have no outcome yet."""
        self._refunds = AttemptRefunds()
        self._unrecorded: dict[int, ClaimedMessage] = {}

    @property
    def unrecorded(self) -> KeysView[int]:
        """Ids of the claimed messages whose results are not recorded yet."""
        return self._unrecorded.keys()

    def add(self, claims: Sequence[ClaimedMessage]) -> None:
        """Add messages that were just claimed, to be sent."""
        self._unrecorded.update((claim.id, claim) for claim in claims)
        self.prefetch.put(claims)

    def record_written(
        self, results: Sequence[MessageResult], stored_ids: Collection[int]
    ) -> list[ClaimedMessage]:
        """Forget the claims of results that were written. Return the claims with a lost lease.

        `stored_ids` are the messages whose lease was still valid. The database discarded the
        results of the others, and their attempts are not refunded: another worker may have claimed
        these messages since.
        """
        self.forget(results)
        lost = [result.claim for result in results if result.claim.id not in stored_ids]
        self._refunds.discard(lost)
        return lost

    def record_dropped(self, claims: Sequence[ClaimedMessage]) -> None:
        """Record that the results of these claims cannot be written.

        Their attempts are not refunded. The messages stay in `unrecorded` until `forget` is called.
        """
        self._refunds.discard(claims)

    def forget(self, results: Sequence[MessageResult]) -> None:
        """Remove messages from `unrecorded`, except those that this worker has claimed again."""
        for result in results:
            if self._unrecorded.get(result.claim.id) is result.claim:
                del self._unrecorded[result.claim.id]

    def record_failed_attempt(
        self, channel: Hashable, claim: ClaimedMessage, failed_at: float
    ) -> None:
        """Record a failed attempt, to be refunded if it turns out to belong to an outage.

        `failed_at` is a moment of `elapsed()`.
        """
        self._refunds.record_failure(channel, claim, failed_at)

    def record_success(self, channel: Hashable, started_at: float) -> None:
        """Record a successful request: attempts that failed before its start are not refunded.

        `started_at` is a moment of `elapsed()`.
        """
        self._refunds.record_success(channel, started_at)

    def confirm_outage(self, channel: Hashable) -> None:
        """Refund the attempts of a channel that failed since its last success.

        Call it when the breaker of the channel opens.
        """
        self._refunds.confirm_outage(channel)

    def take_refundable(self) -> list[ClaimedMessage]:
        """Remove and return the claims whose attempts can be refunded now.

        They belong to an outage, and their results are recorded.
        """
        return self._refunds.drain(self._unrecorded)

    def put_back_refundable(self, claims: list[ClaimedMessage]) -> None:
        """Let the next `take_refundable` return these claims again: they could not be refunded."""
        self._refunds.add(claims)
