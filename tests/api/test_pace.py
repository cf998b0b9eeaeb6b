"""Priority and rate of mailings, in the API and on the pages."""

from typing import Any

import httpx
import pytest
from sqlalchemy.ext.asyncio import AsyncEngine
from tests.api.calls import DUE, NEW, create_mailing, field_errors
from tests.api.forms import (
    HTMX,
    NEW_FORM,
    SITE,
    edit_form_values,
    get_html,
    post_form,
    save_form,
    visible_text,
)
from tests.asgi_client import inside
from tests.factories import OPEN, add_clients, create_channels, running, start_and_enqueue

from mailer.app import create_app

RATE_RULE = "must be a number from 0.01 to 10000, or null"
FAST = NEW_FORM | {"priority": "high", "rate": "20"}


@pytest.mark.parametrize("pace", [("high", 20), ("low", 0.01), ("normal", 10_000), ("low", None)])
async def test_a_mailing_has_the_priority_and_the_rate_that_it_was_created_with(
    api: httpx.AsyncClient, pace: tuple[str, float | None]
) -> None:
    created = await create_mailing(api, NEW | {"priority": pace[0], "rate": pace[1]})
    assert (created["priority"], created["rate"]) == pace
    assert (await api.get("/mailings")).json()["results"] == [created]


async def test_a_mailing_has_normal_priority_and_no_rate_unless_they_are_given(
    api: httpx.AsyncClient,
) -> None:
    created = await create_mailing(api, NEW)
    assert (created["priority"], created["rate"]) == ("normal", None)


@pytest.mark.parametrize(
    ("wrong", "errors"),
    [
        *(({"rate": rate}, {"rate": RATE_RULE}) for rate in (0, -1, 0.009, 10_001, "20", True)),
        ({"priority": "urgent"}, {"priority": "must be low, normal or high"}),
        ({"priority": None}, {"priority": "must be low, normal or high"}),
        (
            {"priority": 1, "rate": []},
            {"priority": "must be low, normal or high", "rate": RATE_RULE},
        ),
    ],
)
async def test_a_wrong_priority_or_rate_is_refused_by_its_name(
    api: httpx.AsyncClient, wrong: dict[str, Any], errors: dict[str, str]
) -> None:
    assert field_errors(await api.post("/mailings", json=NEW | wrong)) == errors
    created = await create_mailing(api, NEW)
    assert field_errors(await api.patch(f"/mailings/{created['id']}", json=wrong)) == errors


async def test_a_running_mailing_changes_its_priority_and_rate_at_once(
    api: httpx.AsyncClient, engine: AsyncEngine
) -> None:
    await add_clients(engine, 2)
    path = f"/mailings/{(await create_mailing(api, DUE))['id']}"
    await start_and_enqueue(engine)
    for change, expected in (
        ({"priority": "high", "rate": 0.5}, (16, 0.5)),
        ({"priority": "low"}, (1, 0.5)),
        ({"rate": None}, (1, None)),
    ):
        changed = await api.patch(path, json=change)
        assert {name: changed.json()[name] for name in change} == change
        [mailing] = await running(engine)
        assert (mailing.weight, mailing.rate) == expected
        assert mailing.may_send  # its messages are not planned anew


async def test_the_form_sets_priority_and_rate_and_the_pages_show_them(
    api: httpx.AsyncClient,
) -> None:
    mailing = await save_form(api, "/mailings/new", FAST)
    assert (mailing["priority"], mailing["rate"]) == ("high", 20)
    page = visible_text(await get_html(api, f"/mailings/{mailing['id']}"))
    assert "Priority High" in page
    assert "Messages a second at most 20 a second" in page
    assert "High priority, at most 20 a second" in visible_text(await get_html(api, "/mailings"))
    form = await edit_form_values(api, mailing)
    assert (form["priority"], form["rate"]) == ("high", "20")


@pytest.mark.parametrize(
    ("typed", "rate"), [("0,5", 0.5), ("1 000", 1_000), ("0.25", 0.25), (" 7 ", 7), ("", None)]
)
async def test_a_rate_may_be_typed_in_every_usual_way(
    api: httpx.AsyncClient, typed: str, rate: float | None
) -> None:
    assert (await save_form(api, "/mailings/new", NEW_FORM | {"rate": typed}))["rate"] == rate


async def test_a_rate_that_the_form_cannot_show_exactly_stays_as_it_is(
    api: httpx.AsyncClient,
) -> None:
    rate = 1 / 3
    created = await create_mailing(api, NEW | {"rate": rate})
    form = await edit_form_values(api, created)
    saved = await save_form(api, f"/mailings/{created['id']}/edit", form | {"text": "New."})
    assert (saved["text"], saved["rate"]) == ("New.", rate)


async def test_a_mailing_of_normal_priority_without_a_rate_looks_as_before_in_the_list(
    api: httpx.AsyncClient,
) -> None:
    await create_mailing(api, NEW)
    page = visible_text(await get_html(api, "/mailings"))
    assert "priority" not in page
    assert "a second" not in page


async def test_the_audit_log_names_changes_of_priority_and_rate(api: httpx.AsyncClient) -> None:
    created = await create_mailing(api, NEW)
    change = {"priority": "low", "rate": 0.5}
    await api.patch(f"/mailings/{created['id']}", json=change)
    [entry] = (await api.get("/audit?action=mailing_changed")).json()["results"]
    assert entry["before"] == {"priority": "normal", "rate": None}
    assert entry["after"] == change
    page = visible_text(await get_html(api, "/audit?action=mailing_changed"))
    assert "Priority Normal Low" in page
    assert "Messages a second \N{EN DASH} 0.5" in page


async def test_the_forecast_and_the_questions_say_that_a_rate_is_too_low(
    engine: AsyncEngine, api: httpx.AsyncClient
) -> None:
    del api  # its fixture empties the database
    await add_clients(engine, 300)
    ten_minutes = {"opens": "", "closes": "", "end": "2040-01-01T09:10"}
    form = NEW_FORM | ten_minutes | {"rate": "0,25"}
    app = create_app(engine, create_channels(gateway_rate=100), settings=OPEN)
    async with httpx.AsyncClient(transport=inside(app), base_url="http://mailer/api/v1") as client:
        preview = visible_text(
            (await client.post(f"{SITE}/mailings/preview", data=form, headers=HTMX)).text
        )
        assert "150 of 300 clients will not get it" in preview
        assert "At most 0.25 a second is too slow." in preview
        assert "At most 0.25 messages a second, as set for this mailing." in preview
        question = visible_text((await post_form(client, "/mailings/new", form)).text)
        too_slow = "150 of 300 clients will not get it: at most 0.25 a second is too slow."
        assert too_slow in question
        await post_form(client, "/mailings/new", form | {"then": "draft"})
        [draft] = (await client.get("/mailings")).json()["results"]
        launch = visible_text(await get_html(client, f"/mailings/{draft['id']}/launch"))
        assert too_slow in launch
        assert "at most 0.25 a second" in launch
        await client.patch(f"/mailings/{draft['id']}", json={"rate": 10})
        launch = visible_text(await get_html(client, f"/mailings/{draft['id']}/launch"))
        assert "At most 10 a second: all clients will get it by 1 Jan 2040, 08:00" in launch
