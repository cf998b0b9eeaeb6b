"""Decide from which mailings to claim next, and how much. It does no I/O."""

import heapq
from collections.abc import Callable, Collection, Iterable, Mapping

import msgspec

from mailer.dispatch.mailing_queues import ContinuedQueue, MailingQueue
from mailer.mailing.field_types import NORMAL_WEIGHT


class MailingBatch(msgspec.Struct, frozen=True):
    """The mailings from which one statement claims."""

    shares: dict[int, int]
    """Most messages to claim from each mailing, by its id."""

    @property
    def mailing_ids(self) -> list[int]:
        """The ids of the mailings."""
        return list(self.shares)


class FairScheduler:
    """Decides from which mailings to claim next, with shares of the capacity by their weights.

    A mailing with due messages is in one of two queues. The queue of new mailings contains those
    that got a due message and were not claimed from since. After a claim that filled the mailing's
    share, there are probably more due messages: the mailing goes to the end of the queue of
    continued mailings. After a smaller claim the mailing is in no queue, and the caller passes the
    moment at which its next message is due to `add_at`.

    Each queue fills half of a batch, and the part that the other queue leaves free. Continued
    mailings are taken in the order of the queue. New mailings are taken alternately from both ends,
    the latest first, so that a mailing that becomes due now does not wait for thousands that became
    due together before.

    Mailings of one weight have equal shares of a batch. Of different weights, new mailings get
    their shares by weight, at least one message each. The continued mailings of each weight are a
    queue of their own, and these queues divide the rest: see `ContinuedQueue`.

    `weight_of` returns the weight of a mailing by its id. All moments are values of `elapsed()`.
    """

    def __init__(self, weight_of: Callable[[int], int] = lambda _: NORMAL_WEIGHT) -> None:
        self._weight_of = weight_of
        self._continued = ContinuedQueue()
        self._new = MailingQueue()
        self._due_at: dict[int, float] = {}
        """The moment at which each mailing is to be queued."""
        self._due_heap: list[tuple[float, int]] = []
        """The same moments with their mailings, earliest first; some entries are outdated."""

    @property
    def queued(self) -> int:
        """Number of mailings from which to claim now."""
        return len(self._continued) + len(self._new)

    @property
    def queued_weight(self) -> int:
        """The sum of the weights of the mailings from which to claim now."""
        return self._continued.weight + self._new.weight

    def queue_due(self, now: float) -> None:
        """Queue the mailings whose moment has come."""
        while (moment := self.next_due()) is not None and moment <= now:
            _, mailing_id = heapq.heappop(self._due_heap)
            self.add([mailing_id])

    def add(self, mailing_ids: Iterable[int]) -> None:
        """Queue mailings that may have due messages now. Moments given to `add_at` are dropped."""
        for mailing_id in mailing_ids:
            self._due_at.pop(mailing_id, None)
            if mailing_id not in self._continued:
                self._new.append(mailing_id, self._weight_of(mailing_id))

    def add_at(self, mailing_id: int, moment: float) -> None:
        """Queue a mailing at a later moment; of two moments, the earlier one counts."""
        if moment < self._due_at.get(mailing_id, float("inf")):
            self._due_at[mailing_id] = moment
            heapq.heappush(self._due_heap, (moment, mailing_id))

    def reweigh(self, mailing_id: int) -> None:
        """Apply a new weight to a mailing that is in a queue."""
        for queue in (self._continued, self._new):
            if mailing_id in queue:
                queue.append(mailing_id, self._weight_of(mailing_id))

    def next_due(self) -> float | None:
        """Return the earliest moment at which a mailing is to be queued; None without any."""
        while self._due_heap:
            moment, mailing_id = self._due_heap[0]
            if self._due_at.get(mailing_id) == moment:
                return moment
            # outdated: the mailing was queued meanwhile, or got an earlier moment
            heapq.heappop(self._due_heap)
        return None

    def next_batch(self, running: Collection[int], capacity: int, now: float) -> MailingBatch:
        """Remove the mailings to claim from at `now` from the queues, and return them.

        `capacity` is the number of messages to claim, so at most as many mailings are returned.
        Mailings that are not in `running` are dropped.
        """
        self.queue_due(now)
        reserved_for_continued = min(len(self._continued), capacity // 2)
        new = self._pop_new(running, capacity - reserved_for_continued)
        weights = self._continued.weights | set(new.values())
        if len(weights) > 1:
            return MailingBatch(self._shares_by_weight(new, running, capacity))
        mailing_ids = self._continued.pop(running, capacity - len(new)) + list(new)
        share = max(1, capacity // max(1, len(mailing_ids)))
        return MailingBatch(dict.fromkeys(mailing_ids, share))

    def _pop_new(self, running: Collection[int], limit: int) -> dict[int, int]:
        """Remove and return up to `limit` new mailings with their weights, as the class states.

        Mailings that are not in `running` are removed too, and not returned.
        """
        popped: dict[int, int] = {}
        while self._new and len(popped) < limit:
            mailing_id, weight = self._new.pop(last=len(popped) % 2 == 0)
            if mailing_id in running:
                popped[mailing_id] = weight
        return popped

    def _shares_by_weight(
        self, new: Mapping[int, int], running: Collection[int], capacity: int
    ) -> dict[int, int]:
        """Return the shares of these new mailings and of continued ones, which are removed."""
        total = self._continued.weight + sum(new.values())
        divided = capacity - len(new)
        shares = {mailing_id: 1 + divided * weight // total for mailing_id, weight in new.items()}
        return self._continued.pop_shares(running, capacity - sum(shares.values())) | shares

    def record_claimed(
        self,
        batch: MailingBatch,
        claimed_counts: Mapping[int, int],
        resume_at: Mapping[int, float] | None = None,
    ) -> list[int]:
        """Put the mailings of a batch that filled their share back into a queue.

        `claimed_counts` maps a mailing to the number of its messages that were claimed. Returns the
        mailings that are in no queue now: the caller finds out when their next messages are due.
        `resume_at` has the mailings whose rate permits no other message before a moment; when they
        have filled their share, they are queued then.
        """
        in_no_queue = []
        for mailing_id, share in batch.shares.items():
            if claimed_counts.get(mailing_id, 0) >= share:
                self._new.discard(mailing_id)
                if resume_at and mailing_id in resume_at:
                    self.add_at(mailing_id, resume_at[mailing_id])
                else:
                    self._continued.append(mailing_id, self._weight_of(mailing_id))
            elif mailing_id not in self._new:  # else it was queued again during the claim
                in_no_queue.append(mailing_id)
        return in_no_queue
