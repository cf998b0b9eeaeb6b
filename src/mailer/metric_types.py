"""Types of Prometheus metrics that the client library does not have."""

import math
from bisect import bisect_left
from collections.abc import Iterable, Sequence
from itertools import accumulate

from prometheus_client import CollectorRegistry, Counter
from prometheus_client.core import HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

MAX_SERIES = 300
"""Most combinations of gateway, outcome and reason that get their own series. A gateway can cause
any number of reasons, and each series costs memory here and in Prometheus."""


class BoundedCounter:
    """A counter with the labels `gateway`, `outcome` and `reason`, and a limit on its series.

    The first `max_series` combinations get their own series. Later ones are counted under the
    reason `other`.
    """

    def __init__(self, counter: Counter, max_series: int = MAX_SERIES) -> None:
        self._counter = counter
        self._max_series = max_series
        self._series: dict[tuple[str, str, str], Counter] = {}

    def inc(self, gateway: str, outcome: str, reason: str, amount: int) -> None:
        """Add `amount` to the series of these labels."""
        series = self._series.get((gateway, outcome, reason))
        if series is None:
            may_add = len(self._series) < self._max_series
            series = self._counter.labels(gateway, outcome, reason if may_add else "other")
            if may_add:
                self._series[gateway, outcome, reason] = series
        series.inc(amount)

    def remove(self, gateway: str) -> None:
        """Remove all series of a gateway."""
        self._counter.remove_by_labels({"gateway": gateway})
        self._series = {key: series for key, series in self._series.items() if key[0] != gateway}


class HistogramSeries:
    """The buckets of a histogram for one value of its label."""

    def __init__(self, bounds: Sequence[float]) -> None:
        self._bounds = bounds
        self._counts = [0] * len(bounds)
        self.sum = 0.0

    def observe(self, value: float, times: int = 1) -> None:
        """Count `value`, observed `times` times."""
        self._counts[bisect_left(self._bounds, value)] += times
        self.sum += value * times

    def buckets(self) -> list[tuple[str, float]]:
        """Return the count of each bucket, which includes the values of all lower buckets."""
        bounds = ["+Inf" if bound == math.inf else str(bound) for bound in self._bounds]
        return list(zip(bounds, map(float, accumulate(self._counts)), strict=True))


class PlainHistogram(Collector):
    """A histogram without locks, for use by one thread only; a third of the library's cost.

    `bounds` are the upper bounds of its buckets, included, in ascending order. A last bucket
    without a bound is added. `label` is the name of its label; "" for a histogram without one.
    Source of the format: https://prometheus.io/docs/instrumenting/exposition_formats/
    """

    def __init__(
        self,
        name: str,
        documentation: str,
        bounds: Sequence[float],
        registry: CollectorRegistry,
        label: str = "",
    ) -> None:
        self._name = name
        self._documentation = documentation
        self._bounds = (*bounds, math.inf)
        self._label = label
        self._series: dict[str, HistogramSeries] = {}
        if not label:
            self.series("")  # exported before the first value
        registry.register(self)

    def series(self, value: str = "") -> HistogramSeries:
        """Return the series for a value of the label."""
        if value not in self._series:
            self._series[value] = HistogramSeries(self._bounds)
        return self._series[value]

    def remove(self, value: str) -> None:
        """Remove the series for a value of the label, if it exists."""
        self._series.pop(value, None)

    def collect(self) -> Iterable[Metric]:
        """Yield the metric for Prometheus."""
        labels = [self._label] if self._label else []
        family = HistogramMetricFamily(self._name, self._documentation, labels=labels)
        for value, series in self._series.items():
            family.add_metric([value] if self._label else [], series.buckets(), series.sum)
        yield family
