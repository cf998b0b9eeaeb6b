from collections.abc import AsyncIterator, Iterator

import httpx
import pytest
from prometheus_client import CollectorRegistry, Counter
from prometheus_client.parser import text_string_to_metric_families
from tests.asked import inside
from tests.sample import OPEN

from mailer import metrics
from mailer.app import create_app
from mailer.db.engine import create_engine

STATES: tuple[metrics.BreakerState, ...] = ("closed", "open", "half_open")


async def samples(api: httpx.AsyncClient) -> dict[str, float]:
    """Every sample that is exposed, by its name and labels."""
    answer = await api.get("/metrics")
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
    return {
        " ".join(
            [sample.name, *(f"{k}={v}" for k, v in sorted(sample.labels.items()))]
        ): sample.value
        for family in text_string_to_metric_families(answer.text)
        for sample in family.samples
    }


@pytest.fixture
async def api() -> AsyncIterator[httpx.AsyncClient]:
    """The application with its database away: metrics need none."""
    engine = create_engine("postgresql://127.0.0.1:1/")
    transport = inside(create_app(engine, settings=OPEN))
    async with httpx.AsyncClient(transport=transport, base_url="http://mailer") as client:
        yield client
    await engine.dispose()


async def test_process_is_shown_without_a_database_and_without_versions(
    api: httpx.AsyncClient,
) -> None:
    found = await samples(api)
    assert found["process_resident_memory_bytes"] > 1_000_000
    assert not any("_info" in name or "version" in name for name in found)


async def test_messages_are_counted_by_outcome_and_reason(api: httpx.AsyncClient) -> None:
    before = await samples(api)
    outcomes = [("delivered", None, 1), ("scheduled", "timeout", 1), ("delivered", None, 3)]
    metrics.finished(outcomes, late=1)
    after = await samples(api)

    def grown(name: str) -> float:
        return after[name] - before.get(name, 0)

    assert grown("mailer_messages_finished_total outcome=delivered reason=") == 2
    assert grown("mailer_messages_finished_total outcome=scheduled reason=timeout") == 1
    assert grown("mailer_messages_late_total") == 1
    assert grown("mailer_message_attempts_sum") == 4
    assert [grown(f"mailer_message_attempts_bucket le={n}") for n in ("0", "1", "2", "3")] == [
        *(0, 1, 1, 2)
    ]


async def test_requests_to_the_gateway_are_counted_and_timed(api: httpx.AsyncClient) -> None:
    name = "mailer_gateway_request_duration_seconds"
    before = await samples(api)
    for seconds in (0.003, 0.005, 0.3, 61):
        metrics.request_ended(seconds)
    after = await samples(api)

    def grown(series: str) -> float:
        return after[f"{name}_{series}"] - before[f"{name}_{series}"]

    assert grown("count") == 4
    assert grown("sum") == pytest.approx(61.308)
    bounds = ("0.005", "0.01", "0.25", "0.5", "60.0", "+Inf")
    assert [grown(f"bucket le={bound}") for bound in bounds] == [2, 2, 2, 3, 3, 4]


async def test_requests_under_way_are_shown_as_they_are_now(api: httpx.AsyncClient) -> None:
    under_way: list[str] = []
    metrics.watch_requests(under_way.__len__)
    for count in (0, 2):
        under_way += ["request"] * count
        assert (await samples(api))["mailer_gateway_requests_in_flight"] == count


async def test_breaker_shows_the_one_state_that_it_is_in(api: httpx.AsyncClient) -> None:
    openings = "mailer_gateway_breaker_openings_total"
    before = (await samples(api))[openings]
    for state in STATES:
        metrics.breaker(state)
        found = await samples(api)
        shown = {s: found[f"mailer_gateway_breaker_state state={s}"] for s in STATES}
        assert shown == {other: other == state for other in STATES}
    assert found[openings] == before + 1


async def test_claims_are_counted_by_size(api: httpx.AsyncClient) -> None:
    before = await samples(api)
    metrics.claimed(0)
    metrics.claimed(120)
    after = await samples(api)

    def grown(size: str) -> float:
        name = f"mailer_claim_messages_bucket le={size}"
        return after[name] - before[name]

    assert [grown(size) for size in ("0.0", "100.0", "200.0", "+Inf")] == [1, 1, 2, 2]


def test_reasons_beyond_the_bound_count_together() -> None:
    registry = CollectorRegistry()
    counter = Counter("finished", "", ["outcome", "reason"], registry=registry)
    bounded = metrics.BoundedCounter(counter, most=2)
    for number in (1, 2, 3, 4, 1):
        bounded.inc("undelivered", f"rejected_{number}", 10)

    def series() -> Iterator[tuple[str, float]]:
        for family in registry.collect():
            for sample in family.samples:
                yield sample.labels["reason"], sample.value

    assert dict(series()) == {"rejected_1": 20, "rejected_2": 10, "other": 20}


async def test_metrics_are_no_part_of_the_api(api: httpx.AsyncClient) -> None:
    schema = (await api.get("/openapi.json")).json()
    assert "/metrics" not in schema["paths"]
