"""Prometheus metrics of this worker. No label ever holds an id.

The metrics are updated for thousands of messages a second. The cost is two microseconds a message:
labels are looked up once, and results are counted in batches.
"""

import collections
import math
from bisect import bisect_left
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import accumulate

import prometheus_client
from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    generate_latest,
)
from prometheus_client.core import HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from mailer.statuses import OUTCOMES

prometheus_client.disable_created_metrics()  # type: ignore[no-untyped-call]  # they double the series and add no information

REGISTRY = CollectorRegistry()
"""A registry of our own: metrics that libraries add to the global registry are not exported."""
ProcessCollector(registry=REGISTRY)

MAX_SERIES = 100
"""Most pairs of outcome and reason that get their own series. A gateway can cause any number of
reasons."""


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


_results = BoundedCounter(
    Counter(
        "mailer_message_results",
        "Results of claimed messages, by the new status of the message and the reason.",
        ["outcome", "reason"],
        registry=REGISTRY,
    )
)
_discarded_results = Counter(
    "mailer_results_discarded",
    "Results that came after the lease was lost; they were not stored.",
    registry=REGISTRY,
)


class PlainHistogram(Collector):
    """A histogram without locks, for use by one thread only; a third of the library's cost.

    Source of the format: https://prometheus.io/docs/instrumenting/exposition_formats/
    """

    def __init__(self, name: str, documentation: str, bounds: Sequence[float]) -> None:
        self._name = name
        self._documentation = documentation
        self._bounds = (*bounds, math.inf)
        self._counts = [0] * len(self._bounds)
        self._sum = 0.0
        REGISTRY.register(self)

    def observe(self, value: float, times: int = 1) -> None:
        """Count `value`, observed `times` times."""
        self._counts[bisect_left(self._bounds, value)] += times
        self._sum += value * times

    def collect(self) -> Iterable[Metric]:
        """Return the metric for Prometheus. A bucket includes the values of all lower buckets."""
        bounds = ["+Inf" if bound == math.inf else str(bound) for bound in self._bounds]
        buckets = list(zip(bounds, map(float, accumulate(self._counts)), strict=True))
        yield HistogramMetricFamily(self._name, self._documentation, buckets, self._sum)


DURATION_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
_gateway_latency = PlainHistogram(
    "mailer_gateway_request_duration_seconds",
    "Seconds from the start of a gateway request to its outcome.",
    DURATION_BUCKETS,
)
_attempts = PlainHistogram(
    "mailer_message_attempts",
    "Attempts of a message until its final result.",
    (0, 1, 2, 3, 4, 5, 6, 8, 10, 15, 20),
)
_loop_lag = PlainHistogram(
    "mailer_event_loop_lag_seconds",
    "Delay of a callback on the event loop, measured ten times a second.",
    (0.001, *DURATION_BUCKETS),
)
_gateway_requests = Gauge(
    "mailer_gateway_requests_in_flight",
    "Gateway requests that wait for an answer.",
    registry=REGISTRY,
)
_breaker_state = Gauge(
    "mailer_gateway_breaker_state",
    "1 for the current state of the gateway's circuit breaker, 0 for the other states.",
    ["state"],
    registry=REGISTRY,
)
_breaker_openings = Counter(
    "mailer_gateway_breaker_openings",
    "How often the breaker opened, including after a failed probe.",
    registry=REGISTRY,
)
_claim_sizes = Histogram(
    "mailer_claim_batch_size",
    "Messages claimed by one statement.",
    buckets=(0, 1, 2, 5, 10, 20, 50, 100, 200, 500),
    registry=REGISTRY,
)


_http_requests = Counter(
    "mailer_http_requests",
    "HTTP requests that were answered, by the route's path template.",
    ["method", "route", "status"],
    registry=REGISTRY,
)
_http_seconds = Histogram(
    "mailer_http_request_duration_seconds",
    "Seconds from the start of an HTTP request to the end of its response.",
    ["route"],
    buckets=DURATION_BUCKETS,
    registry=REGISTRY,
)
_connections = Gauge(
    "mailer_database_connections",
    "Database connections of this worker.",
    ["pool", "state"],
    registry=REGISTRY,
)
_database_up = Gauge(
    "mailer_database_up",
    "1 if the database answered during this scrape, else 0. The backlog metrics are missing"
    " without an answer or with a late one.",
    registry=REGISTRY,
)


_clock_steps = Counter(
    "mailer_clock_steps",
    "Steps of a clock by a second or more.",
    ["clock"],
    registry=REGISTRY,
)
for _clock in ("database", "wall"):  # exported as 0 at first, so that one step is an increase
    _clock_steps.labels(_clock)


_job_success_ages = Gauge(
    "mailer_job_last_success_age_seconds",
    "Seconds since a periodic job last succeeded, or a dispatcher loop began to fail, here.",
    ["name"],
    registry=REGISTRY,
)
_job_failures = Counter(
    "mailer_job_failures",
    "Failed runs of a periodic job, or failed iterations of a dispatcher loop.",
    ["name"],
    registry=REGISTRY,
)


def watch_job(job: str, age: Callable[[], float]) -> None:
    """Export the seconds since a job last succeeded, read from `age` at each scrape."""
    _job_success_ages.labels(job).set_function(age)
    _job_failures.labels(job)


def job_failed(job: str) -> None:
    """Count a failed run of a job."""
    _job_failures.labels(job).inc()


def clock_stepped(clock: str) -> None:
    """Count a step of the `database` clock or of this machine's `wall` clock."""
    _clock_steps.labels(clock).inc()


def breaker_changed(state: str, states: Iterable[str]) -> None:
    """Export the new state of the breaker, one of `states`, and count it when it is `open`."""
    for other in states:
        _breaker_state.labels(other).set(other == state)
    if state == "open":
        _breaker_openings.inc()


def messages_claimed(messages: int) -> None:
    """Count a claim statement that claimed `messages` messages, possibly 0."""
    _claim_sizes.observe(messages)


def results_recorded(results: Iterable[tuple[str, str | None, int]], *, discarded: int) -> None:
    """Count results, each given as status, reason and number of attempts.

    `discarded` of them were not stored, because the lease was lost. They are counted as results
    too.
    """
    for (status, reason, attempts), messages in collections.Counter(results).items():
        _results.inc(status, reason or "", messages)
        if status in OUTCOMES:
            _attempts.observe(attempts, messages)
    if discarded:
        _discarded_results.inc(discarded)


def gateway_request_ended(seconds: float) -> None:
    """Record the duration of a gateway request, whatever its outcome."""
    _gateway_latency.observe(seconds)


def loop_lag_measured(seconds: float) -> None:
    """Record how late the event loop ran the loop monitor's callback."""
    _loop_lag.observe(seconds)


def watch_gateway_requests(count: Callable[[], int]) -> None:
    """Export the number of gateway requests in flight, read from `count` at each scrape."""
    _gateway_requests.set_function(count)


def http_request_answered(method: str, route: str, status: int, seconds: float) -> None:
    """Count an HTTP request by the route that answered it, and record its duration."""
    _http_requests.labels(method, route, str(status)).inc()
    _http_seconds.labels(route).observe(seconds)


def watch_pool(name: str, usage: Callable[[], tuple[int, int]]) -> None:
    """Export a pool's connections. `usage` returns how many are in use and how many are idle."""
    _connections.labels(name, "used").set_function(lambda: usage()[0])
    _connections.labels(name, "idle").set_function(lambda: usage()[1])


_backlog = {
    "waiting": Gauge(
        "mailer_backlog_messages",
        "Messages of running mailings that are scheduled or being sent.",
        registry=None,
    ),
    "due": Gauge(
        "mailer_backlog_due_messages",
        "Messages of running mailings that are due and not claimed; counted up to 100,000.",
        registry=None,
    ),
    "lag": Gauge(
        "mailer_backlog_lag_seconds",
        "Seconds for which the oldest due message has been due.",
        registry=None,
    ),
    "audience_clients": Gauge(
        "mailer_audience_clients",
        "Clients of the mailings whose audience is being enqueued.",
        registry=None,
    ),
    "audience_enqueued_clients": Gauge(
        "mailer_audience_enqueued_clients",
        "Clients of these mailings for whom a message exists already.",
        registry=None,
    ),
    "is_held": Gauge(
        "mailer_restore_held",
        "1 while a restored database sends nothing, until a user approves.",
        registry=None,
    ),
}


def exposition(backlog: Mapping[str, float] | None, *, is_up: bool) -> bytes:
    """Return all metrics in Prometheus' text format.

    `backlog` has a value for each name in `_backlog`. It is None when it could not be read; its
    metrics are then left out. `is_up` is whether the database answered.
    """
    _database_up.set(is_up)
    text = generate_latest(REGISTRY)
    if backlog is None:
        return text
    backlog_registry = CollectorRegistry()
    for name, gauge in _backlog.items():
        gauge.set(backlog[name])
        backlog_registry.register(gauge)
    return text + generate_latest(backlog_registry)
