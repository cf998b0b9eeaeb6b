"""The download of a mailing's messages from its page, which spreadsheets open as a table."""

import csv
import io

import httpx
import pytest
from sqlalchemy.ext.asyncio import AsyncEngine
from tests.api.browser_session import BROWSER, SITE
from tests.asgi_client import inside
from tests.factories import (
    OPEN,
    UnusedGateway,
    add_clients,
    add_mailing,
    add_messages,
    channel_of,
    execute,
    value,
)

from mailer.app import create_app
from mailer.db.csv_export import CHUNK_ROWS
from mailer.gateway.channel import Channels
from mailer.sample_data import TEXT
from mailer.settings import Settings

CLIENTS = [
    {"phone": "79160000001", "tag": "VIP;=1+1", "time_zone": "Asia/Omsk"},
    {"phone": "79160000002"},
    {"phone": "79160000003", "time_zone": "Europe/Moscow"},
]


@pytest.fixture
async def browser(engine: AsyncEngine) -> httpx.AsyncClient:
    """A browser, and a mailing whose messages went through gateways with and without a price."""
    channels = [
        channel_of(UnusedGateway(), Settings(), name="main", price=0.035),
        channel_of(UnusedGateway(), Settings(), name="free", price=None),
    ]
    app = create_app(engine, Channels(channels), settings=OPEN)
    client = httpx.AsyncClient(transport=inside(app), base_url="http://mailer/api/v1")
    for each in CLIENTS:
        assert (await client.post("/clients", json=each)).status_code == 201
    mailing_id = await add_mailing(engine, clients=3)
    await add_messages(engine, mailing_id, [1], "delivered")
    await add_messages(engine, mailing_id, [2], "undelivered", "not_delivered_30003")
    await add_messages(engine, mailing_id, [3], "cancelled", "expired")
    await execute(
        engine,
        "UPDATE message SET gateway = 'main', parts = 2, sent_at = '2030-01-15 20:30:05.6Z'"
        " WHERE id = 1",
        "UPDATE message SET gateway = 'free', parts = 1, sent_at = '2030-01-15 20:30Z'"
        " WHERE id = 2",
    )
    return client


async def download(browser: httpx.AsyncClient, query: str = "", language: str = "en") -> str:
    """Return the text of a download."""
    response = await browser.get(
        f"{SITE}/mailings/1/messages.csv?{query}", headers={**BROWSER, "Accept-Language": language}
    )
    assert response.status_code == 200, response.text
    assert response.headers["content-disposition"] == 'attachment; filename="mailing-1.csv"'
    return response.content.decode()


async def test_the_file_has_words_local_times_and_costs(browser: httpx.AsyncClient) -> None:
    text = await download(browser)
    assert list(csv.reader(io.StringIO(text))) == [
        [
            *("\ufeffPhone", "Tag", "Time zone", "Sent at, local time", "Status", "Reason"),
            *("Gateway", "Parts", "Cost", "Text"),
        ],
        [
            *("79160000001", "VIP;'=1+1", "Asia/Omsk", "2030-01-16 02:30:05", "delivered", ""),
            *("main", "2", "0.07", TEXT),
        ],
        [
            *("79160000002", "", "UTC", "2030-01-15 20:30:00", "undelivered"),
            "not delivered, with the code 30003 in the receipt",
            *("free", "1", "", TEXT),
        ],
        [
            *("79160000003", "", "Europe/Moscow", "", "cancelled"),
            *("the mailing ended before it was sent", "", "", "", TEXT),
        ],
    ]


async def test_the_file_is_in_the_language_of_the_page_and_separated_as_its_spreadsheets_expect(
    browser: httpx.AsyncClient,
) -> None:
    text = await download(browser, language="ru")
    header, first, *_ = csv.reader(io.StringIO(text), delimiter=";")
    assert header[0] == "\ufeffТелефон"  # noqa: RUF001
    assert "Отправлено, местное время" in header
    assert first[4:] == ["доставлено", "", "main", "2", "0,07", TEXT]
    [_, first, *_] = csv.reader(io.StringIO(await download(browser, "separator=comma", "ru")))
    assert first[4:] == ["доставлено", "", "main", "2", "0.07", TEXT]


async def test_the_separator_is_chosen_on_the_page(browser: httpx.AsyncClient) -> None:
    for language, separator in (("en", "comma"), ("ru", "semicolon")):
        headers = {**BROWSER, "Accept-Language": language}
        page = (await browser.get(f"{SITE}/mailings/1/messages", headers=headers)).text
        assert f'<option value="{separator}" selected>' in page
    text = await download(browser, "separator=semicolon&status=delivered")
    assert len(list(csv.reader(io.StringIO(text), delimiter=";"))) == 2
    wrong = await browser.get(f"{SITE}/mailings/1/messages.csv?separator=tab", headers=BROWSER)
    assert wrong.status_code == 400


async def test_the_client_of_an_erased_message_is_not_in_the_file(
    browser: httpx.AsyncClient,
) -> None:
    await browser.delete("/clients/1")
    [_, first, *_] = csv.reader(io.StringIO(await download(browser)))
    assert first[:5] == ["", "", "Asia/Omsk", "2030-01-16 02:30:05", "delivered"]


async def test_a_file_of_several_chunks_has_one_header(
    browser: httpx.AsyncClient, engine: AsyncEngine
) -> None:
    assert len((await download(browser, "status=unknown")).splitlines()) == 1
    clients = await add_clients(engine, CHUNK_ROWS + 1, "903")
    await add_messages(engine, 1, clients, "sent")
    rows = list(csv.reader(io.StringIO(await download(browser))))
    assert len(rows) == 1 + len(CLIENTS) + len(clients)
    assert [row[0] for row in rows if not row[0].isdecimal()] == ["\ufeffPhone"]


async def test_the_audit_log_has_a_download_before_its_first_byte(
    browser: httpx.AsyncClient, engine: AsyncEngine
) -> None:
    await download(browser, "status=delivered&phone=0001")
    entry = await value(engine, "SELECT to_jsonb(audit) FROM audit ORDER BY id DESC LIMIT 1")
    assert (entry["action"], entry["target_kind"], entry["target_id"]) == (
        "messages_exported",
        "mailing",
        1,
    )
    assert entry["after"] == {"filter": ["client_id", "status"]}


async def test_a_value_that_looks_like_a_parameter_of_sql_stays_as_it_is(
    browser: httpx.AsyncClient, engine: AsyncEngine
) -> None:
    hostile = """$1 '";{0}\n=2"""
    await browser.patch("/clients/3", json={"tag": "$1 ';{0}"})
    await execute(
        engine,
        f"UPDATE message SET gateway = '$2', reason = $r${hostile}$r$ WHERE id = 3",  # noqa: S608  # a value of the test
    )
    rows = list(csv.reader(io.StringIO(await download(browser))))
    assert rows[3][1] == "$1 ';{0}"
    assert rows[3][5] == hostile.replace("=2", "'=2")
    assert rows[3][6] == "$2"
