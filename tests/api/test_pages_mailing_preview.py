"""The preview beside the form of a mailing."""

from datetime import UTC, datetime, timedelta

import httpx
import pytest
from sqlalchemy.ext.asyncio import AsyncEngine
from tests.api.calls import CLIENTS, DUE, create_mailing
from tests.api.forms import NEW_FORM, edit_form_values, preview_form
from tests.asgi_client import inside
from tests.factories import (
    OPEN,
    add_clients,
    add_due_messages,
    create_channels,
    execute,
    start_and_enqueue,
)

from mailer.app import create_app


async def create_clients(api: httpx.AsyncClient) -> None:
    """Create the four clients of `CLIENTS`."""
    for payload in CLIENTS.values():
        await api.post("/clients", json=payload)


async def test_the_preview_shows_the_number_of_parts_and_the_reason(api: httpx.AsyncClient) -> None:
    await create_clients(api)
    preview = await preview_form(api, NEW_FORM | {"text": "a" * 161})
    assert "characters 161 parts 2 left in the last part 145" in preview  # of two parts of 153
    assert "parts in total 8" in preview  # to four clients
    assert "Standard SMS alphabet (GSM 03.38): 153 characters a part." in preview

    preview = await preview_form(api, NEW_FORM | {"text": "Half pri\u0441e."})  # a Cyrillic es
    assert "“\u0441” (U+0441 CYRILLIC SMALL LETTER ES) at position 9 requires Unicode" in preview
    assert "(UCS-2): 70 characters" in preview
    assert "a part instead of 160." in preview

    preview = await preview_form(api, NEW_FORM | {"text": "Заказ готов"})
    assert "Russian text: 70 characters a part." in preview
    assert "U+0417" not in preview
    preview = await preview_form(api, NEW_FORM | {"text": "Заказ готов" * 10})
    assert "Russian text: 67 characters a part." in preview
    preview = await preview_form(api, NEW_FORM | {"text": "Half “price”"})
    assert "2 characters require Unicode (UCS-2): 70 characters a part instead of 160." in preview


async def test_the_preview_shows_the_audience_and_its_local_times(api: httpx.AsyncClient) -> None:
    await create_clients(api)
    preview = await preview_form(api, NEW_FORM | {"audience": "terms", "terms": "912"})
    assert "2 clients All of them:" in preview
    assert "79120000002 912, Europe/Moscow" in preview
    assert "79030000003 903, 912, Asia/Kathmandu" in preview
    assert "Asia/Kathmandu UTC+5:45, 1 client 04:15\u201316:15" in preview
    assert "Europe/Moscow UTC+3, 1 client 07:00\u201319:00" in preview
    preview = await preview_form(api, NEW_FORM | {"audience": "terms", "terms": "nobody"})
    assert "nobody will get this mailing" in preview


async def test_the_preview_lists_the_largest_time_zones_and_counts_the_rest(
    api: httpx.AsyncClient, engine: AsyncEngine
) -> None:
    eleven_zones = ["UTC", *(f"Etc/GMT+{n}" for n in range(1, 11))]
    for n, zone in enumerate(eleven_zones):
        await add_clients(engine, 20 - n, time_zone=zone)
    preview = await preview_form(api, NEW_FORM)
    assert "165 clients Some of them:" in preview  # 20 + 19 + ... + 10
    assert "Etc/GMT+7" in preview
    assert "3 more time zones, with 33 clients, are not shown." in preview  # 12 + 11 + 10


async def test_the_preview_shows_clients_that_will_not_be_reached_and_the_remedy(
    api: httpx.AsyncClient, engine: AsyncEngine
) -> None:
    await add_clients(engine, 3)
    await add_clients(engine, 2, time_zone="Asia/Kamchatka")
    short = NEW_FORM | {"start": "2040-01-01T11:00", "end": "2040-01-01T20:00"}
    preview = await preview_form(api, short)
    assert "2 of 5 clients will not get it" in preview
    assert (
        "2 in Asia/Kamchatka: the mailing ends before the sending window opens at 1 Jan 2040, 22:00"
        in preview
    )
    assert "Set a later end or a wider sending window to reach them." in preview
    assert "2 of 5 clients will not get it. See the reasons under Forecast. Save" in preview
    assert "only the sending windows were considered" in preview
    assert "The sending windows of all clients open in time" in await preview_form(api, NEW_FORM)


async def test_the_preview_shows_the_rate_and_clients_beyond_the_capacity(
    engine: AsyncEngine,
) -> None:
    await add_clients(engine, 500)
    await add_due_messages(engine, 7)
    app = create_app(engine, create_channels(gateway_rate=0.5), settings=OPEN)  # 300 in 10 minutes
    ten_minutes = NEW_FORM | {"start": "2040-01-01T12:00", "end": "2040-01-01T12:10"}
    async with httpx.AsyncClient(transport=inside(app)) as client:
        preview = await preview_form(client, ten_minutes)
    assert "207 of 507 clients will not get it" in preview
    assert "207 in UTC: not enough time before the end" in preview
    assert "At 0.5 messages a second, the configured limit." in preview
    assert "It is shared with 1 other running mailing." in preview


@pytest.mark.parametrize(
    ("typed", "expected"),
    [
        ({"end": "2040-01-01T09:00"}, "End: must be after the start"),
        ({"opens": "21:00"}, "Window closes: must differ from the time when the window opens"),
        ({"text": "x" * 1601}, "Text: must have 1 to 1,600 characters"),
        ({"start": "2040-03-25T02:30"}, "Start: does not exist on that day"),
        ({"audience": "lists", "tags": "x", "time_zones": "Mars"}, "Time zones: must be a time"),
    ],
)
async def test_the_preview_shows_invalid_values(
    api: httpx.AsyncClient, typed: dict[str, str], expected: str
) -> None:
    assert expected in await preview_form(api, NEW_FORM | typed)


async def test_the_preview_does_not_complain_about_empty_fields(api: httpx.AsyncClient) -> None:
    empty = {"text": "", "start": "", "closes": "", "audience": "lists", "on_unknown": ""}
    preview = await preview_form(api, NEW_FORM | empty)
    assert "must" not in preview
    assert "is needed" not in preview


@pytest.mark.parametrize(
    "typed",
    [
        {"start": ""},
        {"end": "x"},
        {"start": "2040-01-02T09:00"},
        {"opens": ""},
        {"closes": "2"},
        {"audience": "terms"},
        {"audience": "lists", "time_zones": "Europe/Mos"},
        {"text": "", "on_unknown": ""},
        {"text": "\x00" * 2000, "audience": "terms", "terms": "\x00"},
        {"start": "9999-12-31T23:59", "end": "0001-01-01T00:00"},
        {"start": "8999-12-31T23:59", "end": "8999-12-31T23:59"},
        {"zone": "x"},
    ],
)
async def test_the_preview_works_with_an_incomplete_form(
    api: httpx.AsyncClient, typed: dict[str, str]
) -> None:
    await create_clients(api)
    assert "As SMS" in await preview_form(api, NEW_FORM | typed)
    assert "As SMS" in await preview_form(api, typed)


async def test_the_preview_of_a_change_counts_cancelled_clients_again(
    api: httpx.AsyncClient, engine: AsyncEngine
) -> None:
    await add_clients(engine, 3)
    now = datetime.now(UTC)
    closed_window = {
        "send_interval_time_start": f"{now + timedelta(hours=3):%H:%M}",
        "send_interval_time_end": f"{now + timedelta(hours=4):%H:%M}",
    }
    ends_before_window = {"datetime_end": f"{now + timedelta(hours=1)}"}
    mailing = await create_mailing(api, DUE | closed_window | ends_before_window)
    await start_and_enqueue(engine)  # cancels the messages to all clients
    query = f"?mailing={mailing['id']}"
    form = await edit_form_values(api, mailing)
    assert "No clients are left to reach." in await preview_form(api, form, query)
    later = form | {"end": f"{now + timedelta(days=1):%Y-%m-%dT%H:%M}"}
    assert "For the last client of 3, the window opens at" in await preview_form(api, later, query)
    wide = form | {"opens": "", "closes": ""}
    assert "For the last client of 3, the window opens at" in await preview_form(api, wide, query)
    await execute(engine, "UPDATE message SET status = 'delivered', reason = NULL WHERE id = 1")
    assert "For the last client of 2, the window opens at" in await preview_form(api, wide, query)
