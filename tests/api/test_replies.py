"""The API of replies: list with filters, one with its answers, mark as read, answer."""

from collections.abc import AsyncIterator
from datetime import UTC, datetime
from typing import Any

import httpx
import pytest
from sqlalchemy.ext.asyncio import AsyncEngine
from tests.asgi_client import inside
from tests.factories import OPEN, UnusedGateway, add_clients, channel_of, do, rows, value

from mailer.app import create_app
from mailer.gateway.callback import Reply
from mailer.gateway.channel import Channels
from mailer.reply import store
from mailer.reply.rules import ReplyRules
from mailer.settings import Settings

RULES = ReplyRules.of(Settings())
PHONE = "79160000001"


@pytest.fixture
async def api(engine: AsyncEngine) -> AsyncIterator[httpx.AsyncClient]:
    """The API of an application with the gateway `main`."""
    channels = Channels([channel_of(UnusedGateway(), Settings(), name="main", parts=2)])
    transport = inside(create_app(engine, channels, settings=OPEN))
    async with httpx.AsyncClient(transport=transport, base_url="http://mailer/api/v1") as client:
        yield client


async def add(engine: AsyncEngine, *texts: str, phone: str = PHONE, gateway: str = "main") -> None:
    """Add replies of one phone."""
    replies = [Reply(phone, text) for text in texts]
    now = datetime.now(UTC)
    await do(engine, lambda db: store.add_replies(db, gateway, replies, now, RULES))


async def get(api: httpx.AsyncClient, path: str) -> Any:
    response = await api.get(path)
    assert response.status_code == 200, response.text
    return response.json()


async def test_a_reply_has_all_its_fields(api: httpx.AsyncClient, engine: AsyncEngine) -> None:
    [client_id] = await add_clients(engine, 1)
    await add(engine, "Hello", phone=await value(engine, "SELECT phone FROM client"))
    reply = await get(api, "/replies/1")
    assert datetime.fromisoformat(reply.pop("received_at")).tzinfo is not None
    assert reply == {
        "id": 1,
        "gateway": "main",
        "phone": PHONE,
        "text": "Hello",
        "client_id": client_id,
        "answers": [],
        **dict.fromkeys(("gateway_reply_id", "recipient", "mailing_id", "message_id")),
        **dict.fromkeys(("action", "read_at")),
    }
    assert (await api.get("/replies/2")).status_code == 404


async def test_replies_are_listed_newest_first_page_by_page(
    api: httpx.AsyncClient, engine: AsyncEngine
) -> None:
    await add(engine, *(f"Reply {n}" for n in range(1, 6)))
    page = await get(api, "/replies?limit=2")
    assert (page["count"], [reply["id"] for reply in page["results"]]) == (5, [5, 4])
    older = await get(api, page["next"])
    assert [reply["id"] for reply in older["results"]] == [3, 2]
    newer = await get(api, older["previous"])
    assert newer["results"] == page["results"]


async def test_filters_of_the_list_must_all_match(
    api: httpx.AsyncClient, engine: AsyncEngine
) -> None:
    await add_clients(engine, 1)
    await add(engine, "Hello", phone=await value(engine, "SELECT phone FROM client"))
    await add(engine, "Hi", "Good day", phone="79990000000")
    await api.post("/replies/2/read")
    for query, ids in (
        ("phone=79990000000", [3, 2]),
        ("phone=79990000000&unread=true", [3]),
        ("unread=false", [2]),
        ("client_id=1", [1]),
        ("client_id=1&phone=79990000000", []),
        ("mailing_id=1", []),
    ):
        page = await get(api, f"/replies?{query}")
        assert [reply["id"] for reply in page["results"]] == ids, query
        assert page["count"] == len(ids)


@pytest.mark.parametrize("query", ["phone=1", "unread=maybe", "client_id=0", "limit=0", "x=1"])
async def test_a_wrong_filter_is_refused(api: httpx.AsyncClient, query: str) -> None:
    response = await api.get(f"/replies?{query}")
    assert response.status_code == 400
    assert response.json()["errors"][0]["field"] == query.partition("=")[0]


async def test_a_reply_is_read_once(api: httpx.AsyncClient, engine: AsyncEngine) -> None:
    await add(engine, "Hello")
    first = await api.post("/replies/1/read")
    assert first.status_code == 200
    again = await api.post("/replies/1/read")
    assert first.json() == again.json() == {"id": 1, "read_at": first.json()["read_at"]}
    assert (await get(api, "/replies/1"))["read_at"] == first.json()["read_at"]
    assert (await api.post("/replies/2/read")).status_code == 404


async def test_an_answer_waits_for_a_worker(api: httpx.AsyncClient, engine: AsyncEngine) -> None:
    await add(engine, "When do you open?")
    response = await api.post("/replies/1/answer", json={"text": "At nine."})
    assert response.status_code == 201
    answer = response.json()
    assert "text" not in answer
    assert (answer["reply_id"], answer["status"], answer["kind"]) == (1, "waiting", "answer")
    reply = await get(api, "/replies/1")
    assert reply["answers"] == [answer | {"text": "At nine."}]
    assert reply["read_at"] is not None
    [stored] = await rows(engine, "SELECT phone, text, gateway FROM answer")
    assert tuple(stored.values()) == (PHONE, "At nine.", "main")


async def test_an_answer_that_is_sent_twice_with_one_key_is_created_once(
    api: httpx.AsyncClient, engine: AsyncEngine
) -> None:
    await add(engine, "When do you open?")
    headers = {"Idempotency-Key": "a-key"}
    responses = [
        await api.post("/replies/1/answer", json={"text": "At nine."}, headers=headers)
        for _ in range(2)
    ]
    assert responses[0].json() == responses[1].json()
    assert responses[1].headers["Idempotency-Replayed"] == "true"
    assert await value(engine, "SELECT count(*) FROM answer") == 1
    assert "At nine" not in str(await rows(engine, "SELECT * FROM idempotency"))


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({}, "text"),
        ({"text": ""}, "text"),
        ({"text": " \u200b"}, "text"),
        ({"text": "x" * 1_601}, "text"),
        ({"text": "x\x00"}, "text"),
        ({"text": "x" * 307}, "text"),  # three parts; the gateway takes two
        ({"text": "Hi", "phone": PHONE}, "phone"),
    ],
)
async def test_a_wrong_answer_is_refused(
    api: httpx.AsyncClient, engine: AsyncEngine, body: dict[str, str], field: str
) -> None:
    await add(engine, "Hello")
    response = await api.post("/replies/1/answer", json=body)
    assert response.status_code == 400
    assert [error["field"] for error in response.json()["errors"]] == [field]
    assert await value(engine, "SELECT count(*) FROM answer") == 0


async def test_a_reply_that_cannot_be_answered_is_refused(
    api: httpx.AsyncClient, engine: AsyncEngine
) -> None:
    [client_id] = await add_clients(engine, 1)
    await add(engine, "Hello", gateway="removed")
    await add(engine, "Hello", phone=await value(engine, "SELECT phone FROM client"))
    assert (await api.delete(f"/clients/{client_id}")).status_code == 204
    details = {}
    for reply_id in (1, 2, 3):
        response = await api.post(f"/replies/{reply_id}/answer", json={"text": "Hi"})
        details[reply_id] = (response.status_code, response.json()["detail"])
    assert details == {
        1: (409, "The gateway of the reply is not configured any more."),
        2: (409, "The client was deleted, and the phone with the client."),
        3: (404, "There is no such reply."),
    }
    erased = await get(api, "/replies/2")
    assert (erased["phone"], erased["text"], erased["client_id"]) == (None, None, client_id)
