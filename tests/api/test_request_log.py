"""Requests in logs and metrics: their ids, log lines and counters."""

from collections.abc import AsyncIterator
from itertools import chain, repeat
from typing import Any

import httpx
import pytest
from sqlalchemy.ext.asyncio import AsyncEngine
from structlog.contextvars import merge_contextvars
from structlog.testing import capture_logs
from tests.asgi_client import inside
from tests.factories import OPEN

from mailer.app import create_app
from mailer.db.engine import create_engine
from mailer.metrics import REGISTRY
from mailer.web.request_log import log_requests


def client_of(engine: AsyncEngine) -> httpx.AsyncClient:
    """Return a client of the application behind the request log."""
    app = log_requests(create_app(engine, settings=OPEN))
    transport = inside(app)
    return httpx.AsyncClient(transport=transport, base_url="http://mailer")


@pytest.fixture
async def logged_api(engine: AsyncEngine) -> AsyncIterator[httpx.AsyncClient]:
    """A client of the application behind the request log."""
    async with client_of(engine) as client:
        yield client


def count_requests(method: str, route: str, status: str) -> float:
    """Return the requests that the metrics have counted under these labels."""
    labels = {"method": method, "route": route, "status": status}
    return REGISTRY.get_sample_value("mailer_http_requests_total", labels) or 0


async def test_log_lines_of_a_request_have_its_id(logged_api: httpx.AsyncClient) -> None:
    with capture_logs(processors=[merge_contextvars]) as logs:
        answers = [await logged_api.get("/api/v1/clients") for _ in range(2)]
    ids = [answer.headers["x-request-id"] for answer in answers]
    assert len(set(ids)) == 2
    assert [(line["event"], line["request_id"]) for line in logs] == [
        ("request_received", ids[0]),
        ("request_answered", ids[0]),
        ("request_received", ids[1]),
        ("request_answered", ids[1]),
    ]
    expected = {"log_level": "info", "method": "GET", "path": "/api/v1/clients", "status": 200}
    assert expected.items() <= logs[1].items()
    assert 0 < logs[1]["seconds"] < 10


async def test_events_caused_by_a_request_have_its_id(logged_api: httpx.AsyncClient) -> None:
    body = {
        "datetime_start": "2030-01-01T00:00:00Z",
        "datetime_end": "2030-01-02T00:00:00Z",
        "text": "An order",
    }
    with capture_logs(processors=[merge_contextvars]) as logs:
        answer = await logged_api.post(
            "/api/v1/mailings", json=body, headers={"x-request-id": "order-7"}
        )
    assert answer.status_code == 201
    assert {line["event"]: line["request_id"] for line in logs}["mailing_created"] == "order-7"


@pytest.mark.parametrize(
    ("request_id", "is_kept"),
    [("a-b_c.9", True), ("x" * 64, True), ("x" * 65, False), ("79161234567 ", False), ("", False)],
)
async def test_a_request_id_of_the_client_is_kept_if_it_is_safe_to_log(
    logged_api: httpx.AsyncClient, request_id: str, *, is_kept: bool
) -> None:
    answer = await logged_api.get("/health/live", headers={"x-request-id": request_id})
    assert (answer.headers["x-request-id"] == request_id) == is_kept


async def test_answers_are_logged_at_debug_for_probes_and_at_info_for_the_api(
    logged_api: httpx.AsyncClient,
) -> None:
    with capture_logs() as logs:
        await logged_api.get("/health/live")
        await logged_api.get("/api/v1/clients")
    answered = [line["log_level"] for line in logs if line["event"] == "request_answered"]
    assert answered == ["debug", "info"]


async def test_queries_and_unknown_paths_are_not_logged(logged_api: httpx.AsyncClient) -> None:
    with capture_logs() as logs:
        await logged_api.get("/api/v1/clients?phone=79161234567")
        await logged_api.get("/api/v1/clients/8 916 1234567")
    assert len(logs) == 4  # two requests, received and answered
    assert "1234567" not in str(logs)


@pytest.mark.parametrize(
    # a series of the metric: method, route and status
    ("method", "path", "series"),
    [
        ("GET", "/api/v1/mailings/77", ("GET", "/api/v1/mailings/{mailing_id}", "404")),
        ("GET", "/api/v1/clients/", ("GET", "/api/v1/clients", "200")),
        ("GET", "/no/such/page", ("GET", "none", "404")),
        ("BREW", "/api/v1/clients", ("other", "none", "405")),
    ],
)
async def test_requests_are_counted_by_route_and_status(
    logged_api: httpx.AsyncClient, method: str, path: str, series: tuple[str, str, str]
) -> None:
    before = count_requests(*series)
    await logged_api.request(method, path)
    assert count_requests(*series) == before + 1


async def test_an_aborted_upload_is_not_counted_as_a_server_error(
    engine: AsyncEngine,
) -> None:
    app = log_requests(create_app(engine, settings=OPEN))
    headers = [(b"content-type", b"text/csv"), (b"host", b"mailer")]
    scope = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": "POST",
        "scheme": "http",
        "path": "/api/v1/clients/import",
        "raw_path": b"",
        "root_path": "",
        "query_string": b"",
        "headers": headers,
        "client": None,
        "server": ("mailer", 80),
    }
    start_of_body = {"type": "http.request", "body": b"phone\n", "more_body": True}
    disconnect = {"type": "http.disconnect"}  # a server repeats it at each further call
    messages = chain([start_of_body], repeat(disconnect))

    async def receive() -> Any:
        return next(messages)

    async def send(_: object) -> None:
        pass

    series = ("POST", "/api/v1/clients/import", "499")
    before = count_requests(*series)
    await app(scope, receive, send)  # type: ignore[arg-type]  # an incomplete scope
    assert count_requests(*series) == before + 1


async def test_a_failed_request_is_counted_and_has_an_id() -> None:
    engine = create_engine("postgresql://127.0.0.1:1/")  # there is no database
    async with client_of(engine) as logged_api:
        before = count_requests("GET", "/api/v1/statistics", "503")
        answer = await logged_api.get("/api/v1/statistics")
    assert (answer.status_code, "x-request-id" in answer.headers) == (503, True)
    assert count_requests("GET", "/api/v1/statistics", "503") == before + 1
    await engine.dispose()
