"""Messages of mailings that flow through a gateway at a rate: between events all flow evenly.

An event is that a time begins or ends in which some may be sent, or that a mailing runs empty: the
cost is in events, and not in messages. Mailings that have as many messages run empty at once.
"""

from collections import Counter
from collections.abc import Generator, Iterable, Iterator, Sequence
from heapq import heapify, heappop, heappush
from typing import NamedTuple

NOBODY = 1e-3
"""So much of a client, or less, is an error of arithmetic."""


class Turn(NamedTuple):
    """A time in which messages may be sent, in seconds from now."""

    due: float
    """What was due first goes first: a window that is open now may have opened long ago."""
    begins: float
    ends: float


class Flock:
    """Clients who may be sent to at the same times: what is left of them flows as one."""

    def __init__(self, turns: Iterator[Turn], clients: int) -> None:
        self.clients = clients
        self.left = float(clients)
        self.turn = next(turns, None)
        self.had_turn = self.turn is not None
        self.is_open = False
        self._turns = turns

    def close(self) -> None:
        """Wait for the next turn."""
        self.is_open = False
        self.turn = next(self._turns, None)


def flow_at_once(flocks: Iterable[Flock]) -> float:
    """Reach everybody who has a turn when it begins; return the last such moment."""
    last = 0.0
    for flock in flocks:
        if flock.turn is not None:
            flock.left = 0.0
            last = max(last, flock.turn.begins)
    return last


class Stream:
    """What the gateway takes, in messages a second, shared by mailings that have something due."""

    def __init__(self, rate: float, others: Iterable[int]) -> None:
        self._rate = rate
        counts = Counter(waiting for waiting in others if waiting > 0)
        self._others = sorted(counts.items(), reverse=True)  # messages, and how many have as many
        self._sharing = counts.total()
        self._given = 0.0  # to each of the others that has not run empty: they share equally
        self._line: dict[float, list[Flock]] = {}  # those whose turn it is, by when they were due
        self._now = 0.0
        self._last = 0.0

    def carry(self, flocks: Sequence[Flock]) -> Generator[None, None, float]:
        """Let flocks flow through all their turns; return when the last of them ran empty.

        Yields after each step.
        """
        events = [(flock.turn.begins, n) for n, flock in enumerate(flocks) if flock.turn]
        heapify(events)
        while events:
            moment, n = heappop(events)
            yield from self._flow(moment)
            flock = flocks[n]
            if flock.is_open:
                self._leave(flock)
            elif flock.turn is not None:
                flock.is_open = True
                self._line.setdefault(flock.turn.due, []).append(flock)
            if flock.left and flock.turn is not None:
                heappush(events, (flock.turn.ends if flock.is_open else flock.turn.begins, n))
        return self._last

    def _leave(self, flock: Flock) -> None:
        if flock.left and flock.turn is not None:  # what has run empty has left the line already
            together = self._line[flock.turn.due]
            together.remove(flock)
            if not together:
                del self._line[flock.turn.due]
        flock.close()

    def _flow(self, moment: float) -> Iterator[None]:
        """Let messages flow until `moment`, from one who runs empty to the next."""
        while self._now < moment:
            yield
            first = self._line[min(self._line)] if self._line else []
            takers = self._sharing + bool(first)
            if not takers or not self._rate:
                self._now = moment
                return
            each = self._rate / takers
            wait = moment - self._now
            seconds = min(wait, self._least_left(first) / each)
            self._now = moment if seconds >= wait else self._now + seconds
            self._give(first, seconds * each)

    def _least_left(self, first: Iterable[Flock]) -> float:
        """Return how many messages flow to each until one runs empty."""
        left = [self._others[-1][0] - self._given] if self._others else []
        if first:
            left.append(sum(flock.left for flock in first))
        return min(left)

    def _give(self, first: Sequence[Flock], messages: float) -> None:
        """Give so many messages to each of the others, and to those who are first in line."""
        self._given += messages
        while self._others and self._others[-1][0] - self._given < NOBODY:
            self._sharing -= self._others.pop()[1]
        if not first:
            return
        left = sum(flock.left for flock in first)
        is_empty = left - messages < NOBODY
        for flock in first:
            flock.left *= 0 if is_empty else 1 - messages / left
        if is_empty:
            self._last = self._now
            del self._line[min(self._line)]
