"""Estimate how many messages a second this worker can send."""

AVERAGED_ANSWERS = 1_000
"""Number of answers in the mean; after that many it is an exponential moving average."""


class ThroughputEstimate:
    """The throughput of a worker with `concurrency` parallel requests and a rate limit.

    `limit` is in messages a second, 0 for none. Source of the rule: Little's law, throughput =
    concurrency / latency. Only answers that accept or reject a message count. Timeouts, and quick
    refusals by a gateway that is down, say nothing about its speed.
    """

    def __init__(self, concurrency: int, limit: float = 0) -> None:
        self._concurrency = concurrency
        self._limit = limit or None
        self._answers = 0
        self._seconds = 0.0

    def record(self, seconds: float) -> None:
        """Record a request that was answered after `seconds`."""
        if self._answers < AVERAGED_ANSWERS:
            self._answers += 1
        self._seconds += (seconds - self._seconds) / self._answers

    @property
    def rate(self) -> float | None:
        """Messages a second; None before the first answer when no limit is set."""
        rates = [rate for rate in (self._limit, self._measured) if rate is not None]
        return min(rates, default=None)

    @property
    def is_limited(self) -> bool:
        """Whether the limit determines the rate, and not the measured speed of the gateway."""
        return self._limit is not None and self.rate == self._limit

    @property
    def _measured(self) -> float | None:
        return self._concurrency / self._seconds if self._seconds > 0 else None
