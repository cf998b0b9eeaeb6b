"""Estimate how many messages a second this worker can send."""

AVERAGED_RESPONSES = 1_000
"""The mean response time covers all responses up to this number. After that, it is an exponential
moving average in which each new response has the weight of one in this number."""


class ThroughputEstimate:
    """The throughput of a worker with `concurrency` parallel requests and a rate limit.

    `limit` is in messages a second, 0 for none. Source of the rule: Little's law, throughput =
    concurrency / mean response time. Only responses that accept or reject a message count. Timeouts
    and the quick errors of a gateway that is down say nothing about its speed.
    """

    def __init__(self, concurrency: int, limit: float = 0) -> None:
        self._concurrency = concurrency
        self._limit = limit or None
        self._averaged = 0
        """Number of responses so far, at most `AVERAGED_RESPONSES`."""
        self._mean_seconds = 0.0

    def record(self, seconds: float) -> None:
        """Record a response that came after `seconds` and accepted or rejected the message."""
        if self._averaged < AVERAGED_RESPONSES:
            self._averaged += 1
        self._mean_seconds += (seconds - self._mean_seconds) / self._averaged

    @property
    def rate(self) -> float | None:
        """Messages a second; None before the first response when no limit is set."""
        rates = [rate for rate in (self._limit, self._measured) if rate is not None]
        return min(rates, default=None)

    @property
    def mean_seconds(self) -> float | None:
        """Mean time of a response that accepted or rejected a message; None before the first."""
        return self._mean_seconds if self._averaged else None

    @property
    def is_limited(self) -> bool:
        """Whether the limit determines the rate, and not the measured speed of the gateway."""
        return self._limit is not None and self.rate == self._limit

    @property
    def _measured(self) -> float | None:
        """The rate at which the gateway would respond without the limit."""
        return self._concurrency / self._mean_seconds if self._mean_seconds > 0 else None
