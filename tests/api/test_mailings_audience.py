"""Mailings over the API: filter, audience and counts.

The fixture `clients` creates four clients, who have names for the tests: see `CLIENTS`.
"""

from typing import Any

import httpx
import pytest
from sqlalchemy import func
from sqlalchemy.ext.asyncio import AsyncEngine
from tests.api.calls import (
    COUNT_FIELDS,
    DUE,
    NEW,
    create_mailing,
    messages_by_client,
    update_messages,
)
from tests.factories import do, start_and_enqueue

from mailer.mailing import finishing

# ---- the filter -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("client_filter", "matching"),
    [
        (None, {"vip", "moscow", "tagged 912", "blank"}),
        ("912", {"moscow", "tagged 912"}),
        ("vip", {"vip"}),
        ("912, vip", {"moscow", "tagged 912", "vip"}),
        ("  912  ,vip,", {"moscow", "tagged 912", "vip"}),
        ("two words", {"blank"}),
        ("words", set()),
        ("VIP", {"vip"}),
        (" Vip\u200b", {"vip"}),
        ("91", set()),
        ("9120", set()),
        ("79120000002", set()),
        ("Europe/Moscow", set()),
        ("%, _ip, .*", set()),
        ({"operator_codes": ["912"]}, {"moscow"}),
        ({"operator_codes": ["912", "916", "912"]}, {"moscow", "vip"}),
        ({"tags": ["912"]}, {"tagged 912"}),
        ({"tags": ["912", "vip"]}, {"tagged 912", "vip"}),
        ({"time_zones": ["UTC"]}, {"vip", "blank"}),
        ({"time_zones": ["UTC", "Asia/Kathmandu"]}, {"vip", "blank", "tagged 912"}),
        ({"operator_codes": ["912", "903"], "tags": ["912"]}, {"tagged 912"}),
        ({"operator_codes": ["912"], "tags": ["912"]}, set()),
        ({"operator_codes": ["916"], "tags": ["vip"], "time_zones": ["UTC"]}, {"vip"}),
        ({"operator_codes": ["916"], "tags": ["vip"], "time_zones": ["Asia/Tokyo"]}, set()),
    ],
)
async def test_a_filter_is_returned_as_given_and_matches_its_audience(
    api: httpx.AsyncClient,
    engine: AsyncEngine,
    clients: dict[str, int],
    client_filter: Any,
    matching: set[str],
) -> None:
    created = await create_mailing(api, DUE | {"client_filter": client_filter})
    assert created["client_filter"] == client_filter
    assert created["clients_count"] == len(matching)

    await start_and_enqueue(engine)

    mailing = (await api.get(f"/mailings/{created['id']}")).json()
    assert mailing["client_filter"] == client_filter
    assert mailing["clients_count"] == len(matching)
    assert (await messages_by_client(api, created["id"])).keys() == {
        clients[name] for name in matching
    }


async def test_a_deleted_client_is_in_no_audience(
    api: httpx.AsyncClient, engine: AsyncEngine, clients: dict[str, int]
) -> None:
    created = await create_mailing(api, DUE)

    await api.delete(f"/clients/{clients['vip']}")

    assert (await create_mailing(api, NEW))["clients_count"] == 3
    await start_and_enqueue(engine)
    assert clients["vip"] not in await messages_by_client(api, created["id"])


# ---- counts ---------------------------------------------------------------------------------


@pytest.mark.usefixtures("clients")
async def test_before_the_start_the_audience_counts_as_scheduled_without_messages(
    api: httpx.AsyncClient,
) -> None:
    created = await create_mailing(api, NEW | {"client_filter": "912"})
    assert created["clients_count"] == created["scheduled_messages"] == 2
    assert created["created_messages"] == 0
    assert sum(created[name] for name in COUNT_FIELDS) == 2
    assert (await api.get(f"/mailings/{created['id']}/messages")).json()["results"] == []


async def test_from_the_start_on_the_counters_add_up(
    api: httpx.AsyncClient, engine: AsyncEngine, clients: dict[str, int]
) -> None:
    created = await create_mailing(api, DUE)
    created_before_the_start = await api.post("/clients", json={"phone": "79160000009"})
    await start_and_enqueue(engine)
    await api.post("/clients", json={"phone": "79160000010"})  # not in the audience
    await update_messages(engine, clients["vip"], status="delivered", sent_at=func.now())
    await update_messages(engine, clients["moscow"], status="undelivered", reason="rejected_400")
    await update_messages(engine, clients["tagged 912"], status="unknown", reason="timeout")
    await update_messages(engine, clients["blank"], status="cancelled", reason="expired")

    mailing = (await api.get(f"/mailings/{created['id']}")).json()
    assert mailing["status"] == "running"
    assert mailing["clients_count"] == mailing["created_messages"] == 5
    assert {name: mailing[name] for name in COUNT_FIELDS} == {
        "scheduled_messages": 1,
        "sending_messages": 0,
        "sent_messages": 0,
        "delivered_messages": 1,
        "undelivered_messages": 1,
        "unknown_messages": 1,
        "cancelled_messages": 1,
    }
    assert created_before_the_start.json()["id"] in await messages_by_client(api, created["id"])


async def test_an_audience_may_be_empty(api: httpx.AsyncClient, engine: AsyncEngine) -> None:
    created = await create_mailing(api, DUE)
    await start_and_enqueue(engine)
    mailing = (await api.get(f"/mailings/{created['id']}")).json()
    assert mailing["clients_count"] == mailing["created_messages"] == 0
    assert await do(engine, finishing.finish) == [(created["id"], "finished")]
