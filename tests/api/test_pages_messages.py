"""The pages of a mailing's messages, without a browser."""

import csv
import io
import json
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
        "phone=0002": {second},
        "phone=00-03": {third},
        "phone=0000003&status=unknown": nobody,
        "phone=9999": nobody,
        "status=&reason=&phone=": {first, second, third},
    }.items():
        page = await get_page(api, f"/mailings/{mailing_id}/messages?{query}")
        listed = {client for client in clients if f"/messages/{messages[client]['id']}" in page}
        assert listed == expected_clients, query
        assert ("No messages match." in page) == (not expected_clients)
        response = await api.get(f"{SITE}/mailings/{mailing_id}/messages.csv?{query}")
        assert response.headers["content-type"].startswith("text/csv")
        rows = list(csv.DictReader(io.StringIO(response.text.removeprefix("\ufeff"))))
        phones = {f"7916000000{1 + clients.index(client)}" for client in expected_clients}
        assert {row["Phone"] for row in rows} == phones
    page = await get_page(api, f"/mailings/{mailing_id}/messages?reason=timeout")
    assert "no answer in time (1)" in page
    assert f'action="/mailings/{mailing_id}/messages.csv"' in page
    assert '<input type="hidden" name="reason" value="timeout">' in page


@pytest.mark.parametrize(
    ("query", "field"),
    [("phone=891", "phone"), ("status=odd", "status"), ("reason=%00", "reason")],
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
ACCEPTED = "attempts = 1, gateway = 'main', sent_at = '2030-01-15 06:00Z', claimed_at = now()"
"""SQL assignments of a message that the gateway has accepted."""


def receipts(*given: str) -> str:
    """Return an SQL assignment of receipts, each a second later than the one before.

    Each is given as its status, its code and its part, as far as there are any.
    """
    fields = [dict(zip(("status", "code", "part"), each.split(), strict=False)) for each in given]
    stored = [
        {"at": f"2030-01-15T06:01:0{number}+00:00", "gateway": "main", **each}
        for number, each in enumerate(fields)
    ]
    return f"receipts = '{json.dumps(stored)}'"


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
                "Without receipts, this counts as delivered.",
                "15 Jan 2030, 00:00:00",
                "Nothing: this status is final.",
            ],
        ),
        (
            f"status = 'sent', {ACCEPTED}",
            [
                "Attempt 1: the gateway accepted the message.",
                "Its receipt is awaited until 18 Jan 2030, 06:00:00.",
            ],
        ),
        (
            f"status = 'sent', reason = 'no_receipt', updated_at = '2030-01-18 06:00Z', {ACCEPTED}",
            [
                "18 Jan 2030, 06:00:00 <p>No receipt came in time",
                "Nothing more is awaited. A receipt that comes late still counts.",
            ],
        ),
        (
            f"status = 'delivered', {ACCEPTED}, {receipts('sent', 'delivered')}",
            [
                "Attempt 1: the gateway accepted the message.",
                "15 Jan 2030, 06:01:00",
                "Receipt from main: on its way.",
                "15 Jan 2030, 06:01:01",
                "Receipt from main: delivered.",
                "Nothing: this status is final.",
            ],
        ),
        (
            f"{ACCEPTED}, status = 'undelivered', reason = 'not_delivered_30003',"
            + receipts("failed 30003 part-1", "expired", "unknown"),
            [
                "Attempt 1: the gateway accepted the message.",
                "Receipt from main: undelivered.",
                "Code: 30003, Id of the part: part-1</span>",
                "Receipt from main: the phone could not be reached in time.",
                "Receipt from main: the provider does not know whether it was delivered.",
                "Nothing happens by itself. You can send",
            ],
        ),
        (
            f"status = 'sending', attempts = 1, {LEASED}, {receipts('delivered')}",
            ["Attempt 1 started", "Receipt from main: delivered."],
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
        "accepted",
        "without a receipt in time",
        "delivered by receipt",
        "undelivered by receipt",
        "receipt before the answer",
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


async def test_failures_and_receipts_are_shown_in_the_order_of_their_times(
    api: httpx.AsyncClient, engine: AsyncEngine
) -> None:
    await add_clients(engine, 1)
    mailing_id = await create_running_mailing(api, engine)
    failure = {
        "attempt": 1,
        "claimed_at": "2030-01-15T06:01:02+00:00",
        "ended_at": "2030-01-15T06:01:03+00:00",
        "reason": "timeout",
    }
    await execute(
        engine,
        f"UPDATE message SET status = 'delivered', {ACCEPTED}, {receipts('sent', 'delivered')},"  # noqa: S608  # values of the test
        f" failures = '{json.dumps([failure])}'",
        "UPDATE message SET sent_at = '2030-01-15 06:01:00.5Z'",
    )
    page = await get_page(api, f"/mailings/{mailing_id}/messages/1")
    events = ("on its way", "the gateway accepted", "main: delivered", "no answer in time")
    places = [page.index(event) for event in events]
    assert places == sorted(places)


async def test_reasons_of_receipts_have_labels_in_both_languages(
    api: httpx.AsyncClient, engine: AsyncEngine
) -> None:
    clients = await add_clients(engine, 4)
    mailing_id = await add_mailing(engine, clients=4)
    reasons = ("not_delivered", "not_delivered_30003", "validity_expired")
    for client, reason in zip(clients, reasons, strict=False):
        await add_messages(engine, mailing_id, [client], "undelivered", reason)
    await add_messages(engine, mailing_id, clients[3:], "sent", "no_receipt")
    for language, labels in {
        "en": (
            "not delivered, according to the receipt",
            "not delivered, with the code 30003 in the receipt",
            "the phone could not be reached in time",
            "no receipt came in time",
        ),
        "ru": (
            "не доставлено, по отчёту о доставке",  # noqa: RUF001
            "не доставлено, код 30003 в отчёте о доставке",  # noqa: RUF001
            "телефон не был доступен вовремя",
            "отчёт о доставке не пришёл вовремя",  # noqa: RUF001
        ),
    }.items():
        headers = {**BROWSER, "Accept-Language": language}
        path = f"{SITE}/mailings/{mailing_id}/messages"
        page = (await api.get(path, headers=headers)).text
        assert [label for label in labels if label not in page] == []


async def test_list_and_csv_say_accepted_and_delivered_apart(
    api: httpx.AsyncClient, engine: AsyncEngine
) -> None:
    clients = await add_clients(engine, 2)
    mailing_id = await add_mailing(engine, clients=2)
    await add_messages(engine, mailing_id, clients[:1], "sent")
    await add_messages(engine, mailing_id, clients[1:], "delivered")
    page = await get_page(api, f"/mailings/{mailing_id}/messages")
    assert '<span class="status sent">accepted</span>' in page
    assert '<span class="status delivered">delivered</span>' in page
    table = (await api.get(f"{SITE}/mailings/{mailing_id}/messages.csv", headers=BROWSER)).text
    rows = list(csv.DictReader(io.StringIO(table)))
    assert [row["Status"] for row in rows] == ["accepted", "delivered"]
