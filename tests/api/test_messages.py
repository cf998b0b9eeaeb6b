"""`/messages`: the messages of all mailings, and one of them with its text and history."""

from datetime import timedelta
from typing import Any

import httpx
import pytest
from sqlalchemy.ext.asyncio import AsyncEngine
from tests.api.calls import field_errors
from tests.factories import NOON, add_clients, add_mailing, add_mailings, add_messages, execute

from mailer.sample_data import SampleMailing

ANNA, BORIS = "79160000001", "79160000002"
"""The phones of the first two clients."""


async def two_mailings(engine: AsyncEngine) -> tuple[int, int]:
    """Create two mailings to Anna and Boris, and return their ids.

    Anna has got the message of the first one. That of the second one waits, and was not delivered
    to Boris, who did not get the first one either.
    """
    clients = await add_clients(engine, 2)
    first, second = [await add_mailing(engine, clients=2) for _ in range(2)]
    await add_messages(engine, first, clients[:1], "delivered")
    await add_messages(engine, first, clients[1:], "undelivered", "rejected_400")
    await add_messages(engine, second, clients[:1], "scheduled")
    await add_messages(engine, second, clients[1:], "undelivered", "rejected_400")
    return first, second


async def listed(api: httpx.AsyncClient, query: str) -> list[dict[str, Any]]:
    """Return the messages of a list, and check their number."""
    response = await api.get(f"/messages?{query}")
    assert response.status_code == 200, response.text
    page = response.json()
    assert page["count"] == len(page["results"])
    results: list[dict[str, Any]] = page["results"]
    return results


async def test_messages_of_all_mailings_are_listed_newest_first_with_phones(
    api: httpx.AsyncClient, engine: AsyncEngine
) -> None:
    first, second = await two_mailings(engine)
    messages = await listed(api, "")
    assert [message["id"] for message in messages] == [4, 3, 2, 1]
    assert [message["mailing_id"] for message in messages] == [second, second, first, first]
    assert [message["phone"] for message in messages] == [BORIS, ANNA, BORIS, ANNA]


@pytest.mark.parametrize(
    ("query", "ids"),
    [
        (f"phone={ANNA}", [3, 1]),
        (f"phone={BORIS}", [4, 2]),
        ("phone=79169999999", []),
        ("client_id=1", [3, 1]),
        ("client_id=9", []),
        (f"client_id=1&phone={ANNA}", [3, 1]),
        (f"client_id=1&phone={BORIS}", []),
        ("client_id=1&status=delivered", [1]),
        ("client_id=1&status=scheduled", [3]),
        ("client_id=1&status=sending", []),
        ("client_id=1&status=undelivered", []),
        ("status=undelivered", [4, 2]),
        ("status=delivered", [1]),
        ("status=scheduled", [3]),
        ("status=unknown", []),
    ],
)
async def test_messages_match_all_given_filters(
    api: httpx.AsyncClient, engine: AsyncEngine, query: str, ids: list[int]
) -> None:
    await two_mailings(engine)
    assert [message["id"] for message in await listed(api, query)] == ids


@pytest.mark.parametrize(
    ("query", "field", "message"),
    [
        ("phone=%2B79160000001", "phone", "must be 7 and ten more digits, such as 79161234567"),
        ("phone=0001", "phone", "must be 7 and ten more digits, such as 79161234567"),
        ("client_id=0", "client_id", "must be a number from 1 to 9007199254740991"),
        ("status=odd", "status", ""),
        ("limit=1001", "limit", "must be a number from 1 to 1000"),
        ("mailing_id=1", "mailing_id", "is not a known field"),
    ],
)
async def test_a_wrong_filter_is_400(
    api: httpx.AsyncClient, query: str, field: str, message: str
) -> None:
    response = await api.get(f"/messages?{query}")
    assert response.status_code == 400
    assert message in field_errors(response)[field]


@pytest.mark.parametrize("filters", ["", "&client_id=1", "&status=delivered"])
async def test_pages_lead_through_all_messages_and_back(
    api: httpx.AsyncClient, engine: AsyncEngine, filters: str
) -> None:
    [client_id] = await add_clients(engine, 1)
    mailings = await add_mailings(engine, *[SampleMailing(start=NOON, clients=1)] * 7)
    for mailing_id in mailings:
        await add_messages(engine, mailing_id, [client_id], "delivered")
    seen, page = list[int](), (await api.get(f"/messages?limit=3{filters}")).json()
    pages = [page]
    while page["next"] is not None:
        page = (await api.get(page["next"])).json()
        pages.append(page)
    for page in pages:
        assert page["count"] == 7
        seen += [message["id"] for message in page["results"]]
    assert seen == [7, 6, 5, 4, 3, 2, 1]
    before_last = (await api.get(pages[-1]["previous"])).json()
    assert before_last["results"] == pages[-2]["results"]


async def test_a_deleted_client_leaves_messages_without_phone(
    api: httpx.AsyncClient, engine: AsyncEngine
) -> None:
    first, _ = await two_mailings(engine)
    await api.delete("/clients/1")
    assert await listed(api, f"phone={ANNA}") == []
    messages = await listed(api, "client_id=1")
    assert [(each["status"], each["phone"]) for each in messages] == [
        ("cancelled", None),
        ("delivered", None),
    ]
    of_mailing = (await api.get(f"/mailings/{first}/messages?client_id=1")).json()["results"]
    assert of_mailing == messages[1:]


async def test_messages_of_deleted_mailings_are_not_shown(
    api: httpx.AsyncClient, engine: AsyncEngine
) -> None:
    await two_mailings(engine)
    await execute(engine, "UPDATE mailing SET deleted_at = now() WHERE id = 2")
    assert [message["id"] for message in await listed(api, "")] == [2, 1]
    assert [message["id"] for message in await listed(api, "client_id=1")] == [1]
    assert [message["id"] for message in await listed(api, "client_id=2")] == [2]
    assert [message["id"] for message in await listed(api, "status=undelivered")] == [2]
    assert (await api.get("/messages/4")).status_code == 404
    assert (await api.get("/messages/2")).status_code == 200


async def test_a_message_is_returned_with_its_text_and_history(
    api: httpx.AsyncClient, engine: AsyncEngine
) -> None:
    [client_id] = await add_clients(engine, 1, time_zone="Asia/Omsk")
    [mailing_id] = await add_mailings(
        engine, SampleMailing(start=NOON, clients=1, text="Your order is ready.")
    )
    await add_messages(engine, mailing_id, [client_id], "delivered", at=NOON + timedelta(hours=1))
    await execute(
        engine,
        """UPDATE message SET gateway = 'main', attempts = 2, failures = '[{"attempt": 1,
            "claimed_at": "2030-01-15T06:00:00Z", "ended_at": "2030-01-15T06:00:10Z",
            "reason": "timeout", "gateway": "main"}]', receipts = '[{"status": "delivered",
            "at": "2030-01-15T06:01:00Z", "gateway": "main", "code": "000"}]'""",
    )
    [in_list] = await listed(api, "client_id=1")
    message = (await api.get("/messages/1")).json()
    assert message | in_list == message
    assert message["text"] == "Your order is ready."
    assert message["phone"] == ANNA
    assert (message["operator_code"], message["time_zone"]) == ("916", "Asia/Omsk")
    assert message["failures"] == [
        {
            "attempt": 1,
            "claimed_at": "2030-01-15T06:00:00Z",
            "ended_at": "2030-01-15T06:00:10Z",
            "reason": "timeout",
            "gateway": "main",
        }
    ]
    assert message["receipts"] == [
        {"at": "2030-01-15T06:01:00Z", "status": "delivered", "gateway": "main", "code": "000"}
    ]


async def test_an_unknown_message_is_404(api: httpx.AsyncClient) -> None:
    for message_id in (1, 2**53 - 1):
        assert (await api.get(f"/messages/{message_id}")).status_code == 404
