"""What this process counts about itself, for Prometheus. No label ever holds an id.

Counted where messages pass by the thousand: a message costs two microseconds here, because labels
are looked up once and outcomes are counted by the batch.
"""

import math
from bisect import bisect_left
from collections import Counter as Tally
from collections.abc import Callable, Iterable, Sequence
from itertools import accumulate
from typing import Literal, get_args

import msgspec
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

prometheus_client.disable_created_metrics()  # type: ignore[no-untyped-call]  # more series, no news

REGISTRY = CollectorRegistry()
"""Ours alone: what libraries count in the global one is not shown."""
ProcessCollector(registry=REGISTRY)

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


class PlainHistogram(Collector):
    """A histogram that one thread alone counts in: without locks it costs a third of the library's.

    Source of its form: https://prometheus.io/docs/instrumenting/exposition_formats/
    """

    def __init__(self, name: str, documentation: str, bounds: Sequence[float]) -> None:
        self._name = name
        self._documentation = documentation
        self._bounds = (*bounds, math.inf)
        self._counts = [0] * len(self._bounds)
        self._sum = 0.0
        REGISTRY.register(self)

    def observe(self, value: float, times: int = 1) -> None:
        """Count a value, which came that many times."""
        self._counts[bisect_left(self._bounds, value)] += times
        self._sum += value * times

    def collect(self) -> Iterable[Metric]:
        """Give what Prometheus reads: each bucket holds the ones below it too."""
        bounds = ["+Inf" if bound == math.inf else str(bound) for bound in self._bounds]
        buckets = list(zip(bounds, map(float, accumulate(self._counts)), strict=True))
        yield HistogramMetricFamily(self._name, self._documentation, buckets, self._sum)


SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
_latency = PlainHistogram(
    "mailer_gateway_request_duration_seconds",
    "From the start of a request to the gateway to its outcome.",
    SECONDS,
)
_attempts = PlainHistogram(
    "mailer_message_attempts",
    "Attempts that a message took until its outcome.",
    (0, 1, 2, 3, 4, 5, 6, 8, 10, 15, 20),
)
_loop_lag = PlainHistogram(
    "mailer_event_loop_lag_seconds",
    "How late the event loop answers a sign of life that it is asked for ten times a second.",
    (0.001, *SECONDS),
)
_requests = Gauge(
    "mailer_gateway_requests_in_flight",
    "Requests to the gateway that wait for an answer.",
    registry=REGISTRY,
)
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


_http_requests = Counter(
    "mailer_http_requests",
    "Requests that were answered, by route as it is declared.",
    ["method", "route", "status"],
    registry=REGISTRY,
)
_http_seconds = Histogram(
    "mailer_http_request_duration_seconds",
    "From a request to the end of its answer.",
    ["route"],
    buckets=SECONDS,
    registry=REGISTRY,
)
_connections = Gauge(
    "mailer_database_connections",
    "Connections of this process to the database.",
    ["pool", "state"],
    registry=REGISTRY,
)
_database_up = Gauge(
    "mailer_database_up",
    "Whether the database answered as this was read; the backlog is missing if not, or if late.",
    registry=REGISTRY,
)


_clock_steps = Counter(
    "mailer_clock_steps",
    "How often a clock was found to have stepped, by a second or more.",
    ["clock"],
    registry=REGISTRY,
)
for _clock in ("database", "wall"):
    _clock_steps.labels(_clock)  # shown from the start, so that the first step is an increase


_job_ages = Gauge(
    "mailer_job_last_success_age_seconds",
    "For how long a periodic job, or a loop of the dispatcher, has not succeeded in this process.",
    ["name"],
    registry=REGISTRY,
)
_job_failures = Counter(
    "mailer_job_failures",
    "Runs of a periodic job, or rounds of a loop of the dispatcher, that failed.",
    ["name"],
    registry=REGISTRY,
)


def watch_job(job: str, age: Callable[[], float]) -> None:
    """Show for how many seconds a job has not succeeded, as `age` tells."""
    _job_ages.labels(job).set_function(age)
    _job_failures.labels(job)


def job_failed(job: str) -> None:
    """Count a run of a job that failed."""
    _job_failures.labels(job).inc()


def clock_stepped(clock: str) -> None:
    """Count a step of the `database` clock or of this machine's `wall` clock."""
    _clock_steps.labels(clock).inc()


def breaker(state: BreakerState) -> None:
    """Tell the state that the breaker has come to."""
    for other in get_args(BreakerState):
        _breaker.labels(other).set(other == state)
    if state == "open":
        _openings.inc()


def claimed(messages: int) -> None:
    """Count a claim that took that many messages, or none."""
    _claims.observe(messages)


def finished(outcomes: Iterable[tuple[str, str | None, int]], *, late: int) -> None:
    """Count messages by the state they went to, why, and after how many attempts.

    `late` of them, who are counted too, lost their lease before.
    """
    for (outcome, reason, attempts), messages in Tally(outcomes).items():
        _finished.inc(outcome, reason or "", messages)
        if outcome != "scheduled":
            _attempts.observe(attempts, messages)
    if late:
        _late.inc(late)


def request_ended(seconds: float) -> None:
    """Count a request to the gateway that took so long, whatever came of it."""
    _latency.observe(seconds)


def loop_answered(seconds: float) -> None:
    """Count how long the event loop kept the loop monitor waiting."""
    _loop_lag.observe(seconds)


def watch_requests(count: Callable[[], int]) -> None:
    """Show how many requests are under way, as `count` tells."""
    _requests.set_function(count)


def request_answered(method: str, route: str, status: int, seconds: float) -> None:
    """Count an HTTP request by the route that answered it, and the time it took."""
    _http_requests.labels(method, route, str(status)).inc()
    _http_seconds.labels(route).observe(seconds)


def watch_pool(name: str, usage: Callable[[], tuple[int, int]]) -> None:
    """Show how many connections of a pool are in use and how many are idle, as `usage` tells."""
    _connections.labels(name, "used").set_function(lambda: usage()[0])
    _connections.labels(name, "idle").set_function(lambda: usage()[1])


class Backlog(msgspec.Struct, frozen=True):
    """What waits in the database, for all processes together."""

    waiting: int
    due: int
    lag: float
    audience_clients: int
    audience_taken_clients: int
    is_held: bool = False


_backlog = {
    "waiting": Gauge(
        "mailer_backlog_messages",
        "Messages of running mailings that have no outcome yet.",
        registry=None,
    ),
    "due": Gauge(
        "mailer_backlog_due_messages",
        "Those of them that are due and not claimed; counted up to 100,000.",
        registry=None,
    ),
    "lag": Gauge(
        "mailer_backlog_lag_seconds",
        "For how long the oldest of these has been due.",
        registry=None,
    ),
    "audience_clients": Gauge(
        "mailer_audience_clients",
        "Clients of the mailings whose audience is being taken.",
        registry=None,
    ),
    "audience_taken_clients": Gauge(
        "mailer_audience_taken_clients",
        "Those of them who are taken.",
        registry=None,
    ),
    "is_held": Gauge(
        "mailer_restore_held",
        "1 while a restored database waits for a person to agree that it sends.",
        registry=None,
    ),
}


def exposition(backlog: Backlog | None, *, is_up: bool) -> bytes:
    """Return everything in Prometheus' text format, but a backlog that could not be read.

    `is_up` is whether the database answered.
    """
    _database_up.set(is_up)
    shown = generate_latest(REGISTRY)
    if backlog is None:
        return shown
    here = CollectorRegistry()
    for name, gauge in _backlog.items():
        gauge.set(getattr(backlog, name))
        here.register(gauge)
    return shown + generate_latest(here)
