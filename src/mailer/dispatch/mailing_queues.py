"""Queues of mailings with weights, from which the scheduler takes. They do no I/O."""

from collections import OrderedDict
from collections.abc import Collection


class MailingQueue:
    """Mailings in an order, each once, with their weights."""

    def __init__(self) -> None:
        self._weights: OrderedDict[int, int] = OrderedDict()
        self.weight = 0
        """The sum of the weights."""

    def __len__(self) -> int:
        return len(self._weights)

    def __contains__(self, mailing_id: int) -> bool:
        return mailing_id in self._weights

    def append(self, mailing_id: int, weight: int) -> None:
        """Add a mailing at the end; one that is in the queue keeps its place."""
        self.weight += weight - self._weights.get(mailing_id, 0)
        self._weights[mailing_id] = weight

    def pop(self, *, last: bool = False) -> tuple[int, int]:
        """Remove and return the first mailing, or the `last` one, with its weight."""
        mailing_id, weight = self._weights.popitem(last=last)
        self.weight -= weight
        return mailing_id, weight

    def discard(self, mailing_id: int) -> None:
        """Remove a mailing, if it is in the queue."""
        self.weight -= self._weights.pop(mailing_id, 0)


class ContinuedQueue:
    """Mailings that probably have more due messages, in a queue of their own for each weight.

    A queue gets messages in proportion to the sum of its weights, and its mailings share them
    equally, in turn. What a queue gets too little or too much, because messages are whole, is its
    credit for the next batch. So each mailing gets its share over time, however small it is: none
    starves.
    """

    def __init__(self) -> None:
        self._queues: dict[int, MailingQueue] = {}
        """By weight; none is empty."""
        self._credits: dict[int, float] = {}
        """Messages that each queue still has to get, by weight; negative if it got too many."""
        self._weight_of: dict[int, int] = {}
        """The weight of each mailing."""

    def __len__(self) -> int:
        return len(self._weight_of)

    def __contains__(self, mailing_id: int) -> bool:
        return mailing_id in self._weight_of

    @property
    def weights(self) -> set[int]:
        """The different weights of the mailings."""
        return set(self._queues)

    @property
    def weight(self) -> int:
        """The sum of the weights of the mailings."""
        return sum(queue.weight for queue in self._queues.values())

    def append(self, mailing_id: int, weight: int) -> None:
        """Add a mailing to the queue of its weight: at the end, unless it is in that queue."""
        old = self._weight_of.get(mailing_id)
        if old not in {None, weight}:
            self._queues[old].discard(mailing_id)
            self._remove_if_empty(old)
        self._weight_of[mailing_id] = weight
        self._queues.setdefault(weight, MailingQueue()).append(mailing_id, weight)

    def pop(self, running: Collection[int], limit: int) -> list[int]:
        """Remove and return up to `limit` mailings; all must have one weight.

        Mailings that are not in `running` are removed too, and not returned.
        """
        self._credits.clear()  # a queue that is alone gets all
        return [
            mailing_id
            for weight in list(self._queues)
            for mailing_id in self._pop(weight, running, limit)
        ]

    def pop_shares(self, running: Collection[int], messages: int) -> dict[int, int]:
        """Remove the mailings that share `messages`, and return the share of each."""
        shares: dict[int, int] = {}
        for weight, of_queue in self._divide(messages).items():
            mailing_ids = self._pop(weight, running, of_queue)
            share, extra = divmod(of_queue, max(1, len(mailing_ids)))
            # those that get one more are put at the end: then it is the turn of others
            shares |= dict.fromkeys(mailing_ids[extra:], share)
            shares |= dict.fromkeys(mailing_ids[:extra], share + 1)
        return shares

    def _divide(self, messages: int) -> dict[int, int]:
        """Return how many of `messages` each queue gets, by its weight."""
        total = self.weight
        credit = {
            weight: self._credits.get(weight, 0.0) + messages * queue.weight / total
            for weight, queue in self._queues.items()
        }
        divided: dict[int, int] = {}
        left = messages
        for weight in sorted(credit, key=credit.__getitem__, reverse=True):
            divided[weight] = min(left, max(0, int(credit[weight])))
            left -= divided[weight]
        for _ in range(left if divided else 0):  # a few, left by rounding
            weight = max(divided, key=lambda weight: credit[weight] - divided[weight])
            divided[weight] += 1
        self._credits = {weight: credit[weight] - divided[weight] for weight in divided}
        return divided

    def _pop(self, weight: int, running: Collection[int], limit: int) -> list[int]:
        """Remove and return up to `limit` mailings of the queue of a weight, as `pop` does."""
        queue = self._queues[weight]
        mailing_ids: list[int] = []
        while queue and len(mailing_ids) < limit:
            mailing_id, _ = queue.pop()
            del self._weight_of[mailing_id]
            if mailing_id in running:
                mailing_ids.append(mailing_id)
        self._remove_if_empty(weight)
        return mailing_ids

    def _remove_if_empty(self, weight: int) -> None:
        """Remove the queue of a weight if it is empty."""
        if not self._queues[weight]:
            del self._queues[weight]
