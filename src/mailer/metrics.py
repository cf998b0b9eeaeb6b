"""What this process counts about itself, for Prometheus. No label ever holds an id.

Counted where messages pass by the thousand: a message costs two microseconds here, because labels
are looked up once and outcomes are counted by the batch.
"""

from collections import Counter as Tally
from collections.abc import Iterable
from time import perf_counter
from typing import Self

import prometheus_client
from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    PlatformCollector,
    ProcessCollector,
)

prometheus_client.disable_created_metrics()  # type: ignore[no-untyped-call]  # more series, no news

REGISTRY = CollectorRegistry()
"""Ours alone: what libraries count in the global one is not shown."""
ProcessCollector(registry=REGISTRY)
PlatformCollector(registry=REGISTRY)

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
_latency = Histogram(
    "mailer_gateway_request_duration_seconds",
    "From the start of a request to the gateway to its outcome.",
    buckets=(0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60),
    registry=REGISTRY,
)
_claims = Histogram(
    "mailer_claim_messages",
    "Messages that one claim took.",
    buckets=(0, 1, 2, 5, 10, 20, 50, 100, 200, 500),
    registry=REGISTRY,
)


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


class gateway_request:  # noqa: N801  # reads as a function: `with metrics.gateway_request():`
    """Counts a request to the gateway while it is under way, and then how long it took."""

    __slots__ = ("_started_at",)

    def __enter__(self) -> Self:
        _requests.inc()
        self._started_at = perf_counter()
        return self

    def __exit__(self, *_: object) -> None:
        _latency.observe(perf_counter() - self._started_at)
        _requests.dec()
