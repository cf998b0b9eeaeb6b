from collections.abc import AsyncIterator, Iterator

import httpx
import pytest
from prometheus_client import CollectorRegistry, Counter
from prometheus_client.parser import text_string_to_metric_families

from mailer import metrics
from mailer.app import create_app
from mailer.db.engine import create_engine


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
    transport = httpx.ASGITransport(create_app(engine), raise_app_exceptions=False)  # type: ignore[arg-type]
    async with httpx.AsyncClient(transport=transport, base_url="http://mailer") as client:
        yield client
    await engine.dispose()


async def test_process_is_shown_without_a_database(api: httpx.AsyncClient) -> None:
    found = await samples(api)
    assert found["process_resident_memory_bytes"] > 1_000_000
    assert any(name.startswith("python_info ") for name in found)


async def test_messages_are_counted_by_outcome_and_reason(api: httpx.AsyncClient) -> None:
    before = await samples(api)
    metrics.finished([("delivered", None), ("scheduled", "timeout"), ("delivered", None)], late=1)
    after = await samples(api)

    def grown(name: str) -> float:
        return after[name] - before.get(name, 0)

    assert grown("mailer_messages_finished_total outcome=delivered reason=") == 2
    assert grown("mailer_messages_finished_total outcome=scheduled reason=timeout") == 1
    assert grown("mailer_messages_late_total") == 1


async def test_requests_to_the_gateway_are_counted_and_timed(api: httpx.AsyncClient) -> None:
    in_flight = "mailer_gateway_requests_in_flight"
    count = "mailer_gateway_request_duration_seconds_count"
    before = await samples(api)
    with metrics.gateway_request():
        under_way = await samples(api)
    after = await samples(api)

    assert under_way[in_flight] == before[in_flight] + 1
    assert after[in_flight] == before[in_flight]
    assert after[count] == before[count] + 1


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
