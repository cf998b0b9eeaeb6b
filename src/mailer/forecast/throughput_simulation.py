"""Simulate how mailings share the throughput of gateways.

The mailing of the forecast is simulated in cohorts of clients. Of the other mailings, only the
numbers of messages are known. All messages that go through the same tier of gateways form a lane.

As the dispatcher does, each gateway shares its rate among the mailings with due messages for it, by
the weights of their priorities; a mailing that uses the gateway in several lanes counts once in
each. In a lane, a mailing gets the rates of all gateways of the tier together, or as much as strict
weights of gateways allow. A mailing with a rate of its own gets no more than that.

Messages are sent at a constant rate between events. An event is the start or end of a slot in which
messages may be sent, or the moment when a mailing has no messages left in a lane. The cost grows
with the number of events, of lanes and of different paces, and not of messages. Mailings of one
pace with equally many messages in a lane finish it in one event.
"""

from collections import Counter, defaultdict
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from heapq import heapify, heappop, heappush
from typing import NamedTuple

from mailer.forecast.tiers import EMPTY_TIER, Capacity, Pace, Tier, combined_rate, strict_shares

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


class OtherMailings:
    """Other mailings of one pace in a lane. All of their messages are due."""

    def __init__(self, pace: Pace, messages: Iterable[float]) -> None:
        self.pace = pace
        mailings_by_messages = Counter(messages)
        # those that are not finished; the last ones have the fewest messages, and finish next
        self._unfinished = [
            EqualMailings(*counts) for counts in sorted(mailings_by_messages.items(), reverse=True)
        ]
        self.mailings = mailings_by_messages.total()
        """The number of mailings that are not finished."""
        self._sent = 0.0  # messages that each of them has sent

    def messages_until_finish(self) -> float:
        """Return how many messages each mailing sends until the first one is finished."""
        return self._unfinished[-1].messages - self._sent

    def send(self, messages: float) -> bool:
        """Send `messages` of each mailing. Return False: no cohort is finished."""
        self._sent += messages
        while self._unfinished and self._unfinished[-1].messages - self._sent < EPSILON:
            self.mailings -= self._unfinished.pop().mailings
        return False


class OwnMessages:
    """The messages of the mailing of the forecast in a lane."""

    def __init__(self, pace: Pace) -> None:
        self.pace = pace
        self._open_cohorts: dict[float, list[Cohort]] = {}  # by when their messages were due

    @property
    def mailings(self) -> int:
        """1 while messages are due, else 0."""
        return int(bool(self._open_cohorts))

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
        """Return how many messages are sent until the cohorts that were due first are finished."""
        return sum(cohort.unreached for cohort in self._due_first())

    def send(self, messages: float) -> bool:
        """Send `messages`. Return whether that finishes the cohorts due first.

        Each of these cohorts gets a part in proportion to its unreached clients.
        """
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


SendingMailings = OtherMailings | OwnMessages
"""Mailings of one pace that send in a lane."""


class Lane:
    """The messages of all mailings that go through one tier of gateways."""

    def __init__(self, tier: Tier, capacity: Capacity) -> None:
        self.own = OwnMessages(capacity.pace)
        messages_by_pace = defaultdict(list)
        for other in capacity.others.get(tier, ()):
            if other.messages > 0:
                messages_by_pace[other.pace].append(other.messages)
        self._others = [
            OtherMailings(pace, messages) for pace, messages in messages_by_pace.items()
        ]
        self.rates = capacity.known_rates(tier)
        self.shares = strict_shares(tier, capacity.gateways)

    def senders(self) -> list[SendingMailings]:
        """Return those who have due messages; none if no rate is known."""
        if not self.rates:
            return []
        all_senders: list[SendingMailings] = [*self._others, self.own]
        return [sender for sender in all_senders if sender.mailings]


class SharedCapacity:
    """The rates of the gateways, shared by mailings with due messages."""

    def __init__(self, capacity: Capacity) -> None:
        self._capacity = capacity
        self._lanes: dict[Tier, Lane] = {}
        self._now = 0.0
        self._last_finish = 0.0

    def simulate(self, cohorts: Sequence[Cohort]) -> Generator[None, None, float]:
        """Simulate all slots of the cohorts; return when the last cohort was finished.

        Yields after each step.
        """
        for tier in {cohort.tier for cohort in cohorts} | self._capacity.others.keys():
            self._lanes[tier] = Lane(tier, self._capacity)
            yield
        # the next start or end of a slot of each cohort: the moment, and the cohort's index
        events = [(cohort.slot.start, index) for index, cohort in enumerate(cohorts) if cohort.slot]
        heapify(events)
        while events:
            moment, index = heappop(events)
            yield from self._advance(moment)
            cohort = cohorts[index]
            own = self._lanes[cohort.tier].own
            if cohort.is_open:
                own.close_slot(cohort)
            elif cohort.slot is not None:
                own.open_slot(cohort, cohort.slot)
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
            rates = share_rates(self._lanes.values(), self._capacity)
            if not rates:
                self._now = moment
                return
            seconds_left = moment - self._now
            seconds_to_finish = min(sender.messages_until_finish() / rate for sender, rate in rates)
            seconds = min(seconds_left, seconds_to_finish)
            self._now = moment if seconds >= seconds_left else self._now + seconds
            for sender, rate in rates:
                if sender.send(seconds * rate):
                    self._last_finish = self._now


def share_rates(lanes: Iterable[Lane], capacity: Capacity) -> list[tuple[SendingMailings, float]]:
    """Return those who send in the lanes, and the messages a second of each of their mailings.

    Each gateway is shared by the weights. A mailing whose share exceeds its own rate sends at that
    rate, and the others share what it leaves (max-min fairness), until no share exceeds a rate. The
    rate of the forecast's mailing is for all its lanes together.
    """
    waiting = [(lane, sender) for lane in lanes for sender in lane.senders()]
    free = {name: gateway.rate or 0.0 for name, gateway in capacity.gateways.items()}
    rates: list[tuple[SendingMailings, float]] = []
    while waiting:
        weights: dict[str, int] = defaultdict(int)
        for lane, sender in waiting:
            for name in lane.rates:
                weights[name] += sender.pace.weight * sender.mailings
        shares = [(lane, sender, _share(lane, sender, free, weights)) for lane, sender in waiting]
        own_share = sum(share for lane, sender, share in shares if sender is lane.own)
        limited: list[tuple[Lane, SendingMailings, float]] = []
        for lane, sender, share in shares:
            limit = sender.pace.rate
            if limit is not None and sender is lane.own and own_share:
                limit *= share / own_share
            if limit is not None and limit < share:
                limited.append((lane, sender, limit))
        if not limited:
            rates += [(sender, share) for _, sender, share in shares if share]
            break
        for lane, sender, limit in limited:
            rates.append((sender, limit))
            for name, part in _parts(lane, free, weights).items():
                free[name] = max(0.0, free[name] - limit * sender.mailings * part)
        at_limit = {id(sender) for _, sender, _ in limited}
        waiting = [(lane, sender) for lane, sender in waiting if id(sender) not in at_limit]
    return rates


def _share(
    lane: Lane, sender: SendingMailings, free: Mapping[str, float], weights: Mapping[str, int]
) -> float:
    """Return the messages a second that each mailing of a sender gets by its weight."""
    weight = sender.pace.weight
    per_mailing = {name: free[name] * weight / weights[name] for name in lane.rates}
    return combined_rate(per_mailing, lane.shares)


def _parts(
    lane: Lane, free: Mapping[str, float], weights: Mapping[str, int]
) -> Mapping[str, float]:
    """Return which part of the messages of a lane goes through each of its gateways."""
    if lane.shares is not None:
        return {name: lane.shares[name] for name in lane.rates}
    per_weight = {name: free[name] / weights[name] for name in lane.rates}
    total = sum(per_weight.values())
    return {name: part / total for name, part in per_weight.items() if total}
