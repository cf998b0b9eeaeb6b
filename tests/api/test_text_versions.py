"""The API and the pages show each version of a mailing's text, and which messages had it."""

import csv
import io

import httpx
import pytest
from sqlalchemy.ext.asyncio import AsyncEngine
from tests.api.browser_session import HOSTILE, create_running_mailing, get_page
from tests.api.calls import messages_by_client, update_messages
from tests.factories import add_clients

CSV = {"Accept": "text/csv"}


@pytest.fixture
async def changed(api: httpx.AsyncClient, engine: AsyncEngine) -> tuple[int, list[int]]:
    """A mailing that was changed after its first message: its id, and those of its clients."""
    clients = await add_clients(engine, 2)
    mailing_id = await create_running_mailing(api, engine)
    await api.patch(f"/mailings/{mailing_id}", json={"text": "Price is 100"})
    await update_messages(engine, clients[0], status="delivered", attempts=1, text_version=2)
    await api.patch(f"/mailings/{mailing_id}", json={"text": "Price is 999"})
    return mailing_id, clients


async def test_versions_are_listed_with_their_messages(
    api: httpx.AsyncClient, changed: tuple[int, list[int]]
) -> None:
    mailing_id, _ = changed
    newest, middle, oldest = (await api.get(f"/mailings/{mailing_id}/versions")).json()
    assert [newest["version"], middle["version"], oldest["version"]] == [3, 2, 1]
    assert (newest["text"], middle["text"]) == ("Price is 999", "Price is 100")
    assert middle["messages"]["delivered"] == 1
    assert sum(newest["messages"].values()) == 0
    assert (await api.get(f"/mailings/{mailing_id}")).json()["text_version"] == 3


async def test_statistics_count_messages_by_version(
    api: httpx.AsyncClient, changed: tuple[int, list[int]]
) -> None:
    statistics = (await api.get(f"/mailings/{changed[0]}/statistics")).json()
    [version] = statistics["text_versions"]
    assert (version["text_version"], version["messages"]["delivered"]) == (2, 1)


async def test_csv_has_the_text_of_each_message(
    api: httpx.AsyncClient, changed: tuple[int, list[int]]
) -> None:
    mailing_id, clients = changed
    answer = await api.get(f"/mailings/{mailing_id}/messages", headers=CSV)
    texts = {int(row["client_id"]): row["text"] for row in csv.DictReader(io.StringIO(answer.text))}
    assert texts == {clients[0]: "Price is 100", clients[1]: "Price is 999"}


async def test_pages_show_the_text_as_sent(
    api: httpx.AsyncClient, changed: tuple[int, list[int]]
) -> None:
    mailing_id, clients = changed
    messages = await messages_by_client(api, mailing_id)
    sent, unsent = (messages[client]["id"] for client in clients)
    page = await get_page(api, f"/mailings/{mailing_id}/messages/{sent}")
    assert "Price is 100" in page
    assert "version 2 of 3" in page
    page = await get_page(api, f"/mailings/{mailing_id}/messages/{unsent}")
    assert "the newest of 3 versions" in page
    page = await get_page(api, f"/mailings/{mailing_id}")
    assert "By version of the text" in page
    assert page.count("Price is 100") == 1


async def test_texts_are_escaped(api: httpx.AsyncClient, changed: tuple[int, list[int]]) -> None:
    await api.patch(f"/mailings/{changed[0]}", json={"text": HOSTILE})
    assert HOSTILE not in await get_page(api, f"/mailings/{changed[0]}")


async def test_mailing_with_one_text_has_no_table_of_versions(
    api: httpx.AsyncClient, engine: AsyncEngine
) -> None:
    await add_clients(engine, 1)
    mailing_id = await create_running_mailing(api, engine)
    assert "By version of the text" not in await get_page(api, f"/mailings/{mailing_id}")


async def test_versions_of_an_unknown_mailing_are_404(api: httpx.AsyncClient) -> None:
    assert (await api.get("/mailings/1/versions")).status_code == 404
