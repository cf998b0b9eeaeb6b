"""The statistics of all mailings and of one, through the API."""

from datetime import timedelta
from typing import Any

import httpx
import msgspec
import pytest
from sqlalchemy.ext.asyncio import AsyncEngine
from tests.factories import NOON, add_clients, add_mailing, add_messages, execute

from mailer.statistics.model import GeneralStatistics, MailingStatistics
from mailer.statuses import MESSAGE_STATUSES, OUTCOMES


async def get(api: httpx.AsyncClient, path: str, status: int = 200) -> Any:
    """Return the JSON of an answer, which must have `status`."""
    answer = await api.get(path)
    assert answer.status_code == status, answer.text
    return answer.json()


@pytest.mark.parametrize("path", ["/statistics", "/statistics/"])
async def test_general_statistics_name_every_status(
    api: httpx.AsyncClient, engine: AsyncEngine, path: str
) -> None:
    mailing_id = await add_mailing(engine, clients=2)
    await add_messages(engine, mailing_id, await add_clients(engine, 2), "delivered")

    assert await get(api, path) == {
        "mailings": {"scheduled": 0, "running": 1, "paused": 0, "finished": 0, "cancelled": 0},
        "messages": dict.fromkeys(MESSAGE_STATUSES, 0) | {"delivered": 2},
    }


async def test_the_statistics_of_a_mailing_have_every_breakdown(
    api: httpx.AsyncClient, engine: AsyncEngine
) -> None:
    clients = await add_clients(engine, 2, "912", "Asia/Tokyo")
    mailing_id = await add_mailing(engine, clients=2)
    await add_messages(engine, mailing_id, clients[:1], "delivered")
    an_hour_later = NOON + timedelta(hours=1)
    await add_messages(engine, mailing_id, clients[1:], "undelivered", "timeout", at=an_hour_later)
    await execute(
        engine,
        "UPDATE message SET gateway = 'main', parts = CASE status WHEN 'delivered' THEN 2 END",
    )

    counts = dict.fromkeys(MESSAGE_STATUSES, 0) | {"delivered": 1, "undelivered": 1}
    no_outcomes = dict.fromkeys(OUTCOMES, 0)
    outcomes = no_outcomes | {"delivered": 1, "undelivered": 1}
    assert await get(api, f"/mailings/{mailing_id}/statistics?bucket=3600") == {
        "mailing_id": mailing_id,
        "clients_count": 2,
        "messages": counts,
        "reasons": [
            {"status": "delivered", "reason": None, "messages": 1},
            {"status": "undelivered", "reason": "timeout", "messages": 1},
        ],
        "operator_codes": [{"operator_code": "912", "messages": counts}],
        "time_zones": [{"time_zone": "Asia/Tokyo", "messages": counts}],
        "over_time": {
            "bucket": 3600,
            "buckets": [
                {"start": "2020-01-15T12:00:00Z", "messages": no_outcomes | {"delivered": 1}},
                {"start": "2020-01-15T13:00:00Z", "messages": no_outcomes | {"undelivered": 1}},
            ],
        },
        "rate": 0.0,
        "first_sent_at": "2020-01-15T12:00:00Z",
        "last_sent_at": "2020-01-15T12:00:00Z",
        "attempts": [{"attempts": 1, "messages": outcomes}],
        "gateways": [{"gateway": "main", "messages": outcomes, "parts": 2}],
        "text_versions": [],
        "expected_end": None,
        "cost": {"total": None, "gateways": [{"gateway": "main", "parts": 2, "cost": None}]},
    }


@pytest.mark.parametrize("mailing_id", ["1", "9" * 15])
async def test_statistics_of_an_unknown_mailing_are_404(
    api: httpx.AsyncClient, mailing_id: str
) -> None:
    problem = await get(api, f"/mailings/{mailing_id}/statistics", 404)
    assert problem["detail"] == "There is no such mailing."


async def test_an_id_out_of_range_is_refused(api: httpx.AsyncClient) -> None:
    await get(api, f"/mailings/{10**30}/statistics", 400)


@pytest.mark.parametrize(
    "query", ["bucket=0", "bucket=-1", "bucket=a", "bucket=1.5", "bucket=31536001", "bucket=1e30"]
)
async def test_a_bucket_out_of_range_is_refused(
    api: httpx.AsyncClient, engine: AsyncEngine, query: str
) -> None:
    mailing_id = await add_mailing(engine)
    problem = await get(api, f"/mailings/{mailing_id}/statistics?{query}", 400)
    assert problem["errors"] == [
        {"field": "bucket", "message": "must be a number of seconds from 1 to 31536000"}
    ]


async def test_a_bucket_that_results_in_too_many_buckets_is_refused(
    api: httpx.AsyncClient, engine: AsyncEngine
) -> None:
    clients = await add_clients(engine, 2)
    mailing_id = await add_mailing(engine)
    await add_messages(engine, mailing_id, clients[:1], "delivered")
    await add_messages(engine, mailing_id, clients[1:], "delivered", at=NOON + timedelta(hours=1))

    # an hour in 499 buckets, since it may touch one more: 8 seconds each, rounded up
    problem = await get(api, f"/mailings/{mailing_id}/statistics?bucket=1", 400)
    assert problem["errors"] == [
        {
            "field": "bucket",
            "message": "must be at least 8 (at most 500 buckets)"
            " and a multiple of 10 (the resolution of these counts)",
        }
    ]


async def test_an_unknown_parameter_is_refused(api: httpx.AsyncClient, engine: AsyncEngine) -> None:
    mailing_id = await add_mailing(engine)
    problem = await get(api, f"/mailings/{mailing_id}/statistics?limit=5", 400)
    assert problem["errors"] == [{"field": "limit", "message": "is not a known field"}]


async def test_the_schema_describes_statistics(api: httpx.AsyncClient) -> None:
    schema = (await api.get("http://mailer/openapi.json")).json()
    operation = schema["paths"]["/api/v1/mailings/{mailing_id}/statistics"]["get"]
    assert {parameter["name"] for parameter in operation["parameters"]} == {"mailing_id", "bucket"}
    models = schema["components"]["schemas"]
    assert set(models["MailingStatistics"]["properties"]) == set(MailingStatistics.EXAMPLE)
    assert msgspec.convert(MailingStatistics.EXAMPLE, MailingStatistics).rate == 4
    assert msgspec.convert(GeneralStatistics.EXAMPLE, GeneralStatistics).mailings.running == 1
