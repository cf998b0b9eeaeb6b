"""What tests of mailings over HTTP share."""

from typing import Any

import httpx
from sqlalchemy import update
from sqlalchemy.ext.asyncio import AsyncEngine

from mailer.db.schema import message

NEW = {
    "datetime_start": "2040-01-01T09:00:00Z",
    "datetime_end": "2040-01-02T09:00:00Z",
    "text": "Your order is ready.",
}
DUE = NEW | {"datetime_start": "2020-01-01T09:00:00Z"}
LEDGER = [
    "scheduled_messages",
    "sending_messages",
    "delivered_messages",
    "undelivered_messages",
    "unknown_messages",
    "cancelled_messages",
]
FIELDS = {
    *("id", "datetime_start", "datetime_end", "text", "client_filter", "on_unknown", "status"),
    *("send_interval_time_start", "send_interval_time_end", "clients_count", "created_messages"),
    *LEDGER,
    *("created_at", "updated_at", "held"),
}
DIRECTORY = {
    "vip": {"phone": "79160000001", "tag": "vip"},
    "moscow": {"phone": "79120000002", "time_zone": "Europe/Moscow"},
    "tagged 912": {"phone": "79030000003", "tag": "912", "time_zone": "Asia/Kathmandu"},
    "blank": {"phone": "79990000004", "tag": "two words"},
}


async def create(api: httpx.AsyncClient, given: dict[str, Any]) -> dict[str, Any]:
    answer = await api.post("/mailings", json=given)
    assert answer.status_code == 201
    created: dict[str, Any] = answer.json()
    return created


async def mark(engine: AsyncEngine, client_id: int, **columns: Any) -> None:
    """Let the messages for a client be in another state, as if sent."""
    async with engine.begin() as connection:
        await connection.execute(
            update(message).where(message.c.client_id == client_id).values(**columns)
        )


async def messages_of(api: httpx.AsyncClient, mailing_id: int) -> dict[int, dict[str, Any]]:
    """Return the messages of a mailing by client."""
    page = (await api.get(f"/mailings/{mailing_id}/messages?limit=1000")).json()
    return {row["client_id"]: row for row in page["results"]}


def errors(answer: httpx.Response) -> dict[str, str]:
    """Return what is wrong with each field."""
    return {error["field"]: error["message"] for error in answer.json()["errors"]}
