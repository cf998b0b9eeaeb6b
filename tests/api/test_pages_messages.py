"""The pages of a mailing's messages, as far as they need no browser."""

import csv
import io
import re

import httpx
import pytest
from sqlalchemy.ext.asyncio import AsyncEngine
from tests.api.calls import NEW, create, mark, messages_of
from tests.api.visits import BROWSER, ESCAPED, HOSTILE, SITE, page, under_way
from tests.asked import inside
from tests.sample import OPEN, add_clients, add_mailing, add_messages, execute, value

from mailer.app import create_app
from mailer.gateway.breaker import Breaker


async def test_messages_are_listed_with_the_phones_of_their_clients(
    api: httpx.AsyncClient, engine: AsyncEngine
) -> None:
    clients = await add_clients(engine, 2)
    mailing_id = await under_way(api, engine)
    await api.delete(f"/clients/{clients[0]}")
    shown = await page(api, f"/mailings/{mailing_id}/messages")
    assert f"erased client {clients[0]}" in shown
    assert f'<a href="/clients/{clients[1]}">79160000002</a>' in shown
    assert "2 messages<" in shown
    assert "the client was deleted" in shown


async def test_messages_are_found_by_status_reason_and_phone(
    api: httpx.AsyncClient, engine: AsyncEngine
) -> None:
    clients = await add_clients(engine, 3)
    mailing_id = await under_way(api, engine)
    await mark(engine, clients[0], status="undelivered", reason="rejected_400")
    await mark(engine, clients[1], status="unknown", reason="timeout")
    of_client = {each: row["id"] for each, row in (await messages_of(api, mailing_id)).items()}
    for query, expected in {
        "status=undelivered": {0},
        "reason=timeout": {1},
        "status=undelivered&reason=timeout": set[int](),
        "phone=79160000003": {2},
        "phone=79160000003&status=unknown": set[int](),
        "phone=%2B7+(916)+000-00-03": {2},
        "phone=8+916%C2%A0000+00+03": {2},
        "phone=+&status=+": {0, 1, 2},
        "phone=79169999999": set[int](),
        "status=&reason=&phone=": {0, 1, 2},
    }.items():
        shown = await page(api, f"/mailings/{mailing_id}/messages?{query}")
        found = {n for n in range(3) if f"/messages/{of_client[clients[n]]}" in shown}
        assert found == expected, query
        assert ("No message is like that." in shown) == (not expected)
        answer = await api.get(f"{SITE}/mailings/{mailing_id}/messages.csv?{query}")
        assert answer.headers["content-type"].startswith("text/csv")
        rows = list(csv.DictReader(io.StringIO(answer.text)))
        assert {int(row["client_id"]) for row in rows} == {clients[n] for n in expected}
    shown = await page(api, f"/mailings/{mailing_id}/messages?reason=timeout")
    assert "no answer in time (1)" in shown
    assert f'href="/mailings/{mailing_id}/messages.csv?reason=timeout"' in shown


@pytest.mark.parametrize(
    ("query", "field"),
    [("phone=8916", "phone"), ("status=odd", "status"), ("reason=%00", "reason")],
)
async def test_wrong_filter_of_messages_is_told_beside_its_field(
    api: httpx.AsyncClient, engine: AsyncEngine, query: str, field: str
) -> None:
    await add_clients(engine, 1)
    mailing_id = await under_way(api, engine)
    shown = await page(api, f"/mailings/{mailing_id}/messages?{query}", 400)
    assert f'id="{field}-error"' in shown
    assert f"/mailings/{mailing_id}/messages/" not in shown
    await page(api, f"/mailings/{mailing_id}/messages.csv?{query}", 400)


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
        answer = await api.get(f"{SITE}/mailings/{mailing_id}/{path}", headers=BROWSER)
        assert answer.status_code in {200, 400}
        assert ESCAPED in answer.text
        assert "<script>alert" not in answer.text


async def test_mailing_without_messages_says_when_they_are_made(api: httpx.AsyncClient) -> None:
    mailing_id = (await create(api, NEW))["id"]
    assert "Messages are made when the mailing starts" in await page(
        api, f"/mailings/{mailing_id}/messages"
    )


async def test_message_of_another_mailing_is_no_page(
    api: httpx.AsyncClient, engine: AsyncEngine
) -> None:
    await add_clients(engine, 1)
    first, second = await under_way(api, engine), (await create(api, NEW))["id"]
    message_id = await value(engine, "SELECT max(id) FROM message")
    await page(api, f"/mailings/{first}/messages/{message_id}")
    for path in (f"{second}/messages/{message_id}", f"{first}/messages/{10**30}"):
        assert "There is no such message." in await page(api, f"/mailings/{path}", 404)


FAILED = """'[{"attempt": 1, "claimed_at": "2030-01-15T06:00:00+00:00",
    "ended_at": "2030-01-15T06:00:10+00:00", "reason": "timeout"}]'"""
LEASED = "lease_owner = gen_random_uuid(), lease_expires_at = '2040-01-15 06:00Z'"


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ("due_at = '2020-01-01Z'", ["It has been due since 1 Jan 2020", "The message was made."]),
        ("due_at = '2039-01-01Z'", ["It is sent at 1 Jan 2039"]),
        (
            f"due_at = '2039-01-01Z', retry_at = '2030-01-15Z', attempts = 1, failures = {FAILED}",
            ["Attempt 1 failed: no answer in time.", "06:00:10", "It is sent at 1 Jan 2039"],
        ),
        (
            f"due_at = '2039-01-01Z', retry_at = '2039-01-01Z', attempts = 1, failures = {FAILED}",
            ["Attempt 1 failed: no answer in time.", "06:00:10", "It is tried again at 1 Jan 2039"],
        ),
        (
            f"status = 'sending', attempts = 2, {LEASED}",
            ["Attempt 2 began", "by 15 Jan 2040, 06:00:00 what became of it, it is sent again."],
        ),
        (
            "status = 'delivered', attempts = 1, sent_at = '2030-01-15Z', claimed_at = now()",
            ["Attempt 1: the gateway took it.", "15 Jan 2030, 00:00:00", "Nothing: this is final."],
        ),
        (
            "status = 'undelivered', reason = 'attempts_exhausted'",
            ["It failed permanently: no attempts left.", "if you ask for that"],
        ),
        ("status = 'unknown', reason = 'timeout'", ["It may or may not have gone out: no answer"]),
        (
            "status = 'cancelled', reason = 'filter_changed'",
            ["It was cancelled: no longer in the audience.", "Nothing: this is final."],
        ),
    ],
    ids=[
        "due",
        "later",
        "outside",
        "failed",
        "sending",
        "delivered",
        "undelivered",
        "unknown",
        "cancelled",
    ],
)
async def test_message_tells_its_story(engine: AsyncEngine, change: str, told: list[str]) -> None:
    with_gateway = inside(create_app(engine, Breaker(failures=2, reset=15), settings=OPEN))
    api = httpx.AsyncClient(transport=with_gateway, base_url="http://mailer/api/v1")
    await add_clients(engine, 1)
    mailing_id = await under_way(api, engine, datetime_end="2045-01-01T00:00:00Z")
    await execute(engine, f"UPDATE message SET {change}")  # noqa: S608  # the test's own
    message_id = await value(engine, "SELECT max(id) FROM message")
    shown = await page(api, f"/mailings/{mailing_id}/messages/{message_id}")
    text = re.sub(r"</?time[^>]*>", "", shown)
    assert [each for each in told if each not in text] == []
