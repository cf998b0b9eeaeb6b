"""Simulate how mailings share the throughput of gateways.

The mailing of the forecast is simulated in cohorts of clients. Of the other mailings, only the
numbers of messages are known. All messages that go through the same tier of gateways form a lane.

As the dispatcher does, each gateway shares its rate equally among the mailings with due messages
for it; a mailing that uses the gateway in several lanes counts once in each. In a lane, a mailing
gets the rates of all gateways of the tier together, or as much as strict weights allow.

Messages are sent at a constant rate between events. An event is the start or end of a slot in which
messages may be sent, or the moment when a mailing has no messages left in a lane. The cost grows
with the number of events and of lanes, and not of messages. Mailings with equally many messages in
a lane finish it in one event.
"""

from collections import Counter
from collections.abc import Generator, Iterable, Iterator, Sequence
from heapq import heapify, heappop, heappush
from typing import NamedTuple

from mailer.forecast.tiers import EMPTY_TIER, Capacity, Tier, combined_rate, strict_shares

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
    """Clients who may be sent to at the same times through the same tier, simulated together."""

    def __init__(self, slots: Iterator[SendSlot], clients: float, tier: Tier = EMPTY_TIER) -> None:
        self.clients = clients
        self.tier = tier
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

    messages: float
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


class Lane:
    """The messages of all mailings that go through one tier of gateways.

    `messages_of_others` has the number of messages that each other mailing has left; all are due.
    """

    def __init__(self, messages_of_others: Iterable[float]) -> None:
        mailings_by_messages = Counter(messages for messages in messages_of_others if messages > 0)
        # those that are not finished; the last ones have the fewest messages, and finish next
        self._others = [
            EqualMailings(*counts) for counts in sorted(mailings_by_messages.items(), reverse=True)
        ]
        self._others_count = mailings_by_messages.total()
        self._sent_per_other = 0.0  # messages that each of them has sent
        self._open_cohorts: dict[float, list[Cohort]] = {}  # by when their messages were due

    @property
    def sharing_mailings(self) -> int:
        """Return the number of mailings that have due messages."""
        return self._others_count + bool(self._open_cohorts)

    def open_slot(self, cohort: Cohort, slot: SendSlot) -> None:
        """Begin to send to a cohort."""
        cohort.is_open = True
        self._open_cohorts.setdefault(slot.due, []).append(cohort)

    def close_slot(self, cohort: Cohort) -> None:
        """End the current slot of a cohort."""
        if cohort.unreached and cohort.slot is not None:  # finished cohorts are removed already
            due_together = self._open_cohorts[cohort.slot.due]
            due_together.remove(cohort)
            if not due_together:
                del self._open_cohorts[cohort.slot.due]
        cohort.close()

    def messages_until_finish(self) -> float:
        """Return how many messages each mailing sends until the first one is finished.

        Of the mailing of the forecast, these are the messages of the cohorts that were due first.
        """
        left = [self._others[-1].messages - self._sent_per_other] if self._others else []
        if self._open_cohorts:
            left.append(sum(cohort.unreached for cohort in self._due_first()))
        return min(left)

    def send(self, messages: float) -> bool:
        """Send `messages` of each mailing. Return whether that finishes the cohorts due first.

        Each of these cohorts gets a part in proportion to its unreached clients.
        """
        self._sent_per_other += messages
        while self._others and self._others[-1].messages - self._sent_per_other < EPSILON:
            self._others_count -= self._others.pop().mailings
        if not self._open_cohorts:
            return False
        due_first = self._due_first()
        unreached = sum(cohort.unreached for cohort in due_first)
        is_finished = unreached - messages < EPSILON
        unreached_part = 0.0 if is_finished else 1 - messages / unreached
        for cohort in due_first:
            cohort.unreached *= unreached_part
        if is_finished:
            del self._open_cohorts[min(self._open_cohorts)]
        return is_finished

    def _due_first(self) -> Sequence[Cohort]:
        return self._open_cohorts[min(self._open_cohorts)]


class SharedCapacity:
    """The rates of the gateways, shared by mailings with due messages."""

    def __init__(self, capacity: Capacity) -> None:
        self._capacity = capacity
        self._lanes: dict[Tier, Lane] = {}
        self._rates: dict[Tier, dict[str, float]] = {}
        self._shares: dict[Tier, dict[str, float] | None] = {}
        self._now = 0.0
        self._last_finish = 0.0

    def simulate(self, cohorts: Sequence[Cohort]) -> Generator[None, None, float]:
        """Simulate all slots of the cohorts; return when the last cohort was finished.

        Yields after each step.
        """
        messages_of_others = self._capacity.messages_of_others
        for tier in {cohort.tier for cohort in cohorts} | messages_of_others.keys():
            self._lanes[tier] = Lane(messages_of_others.get(tier, ()))
            self._rates[tier] = self._capacity.known_rates(tier)
            self._shares[tier] = strict_shares(tier, self._capacity.gateways)
            yield
        # the next start or end of a slot of each cohort: the moment, and the cohort's index
        events = [(cohort.slot.start, index) for index, cohort in enumerate(cohorts) if cohort.slot]
        heapify(events)
        while events:
            moment, index = heappop(events)
            yield from self._advance(moment)
            cohort = cohorts[index]
            lane = self._lanes[cohort.tier]
            if cohort.is_open:
                lane.close_slot(cohort)
            elif cohort.slot is not None:
                lane.open_slot(cohort, cohort.slot)
            if cohort.unreached and cohort.slot is not None:
                next_event = cohort.slot.end if cohort.is_open else cohort.slot.start
                heappush(events, (next_event, index))
        return self._last_finish

    def _advance(self, moment: float) -> Iterator[None]:
        """Send messages until `moment`, in steps from one finished mailing to the next.

        In each lane, only the cohorts of the forecast's mailing that were due first are sent to;
        when they are finished, the step ends, too.
        """
        while self._now < moment:
            yield
            rates = self._rates_per_mailing()
            if not rates:
                self._now = moment
                return
            seconds_left = moment - self._now
            seconds_to_finish = min(lane.messages_until_finish() / rate for lane, rate in rates)
            seconds = min(seconds_left, seconds_to_finish)
            self._now = moment if seconds >= seconds_left else self._now + seconds
            for lane, rate in rates:
                if lane.send(seconds * rate):
                    self._last_finish = self._now

    def _rates_per_mailing(self) -> list[tuple[Lane, float]]:
        """Return the lanes that send, and the messages a second of each mailing in the lane."""
        sharing = Counter[str]()  # mailings by gateway
        for tier, lane in self._lanes.items():
            for name in tier:
                sharing[name] += lane.sharing_mailings
        rates = []
        for tier, lane in self._lanes.items():
            if lane.sharing_mailings and self._rates[tier]:
                per_mailing = {
                    name: rate / sharing[name] for name, rate in self._rates[tier].items()
                }
                if rate := combined_rate(per_mailing, self._shares[tier]):
                    rates.append((lane, rate))
        return rates
