"""Prometheus metrics of this worker. No label ever holds an id.

The rest of the program calls a function of this module for each event, such as
`breaker_changed`; only this module knows the names of the metrics. The metrics are updated for
thousands of messages a second. To keep the cost at two microseconds a message, labels are looked up
once, and results are counted in batches.
"""

import collections
from collections.abc import Callable, Iterable, Mapping
from functools import lru_cache

import prometheus_client
from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    generate_latest,
)

from mailer.metric_types import BoundedCounter, HistogramSeries, PlainHistogram
from mailer.statuses import OUTCOMES

prometheus_client.disable_created_metrics()  # type: ignore[no-untyped-call]  # they double the series and add no information

REGISTRY = CollectorRegistry()
"""A registry of our own: metrics that libraries add to the global registry are not exported."""
ProcessCollector(registry=REGISTRY)

_results = BoundedCounter(
    Counter(
        "mailer_message_results",
        "Results of claimed messages, by gateway, new status of the message, and reason.",
        ["gateway", "outcome", "reason"],
        registry=REGISTRY,
    )
)
_callbacks = Counter(
    "mailer_callbacks",
    "Calls of gateways that bring receipts and replies, by result: stored, empty, not_authentic,"
    " unreadable, unavailable.",
    ["gateway", "result"],
    registry=REGISTRY,
)
_callbacks_of = lru_cache(maxsize=256)(_callbacks.labels)
"""Cached, because a look-up costs more than the counting. Only configured gateways are counted."""
_replies = Counter(
    "mailer_replies",
    "Replies that gateways have brought; each part of a reply and each repeat counts.",
    ["gateway"],
    registry=REGISTRY,
)
_answers = Counter(
    "mailer_answers",
    "Answers to replies, by recorded result: accepted, failed, unknown; waiting: sent again.",
    ["gateway", "status"],
    registry=REGISTRY,
)
_receipts = Counter(
    "mailer_receipts",
    "Receipts by result: applied, early (kept until their message is known), ignored.",
    ["result"],
    registry=REGISTRY,
)
_discarded_results = Counter(
    "mailer_results_discarded",
    "Results that came after the lease was lost; they were not stored.",
    registry=REGISTRY,
)


DURATION_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
"""Upper bounds of the buckets of durations, in seconds."""
_gateway_latency = PlainHistogram(
    "mailer_gateway_request_duration_seconds",
    "Seconds from the start of a gateway request to its outcome.",
    DURATION_BUCKETS,
    REGISTRY,
    label="gateway",
)
_attempts = PlainHistogram(
    "mailer_message_attempts",
    "Attempts of a message until its final result.",
    (0, 1, 2, 3, 4, 5, 6, 8, 10, 15, 20),
    REGISTRY,
)
_loop_lag = PlainHistogram(
    "mailer_event_loop_lag_seconds",
    "Delay of a callback on the event loop, measured ten times a second.",
    (0.001, *DURATION_BUCKETS),
    REGISTRY,
)
_gateway_requests = Gauge(
    "mailer_gateway_requests_in_flight",
    "Gateway requests that wait for an answer.",
    ["gateway"],
    registry=REGISTRY,
)
_breaker_state = Gauge(
    "mailer_gateway_breaker_state",
    "1 for the current state of the gateway's circuit breaker, 0 for the other states.",
    ["gateway", "state"],
    registry=REGISTRY,
)
_breaker_openings = Counter(
    "mailer_gateway_breaker_openings",
    "How often the breaker opened, including after a failed probe.",
    ["gateway"],
    registry=REGISTRY,
)
_gateway_paused = Gauge(
    "mailer_gateway_paused",
    "1 while a user has paused the gateway, else 0.",
    ["gateway"],
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


_webhook_deliveries = Counter(
    "mailer_webhook_deliveries",
    "Attempts to deliver an event to a webhook: delivered, retried later, failed, or dropped"
    " because too many were waiting.",
    ["result"],
    registry=REGISTRY,
)
for _result in ("delivered", "retried", "failed", "dropped"):  # exported as 0 at first
    _webhook_deliveries.labels(_result)


def webhook_attempted(result: str, deliveries: int = 1) -> None:
    """Count attempts to deliver events to webhooks by their result."""
    _webhook_deliveries.labels(result).inc(deliveries)


_notice_mails = Counter(
    "mailer_notice_mails",
    "Mails with notices: sent, retried later, refused permanently; and expired notices.",
    ["result"],
    registry=REGISTRY,
)
for _result in ("sent", "retried", "refused", "expired"):  # exported as 0 at first
    _notice_mails.labels(_result)


def notices_mailed(result: str, number: int = 1) -> None:
    """Count mails with notices by their result, or notices that have expired."""
    _notice_mails.labels(result).inc(number)


def watch_job(job: str, age: Callable[[], float]) -> None:
    """Export the seconds since a job last succeeded; each scrape calls `age` to get them.

    The number of its failures is exported too, 0 at first.
    """
    _job_success_ages.labels(job).set_function(age)
    _job_failures.labels(job)


def job_failed(job: str) -> None:
    """Count a failed run of a job."""
    _job_failures.labels(job).inc()


def clock_stepped(clock: str) -> None:
    """Count a step of the `database` clock or of this machine's `wall` clock."""
    _clock_steps.labels(clock).inc()


def breaker_changed(gateway: str, state: str, states: Iterable[str]) -> None:
    """Export the new `state` of a gateway's breaker; count it if it is `open`.

    `states` are all states that a breaker can have.
    """
    for each in states:
        _breaker_state.labels(gateway, each).set(each == state)
    openings = _breaker_openings.labels(gateway)  # exported as 0 at first
    if state == "open":
        openings.inc()


def gateway_paused(gateway: str, *, is_paused: bool) -> None:
    """Export whether a user has paused a gateway."""
    _gateway_paused.labels(gateway).set(is_paused)


def gateway_removed(gateway: str) -> None:
    """Remove the series of a gateway that is not configured any more.

    Requests that are still in flight are counted in new series when they end.
    """
    for gauge in (_gateway_requests, _breaker_state, _breaker_openings, _gateway_paused):
        gauge.remove_by_labels({"gateway": gateway})
    _gateway_latency.remove(gateway)
    _results.remove(gateway)


def messages_claimed(messages: int) -> None:
    """Count a claim statement that claimed `messages` messages, possibly 0."""
    _claim_sizes.observe(messages)


def results_recorded(
    results: Iterable[tuple[str, str, str | None, int]], *, discarded: int
) -> None:
    """Count results of claimed messages.

    Each is the gateway, the new status of the message, the reason or None, and the attempts.
    `discarded` is how many of the results were not stored, because the lease was lost. These are
    counted as results too.
    """
    for (gateway, status, reason, attempts), messages in collections.Counter(results).items():
        _results.inc(gateway, status, reason or "", messages)
        if status in OUTCOMES:
            _attempts.series().observe(attempts, messages)
    if discarded:
        _discarded_results.inc(discarded)


def callback_answered(gateway: str, result: str) -> None:
    """Count a call of a gateway that brings receipts or replies."""
    _callbacks_of(gateway, result).inc()


def receipts_stored(applied: int, early: int, ignored: int) -> None:
    """Count receipts of one transaction by their result."""
    for result, receipts in (("applied", applied), ("early", early), ("ignored", ignored)):
        if receipts:
            _receipts.labels(result).inc(receipts)


def replies_stored(gateway: str, replies: int) -> None:
    """Count replies of one transaction."""
    _replies.labels(gateway).inc(replies)


def answer_recorded(gateway: str, status: str) -> None:
    """Count a recorded result of an answer."""
    _answers.labels(gateway, status).inc()


def gateway_latency(gateway: str) -> HistogramSeries:
    """Return the series that counts the durations of a gateway's requests, in seconds.

    Every request is counted, whatever its outcome.
    """
    return _gateway_latency.series(gateway)


def loop_lag_measured(seconds: float) -> None:
    """Record how late the event loop ran the loop monitor's callback."""
    _loop_lag.series().observe(seconds)


def watch_gateway_requests(gateway: str, count: Callable[[], int]) -> None:
    """Export the number of a gateway's requests in flight, read from `count` at each scrape."""
    _gateway_requests.labels(gateway).set_function(count)


def http_request_answered(method: str, route: str, status: int, seconds: float) -> None:
    """Count an HTTP request by the route that answered it, and record its duration."""
    _http_requests.labels(method, route, str(status)).inc()
    _http_seconds.labels(route).observe(seconds)


def watch_pool(name: str, usage: Callable[[], tuple[int, int]]) -> None:
    """Export a pool's connections. `usage` returns how many are in use and how many are idle."""
    _connections.labels(name, "used").set_function(lambda: usage()[0])
    _connections.labels(name, "idle").set_function(lambda: usage()[1])


# By the field of `mailer.statistics.backlog.Backlog` that each shows. They are in no registry,
# because they are exported only when the database could be read.
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
    "webhook_deliveries": Gauge(
        "mailer_webhook_waiting_deliveries",
        "Events that wait for an attempt to deliver them to a webhook.",
        registry=None,
    ),
    "webhooks_disabled": Gauge(
        "mailer_webhooks_disabled",
        "Webhooks that mailer has disabled because they fail.",
        registry=None,
    ),
}


_deliveries = Gauge(
    "mailer_gateway_deliveries",
    "Messages that the gateway accepted in the last hour (period: hour) or in the 24 hours before"
    " (day_before), by what receipts say. Only of gateways that send receipts.",
    ["gateway", "period", "result"],
    registry=None,
)
DeliveryNumbers = Mapping[tuple[str, str, str], int]
"""Numbers of messages by gateway, period and result."""


def exposition(
    backlog: Mapping[str, float] | None, deliveries: DeliveryNumbers, *, is_up: bool
) -> bytes:
    """Return all metrics in Prometheus' text format.

    `backlog` has a value for each name in `_backlog`. It is None when the database could not be
    read; then its metrics and the deliveries are left out. `is_up` is whether the database
    answered.
    """
    _database_up.set(is_up)
    text = generate_latest(REGISTRY)
    if backlog is None:
        return text
    backlog_registry = CollectorRegistry()
    for name, gauge in _backlog.items():
        gauge.set(backlog[name])
        backlog_registry.register(gauge)
    _deliveries.clear()
    for labels, messages in deliveries.items():
        _deliveries.labels(*labels).set(messages)
    backlog_registry.register(_deliveries)
    return text + generate_latest(backlog_registry)
