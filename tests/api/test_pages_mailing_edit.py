"""The form of an existing mailing saves exactly the fields that the user changed."""

import re
from typing import Any

import httpx
import pytest
from sqlalchemy.ext.asyncio import AsyncEngine
from tests.api.calls import DUE, NEW, create_mailing
from tests.api.forms import (
    edit_form_values,
    form_errors,
    form_values,
    get_html,
    post_form,
    save_form,
    visible_text,
)
from tests.factories import add_clients, start_and_enqueue, value


@pytest.mark.parametrize(
    "payload",
    [
        NEW,
        NEW | {"datetime_start": "2040-01-01T09:00:30.123456Z", "text": "a\r\nb \rc"},
        NEW
        | {"client_filter": " 912 ,vip", "datetime_start": "2040-10-28T01:30:00Z"}
        | {"datetime_end": "2041-01-01T00:00:00Z"},
        NEW | {"client_filter": {"tags": ["a,b", "c\nd"], "operator_codes": ["912", "912"]}},
        NEW | {"send_interval_time_start": "22:00:30", "send_interval_time_end": "06:00"},
    ],
    ids=[
        "usual",
        "microseconds and line ends",
        "terms, and a local time that occurs twice",
        "lists with a comma, a line end and a repeat",
        "a sending window over midnight",
    ],
)
async def test_saving_an_unchanged_form_changes_nothing(
    api: httpx.AsyncClient, payload: dict[str, Any]
) -> None:
    before = await create_mailing(api, payload)
    form = await edit_form_values(api, before, "Europe/Berlin")
    after = await save_form(api, f"/mailings/{before['id']}/edit", form)
    after.pop("mailing_messages")  # only in the response of GET
    assert {**after, "updated_at": ""} == {**before, "updated_at": ""}


async def test_only_changed_fields_are_saved(api: httpx.AsyncClient) -> None:
    before = await create_mailing(api, NEW | {"client_filter": "912, vip"})
    path = f"/mailings/{before['id']}/edit"
    form = await edit_form_values(api, before, "Asia/Tokyo")
    after = await save_form(api, path, form | {"end": "2040-01-03T00:00", "audience": "everybody"})
    assert after["datetime_start"] == before["datetime_start"]
    assert after["datetime_end"] == "2040-01-02T15:00:00Z"
    assert after["client_filter"] is None


async def test_a_change_is_validated_together_with_unchanged_fields(
    api: httpx.AsyncClient,
) -> None:
    mailing = await create_mailing(api, NEW)
    form = await edit_form_values(api, mailing) | {"end": "2039-01-01T00:00"}
    response = await post_form(api, f"/mailings/{mailing['id']}/edit", form)
    assert form_errors(response.text) == {"end": "must be after the start"}


async def test_the_start_of_a_started_mailing_is_read_only(
    api: httpx.AsyncClient, engine: AsyncEngine
) -> None:
    await add_clients(engine, 3)
    before = await create_mailing(api, DUE)
    await start_and_enqueue(engine)
    path = f"/mailings/{before['id']}/edit"
    page = await get_html(api, path)
    assert "This mailing has started" in page
    assert re.search(r'name="start"[^>]* readonly', page)
    form = form_values(page)

    response = await post_form(api, path, form | {"start": "2039-01-01T00:00"})
    assert response.status_code == 409
    assert form_errors(response.text) == {"start": "cannot be changed: the mailing has started"}
    assert form_values(response.text)["start"] == "2020-01-01T09:00"

    after = await save_form(api, path, form | {"text": "Until nine."})
    assert (after["text"], after["datetime_start"]) == ("Until nine.", before["datetime_start"])


async def test_an_ended_mailing_cannot_be_changed(api: httpx.AsyncClient) -> None:
    mailing = await create_mailing(api, NEW)
    form = await edit_form_values(api, mailing)
    await api.post(f"/mailings/{mailing['id']}/cancel")
    path = f"/mailings/{mailing['id']}/edit"
    assert "A mailing that has ended cannot be changed." in await get_html(api, path, status=409)
    assert (await post_form(api, path, form)).status_code == 409


@pytest.mark.parametrize(
    "change", [{"text": "Mine."}, {"audience": "everybody", "start": "2040-01-01T09:30"}]
)
async def test_a_form_that_is_sent_twice_is_saved_once(
    api: httpx.AsyncClient, engine: AsyncEngine, change: dict[str, str]
) -> None:
    mailing = await create_mailing(api, NEW | {"client_filter": "912"})
    path = f"/mailings/{mailing['id']}/edit"
    form = await edit_form_values(api, mailing, "Europe/Berlin") | change
    after = await save_form(api, path, form)
    repeat = await save_form(api, path, form)
    assert repeat == after
    count_changes = "SELECT count(*) FROM audit WHERE action = 'mailing_changed'"
    assert await value(engine, count_changes) == 1


async def test_a_conflicting_change_by_another_user_is_shown_before_saving(
    api: httpx.AsyncClient,
) -> None:
    mailing = await create_mailing(api, NEW)
    path = f"/mailings/{mailing['id']}"
    form = await edit_form_values(api, mailing) | {"text": "Mine."}
    await api.patch(path, json={"text": "Theirs.", "on_unknown": "hold"})
    response = await post_form(api, f"{path}/edit", form)
    assert response.status_code == 409
    assert "Another user changed this mailing in the meantime." in visible_text(response.text)
    assert (await api.get(path)).json()["text"] == "Theirs."
    form_after = form_values(response.text)
    assert form_after["text"] == "Mine."

    # sent again, the form replaces the other user's changes
    assert (await save_form(api, f"{path}/edit", form_after))["text"] == "Mine."
