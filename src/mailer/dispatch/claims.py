"""The messages that this worker has claimed, from the claim until their results are recorded."""

from collections.abc import Collection, KeysView, Sequence
from datetime import timedelta
from uuid import uuid4

from mailer.dispatch.attempt_refunds import AttemptRefunds
from mailer.dispatch.in_flight import InFlightRequests
from mailer.dispatch.prefetch import PrefetchQueue
from mailer.message.model import ClaimedMessage, MessageResult


class WorkerClaims:
    """All claims of this worker, which the claimer, the senders and the recorder share.

    A claimed message first waits in `prefetch`. Then its request is one of `in_flight`, and then
    its result waits to be recorded. The message is in `unrecorded` all that time. `refunds` holds
    the failed attempts that an outage may have caused.
    """

    def __init__(self, lease: timedelta, prefetch_size: int) -> None:
        self.owner = uuid4()
        """The owner of the leases: it identifies this worker in the database."""
        self.lease = lease
        """Duration of a lease."""
        self.prefetch = PrefetchQueue(prefetch_size)
        self.in_flight = InFlightRequests()
        self.refunds = AttemptRefunds()
        self._unrecorded: dict[int, ClaimedMessage] = {}

    @property
    def unrecorded(self) -> KeysView[int]:
        """Ids of the claimed messages whose results are not recorded yet."""
        return self._unrecorded.keys()

    def add(self, claims: Sequence[ClaimedMessage]) -> None:
        """Add messages that were claimed now, to be sent."""
        self._unrecorded.update((claim.id, claim) for claim in claims)
        self.prefetch.put(claims)

    def record_written(
        self, results: Sequence[MessageResult], stored_ids: Collection[int]
    ) -> list[ClaimedMessage]:
        """Forget the claims of results that were written. Return the claims with a lost lease.

        `stored_ids` are the messages whose lease was still valid. The results of the others were
        discarded, and their attempts are not refunded: another worker may own the message now.
        """
        self.forget(results)
        lost = [result.claim for result in results if result.claim.id not in stored_ids]
        self.refunds.discard(lost)
        return lost

    def record_dropped(self, claims: Sequence[ClaimedMessage]) -> None:
        """Record that the results of these claims cannot be written.

        Their attempts are not refunded. The messages stay in `unrecorded` until `forget` is called.
        """
        self.refunds.discard(claims)

    def forget(self, results: Sequence[MessageResult]) -> None:
        """Remove messages from `unrecorded`, except those that were claimed again since."""
        for result in results:
            if self._unrecorded.get(result.claim.id) is result.claim:
                del self._unrecorded[result.claim.id]

    def take_refundable(self) -> list[ClaimedMessage]:
        """Remove and return the claims whose attempts can be refunded now.

        They belong to an outage, and their results are recorded.
        """
        return self.refunds.drain(self._unrecorded)
