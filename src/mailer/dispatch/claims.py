"""The messages that this worker has claimed, from the claim until their results are recorded."""

from collections.abc import Collection, KeysView, Sequence
from datetime import timedelta
from uuid import uuid4

from mailer.dispatch.attempt_refunds import AttemptRefunds
from mailer.dispatch.in_flight import InFlightRequests
from mailer.message.model import ClaimedMessage, MessageResult


class WorkerClaims:
    """All claims of this worker, which the claimer, the senders and the recorder share.

    A claimed message waits in the prefetch queue of a sender until its request starts. The request
    is in flight until it has an outcome. Then the result waits until it is recorded in the
    database. From the claim until then, the message is in `unrecorded`. A failed attempt may be
    refunded afterwards.
    """

    def __init__(self, lease: timedelta) -> None:
        self.owner = uuid4()
        """The owner of the leases: it identifies this worker in the database."""
        self.lease = lease
        """Duration of a lease."""
        self.in_flight = InFlightRequests()
        """The requests that have started and have no outcome yet."""
        self.refunds = AttemptRefunds()
        """The failed attempts that are refunded if they turn out to belong to an outage."""
        self.opted_out: set[int] = set()
        """Ids of claimed messages that must not be sent: their clients have opted out since."""
        self._unrecorded: dict[int, ClaimedMessage] = {}

    @property
    def unrecorded(self) -> KeysView[int]:
        """Ids of the claimed messages whose results are not recorded yet."""
        return self._unrecorded.keys()

    def add(self, claims: Sequence[ClaimedMessage]) -> None:
        """Add messages that were just claimed."""
        self._unrecorded.update((claim.id, claim) for claim in claims)

    def stop_opted_out(self, message_ids: frozenset[int]) -> None:
        """Do not send these messages, of which this worker has claimed some.

        Their unwritten requests are aborted. What was written before cannot be stopped.
        """
        self.opted_out |= self.unrecorded & message_ids
        self.in_flight.abort_unwritten(message_ids)

    def forget_written(
        self, results: Sequence[MessageResult], stored_ids: Collection[int]
    ) -> list[ClaimedMessage]:
        """Forget the claims of `results`, which are written. Return those whose lease was lost.

        `stored_ids` are the ids of the messages whose lease was still valid, so that their results
        are stored. The other results were discarded. The attempts of their messages are not
        refunded, because another worker may have claimed these messages since.
        """
        self.forget(results)
        lost = [result.claim for result in results if result.claim.id not in stored_ids]
        self.refunds.discard(lost)
        return lost

    def forget(self, results: Sequence[MessageResult]) -> None:
        """Remove messages from `unrecorded`, except those that this worker has claimed again."""
        for result in results:
            if self._unrecorded.get(result.claim.id) is result.claim:
                del self._unrecorded[result.claim.id]
                self.opted_out.discard(result.claim.id)
