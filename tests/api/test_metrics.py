"""The metrics at /metrics."""

from collections.abc import AsyncIterator
from datetime import UTC, datetime

import httpx
import pytest
from prometheus_client import CollectorRegistry, Counter
from prometheus_client.parser import text_string_to_metric_families
from tests.asgi_client import inside
from tests.factories import OPEN, UnusedGateway, channel_of

from mailer import metrics
from mailer.app import create_app
from mailer.db.engine import create_engine
from mailer.gateway.breaker import BREAKER_STATES
from mailer.gateway.channel import Channel, Channels
from mailer.gateway.router import GatewayTables
from mailer.metric_types import BoundedCounter


async def samples(api: httpx.AsyncClient) -> dict[str, float]:
    """Return the value of each exposed series, by its name and labels, such as `name label=x`."""
    answer = await api.get("/metrics")
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
    return {
        " ".join(
            [sample.name, *(f"{label}={value}" for label, value in sorted(sample.labels.items()))]
        ): sample.value
        for family in text_string_to_metric_families(answer.text)
        for sample in family.samples
    }


@pytest.fixture
async def api() -> AsyncIterator[httpx.AsyncClient]:
    """The application with an unavailable database; metrics need none."""
    engine = create_engine("postgresql://127.0.0.1:1/")
    transport = inside(create_app(engine, settings=OPEN))
    async with httpx.AsyncClient(transport=transport, base_url="http://mailer") as client:
        yield client
    await engine.dispose()


async def test_process_metrics_need_no_database_and_reveal_no_version(
    api: httpx.AsyncClient,
) -> None:
    values = await samples(api)
    assert values["process_resident_memory_bytes"] > 1_000_000
    names = {name.partition(" ")[0] for name in values}  # without labels, such as routes
    assert not any("_info" in name or "version" in name for name in names)


async def test_message_results_are_counted_by_outcome_and_reason(api: httpx.AsyncClient) -> None:
    before = await samples(api)
    # each result is a gateway, a status, a reason and a number of attempts
    results = [
        ("main", "delivered", None, 1),
        ("main", "scheduled", "timeout", 1),
        ("main", "delivered", None, 3),
    ]
    metrics.results_recorded(results, discarded=1)
    after = await samples(api)

    def increase(name: str) -> float:
        return after[name] - before.get(name, 0)

    name = "mailer_message_results_total gateway=main"
    assert increase(f"{name} outcome=delivered reason=") == 2
    assert increase(f"{name} outcome=scheduled reason=timeout") == 1
    assert increase("mailer_results_discarded_total") == 1
    # only of the two delivered messages
    assert increase("mailer_message_attempts_sum") == 1 + 3
    messages_by_bound = {"0": 0, "1": 1, "2": 1, "3": 2}  # with at most so many attempts
    for bound, messages in messages_by_bound.items():
        assert increase(f"mailer_message_attempts_bucket le={bound}") == messages, bound


async def test_requests_to_the_gateway_are_counted_and_timed(api: httpx.AsyncClient) -> None:
    name = "mailer_gateway_request_duration_seconds"
    before = await samples(api)
    for seconds in (0.003, 0.005, 0.3, 61):
        metrics.gateway_latency("main").observe(seconds)
    after = await samples(api)

    def increase(series: str) -> float:
        return after[f"{name}_{series}"] - before.get(f"{name}_{series}", 0)

    assert increase("count gateway=main") == 4
    assert increase("sum gateway=main") == pytest.approx(61.308)
    # with at most so many seconds; a bound belongs to its bucket
    requests_by_bound = {"0.005": 2, "0.01": 2, "0.25": 2, "0.5": 3, "60.0": 3, "+Inf": 4}
    for bound, requests in requests_by_bound.items():
        assert increase(f"bucket gateway=main le={bound}") == requests, bound


async def test_requests_in_flight_are_read_at_scrape_time(api: httpx.AsyncClient) -> None:
    in_flight: list[str] = []
    metrics.watch_gateway_requests("main", in_flight.__len__)
    for count in (0, 2):
        in_flight += ["request"] * count
        assert (await samples(api))["mailer_gateway_requests_in_flight gateway=main"] == count


async def test_exactly_one_breaker_state_is_set(api: httpx.AsyncClient) -> None:
    openings = "mailer_gateway_breaker_openings_total gateway=main"
    before = (await samples(api)).get(openings, 0)
    for state in BREAKER_STATES:
        metrics.breaker_changed("main", state, BREAKER_STATES)
        values = await samples(api)
        gauges = {
            each: values[f"mailer_gateway_breaker_state gateway=main state={each}"]
            for each in BREAKER_STATES
        }
        assert gauges == {each: each == state for each in BREAKER_STATES}
    assert values[openings] == before + 1


def channel(name: str) -> Channel:
    return channel_of(UnusedGateway(), OPEN, name=name)


async def test_paused_gateways_are_1_and_others_0(api: httpx.AsyncClient) -> None:
    channels = Channels([channel("one"), channel("two")])

    async def paused() -> list[float]:
        values = await samples(api)
        return [values[f"mailer_gateway_paused gateway={name}"] for name in ("one", "two")]

    assert await paused() == [0, 0]
    channels.update(GatewayTables(routes={}, paused_at={"two": datetime.now(UTC)}))
    assert await paused() == [0, 1]
    channels.replace([*channels])
    assert await paused() == [0, 1]
    channels.update(GatewayTables(routes={}, paused_at={}))
    assert await paused() == [0, 0]


async def test_metrics_of_a_gateway_end_when_a_reload_removes_it(api: httpx.AsyncClient) -> None:
    kept, removed = channel("kept"), channel("removed")
    channels = Channels([kept, removed])
    for name in ("kept", "removed"):
        metrics.breaker_changed(name, "open", BREAKER_STATES)
        metrics.results_recorded([(name, "delivered", None, 1)], discarded=0)
        metrics.gateway_latency(name).observe(0.1)
        metrics.watch_gateway_requests(name, int)

    async def names_of(gateway: str) -> set[str]:
        labels = f"gateway={gateway}"
        return {name.split()[0] for name in await samples(api) if labels in name.split()}

    names = await names_of("removed")
    assert "mailer_message_results_total" in names
    assert {"_".join(name.split("_")[:2]) for name in names} == {"mailer_gateway", "mailer_message"}
    assert len(names) == 8  # the histogram has three

    channels.replace([kept])
    removed.report_breaker(0)  # after its last request

    assert await names_of("removed") == set()
    assert await names_of("kept") == names


async def test_replaced_channel_does_not_show_its_breaker_as_that_of_its_successor(
    api: httpx.AsyncClient,
) -> None:
    replaced = channel("main")
    channels = Channels([replaced])
    channels.replace([channel("main")])
    replaced.breaker.state = "open"
    replaced.report_breaker(0)
    assert (await samples(api))["mailer_gateway_breaker_state gateway=main state=closed"] == 1


async def test_claim_batches_are_counted_by_size(api: httpx.AsyncClient) -> None:
    before = await samples(api)
    metrics.messages_claimed(0)
    metrics.messages_claimed(120)
    after = await samples(api)

    claims_by_bound = {"0.0": 1, "100.0": 1, "200.0": 2, "+Inf": 2}  # of at most so many messages
    for bound, claims in claims_by_bound.items():
        name = f"mailer_claim_batch_size_bucket le={bound}"
        assert after[name] - before[name] == claims, bound


def test_reasons_over_the_limit_are_counted_as_other() -> None:
    registry = CollectorRegistry()
    counter = Counter("finished", "", ["gateway", "outcome", "reason"], registry=registry)
    bounded = BoundedCounter(counter, max_series=2)
    for number in (1, 2, 3, 4, 1):
        bounded.inc("main", "undelivered", f"rejected_{number}", 10)

    counts_by_reason = {
        sample.labels["reason"]: sample.value
        for family in registry.collect()
        for sample in family.samples
    }
    assert counts_by_reason == {"rejected_1": 20, "rejected_2": 10, "other": 20}


def test_series_of_a_removed_gateway_make_room_for_others() -> None:
    registry = CollectorRegistry()
    counter = Counter("finished", "", ["gateway", "outcome", "reason"], registry=registry)
    bounded = BoundedCounter(counter, max_series=1)
    for reason in ("timeout", "http_500"):
        bounded.inc("old", "undelivered", reason, 1)

    bounded.remove("old")
    bounded.inc("new", "undelivered", "timeout", 3)

    labels = {"gateway": "new", "outcome": "undelivered", "reason": "timeout"}
    assert registry.get_sample_value("finished_total", labels) == 3
    labels_of_old = [
        sample.labels
        for family in registry.collect()
        for sample in family.samples
        if sample.labels["gateway"] == "old"
    ]
    assert labels_of_old == []


async def test_metrics_are_not_in_the_openapi_schema(api: httpx.AsyncClient) -> None:
    schema = (await api.get("/openapi.json")).json()
    assert "/metrics" not in schema["paths"]
