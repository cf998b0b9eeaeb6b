"""Simulate how mailings share the throughput of a gateway.

Messages are sent at a constant rate between events. An event is the start or end of a slot in which
messages may be sent, or the moment when a mailing has no messages left. The cost grows with the
number of events and not of messages. Mailings with equally many messages finish in one event.
"""

from collections import Counter
from collections.abc import Generator, Iterable, Iterator, Sequence
from heapq import heapify, heappop, heappush
from typing import NamedTuple

EPSILON = 1e-3
"""Fractions of a client up to this size are rounding errors."""


class SendSlot(NamedTuple):
    """A time slot in which messages may be sent, in seconds from now."""

    due: float
    """When the messages became due, perhaps before now. Messages that were due first go first."""
    start: float
    end: float


class Cohort:
    """Clients who may be sent to at the same times, simulated together."""

    def __init__(self, slots: Iterator[SendSlot], clients: int) -> None:
        self.clients = clients
        self.left = float(clients)
        self.slot = next(slots, None)
        self.had_slot = self.slot is not None
        self.is_open = False
        self._slots = slots

    def close(self) -> None:
        """End the current slot and wait for the next one."""
        self.is_open = False
        self.slot = next(self._slots, None)


def send_at_once(cohorts: Iterable[Cohort]) -> float:
    """Send to each cohort at the start of its first slot; return the latest start."""
    last = 0.0
    for cohort in cohorts:
        if cohort.slot is not None:
            cohort.left = 0.0
            last = max(last, cohort.slot.start)
    return last


class SharedCapacity:
    """The gateway's rate in messages a second, shared equally by mailings with due messages."""

    def __init__(self, rate: float, others: Iterable[int]) -> None:
        self._rate = rate
        counts = Counter(waiting for waiting in others if waiting > 0)
        self._others = sorted(counts.items(), reverse=True)  # (messages, number of mailings)
        self._unfinished_others = counts.total()
        self._sent_per_other = 0.0  # messages that each unfinished other mailing has sent
        self._open: dict[float, list[Cohort]] = {}  # cohorts in a slot, by when they were due
        self._now = 0.0
        self._last = 0.0

    def simulate(self, cohorts: Sequence[Cohort]) -> Generator[None, None, float]:
        """Simulate all slots of the cohorts; return when the last cohort was finished.

        Yields after each step.
        """
        events = [(cohort.slot.start, n) for n, cohort in enumerate(cohorts) if cohort.slot]
        heapify(events)
        while events:
            moment, n = heappop(events)
            yield from self._advance(moment)
            cohort = cohorts[n]
            if cohort.is_open:
                self._close_slot(cohort)
            elif cohort.slot is not None:
                cohort.is_open = True
                self._open.setdefault(cohort.slot.due, []).append(cohort)
            if cohort.left and cohort.slot is not None:
                heappush(events, (cohort.slot.end if cohort.is_open else cohort.slot.start, n))
        return self._last

    def _close_slot(self, cohort: Cohort) -> None:
        if cohort.left and cohort.slot is not None:  # finished cohorts are removed already
            due_together = self._open[cohort.slot.due]
            due_together.remove(cohort)
            if not due_together:
                del self._open[cohort.slot.due]
        cohort.close()

    def _advance(self, moment: float) -> Iterator[None]:
        """Send messages until `moment`, in steps from one finished mailing to the next."""
        while self._now < moment:
            yield
            due_first = self._open[min(self._open)] if self._open else []
            mailings = self._unfinished_others + bool(due_first)
            if not mailings or not self._rate:
                self._now = moment
                return
            rate = self._rate / mailings
            remaining = moment - self._now
            seconds = min(remaining, self._messages_until_finish(due_first) / rate)
            self._now = moment if seconds >= remaining else self._now + seconds
            self._send(due_first, seconds * rate)

    def _messages_until_finish(self, due_first: Iterable[Cohort]) -> float:
        """Return how many messages each mailing sends until the next one is finished."""
        left = [self._others[-1][0] - self._sent_per_other] if self._others else []
        if due_first:
            left.append(sum(cohort.left for cohort in due_first))
        return min(left)

    def _send(self, due_first: Sequence[Cohort], messages: float) -> None:
        """Send so many messages of each other mailing, and of the cohorts that were due first."""
        self._sent_per_other += messages
        while self._others and self._others[-1][0] - self._sent_per_other < EPSILON:
            self._unfinished_others -= self._others.pop()[1]
        if not due_first:
            return
        left = sum(cohort.left for cohort in due_first)
        is_finished = left - messages < EPSILON
        for cohort in due_first:
            cohort.left *= 0 if is_finished else 1 - messages / left
        if is_finished:
            self._last = self._now
            del self._open[min(self._open)]
