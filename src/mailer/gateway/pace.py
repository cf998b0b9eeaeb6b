"""How many messages a second this process can send, as seen or as set."""

RECENT = 1_000
"""Answers that the mean is over; older ones fade, as in any exponential moving average."""


class Pace:
    """The pace of a process that has so many requests open at once and keeps to a limit.

    Source of the rule: Little's law, throughput = concurrency / latency. Only answers count: what
    times out, or is refused at once by a gateway that is down, says nothing of how fast it sends.
    """

    def __init__(self, concurrency: int, limit: float = 0) -> None:
        self._concurrency = concurrency
        self._limit = limit or None
        self._answers = 0
        self._seconds = 0.0

    def count(self, seconds: float) -> None:
        """Count a request that was answered after that many seconds."""
        if self._answers < RECENT:
            self._answers += 1
        self._seconds += (seconds - self._seconds) / self._answers

    @property
    def rate(self) -> float | None:
        """Messages a second; None while no answer was seen and no limit is set."""
        rates = [rate for rate in (self._limit, self._seen) if rate is not None]
        return min(rates, default=None)

    @property
    def is_set(self) -> bool:
        """Whether the limit decides: the gateway is not seen to be slower."""
        return self._limit is not None and self.rate == self._limit

    @property
    def _seen(self) -> float | None:
        return self._concurrency / self._seconds if self._seconds > 0 else None
