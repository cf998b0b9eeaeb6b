"""Events of webhooks: what the database writes, and in which transaction."""

import json
from functools import partial
from typing import Any

import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine
from tests.factories import (
    add_clients,
    add_due_messages,
    add_mailing,
    add_messages,
    advance,
    do,
    execute,
    value,
)
from tests.webhook_receiver import add_webhook, deliveries

from mailer.opt_out.service import opt_in_phone, opt_out_phone
from mailer.webhook import store

URL = "https://shop.example/"
FINAL = [
    ("delivered", None),
    ("undelivered", "rejected_400"),
    ("unknown", "timeout"),
    ("cancelled", "expired"),
    ("sent", "no_receipt"),
]


async def events(engine: AsyncEngine) -> list[tuple[str, Any]]:
    """Return the types and the data of all events for the only endpoint, oldest first."""
    return [(row["type"], row["data"]) for row in await deliveries(engine)]


async def set_messages(engine: AsyncEngine, assignment: str) -> None:
    await execute(engine, f"UPDATE message SET {assignment}, updated_at = now()")  # noqa: S608  # of a test


# ---- messages --------------------------------------------------------------------------------


@pytest.mark.parametrize(("status", "reason"), FINAL)
async def test_an_event_tells_of_messages_that_have_got_a_final_status(
    engine: AsyncEngine, status: str, reason: str | None
) -> None:
    await add_webhook(engine, URL, ["messages.finished"])
    mailing_id = await add_due_messages(engine, 2)
    assert await events(engine) == []
    quoted = "NULL" if reason is None else f"'{reason}'"
    await set_messages(
        engine,
        f"status = '{status}', reason = {quoted}, gateway = 'main',"
        " gateway_message_id = 'g-1', parts = 2, sent_at = now()",
    )
    [(kind, data)] = await events(engine)
    assert kind == "messages.finished"
    first = await value(engine, "SELECT min(id) FROM message")
    updated_at = await value(engine, "SELECT min(updated_at) FROM message")
    assert [message["id"] for message in data["messages"]] == [first, first + 1]
    assert data["messages"][0] == {
        "id": first,
        "mailing_id": mailing_id,
        "client_id": await value(engine, f"SELECT client_id FROM message WHERE id = {first}"),  # noqa: S608  # a number
        "status": status,
        "reason": reason,
        "gateway": "main",
        "gateway_message_id": "g-1",
        "parts": 2,
        "updated_at": updated_at.isoformat().replace("+00:00", "Z"),
    }


async def test_an_event_has_neither_phone_nor_text(engine: AsyncEngine) -> None:
    await add_webhook(engine, URL)
    await add_due_messages(engine, 1)
    await set_messages(engine, "status = 'delivered', sent_at = now()")
    phone = await value(engine, "SELECT phone FROM client")
    mailing_text = await value(engine, "SELECT text FROM mailing")
    written = json.dumps(await events(engine))
    assert phone not in written
    assert mailing_text not in written


async def test_messages_of_one_statement_are_split_into_events_of_500(engine: AsyncEngine) -> None:
    await add_webhook(engine, URL, ["messages.finished"])
    await add_due_messages(engine, 1_001)
    await set_messages(engine, "status = 'delivered', sent_at = now()")
    found = await events(engine)
    assert [len(data["messages"]) for _, data in found] == [500, 500, 1]
    ids = [message["id"] for _, data in found for message in data["messages"]]
    assert len(set(ids)) == 1_001


async def test_a_claim_and_a_retry_are_no_events(engine: AsyncEngine) -> None:
    await add_webhook(engine, URL, ["messages.finished"])
    await add_due_messages(engine, 1)
    await set_messages(
        engine,
        "status = 'sending', lease_owner = gen_random_uuid(), lease_expires_at = now()",
    )
    await set_messages(
        engine,
        "status = 'scheduled', lease_owner = NULL, lease_expires_at = NULL, reason = 'timeout'",
    )
    assert await events(engine) == []


async def test_a_final_message_is_told_again_only_when_its_status_changes(
    engine: AsyncEngine,
) -> None:
    await add_webhook(engine, URL, ["messages.finished"])
    await add_due_messages(engine, 1)
    await set_messages(engine, "status = 'undelivered', reason = 'rejected_400', sent_at = now()")
    await set_messages(engine, "parts = 3")
    await set_messages(engine, "status = 'delivered', reason = NULL")
    statuses = [data["messages"][0]["status"] for _, data in await events(engine)]
    assert statuses == ["undelivered", "delivered"]


async def test_an_accepted_message_is_told_when_its_receipt_comes_or_is_late(
    engine: AsyncEngine,
) -> None:
    await add_webhook(engine, URL, ["messages.finished"])
    await add_due_messages(engine, 1)
    await set_messages(engine, "status = 'sent', sent_at = now()")
    assert await events(engine) == []
    await set_messages(engine, "reason = 'no_receipt'")
    await set_messages(engine, "status = 'delivered', reason = NULL")
    finals = [data["messages"][0] for _, data in await events(engine)]
    assert [(message["status"], message["reason"]) for message in finals] == [
        ("sent", "no_receipt"),
        ("delivered", None),
    ]


async def test_messages_that_are_created_final_are_told(engine: AsyncEngine) -> None:
    await add_webhook(engine, URL, ["messages.finished"])
    clients = await add_clients(engine, 2)
    mailing_id = await add_mailing(engine, clients=2)
    await add_messages(engine, mailing_id, clients, "cancelled", "no_window")
    [(_, data)] = await events(engine)
    assert [message["reason"] for message in data["messages"]] == ["no_window"] * 2


async def test_an_event_is_rolled_back_with_its_cause(engine: AsyncEngine) -> None:
    await add_webhook(engine, URL, ["messages.finished"])
    await add_due_messages(engine, 1)
    async with engine.connect() as connection:
        await connection.execute(text("UPDATE message SET status = 'delivered'"))
        await connection.rollback()
    assert await value(engine, "SELECT count(*) FROM webhook_event") == 0


# ---- subscriptions ---------------------------------------------------------------------------


async def test_nothing_is_written_without_a_subscriber(engine: AsyncEngine) -> None:
    other = await add_webhook(engine, URL, ["gateway.up"])
    disabled = await add_webhook(engine, URL, ["messages.finished", "mailing.finished"])
    await do(engine, lambda db: store.change(db, disabled, store.disabled("user")))
    await add_due_messages(engine, 1)
    await set_messages(engine, "status = 'delivered', sent_at = now()")
    await advance(engine)
    assert other
    assert await value(engine, "SELECT count(*) FROM webhook_event") == 0


async def test_each_subscriber_gets_the_same_event(engine: AsyncEngine) -> None:
    subscribers = [await add_webhook(engine, URL, ["messages.finished"]) for _ in range(3)]
    await add_webhook(engine, URL, ["gateway.up"])
    await add_due_messages(engine, 1)
    await set_messages(engine, "status = 'delivered', sent_at = now()")
    found = await deliveries(engine)
    assert [row["webhook_id"] for row in found] == subscribers
    assert len({row["event_id"] for row in found}) == 1


# ---- mailings --------------------------------------------------------------------------------


async def test_start_and_finish_of_a_mailing_are_events(engine: AsyncEngine) -> None:
    await add_clients(engine, 2)
    mailing_id = await add_mailing(engine, clients=2, status="scheduled")
    await execute(
        engine,
        "UPDATE mailing SET datetime_end = now() + interval '1 day', audience_until = NULL,"
        " name = 'Orders'",
    )
    await add_webhook(engine, URL, ["mailing.started", "mailing.finished"])
    await advance(engine)
    [(kind, data)] = await events(engine)
    assert kind == "mailing.started"
    assert (data["id"], data["name"], data["status"]) == (mailing_id, "Orders", "running")
    assert data["clients_count"] == 2
    await set_messages(engine, "status = 'delivered', sent_at = now()")
    await advance(engine)
    [_, (kind, data)] = await events(engine)
    assert kind == "mailing.finished"
    assert (data["id"], data["status"]) == (mailing_id, "finished")
    assert {name: count for name, count in data["messages"].items() if count} == {"delivered": 2}
    assert data["datetime_start"].endswith("Z")


async def test_a_cancelled_mailing_finishes_as_cancelled(engine: AsyncEngine) -> None:
    await add_webhook(engine, URL, ["mailing.finished"])
    await add_due_messages(engine, 1)
    await execute(engine, "UPDATE mailing SET status = 'cancelled'")
    await advance(engine)
    [(kind, data)] = await events(engine)
    assert (kind, data["status"]) == ("mailing.finished", "cancelled")
    assert data["messages"]["cancelled"] == 1


async def test_a_deleted_mailing_does_not_finish(engine: AsyncEngine) -> None:
    await add_webhook(engine, URL, ["mailing.finished"])
    await add_mailing(engine, status="running")
    await execute(engine, "UPDATE mailing SET deleted_at = now(), status = 'cancelled'")
    await execute(engine, "UPDATE mailing SET is_closed = true")
    assert await events(engine) == []


# ---- opt-outs and replies --------------------------------------------------------------------


async def test_an_opt_out_is_an_event_once_without_the_phone(engine: AsyncEngine) -> None:
    await add_webhook(engine, URL, ["client.opted_out"])
    [client_id] = await add_clients(engine, 1)
    phone = await value(engine, "SELECT phone FROM client")
    for source in ("page", "api"):
        await do(engine, partial(opt_out_phone, phone=phone, source=source))
    [(kind, data)] = await events(engine)
    assert kind == "client.opted_out"
    assert data.pop("opted_out_at").endswith("Z")
    assert data == {"client_id": client_id, "source": "page", "gateway": None}
    await do(engine, partial(opt_in_phone, phone=phone, source="page"))
    await do(engine, partial(opt_out_phone, phone=phone, source="reply", gateway="main"))
    [_, (_, data)] = await events(engine)
    assert (data["source"], data["gateway"]) == ("reply", "main")


async def test_a_reply_is_an_event_without_phone_and_text(engine: AsyncEngine) -> None:
    await add_webhook(engine, URL, ["reply.received"])
    [client_id] = await add_clients(engine, 1)
    await execute(
        engine,
        """INSERT INTO reply (gateway, phone, text, received_at, client_id)
        SELECT 'main', phone, 'When do you open?', '2030-01-15 08:00Z', id FROM client""",
    )
    reply_id = await value(engine, "SELECT id FROM reply")
    assert await events(engine) == [
        (
            "reply.received",
            {
                "id": reply_id,
                "gateway": "main",
                "client_id": client_id,
                "mailing_id": None,
                "message_id": None,
                "received_at": "2030-01-15T08:00:00.000000Z",
            },
        )
    ]


async def test_opt_outs_and_replies_write_nothing_without_a_subscriber(engine: AsyncEngine) -> None:
    await add_webhook(engine, URL, ["gateway.up"])
    await add_clients(engine, 1)
    phone = await value(engine, "SELECT phone FROM client")
    await do(engine, partial(opt_out_phone, phone=phone, source="page"))
    await execute(
        engine,
        f"""INSERT INTO reply (gateway, phone, text, received_at)
        VALUES ('main', '{phone}', 'STOP', now())""",  # noqa: S608  # of the test
    )
    assert await value(engine, "SELECT count(*) FROM webhook_event") == 0
