"""What this process counts about itself, for Prometheus. No label ever holds an id.

Counted where messages pass by the thousand: a message costs two microseconds here, because labels
are looked up once and outcomes are counted by the batch.
"""

import math
from bisect import bisect_left
from collections import Counter as Tally
from collections.abc import Callable, Iterable
from itertools import accumulate
from typing import Literal, get_args

import prometheus_client
from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    PlatformCollector,
    ProcessCollector,
)
from prometheus_client.core import HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

prometheus_client.disable_created_metrics()  # type: ignore[no-untyped-call]  # more series, no news

REGISTRY = CollectorRegistry()
"""Ours alone: what libraries count in the global one is not shown."""
ProcessCollector(registry=REGISTRY)
PlatformCollector(registry=REGISTRY)

BreakerState = Literal["closed", "open", "half_open"]

MOST_SERIES = 100
"""Pairs of outcome and reason that are told apart; a gateway may answer with anything."""


class BoundedCounter:
    """A counter by outcome and reason; reasons that come after the first `most` are `other`."""

    def __init__(self, counter: Counter, most: int = MOST_SERIES) -> None:
        self._counter = counter
        self._most = most
        self._series: dict[tuple[str, str], Counter] = {}

    def inc(self, outcome: str, reason: str, amount: int) -> None:
        """Count `amount` more."""
        series = self._series.get((outcome, reason))
        if series is None:
            is_room = len(self._series) < self._most
            series = self._counter.labels(outcome, reason if is_room else "other")
            if is_room:
                self._series[outcome, reason] = series
        series.inc(amount)


_finished = BoundedCounter(
    Counter(
        "mailer_messages_finished",
        "Messages that left a sender's hands, by the state they went to and why.",
        ["outcome", "reason"],
        registry=REGISTRY,
    )
)
_late = Counter(
    "mailer_messages_late",
    "Outcomes that came after the lease was lost, and changed nothing.",
    registry=REGISTRY,
)
_requests = Gauge(
    "mailer_gateway_requests_in_flight",
    "Requests to the gateway that wait for an answer.",
    registry=REGISTRY,
)


class LatencyHistogram(Collector):
    """A histogram that one thread alone counts in: without locks it costs a third of the library's.

    Source of its form: https://prometheus.io/docs/instrumenting/exposition_formats/
    """

    BOUNDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, math.inf)

    def __init__(self, name: str, documentation: str) -> None:
        self._name = name
        self._documentation = documentation
        self._counts = [0] * len(self.BOUNDS)
        self._sum = 0.0

    def observe(self, seconds: float) -> None:
        """Count one that took so long."""
        self._counts[bisect_left(self.BOUNDS, seconds)] += 1
        self._sum += seconds

    def collect(self) -> Iterable[Metric]:
        """Give what Prometheus reads: each bucket holds the ones below it too."""
        bounds = ["+Inf" if bound == math.inf else str(bound) for bound in self.BOUNDS]
        buckets = list(zip(bounds, map(float, accumulate(self._counts)), strict=True))
        yield HistogramMetricFamily(self._name, self._documentation, buckets, self._sum)


_latency = LatencyHistogram(
    "mailer_gateway_request_duration_seconds",
    "From the start of a request to the gateway to its outcome.",
)
REGISTRY.register(_latency)
_breaker = Gauge(
    "mailer_gateway_breaker_state",
    "1 for the state that the breaker before the gateway is in.",
    ["state"],
    registry=REGISTRY,
)
_openings = Counter(
    "mailer_gateway_breaker_openings",
    "How often the breaker opened, also after a probe that failed.",
    registry=REGISTRY,
)
_claims = Histogram(
    "mailer_claim_messages",
    "Messages that one claim took.",
    buckets=(0, 1, 2, 5, 10, 20, 50, 100, 200, 500),
    registry=REGISTRY,
)


def breaker(state: BreakerState) -> None:
    """Tell the state that the breaker has come to."""
    for other in get_args(BreakerState):
        _breaker.labels(other).set(other == state)
    if state == "open":
        _openings.inc()


def claimed(messages: int) -> None:
    """Count a claim that took that many messages, or none."""
    _claims.observe(messages)


def finished(outcomes: Iterable[tuple[str, str | None]], *, late: int) -> None:
    """Count messages by the state they went to and why; `late` of them lost their lease before.

    Which of them were late nobody knows: they are counted here too.
    """
    for (outcome, reason), messages in Tally(outcomes).items():
        _finished.inc(outcome, reason or "", messages)
    if late:
        _late.inc(late)


def request_ended(seconds: float) -> None:
    """Count a request to the gateway that took so long, whatever came of it."""
    _latency.observe(seconds)


def watch_requests(count: Callable[[], int]) -> None:
    """Show how many requests are under way, as `count` tells."""
    _requests.set_function(count)
