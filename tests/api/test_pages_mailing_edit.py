"""The form of a mailing that is there changes what is different in it, and nothing else."""

import re
from typing import Any

import httpx
import pytest
from sqlalchemy.ext.asyncio import AsyncEngine
from tests.api.calls import DUE, NEW, create
from tests.api.forms import (
    edited,
    errors,
    fields,
    said,
    saved,
    sent,
    shown,
)
from tests.sample import add_clients, begin, value


@pytest.mark.parametrize(
    "given",
    [
        NEW,
        NEW | {"datetime_start": "2040-01-01T09:00:30.123456Z", "text": "a\r\nb \rc"},
        NEW
        | {"client_filter": " 912 ,vip", "datetime_start": "2040-10-28T01:30:00Z"}
        | {"datetime_end": "2041-01-01T00:00:00Z"},
        NEW | {"client_filter": {"tags": ["a,b", "c\nd"], "operator_codes": ["912", "912"]}},
        NEW | {"send_interval_time_start": "22:00:30", "send_interval_time_end": "06:00"},
    ],
)
async def test_saving_what_is_shown_changes_nothing(
    api: httpx.AsyncClient, given: dict[str, Any]
) -> None:
    before = await create(api, given)
    after = await saved(
        api, f"/mailings/{before['id']}/edit", await edited(api, before, "Europe/Berlin")
    )
    after.pop("mailing_messages")
    assert {**after, "updated_at": ""} == {**before, "updated_at": ""}


async def test_only_what_is_different_changes(api: httpx.AsyncClient) -> None:
    before = await create(api, NEW | {"client_filter": "912, vip"})
    path = f"/mailings/{before['id']}/edit"
    form = await edited(api, before, "Asia/Tokyo")
    after = await saved(api, path, form | {"end": "2040-01-03T00:00", "audience": "everybody"})
    assert after["datetime_start"] == before["datetime_start"]
    assert after["datetime_end"] == "2040-01-02T15:00:00Z"
    assert after["client_filter"] is None
    answer = await sent(api, path, await edited(api, after) | {"end": "2039-01-01T00:00"})
    assert errors(answer.text) == {"end": "must be after the start"}


async def test_a_mailing_that_has_begun_keeps_its_start(
    api: httpx.AsyncClient, engine: AsyncEngine
) -> None:
    await add_clients(engine, 3)
    before = await create(api, DUE)
    await begin(engine)
    path = f"/mailings/{before['id']}/edit"
    page = await shown(api, path)
    assert "This mailing has begun" in page
    assert re.search(r'name="start"[^>]* readonly', page)
    form = fields(page)
    answer = await sent(api, path, form | {"start": "2039-01-01T00:00"})
    assert answer.status_code == 409
    assert errors(answer.text) == {"start": "cannot be changed any more: the mailing has started"}
    assert fields(answer.text)["start"] == "2020-01-01T09:00"
    after = await saved(api, path, form | {"text": "Until nine."})
    assert (after["text"], after["datetime_start"]) == ("Until nine.", before["datetime_start"])


async def test_a_mailing_that_has_ended_cannot_be_changed(api: httpx.AsyncClient) -> None:
    mailing = await create(api, NEW)
    form = await edited(api, mailing)
    await api.post(f"/mailings/{mailing['id']}/cancel")
    path = f"/mailings/{mailing['id']}/edit"
    assert "A mailing that has ended cannot be changed." in await shown(api, path, status=409)
    assert (await sent(api, path, form)).status_code == 409


@pytest.mark.parametrize(
    "given", [{"text": "Mine."}, {"audience": "everybody", "start": "2040-01-01T09:30"}]
)
async def test_a_change_that_is_sent_twice_is_saved(
    api: httpx.AsyncClient, engine: AsyncEngine, given: dict[str, str]
) -> None:
    mailing = await create(api, NEW | {"client_filter": "912"})
    path = f"/mailings/{mailing['id']}/edit"
    form = await edited(api, mailing, "Europe/Berlin") | given
    after = await saved(api, path, form)
    again = await saved(api, path, form)
    assert again == after
    found = "SELECT count(*) FROM audit WHERE action = 'mailing_changed'"
    assert await value(engine, found) == 1


async def test_what_somebody_else_changed_meanwhile_is_not_lost_unseen(
    api: httpx.AsyncClient,
) -> None:
    mailing = await create(api, NEW)
    path = f"/mailings/{mailing['id']}"
    form = await edited(api, mailing) | {"text": "Mine."}
    await api.patch(path, json={"text": "Theirs.", "on_unknown": "hold"})
    answer = await sent(api, f"{path}/edit", form)
    assert answer.status_code == 409
    assert "Somebody else changed this mailing meanwhile." in said(answer.text)
    assert (await api.get(path)).json()["text"] == "Theirs."
    again = fields(answer.text)
    assert again["text"] == "Mine."
    assert (await saved(api, f"{path}/edit", again))["text"] == "Mine."
