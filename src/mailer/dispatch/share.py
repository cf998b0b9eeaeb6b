"""How much to claim, and from whom: fair between mailings, no further ahead than needed."""

from collections.abc import Collection, Mapping


class FairShare:
    """Which mailings to claim from: those that had a full share to give, and all now and then.

    A mailing with nothing due is not asked with every claim; one with much due gets no more than
    its part of each.
    """

    def __init__(self, *, again_after: float) -> None:
        self._again_after = again_after
        self._hungry: list[int] = []
        self._ask_all_at = 0.0

    @property
    def is_hungry(self) -> bool:
        """Whether some mailing is still to be asked in this round."""
        return bool(self._hungry)

    def ask_all(self) -> None:
        """Ask every mailing in the next turn: one may have something due that had nothing."""
        self._ask_all_at = 0.0

    def turn(self, running: Collection[int], room: int, now: float) -> tuple[list[int], int]:
        """Return up to `room` mailings to claim from at `now`, and how much from each."""
        if not self._hungry or now >= self._ask_all_at:
            waiting = [mailing for mailing in self._hungry if mailing in running]
            self._hungry = waiting + list(set(running) - set(waiting))
            self._ask_all_at = now + self._again_after
        asked = self._hungry[:room]
        return asked, max(1, room // max(1, len(asked)))

    def served(self, asked: list[int], share: int, claimed: Mapping[int, int]) -> None:
        """Learn how much each mailing had: who gave a full share goes to the end of the line."""
        self._hungry = self._hungry[len(asked) :]
        self._hungry += (mailing for mailing in asked if claimed.get(mailing, 0) >= share)


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
