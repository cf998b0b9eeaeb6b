"""How fast messages may begin: pure policy."""


class Rate:
    """Gives out moments `1 / per_second` apart, so that the pace is even and the count exact.

    Who comes late finds the moments of the last `slack` seconds still there; older ones are lost.
    The time is an argument, seconds on a clock that never goes back. Source of the rule: the
    virtual scheduling algorithm, ITU-T I.371, appendix A.
    """

    def __init__(self, per_second: float, *, slack: float = 0.02) -> None:
        self._interval = 1 / per_second
        self._slack = slack
        self._next = float("-inf")

    def take(self, now: float) -> float:
        """Take the next moment and return the seconds until it, 0 when it has come."""
        moment = max(self._next, now - self._slack)
        self._next = moment + self._interval
        return max(0.0, moment - now)
