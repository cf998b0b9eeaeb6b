"""Simulate how mailings share the throughput of a gateway.

The mailing of the forecast is simulated in cohorts of clients. Of the other mailings, only the
numbers of messages are known.

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
    """A time slot in which messages may be sent, in seconds from the moment of the forecast."""

    due: float
    """When the messages became due, perhaps in the past. Messages that were due first go first."""
    start: float
    """The beginning of the slot, never in the past."""
    end: float


class Cohort:
    """Clients who may be sent to at the same times, simulated together."""

    def __init__(self, slots: Iterator[SendSlot], clients: int) -> None:
        self.clients = clients
        self.unreached = float(clients)
        """Clients not reached so far; a fraction when a part of a message is sent."""
        self.slot = next(slots, None)
        """The current slot if `is_open`, or else the next one; None when no slot is left."""
        self.is_open = False
        self.has_any_slot = self.slot is not None
        """Whether there was a slot at the beginning."""
        self._slots = slots

    def close(self) -> None:
        """End the current slot and wait for the next one."""
        self.is_open = False
        self.slot = next(self._slots, None)


class EqualMailings(NamedTuple):
    """Other mailings with equally many messages to send, which therefore finish together."""

    messages: int
    """Messages that each of the mailings had left at the beginning."""
    mailings: int


def send_at_once(cohorts: Iterable[Cohort]) -> float:
    """Send to each cohort at the start of its first slot; return the latest start."""
    last_start = 0.0
    for cohort in cohorts:
        if cohort.slot is not None:
            cohort.unreached = 0.0
            last_start = max(last_start, cohort.slot.start)
    return last_start


class SharedCapacity:
    """The gateway's rate in messages a second, shared equally by mailings with due messages.

    `messages_of_others` has the number of messages that each other mailing has left; all are due.
    """

    def __init__(self, rate: float, messages_of_others: Iterable[int]) -> None:
        self._rate = rate
        mailings_by_messages = Counter(messages for messages in messages_of_others if messages > 0)
        # those that are not finished; the last ones have the fewest messages, and finish next
        self._others = [
            EqualMailings(*counts) for counts in sorted(mailings_by_messages.items(), reverse=True)
        ]
        self._others_count = mailings_by_messages.total()
        self._sent_per_other = 0.0  # messages that each of them has sent
        self._open_cohorts: dict[float, list[Cohort]] = {}  # by when their messages were due
        self._now = 0.0
        self._last_finish = 0.0

    def simulate(self, cohorts: Sequence[Cohort]) -> Generator[None, None, float]:
        """Simulate all slots of the cohorts; return when the last cohort was finished.

        Yields after each step.
        """
        # the next start or end of a slot of each cohort: the moment, and the cohort's index
        events = [(cohort.slot.start, index) for index, cohort in enumerate(cohorts) if cohort.slot]
        heapify(events)
        while events:
            moment, index = heappop(events)
            yield from self._advance(moment)
            cohort = cohorts[index]
            if cohort.is_open:
                self._close_slot(cohort)
            elif cohort.slot is not None:
                cohort.is_open = True
                self._open_cohorts.setdefault(cohort.slot.due, []).append(cohort)
            if cohort.unreached and cohort.slot is not None:
                next_event = cohort.slot.end if cohort.is_open else cohort.slot.start
                heappush(events, (next_event, index))
        return self._last_finish

    def _close_slot(self, cohort: Cohort) -> None:
        if cohort.unreached and cohort.slot is not None:  # finished cohorts are removed already
            due_together = self._open_cohorts[cohort.slot.due]
            due_together.remove(cohort)
            if not due_together:
                del self._open_cohorts[cohort.slot.due]
        cohort.close()

    def _advance(self, moment: float) -> Iterator[None]:
        """Send messages until `moment`, in steps from one finished mailing to the next.

        Of the mailing of the forecast, only the cohorts that were due first are sent to; when they
        are finished, the step ends, too.
        """
        while self._now < moment:
            yield
            due_first = self._open_cohorts[min(self._open_cohorts)] if self._open_cohorts else []
            sharing_mailings = self._others_count + bool(due_first)
            if not sharing_mailings or not self._rate:
                self._now = moment
                return
            rate_per_mailing = self._rate / sharing_mailings
            seconds_left = moment - self._now
            seconds = min(seconds_left, self._messages_until_finish(due_first) / rate_per_mailing)
            self._now = moment if seconds >= seconds_left else self._now + seconds
            self._send(due_first, seconds * rate_per_mailing)

    def _messages_until_finish(self, due_first: Iterable[Cohort]) -> float:
        """Return how many messages each mailing sends until the step ends, see `_advance`."""
        left = [self._others[-1].messages - self._sent_per_other] if self._others else []
        if due_first:
            left.append(sum(cohort.unreached for cohort in due_first))
        return min(left)

    def _send(self, due_first: Sequence[Cohort], messages: float) -> None:
        """Send `messages` of each other mailing, and as many to all of `due_first` together.

        Each cohort in `due_first` gets a part in proportion to its unreached clients.
        """
        self._sent_per_other += messages
        while self._others and self._others[-1].messages - self._sent_per_other < EPSILON:
            self._others_count -= self._others.pop().mailings
        if not due_first:
            return
        unreached = sum(cohort.unreached for cohort in due_first)
        is_finished = unreached - messages < EPSILON
        unreached_part = 0.0 if is_finished else 1 - messages / unreached
        for cohort in due_first:
            cohort.unreached *= unreached_part
        if is_finished:
            self._last_finish = self._now
            del self._open_cohorts[min(self._open_cohorts)]
