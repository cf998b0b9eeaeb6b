"""Types of Prometheus metrics that the client library does not have."""

import math
from bisect import bisect_left
from collections.abc import Iterable, Sequence
from itertools import accumulate

from prometheus_client import CollectorRegistry, Counter
from prometheus_client.core import HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

MAX_SERIES = 100
"""Most pairs of outcome and reason that get their own series. A gateway can cause any number of
reasons, and each series costs memory here and in Prometheus."""


class BoundedCounter:
    """A counter with the labels `outcome` and `reason`, and a limit on the number of series.

    The first `max_series` pairs get their own series. Later pairs are counted under the reason
    `other`.
    """

    def __init__(self, counter: Counter, max_series: int = MAX_SERIES) -> None:
        self._counter = counter
        self._max_series = max_series
        self._series: dict[tuple[str, str], Counter] = {}

    def inc(self, outcome: str, reason: str, amount: int) -> None:
        """Add `amount` to the series of `outcome` and `reason`."""
        series = self._series.get((outcome, reason))
        if series is None:
            may_add = len(self._series) < self._max_series
            series = self._counter.labels(outcome, reason if may_add else "other")
            if may_add:
                self._series[outcome, reason] = series
        series.inc(amount)


class PlainHistogram(Collector):
    """A histogram without locks, for use by one thread only; a third of the library's cost.

    `bounds` are the upper bounds of its buckets, included, in ascending order. A last bucket
    without a bound is added. Source of the format:
    https://prometheus.io/docs/instrumenting/exposition_formats/
    """

    def __init__(
        self, name: str, documentation: str, bounds: Sequence[float], registry: CollectorRegistry
    ) -> None:
        self._name = name
        self._documentation = documentation
        self._bounds = (*bounds, math.inf)
        self._counts = [0] * len(self._bounds)
        self._sum = 0.0
        registry.register(self)

    def observe(self, value: float, times: int = 1) -> None:
        """Count `value`, observed `times` times."""
        self._counts[bisect_left(self._bounds, value)] += times
        self._sum += value * times

    def collect(self) -> Iterable[Metric]:
        """Yield the metric for Prometheus. A bucket includes the values of all lower buckets."""
        bounds = ["+Inf" if bound == math.inf else str(bound) for bound in self._bounds]
        buckets = list(zip(bounds, map(float, accumulate(self._counts)), strict=True))
        yield HistogramMetricFamily(self._name, self._documentation, buckets, self._sum)
