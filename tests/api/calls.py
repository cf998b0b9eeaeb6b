"""Payloads and calls that tests of the API for mailings share."""

from typing import Any

import httpx
from sqlalchemy import update
from sqlalchemy.ext.asyncio import AsyncEngine

from mailer.db.tables.message import message
from mailer.statuses import MESSAGE_STATUSES

NEW = {
    "datetime_start": "2040-01-01T09:00:00Z",
    "datetime_end": "2040-01-02T09:00:00Z",
    "text": "Your order is ready.",
}
"""A mailing that starts in 2040."""
DUE = NEW | {"datetime_start": "2020-01-01T09:00:00Z"}
"""A mailing whose start has passed."""
COUNT_FIELDS = [f"{status}_messages" for status in MESSAGE_STATUSES]
"""The counts of a mailing in a response, one for each status of messages."""
MAILING_FIELDS = {
    *(
        "id",
        "name",
        "labels",
        "datetime_start",
        "datetime_end",
        "text",
        "client_filter",
        "on_unknown",
        "priority",
        "rate",
        "status",
    ),
    *("send_interval_time_start", "send_interval_time_end", "clients_count", "created_messages"),
    *COUNT_FIELDS,
    *("purpose", "gateway", "sender", "text_version", "created_at", "updated_at", "held"),
}
"""All fields of a mailing in a response."""
CLIENTS = {
    "vip": {"phone": "79160000001", "tag": "vip"},
    "moscow": {"phone": "79120000002", "time_zone": "Europe/Moscow"},
    "tagged 912": {"phone": "79030000003", "tag": "912", "time_zone": "Asia/Kathmandu"},
    "blank": {"phone": "79990000004", "tag": "two words"},
}
"""Clients by what a filter can ask for: the fixture `clients` creates them."""


async def create_mailing(api: httpx.AsyncClient, payload: dict[str, Any]) -> dict[str, Any]:
    """Create a mailing from the JSON `payload` and return it."""
    response = await api.post("/mailings", json=payload)
    assert response.status_code == 201
    created: dict[str, Any] = response.json()
    return created


async def update_messages(engine: AsyncEngine, client_id: int, **columns: Any) -> None:
    """Set columns of a client's messages, as a worker would."""
    async with engine.begin() as connection:
        await connection.execute(
            update(message).where(message.c.client_id == client_id).values(**columns)
        )


async def messages_by_client(api: httpx.AsyncClient, mailing_id: int) -> dict[int, dict[str, Any]]:
    """Return the messages of a mailing by client id."""
    page = (await api.get(f"/mailings/{mailing_id}/messages?limit=1000")).json()
    return {row["client_id"]: row for row in page["results"]}


def field_errors(response: httpx.Response) -> dict[str, str]:
    """Return the error message of each wrong field in a response."""
    return {error["field"]: error["message"] for error in response.json()["errors"]}
