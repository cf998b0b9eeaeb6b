"""Decide from which mailings to claim. No I/O."""

import heapq
from collections import OrderedDict
from collections.abc import Collection, Iterable, Mapping


class FairScheduler:
    """Decides from which mailings to claim next, with fair shares of the capacity.

    There are two queues: the backlog, and new mailings, which became due recently. A mailing whose
    claim filled its share goes to the end of the backlog. Any other mailing waits until its next
    message is due, at no cost. Half of a batch comes from the backlog, half from the new mailings.
    New mailings are taken alternately from both ends of their queue, the latest first, so that a
    new mailing does not wait for thousands that became due together.
    """

    def __init__(self) -> None:
        self._backlog: OrderedDict[int, None] = OrderedDict()
        self._new: OrderedDict[int, None] = OrderedDict()
        self._due: dict[int, float] = {}
        self._due_heap: list[tuple[float, int]] = []

    @property
    def has_backlog(self) -> bool:
        """Whether some mailing waits to be claimed from now."""
        return bool(self._backlog or self._new)

    def add(self, mailing_ids: Iterable[int]) -> None:
        """Queue mailings that may have due messages."""
        for mailing_id in mailing_ids:
            self._due.pop(mailing_id, None)
            if mailing_id not in self._backlog:
                self._new[mailing_id] = None

    def add_at(self, mailing_id: int, moment: float) -> None:
        """Queue a mailing at a moment, unless it is to be queued earlier already."""
        if moment < self._due.get(mailing_id, float("inf")):
            self._due[mailing_id] = moment
            heapq.heappush(self._due_heap, (moment, mailing_id))

    def next_due(self) -> float | None:
        """Return the earliest moment at which a waiting mailing is queued; None when none waits."""
        while self._due_heap and self._due.get(self._due_heap[0][1]) != self._due_heap[0][0]:
            heapq.heappop(self._due_heap)
        return self._due_heap[0][0] if self._due_heap else None

    def next_batch(
        self, running: Collection[int], capacity: int, now: float
    ) -> tuple[list[int], int]:
        """Return up to `capacity` mailings to claim from at `now`, and the share of each.

        The share is the most messages to claim from one mailing. Mailings that are not in `running`
        are dropped.
        """
        while (moment := self.next_due()) is not None and moment <= now:
            _, mailing_id = heapq.heappop(self._due_heap)
            self.add([mailing_id])
        new = self._pop(self._new, running, capacity - min(len(self._backlog), capacity // 2))
        mailing_ids = self._pop(self._backlog, running, capacity - len(new)) + new
        return mailing_ids, max(1, capacity // max(1, len(mailing_ids)))

    def _pop(
        self, queue: OrderedDict[int, None], running: Collection[int], limit: int
    ) -> list[int]:
        """Remove and return up to `limit` mailings: the first of the backlog, both ends of new."""
        mailing_ids: list[int] = []
        while queue and len(mailing_ids) < limit:
            mailing_id, _ = queue.popitem(last=queue is self._new and len(mailing_ids) % 2 == 0)
            if mailing_id in running:
                mailing_ids.append(mailing_id)
        return mailing_ids

    def record_claimed(
        self, mailing_ids: list[int], share: int, claimed: Mapping[int, int]
    ) -> list[int]:
        """Queue mailings again that filled their share; return the others.

        `claimed` maps a mailing to the number of its messages that were claimed.
        """
        below_share = []
        for mailing_id in mailing_ids:
            if claimed.get(mailing_id, 0) >= share:
                self._new.pop(mailing_id, None)
                self._backlog[mailing_id] = None
            elif mailing_id not in self._new:  # else it was queued again during the claim
                below_share.append(mailing_id)
        return below_share
