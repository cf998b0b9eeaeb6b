"""How much to claim, and from whom: fair between mailings, no further ahead than needed."""

import heapq
from collections import OrderedDict
from collections.abc import Collection, Iterable, Mapping


class FairShare:
    """Which mailings to claim from: those that have something due, each in its turn.

    A mailing that gave a full share goes to the end of the line; one that had less is asked again
    when its next message is due. Half of each turn is of the line, half of those that come to it:
    of these the latest go before the earliest in every other place, so that a new mailing does not
    wait for thousands that are due together. Mailings that wait for a due time cost nothing.
    """

    def __init__(self) -> None:
        self._line: OrderedDict[int, None] = OrderedDict()
        self._new: OrderedDict[int, None] = OrderedDict()
        self._due: dict[int, float] = {}
        self._moments: list[tuple[float, int]] = []

    @property
    def is_hungry(self) -> bool:
        """Whether some mailing is still to be asked."""
        return bool(self._line or self._new)

    def ask(self, mailings: Iterable[int]) -> None:
        """Claim from these in their turn: they may have something due."""
        for mailing in mailings:
            self._due.pop(mailing, None)
            if mailing not in self._line:
                self._new[mailing] = None

    def wait(self, mailing: int, moment: float) -> None:
        """Ask a mailing again at a moment, or earlier if it is to be asked earlier already."""
        if moment < self._due.get(mailing, float("inf")):
            self._due[mailing] = moment
            heapq.heappush(self._moments, (moment, mailing))

    def next_moment(self) -> float | None:
        """Return when the next mailing is to be asked of those that wait; None when none waits."""
        while self._moments and self._due.get(self._moments[0][1]) != self._moments[0][0]:
            heapq.heappop(self._moments)
        return self._moments[0][0] if self._moments else None

    def turn(self, running: Collection[int], room: int, now: float) -> tuple[list[int], int]:
        """Return up to `room` mailings to claim from at `now`, and how much from each."""
        while (moment := self.next_moment()) is not None and moment <= now:
            _, mailing = heapq.heappop(self._moments)
            self.ask([mailing])
        fresh = self._take(self._new, running, room - min(len(self._line), room // 2))
        asked = self._take(self._line, running, room - len(fresh)) + fresh
        return asked, max(1, room // max(1, len(asked)))

    def _take(
        self, waiting: OrderedDict[int, None], running: Collection[int], most: int
    ) -> list[int]:
        """Take mailings out of those that wait: of the line the first, of the new both ends."""
        taken: list[int] = []
        while waiting and len(taken) < most:
            mailing, _ = waiting.popitem(last=waiting is self._new and len(taken) % 2 == 0)
            if mailing in running:
                taken.append(mailing)
        return taken

    def record_claimed(self, asked: list[int], share: int, claimed: Mapping[int, int]) -> list[int]:
        """Requeue mailings that filled their share; return the others."""
        less = []
        for mailing in asked:
            if claimed.get(mailing, 0) >= share:
                self._new.pop(mailing, None)
                self._line[mailing] = None
            elif mailing not in self._new:  # nobody has asked for it meanwhile
                less.append(mailing)
        return less


class Stock:
    """How many messages to keep claimed ahead: what goes out in `seconds`, within bounds."""

    def __init__(self, *, seconds: float, first: int, least: int, most: int) -> None:
        self.ahead = first
        self._seconds = seconds
        self._least = least
        self._most = most
        self._sent = 0
        self._since = 0.0

    def count(self) -> None:
        """Count a message that went out."""
        self._sent += 1

    def measure(self, now: float) -> None:
        """Set `ahead` by what went out since the last measurement, if that is long enough ago.

        It falls by half at most: a pause with nothing due says little about the gateway.
        """
        passed = now - self._since
        if passed < self._seconds:
            return
        wanted = round(self._sent / passed * self._seconds)
        self.ahead = min(self._most, max(self._least, wanted, self.ahead // 2))
        self._sent, self._since = 0, now
