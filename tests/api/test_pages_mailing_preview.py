"""What the form of a mailing tells beside itself while it is being filled in."""

from datetime import UTC, datetime, timedelta

import httpx
import pytest
from sqlalchemy.ext.asyncio import AsyncEngine
from tests.api.calls import DIRECTORY, DUE, create
from tests.api.forms import NEW_FORM, edited, previewed
from tests.asked import inside
from tests.sample import OPEN, add_clients, add_due_messages, begin, execute

from mailer.app import create_app
from mailer.gateway.breaker import Breaker
from mailer.gateway.pace import Pace


async def test_preview_tells_how_many_parts_a_text_takes_and_why(api: httpx.AsyncClient) -> None:
    await add_some(api)
    told = await previewed(api, NEW_FORM | {"text": "a" * 161})
    assert "characters 161 parts 2 left in the last part 145 parts in all 8" in told
    assert "Plain letters (GSM 03.38): 153 characters a part." in told
    told = await previewed(api, NEW_FORM | {"text": "Half pri\u0441e."})
    assert "“\u0441” (U+0441 CYRILLIC SMALL LETTER ES) at character 9 makes this Unicode" in told
    assert "(UCS-2): 70 characters" in told
    assert "a part instead of 160." in told


async def add_some(api: httpx.AsyncClient) -> None:
    for given in DIRECTORY.values():
        await api.post("/clients", json=given)


async def test_preview_tells_who_gets_it(api: httpx.AsyncClient) -> None:
    await add_some(api)
    told = await previewed(api, NEW_FORM | {"audience": "terms", "terms": "912"})
    assert "2 clients All of them:" in told
    assert "79120000002 912, Europe/Moscow" in told
    assert "79030000003 903, 912, Asia/Kathmandu" in told
    assert "Asia/Kathmandu UTC+5:45, 1 client 04:15\u201316:15" in told
    assert "Europe/Moscow UTC+3, 1 client 07:00\u201319:00" in told
    told = await previewed(api, NEW_FORM | {"audience": "terms", "terms": "nobody"})
    assert "this mailing reaches nobody" in told


async def test_preview_shows_the_largest_zones_and_counts_the_rest(
    api: httpx.AsyncClient, engine: AsyncEngine
) -> None:
    for number, zone in enumerate(["UTC", *(f"Etc/GMT+{n}" for n in range(1, 11))]):
        await add_clients(engine, 20 - number, time_zone=zone)
    told = await previewed(api, NEW_FORM)
    assert "165 clients Some of them:" in told
    assert "Etc/GMT+7" in told
    assert "3 more time zones, with 33 clients, are not shown." in told


async def test_preview_tells_who_will_be_missed_and_what_helps(
    api: httpx.AsyncClient, engine: AsyncEngine
) -> None:
    await add_clients(engine, 3)
    await add_clients(engine, 2, time_zone="Asia/Kamchatka")
    short = NEW_FORM | {"start": "2040-01-01T11:00", "end": "2040-01-01T20:00"}
    told = await previewed(api, short)
    assert "2 of 5 will not be reached" in told
    assert "2 in Asia/Kamchatka, where the hours open after the end: 1 Jan 2040, 22:00" in told
    assert "A later end or wider hours would reach them." in told
    assert "2 of 5 clients will not be reached. What to expect says why. Save" in told
    assert "only the sending windows were considered" in told
    assert "The sending windows of all clients open in time" in await previewed(api, NEW_FORM)


async def test_preview_tells_at_which_rate_and_who_is_too_many_for_it(engine: AsyncEngine) -> None:
    await add_clients(engine, 500)
    await add_due_messages(engine, 7)
    app = create_app(engine, Breaker(10, 15), pace=Pace(50, 0.5), settings=OPEN)
    transport = inside(app)
    short = NEW_FORM | {"start": "2040-01-01T12:00", "end": "2040-01-01T12:10"}
    async with httpx.AsyncClient(transport=transport) as client:
        told = await previewed(client, short)
    assert "207 of 507 will not be reached" in told
    assert "207 in UTC, for whom the time is too short" in told
    assert "At 0.5 messages a second, the limit that is set." in told
    assert "It is shared with 1 other mailing that is running." in told


@pytest.mark.parametrize(
    ("typed", "told"),
    [
        ({"end": "2040-01-01T09:00"}, "End: must be after the start"),
        ({"opens": "21:00"}, "Not after: must differ from when it opens"),
        ({"text": "x" * 1601}, "Text: must have 1 to 1,600 characters"),
        ({"start": "2040-03-25T02:30"}, "Start: does not exist on that day"),
        ({"audience": "lists", "tags": "x", "time_zones": "Mars"}, "Time zones: must be a time"),
    ],
)
async def test_preview_says_gently_what_is_wrong_with_what_was_typed(
    api: httpx.AsyncClient, typed: dict[str, str], told: str
) -> None:
    assert told in await previewed(api, NEW_FORM | typed)


async def test_preview_minds_nothing_that_is_still_empty(api: httpx.AsyncClient) -> None:
    empty = {"text": "", "start": "", "closes": "", "audience": "lists", "on_unknown": ""}
    told = await previewed(api, NEW_FORM | empty)
    assert "must" not in told
    assert "is needed" not in told


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
async def test_preview_says_what_it_can_of_a_form_half_filled_in(
    api: httpx.AsyncClient, typed: dict[str, str]
) -> None:
    await add_some(api)
    assert "As SMS" in await previewed(api, NEW_FORM | typed)
    assert "As SMS" in await previewed(api, typed)


async def test_preview_of_a_change_counts_anew_who_was_given_up(
    api: httpx.AsyncClient, engine: AsyncEngine
) -> None:
    await add_clients(engine, 3)
    now = datetime.now(UTC)
    shut = {
        "send_interval_time_start": f"{now + timedelta(hours=3):%H:%M}",
        "send_interval_time_end": f"{now + timedelta(hours=4):%H:%M}",
    }
    mailing = await create(api, DUE | shut | {"datetime_end": f"{now + timedelta(hours=1)}"})
    await begin(engine)
    query = f"?mailing={mailing['id']}"
    form = await edited(api, mailing)
    assert "No clients are left to reach." in await previewed(api, form, query)
    later = form | {"end": f"{now + timedelta(days=1):%Y-%m-%dT%H:%M}"}
    assert "For the last of 3 at" in await previewed(api, later, query)
    wide = form | {"opens": "", "closes": ""}
    assert "For the last of 3 at" in await previewed(api, wide, query)
    await execute(engine, "UPDATE message SET status = 'delivered', reason = NULL WHERE id = 1")
    assert "For the last of 2 at" in await previewed(api, wide, query)
