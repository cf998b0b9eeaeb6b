"""Decide from which mailings to claim. No I/O."""

import heapq
from collections import OrderedDict
from collections.abc import Collection, Iterable, Mapping


class FairScheduler:
    """Decides from which mailings to claim next, with fair shares of the capacity.

    There are two queues. New are mailings that got a due message and were not claimed from since. A
    mailing whose claim filled its share goes to the end of the other queue, the continued ones. Any
    other mailing is in no queue until its next message is due: the caller passes that moment to
    `add_at`. Each queue fills half of a batch, and what the other one leaves free. New mailings are
    taken alternately from both ends of their queue, the latest first, so that a new mailing does
    not wait for thousands that became due together.

    All moments are values of `elapsed()`.
    """

    def __init__(self) -> None:
        self._continued: OrderedDict[int, None] = OrderedDict()
        self._new: OrderedDict[int, None] = OrderedDict()
        self._due: dict[int, float] = {}
        self._due_heap: list[tuple[float, int]] = []

    @property
    def has_queued(self) -> bool:
        """Whether there is a mailing from which to claim now."""
        return bool(self._continued or self._new)

    def add(self, mailing_ids: Iterable[int]) -> None:
        """Queue mailings that may have due messages; moments given to `add_at` are dropped."""
        for mailing_id in mailing_ids:
            self._due.pop(mailing_id, None)
            if mailing_id not in self._continued:
                self._new[mailing_id] = None

    def add_at(self, mailing_id: int, moment: float) -> None:
        """Queue a mailing at a moment; of two moments, the earlier one counts."""
        if moment < self._due.get(mailing_id, float("inf")):
            self._due[mailing_id] = moment
            heapq.heappush(self._due_heap, (moment, mailing_id))

    def next_due(self) -> float | None:
        """Return the earliest moment given to `add_at` that has not passed; None without any."""
        # entries are outdated when their mailing was queued, or got an earlier moment
        while self._due_heap and self._due.get(self._due_heap[0][1]) != self._due_heap[0][0]:
            heapq.heappop(self._due_heap)
        return self._due_heap[0][0] if self._due_heap else None

    def next_batch(
        self, running: Collection[int], capacity: int, now: float
    ) -> tuple[list[int], int]:
        """Return the mailings to claim from at `now`, and the share of each.

        `capacity` is the number of messages to claim, so at most as many mailings are returned. The
        share is the maximum number of messages to claim from one mailing. Mailings that are not in
        `running` are dropped.
        """
        while (moment := self.next_due()) is not None and moment <= now:
            _, mailing_id = heapq.heappop(self._due_heap)
            self.add([mailing_id])
        reserved = min(len(self._continued), capacity // 2)
        new = self._pop(self._new, running, capacity - reserved)
        mailing_ids = self._pop(self._continued, running, capacity - len(new)) + new
        return mailing_ids, max(1, capacity // max(1, len(mailing_ids)))

    def _pop(
        self, queue: OrderedDict[int, None], running: Collection[int], limit: int
    ) -> list[int]:
        """Remove and return up to `limit` mailings: new ones from both ends, others in order."""
        mailing_ids: list[int] = []
        while queue and len(mailing_ids) < limit:
            is_from_end = queue is self._new and len(mailing_ids) % 2 == 0
            mailing_id, _ = queue.popitem(last=is_from_end)
            if mailing_id in running:
                mailing_ids.append(mailing_id)
        return mailing_ids

    def record_claimed(
        self, mailing_ids: list[int], share: int, claimed: Mapping[int, int]
    ) -> list[int]:
        """Queue again the mailings that filled their share. Return those that are in no queue now.

        `claimed` maps a mailing to the number of its messages that were claimed.
        """
        below_share = []
        for mailing_id in mailing_ids:
            if claimed.get(mailing_id, 0) >= share:
                self._new.pop(mailing_id, None)
                self._continued[mailing_id] = None
            elif mailing_id not in self._new:  # else it was queued again during the claim
                below_share.append(mailing_id)
        return below_share
