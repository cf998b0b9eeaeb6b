"""Decide from which mailings to claim next. It does no I/O."""

import heapq
from collections import OrderedDict
from collections.abc import Collection, Iterable, Mapping
from typing import NamedTuple


class MailingBatch(NamedTuple):
    """The mailings from which one statement claims."""

    mailing_ids: list[int]
    share: int
    """Most messages to claim from each mailing."""


class FairScheduler:
    """Decides from which mailings to claim next, with equal shares of the capacity.

    A mailing with due messages is in one of two queues. The queue of new mailings contains those
    that got a due message and were not claimed from since. After a claim that filled the mailing's
    share, there are probably more due messages: the mailing goes to the end of the queue of
    continued mailings. After a smaller claim the mailing is in no queue, and the caller passes the
    moment at which its next message is due to `add_at`.

    Each queue fills half of a batch, and the part that the other queue leaves free. Continued
    mailings are taken in the order of the queue. New mailings are taken alternately from both ends,
    the latest first, so that a mailing that becomes due now does not wait for thousands that became
    due together before.

    All moments are values of `elapsed()`.
    """

    def __init__(self) -> None:
        self._continued: OrderedDict[int, None] = OrderedDict()
        self._new: OrderedDict[int, None] = OrderedDict()
        self._due_at: dict[int, float] = {}
        """The moment at which each mailing is to be queued."""
        self._due_heap: list[tuple[float, int]] = []
        """The same moments with their mailings, earliest first; some entries are outdated."""

    @property
    def queued(self) -> int:
        """Number of mailings from which to claim now."""
        return len(self._continued) + len(self._new)

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
                self._new[mailing_id] = None

    def add_at(self, mailing_id: int, moment: float) -> None:
        """Queue a mailing at a later moment; of two moments, the earlier one counts."""
        if moment < self._due_at.get(mailing_id, float("inf")):
            self._due_at[mailing_id] = moment
            heapq.heappush(self._due_heap, (moment, mailing_id))

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
        new = self._pop(self._new, running, capacity - reserved_for_continued)
        mailing_ids = self._pop(self._continued, running, capacity - len(new)) + new
        return MailingBatch(mailing_ids, share=max(1, capacity // max(1, len(mailing_ids))))

    def _pop(
        self, queue: OrderedDict[int, None], running: Collection[int], limit: int
    ) -> list[int]:
        """Remove and return up to `limit` mailings of a queue, in the order that the class states.

        Mailings that are not in `running` are removed too, and not returned.
        """
        mailing_ids: list[int] = []
        while queue and len(mailing_ids) < limit:
            is_from_end = queue is self._new and len(mailing_ids) % 2 == 0
            mailing_id, _ = queue.popitem(last=is_from_end)
            if mailing_id in running:
                mailing_ids.append(mailing_id)
        return mailing_ids

    def record_claimed(self, batch: MailingBatch, claimed_counts: Mapping[int, int]) -> list[int]:
        """Put the mailings of a batch that filled their share back into a queue.

        `claimed_counts` maps a mailing to the number of its messages that were claimed. Returns the
        mailings that are in no queue now: the caller finds out when their next messages are due.
        """
        in_no_queue = []
        for mailing_id in batch.mailing_ids:
            if claimed_counts.get(mailing_id, 0) >= batch.share:
                self._new.pop(mailing_id, None)
                self._continued[mailing_id] = None
            elif mailing_id not in self._new:  # else it was queued again during the claim
                in_no_queue.append(mailing_id)
        return in_no_queue
