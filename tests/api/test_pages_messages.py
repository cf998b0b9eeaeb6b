"""The pages of a mailing's messages, without a browser."""

import csv
import io
import re

import httpx
import pytest
from sqlalchemy.ext.asyncio import AsyncEngine
from tests.api.browser_session import (
    BROWSER,
    ESCAPED,
    HOSTILE,
    SITE,
    create_running_mailing,
    get_page,
)
from tests.api.calls import NEW, create_mailing, messages_by_client, update_messages
from tests.asgi_client import inside
from tests.factories import (
    OPEN,
    add_clients,
    add_mailing,
    add_messages,
    create_channels,
    execute,
    value,
)

from mailer.app import create_app


async def test_messages_are_listed_with_the_phones_of_their_clients(
    api: httpx.AsyncClient, engine: AsyncEngine
) -> None:
    clients = await add_clients(engine, 2)
    mailing_id = await create_running_mailing(api, engine)
    await api.delete(f"/clients/{clients[0]}")
    page = await get_page(api, f"/mailings/{mailing_id}/messages")
    assert f"erased client {clients[0]}" in page
    assert f'<a href="/clients/{clients[1]}">79160000002</a>' in page
    assert "2 messages<" in page
    assert "the client was deleted" in page


async def test_messages_are_filtered_by_status_reason_and_phone(
    api: httpx.AsyncClient, engine: AsyncEngine
) -> None:
    clients = await add_clients(engine, 3)
    mailing_id = await create_running_mailing(api, engine)
    await update_messages(engine, clients[0], status="undelivered", reason="rejected_400")
    await update_messages(engine, clients[1], status="unknown", reason="timeout")
    messages = await messages_by_client(api, mailing_id)
    first, second, third = clients
    nobody = set[int]()
    for query, expected_clients in {
        "status=undelivered": {first},
        "reason=timeout": {second},
        "status=undelivered&reason=timeout": nobody,
        "phone=79160000003": {third},
        "phone=79160000003&status=unknown": nobody,
        "phone=%2B7+(916)+000-00-03": {third},
        "phone=8+916%C2%A0000+00+03": {third},
        "phone=+&status=+": {first, second, third},
        "phone=79169999999": nobody,
        "status=&reason=&phone=": {first, second, third},
    }.items():
        page = await get_page(api, f"/mailings/{mailing_id}/messages?{query}")
        listed = {client for client in clients if f"/messages/{messages[client]['id']}" in page}
        assert listed == expected_clients, query
        assert ("No messages match." in page) == (not expected_clients)
        response = await api.get(f"{SITE}/mailings/{mailing_id}/messages.csv?{query}")
        assert response.headers["content-type"].startswith("text/csv")
        rows = list(csv.DictReader(io.StringIO(response.text)))
        assert {int(row["client_id"]) for row in rows} == expected_clients
    page = await get_page(api, f"/mailings/{mailing_id}/messages?reason=timeout")
    assert "no answer in time (1)" in page
    assert f'href="/mailings/{mailing_id}/messages.csv?reason=timeout"' in page


@pytest.mark.parametrize(
    ("query", "field"),
    [("phone=8916", "phone"), ("status=odd", "status"), ("reason=%00", "reason")],
)
async def test_an_invalid_filter_of_messages_is_an_error_beside_its_field(
    api: httpx.AsyncClient, engine: AsyncEngine, query: str, field: str
) -> None:
    await add_clients(engine, 1)
    mailing_id = await create_running_mailing(api, engine)
    page = await get_page(api, f"/mailings/{mailing_id}/messages?{query}", 400)
    assert f'id="{field}-error"' in page
    assert f"/mailings/{mailing_id}/messages/" not in page
    await get_page(api, f"/mailings/{mailing_id}/messages.csv?{query}", 400)


async def test_hostile_reason_and_phone_are_escaped(
    api: httpx.AsyncClient, engine: AsyncEngine
) -> None:
    clients = await add_clients(engine, 1)
    mailing_id = await add_mailing(engine, clients=1)
    await add_messages(engine, mailing_id, clients, "undelivered", HOSTILE)
    message_id = await value(engine, "SELECT max(id) FROM message")
    for path in (
        "messages",
        f"messages?reason={HOSTILE}&phone={HOSTILE}",
        f"messages/{message_id}",
    ):
        response = await api.get(f"{SITE}/mailings/{mailing_id}/{path}", headers=BROWSER)
        assert response.status_code in {200, 400}
        assert ESCAPED in response.text
        assert "<script>alert" not in response.text


async def test_a_mailing_before_its_start_says_when_messages_are_created(
    api: httpx.AsyncClient,
) -> None:
    mailing_id = (await create_mailing(api, NEW))["id"]
    assert "Messages are created when the mailing starts" in await get_page(
        api, f"/mailings/{mailing_id}/messages"
    )


async def test_a_message_under_another_mailing_is_404(
    api: httpx.AsyncClient, engine: AsyncEngine
) -> None:
    await add_clients(engine, 1)
    mailing_id = await create_running_mailing(api, engine)
    other_id = (await create_mailing(api, NEW))["id"]
    message_id = await value(engine, "SELECT max(id) FROM message")
    await get_page(api, f"/mailings/{mailing_id}/messages/{message_id}")
    for path in (f"{other_id}/messages/{message_id}", f"{mailing_id}/messages/{10**30}"):
        assert "There is no such message." in await get_page(api, f"/mailings/{path}", 404)


FAILURE = """'[{"attempt": 1, "claimed_at": "2030-01-15T06:00:00+00:00",
    "ended_at": "2030-01-15T06:00:10+00:00", "reason": "timeout"}]'"""
"""SQL value of the column `failures`: one failed attempt."""
LEASED = "lease_owner = gen_random_uuid(), lease_expires_at = '2040-01-15 06:00Z'"
"""SQL assignments of a message that a worker is sending."""


@pytest.mark.parametrize(
    ("assignments", "sentences"),
    [
        (
            "due_at = '2020-01-01Z'",
            ["It has been due since 1 Jan 2020", "The message was created."],
        ),
        ("due_at = '2039-01-01Z'", ["It will be sent at 1 Jan 2039"]),
        (
            f"due_at = '2039-01-01Z', retry_at = '2030-01-15Z', attempts = 1, failures = {FAILURE}",
            ["Attempt 1 failed: no answer in time.", "06:00:10", "It will be sent at 1 Jan 2039"],
        ),
        (
            f"due_at = '2039-01-01Z', retry_at = '2039-01-01Z', attempts = 1, failures = {FAILURE}",
            [
                "Attempt 1 failed: no answer in time.",
                "06:00:10",
                "The next attempt is at 1 Jan 2039",
            ],
        ),
        (
            f"status = 'sending', attempts = 2, {LEASED}",
            ["Attempt 2 started", "by 15 Jan 2040, 06:00:00, it will be sent again."],
        ),
        (
            "status = 'delivered', attempts = 1, sent_at = '2030-01-15Z', claimed_at = now()",
            [
                "Attempt 1: the gateway accepted the message.",
                "15 Jan 2030, 00:00:00",
                "Nothing: this status is final.",
            ],
        ),
        (
            "status = 'undelivered', reason = 'attempts_exhausted'",
            ["It failed permanently: no attempts left.", "Nothing happens by itself. You can send"],
        ),
        ("status = 'unknown', reason = 'timeout'", ["Delivery unknown: no answer"]),
        (
            "status = 'cancelled', reason = 'filter_changed'",
            ["It was cancelled: no longer in the audience.", "Nothing: this status is final."],
        ),
    ],
    ids=[
        "due",
        "later",
        "later after a failure",
        "failed",
        "sending",
        "delivered",
        "undelivered",
        "unknown",
        "cancelled",
    ],
)
async def test_the_page_shows_the_history_of_a_message(
    engine: AsyncEngine, assignments: str, sentences: list[str]
) -> None:
    """A message with these columns (SQL assignments) is shown with these sentences."""
    app_with_gateway = create_app(engine, create_channels(), settings=OPEN)
    api = httpx.AsyncClient(transport=inside(app_with_gateway), base_url="http://mailer/api/v1")
    await add_clients(engine, 1)
    mailing_id = await create_running_mailing(api, engine, datetime_end="2045-01-01T00:00:00Z")
    await execute(engine, f"UPDATE message SET {assignments}")  # noqa: S608  # those above
    message_id = await value(engine, "SELECT max(id) FROM message")
    page = await get_page(api, f"/mailings/{mailing_id}/messages/{message_id}")
    text = re.sub(r"</?time[^>]*>", "", page)
    assert [sentence for sentence in sentences if sentence not in text] == []
