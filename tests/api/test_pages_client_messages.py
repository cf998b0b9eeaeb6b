"""The messages on the page of a client, without a browser."""

import re
from datetime import UTC, datetime

import httpx
from sqlalchemy.ext.asyncio import AsyncEngine
from tests.api.browser_session import BROWSER, ESCAPED, HOSTILE, SITE, get_page
from tests.factories import NOON, add_clients, add_mailings, add_messages, execute

from mailer.sample_data import SampleMailing

LONG_TEXT = "First line of a text\n" + "that goes on and on " * 10


def listed(page: str) -> list[int]:
    """Return the ids of the messages on a page from top to bottom."""
    return [int(found) for found in re.findall(r'/messages/\d+">#(\d+)</a>', page)]


async def test_the_page_shows_what_was_sent_in_all_mailings(
    api: httpx.AsyncClient, engine: AsyncEngine
) -> None:
    client, other = await add_clients(engine, 2, time_zone="Asia/Omsk")
    first, second = await add_mailings(
        engine,
        SampleMailing(start=NOON, clients=2, text="Short text"),
        SampleMailing(start=NOON, clients=2, text=LONG_TEXT),
    )
    at = datetime(2030, 1, 15, 20, 30, tzinfo=UTC)
    await add_messages(engine, first, [client, other], "delivered", at=at)
    await add_messages(engine, second, [client], "undelivered", "rejected_400", at=at)
    await execute(engine, "UPDATE message SET gateway = 'main'")
    page = await get_page(api, f"/clients/{client}")
    assert listed(page) == [3, 1]
    assert "2 messages" in page
    for mailing_id, message_id in ((first, 1), (second, 3)):
        assert f'href="/mailings/{mailing_id}/messages/{message_id}"' in page
        assert f'href="/mailings/{mailing_id}"' in page
    assert "Short text</td>" in page
    assert re.search(r"<details><summary>First line of a text that goes[^<]*…</summary>", page)
    assert " ".join(LONG_TEXT.split()) in page
    assert '<span class="status undelivered">undelivered</span>' in page
    assert "the gateway rejected it with 400" in page
    assert "16 Jan 2030, 02:30:00" in page  # local time
    assert ">main</td>" in page
    headers = {**BROWSER, "Accept-Language": "ru"}
    in_russian = (await api.get(f"{SITE}/clients/{client}", headers=headers)).text
    assert "не доставлено" in in_russian


async def test_the_messages_are_read_page_by_page(
    api: httpx.AsyncClient, engine: AsyncEngine
) -> None:
    [client_id] = await add_clients(engine, 1)
    mailings = await add_mailings(engine, *[SampleMailing(start=NOON, clients=1)] * 25)
    for mailing_id in mailings:
        await add_messages(engine, mailing_id, [client_id], "delivered")
    page = await get_page(api, f"/clients/{client_id}")
    assert listed(page) == list(range(25, 5, -1))
    [older] = re.findall(r'href="([^"]*)" rel="next"', page)
    page = await get_page(api, older)
    assert listed(page) == list(range(5, 0, -1))
    [newer] = re.findall(r'href="([^"]*)" rel="prev"', page)
    assert listed(await get_page(api, newer)) == list(range(25, 5, -1))
    assert "This page of the list is empty." in await get_page(
        api, f"/clients/{client_id}?before=1"
    )
    await get_page(api, f"/clients/{client_id}?before=x", 400)


async def test_a_client_without_messages_has_an_empty_list(
    api: httpx.AsyncClient, engine: AsyncEngine
) -> None:
    [client_id] = await add_clients(engine, 1)
    assert "Nothing was sent to this client yet." in await get_page(api, f"/clients/{client_id}")


async def test_a_hostile_text_is_escaped(api: httpx.AsyncClient, engine: AsyncEngine) -> None:
    [client_id] = await add_clients(engine, 1)
    [mailing_id] = await add_mailings(
        engine, SampleMailing(start=NOON, clients=1, text=f"{HOSTILE} {LONG_TEXT}")
    )
    await add_messages(engine, mailing_id, [client_id], "delivered")
    page = await get_page(api, f"/clients/{client_id}")
    assert ESCAPED in page
    assert "<script>alert" not in page
