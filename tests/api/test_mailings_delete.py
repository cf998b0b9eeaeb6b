"""Mailings over the API: deleting them, and calls for those that do not exist."""

import httpx
import pytest
from sqlalchemy import func, select, update
from sqlalchemy.ext.asyncio import AsyncEngine
from tests.api.calls import DUE, NEW, create_mailing, messages_by_client
from tests.factories import do, running, start_and_enqueue

from mailer.db.tables.mailing import mailing, mailing_counts
from mailer.db.tables.message import message
from mailer.mailing import purging


@pytest.mark.usefixtures("clients")
async def test_a_deleted_mailing_is_gone_at_once_and_purged_later(
    api: httpx.AsyncClient, engine: AsyncEngine
) -> None:
    other = await create_mailing(api, DUE)
    await start_and_enqueue(engine)
    created = await create_mailing(api, DUE)
    await start_and_enqueue(engine)
    address = f"/mailings/{created['id']}"

    answer = await api.delete(address)

    assert (answer.status_code, answer.content) == (204, b"")
    for method, path in (
        ("DELETE", address),
        ("GET", address),
        ("PATCH", address),
        ("GET", f"{address}/messages"),
    ):
        answer_after = await api.request(method, path, json={})
        assert answer_after.status_code == 404
        assert answer_after.headers["content-type"] == "application/problem+json"
    listed = (await api.get("/mailings")).json()
    assert [row["id"] for row in listed["results"]] == [other["id"]]
    assert [mailing.id for mailing in await running(engine)] == [other["id"]]
    assert await do(engine, lambda db: purging.purge(db, chunk=100)) == 4  # its messages
    async with engine.begin() as connection:
        rows = select(func.count()).where(message.c.mailing_id == created["id"])
        assert await connection.scalar(rows) == 0
        for table in (mailing, mailing_counts):
            assert await connection.scalar(select(func.count()).select_from(table)) == 1
    assert len(await messages_by_client(api, other["id"])) == 4


@pytest.mark.parametrize("status", ["scheduled", "running", "paused", "finished", "cancelled"])
async def test_a_mailing_can_be_deleted_in_every_status(
    api: httpx.AsyncClient, engine: AsyncEngine, status: str
) -> None:
    created = await create_mailing(api, NEW)
    async with engine.begin() as connection:
        await connection.execute(update(mailing).values(status=status))
    assert (await api.delete(f"/mailings/{created['id']}")).status_code == 204


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/mailings/{}"),
        ("PATCH", "/mailings/{}"),
        ("DELETE", "/mailings/{}"),
        ("GET", "/mailings/{}/messages"),
    ],
)
async def test_an_unknown_mailing_is_404(api: httpx.AsyncClient, method: str, path: str) -> None:
    created = await create_mailing(api, NEW)
    answer = await api.request(method, path.format(created["id"] + 1), json={"text": "x"})
    assert answer.status_code == 404
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.json()["status"] == 404


async def test_a_trailing_slash_changes_nothing(api: httpx.AsyncClient) -> None:
    assert (await api.post("/mailings/", json=NEW)).status_code == 201
    listed = (await api.get("/mailings/")).json()
    [created] = listed["results"]
    address = f"/mailings/{created['id']}"
    assert (await api.get(f"{address}/")).json() == (await api.get(address)).json()
    assert (await api.get(f"{address}/messages/")).json()["results"] == []
    assert (await api.patch(f"{address}/", json={"text": "x"})).json()["text"] == "x"
    assert (await api.delete(f"{address}/")).status_code == 204
