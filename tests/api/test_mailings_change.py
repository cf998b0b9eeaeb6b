"""Mailings over the API: which fields can change, when, and what happens to the messages.

After a change, `enqueue_and_replan` does what the dispatcher would do. The fixture `clients`
creates four clients, who have names for the tests: see `CLIENTS`.
"""

from datetime import UTC, datetime, time, timedelta
from typing import Any
from zoneinfo import ZoneInfo

import httpx
import pytest
from sqlalchemy import func, update
from sqlalchemy.ext.asyncio import AsyncEngine
from tests.api.calls import (
    CLIENTS,
    COUNT_FIELDS,
    DUE,
    NEW,
    create_mailing,
    field_errors,
    messages_by_client,
    update_messages,
)
from tests.factories import do, enqueue_and_replan, running, start_and_enqueue

from mailer.db.tables.mailing import mailing
from mailer.mailing.enqueuing import enqueue_chunk

WINDOW = {"send_interval_time_start": "09:00", "send_interval_time_end": "18:00"}

# ---- changing before the start --------------------------------------------------------------


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"datetime_start": "2040-01-01T10:00:00Z"},
        {"datetime_end": "2041-01-01T10:00:00Z"},
        {"datetime_start": "2050-01-01T09:00:00Z", "datetime_end": "2050-01-02T09:00:00Z"},
        WINDOW,
        {"text": "Changed"},
        {"client_filter": "912"},
        {"client_filter": {"tags": ["vip"]}},
        {"on_unknown": "hold"},
        {"text": "Changed", "client_filter": "vip", "on_unknown": "hold"},
    ],
)
@pytest.mark.usefixtures("clients")
async def test_before_the_start_every_field_can_change_and_absent_fields_stay(
    api: httpx.AsyncClient, change: dict[str, Any]
) -> None:
    created = await create_mailing(api, NEW)

    answer = await api.patch(f"/mailings/{created['id']}", json=change)

    assert answer.status_code == 200
    # these may change with the others
    derived = {"updated_at", "clients_count", "scheduled_messages", "text_version"}
    unchanged = created.keys() - change.keys() - derived
    assert {name: answer.json()[name] for name in unchanged} == {
        name: created[name] for name in unchanged
    }
    assert {name: answer.json()[name] for name in change} == change
    assert (await api.get("/mailings")).json()["results"] == [answer.json()]


@pytest.mark.usefixtures("clients")
async def test_a_new_filter_before_the_start_counts_its_audience(api: httpx.AsyncClient) -> None:
    created = await create_mailing(api, NEW | {"client_filter": "vip"})
    changed = await api.patch(f"/mailings/{created['id']}", json={"client_filter": "912"})
    assert changed.json()["clients_count"] == changed.json()["scheduled_messages"] == 2
    assert changed.json()["created_messages"] == 0


async def test_null_removes_the_filter_and_the_sending_window(api: httpx.AsyncClient) -> None:
    created = await create_mailing(api, NEW | WINDOW | {"client_filter": "vip"})
    nulls = dict.fromkeys([*WINDOW, "client_filter"])
    changed = (await api.patch(f"/mailings/{created['id']}", json=nulls)).json()
    assert {name: changed[name] for name in nulls} == nulls


@pytest.mark.parametrize(
    ("stored", "change", "field"),
    [
        ({}, {"send_interval_time_start": "09:00"}, "send_interval_time_end"),
        ({}, {"send_interval_time_end": "09:00"}, "send_interval_time_start"),
        (WINDOW, {"send_interval_time_start": None}, "send_interval_time_start"),
        (WINDOW, {"send_interval_time_end": None}, "send_interval_time_end"),
        (WINDOW, {"send_interval_time_start": "18:00:00"}, "send_interval_time_end"),
        (WINDOW, {"send_interval_time_end": "09:00"}, "send_interval_time_end"),
        ({}, {"datetime_end": NEW["datetime_start"]}, "datetime_end"),
        ({}, {"datetime_end": "2039-01-01T00:00:00Z"}, "datetime_end"),
        ({}, {"datetime_start": NEW["datetime_end"]}, "datetime_end"),
        (
            {"datetime_start": "2020-01-01T00:00:00Z"},
            {"datetime_end": "2021-01-01T00:00:00Z"},
            "datetime_end",
        ),
    ],
)
async def test_a_change_that_contradicts_stored_fields_is_refused_with_the_name_of_a_field(
    api: httpx.AsyncClient, stored: dict[str, Any], change: dict[str, Any], field: str
) -> None:
    created = await create_mailing(api, NEW | stored)

    answer = await api.patch(f"/mailings/{created['id']}", json=change)

    assert answer.status_code == 400
    assert field_errors(answer).keys() == {field}
    assert (await api.get("/mailings")).json()["results"] == [created]


# ---- changing while it runs -----------------------------------------------------------------


@pytest.mark.parametrize("change", [{"text": "Changed"}, {"on_unknown": "hold"}, {}])
@pytest.mark.usefixtures("clients")
async def test_a_running_mailing_changes_its_text_and_on_unknown_at_once(
    api: httpx.AsyncClient, engine: AsyncEngine, change: dict[str, Any]
) -> None:
    created = await create_mailing(api, DUE)
    await start_and_enqueue(engine)
    before = await messages_by_client(api, created["id"])

    answer = await api.patch(f"/mailings/{created['id']}", json=change)

    assert answer.status_code == 200
    assert {name: answer.json()[name] for name in change} == change
    [running_mailing] = await running(engine)
    assert running_mailing.text == answer.json()["text"]
    assert running_mailing.on_unknown == answer.json()["on_unknown"]
    await enqueue_and_replan(engine)
    assert await messages_by_client(api, created["id"]) == before


@pytest.mark.usefixtures("clients")
async def test_a_running_mailing_can_change_its_end(
    api: httpx.AsyncClient, engine: AsyncEngine
) -> None:
    created = await create_mailing(api, DUE)
    await start_and_enqueue(engine)
    end = {"datetime_end": "2050-01-01T00:00:00Z"}

    assert (await api.patch(f"/mailings/{created['id']}", json=end)).status_code == 200
    await enqueue_and_replan(engine)

    changed = (await api.get(f"/mailings/{created['id']}")).json()
    assert changed["datetime_end"] == end["datetime_end"]
    assert changed["scheduled_messages"] == changed["clients_count"] == 4


async def test_changing_the_start_after_the_start_is_409(
    api: httpx.AsyncClient, engine: AsyncEngine
) -> None:
    created = await create_mailing(api, DUE)
    await start_and_enqueue(engine)
    address = f"/mailings/{created['id']}"

    refused = await api.patch(address, json={"datetime_start": "2021-01-01T00:00:00Z", "text": "x"})

    assert refused.status_code == 409
    assert refused.headers["content-type"] == "application/problem+json"
    assert (await api.get(address)).json()["text"] == created["text"]
    # the same moment as before is no change
    same_moment = "2020-01-01T12:00:00+03:00"
    same = await api.patch(address, json={"datetime_start": same_moment})
    assert same.status_code == 200


async def test_a_new_filter_cancels_and_creates_messages_and_keeps_sent_ones(
    api: httpx.AsyncClient, engine: AsyncEngine, clients: dict[str, int]
) -> None:
    created = await create_mailing(api, DUE | {"client_filter": "916, 912"})
    await start_and_enqueue(engine)
    await update_messages(engine, clients["vip"], status="delivered", sent_at=func.now())
    change = {"client_filter": {"operator_codes": ["903", "999"]}}

    changed = await api.patch(f"/mailings/{created['id']}", json=change)
    await enqueue_and_replan(engine)

    assert changed.json()["client_filter"] == change["client_filter"]
    messages = await messages_by_client(api, created["id"])
    results = {
        name: (messages[client_id]["status"], messages[client_id]["reason"])
        for name, client_id in clients.items()
    }
    assert results == {
        "vip": ("delivered", None),
        "moscow": ("cancelled", "filter_changed"),
        "tagged 912": ("scheduled", None),
        "blank": ("scheduled", None),
    }
    after = (await api.get(f"/mailings/{created['id']}")).json()
    assert after["clients_count"] == after["created_messages"] == 4
    assert sum(after[name] for name in COUNT_FIELDS) == 4
    assert (after["scheduled_messages"], after["delivered_messages"]) == (2, 1)


async def test_a_client_that_matches_again_is_rescheduled_with_the_same_message(
    api: httpx.AsyncClient, engine: AsyncEngine, clients: dict[str, int]
) -> None:
    created = await create_mailing(api, DUE | {"client_filter": "912"})
    address = f"/mailings/{created['id']}"
    await start_and_enqueue(engine)
    before = await messages_by_client(api, created["id"])

    for client_filter in ("vip", "912"):
        await api.patch(address, json={"client_filter": client_filter})
        await enqueue_and_replan(engine)

    after = await messages_by_client(api, created["id"])
    for name in ("moscow", "tagged 912"):
        message = after[clients[name]]
        assert message["id"] == before[clients[name]]["id"]
        assert (message["status"], message["reason"]) == ("scheduled", None)
    assert after[clients["vip"]]["reason"] == "filter_changed"


async def create_vip(api: httpx.AsyncClient, phone: str) -> int:
    """Create a client with the tag `vip`; return the client's id."""
    client_id: int = (await api.post("/clients", json={"phone": phone, "tag": "vip"})).json()["id"]
    return client_id


async def test_a_client_created_after_the_start_is_enqueued_only_by_a_change_of_the_filter(
    api: httpx.AsyncClient, engine: AsyncEngine, clients: dict[str, int]
) -> None:
    created = await create_mailing(api, DUE | {"client_filter": "vip"})
    await start_and_enqueue(engine)
    created_before_change = await create_vip(api, "79160000009")

    end = (datetime.now(UTC) + timedelta(days=2)).isoformat()
    await api.patch(f"/mailings/{created['id']}", json={"datetime_end": end})
    await enqueue_and_replan(engine)

    assert created_before_change not in await messages_by_client(api, created["id"])

    await api.patch(f"/mailings/{created['id']}", json={"client_filter": None})
    created_after_change = await create_vip(api, "79160000008")
    await enqueue_and_replan(engine)

    messages = await messages_by_client(api, created["id"])
    assert created_after_change not in messages
    assert messages.keys() == {*clients.values(), created_before_change}


async def test_messages_of_a_deleted_client_are_not_rescheduled(
    api: httpx.AsyncClient, engine: AsyncEngine, clients: dict[str, int]
) -> None:
    created = await create_mailing(api, DUE)
    await start_and_enqueue(engine)
    await api.delete(f"/clients/{clients['vip']}")

    for client_filter in ("912", None):
        await api.patch(f"/mailings/{created['id']}", json={"client_filter": client_filter})
        await enqueue_and_replan(engine)

    erased = (await messages_by_client(api, created["id"]))[clients["vip"]]
    assert (erased["status"], erased["reason"]) == ("cancelled", "client_deleted")


async def test_no_message_is_claimed_until_a_new_filter_is_applied(
    api: httpx.AsyncClient, engine: AsyncEngine, clients: dict[str, int]
) -> None:
    created = await create_mailing(api, DUE)
    await start_and_enqueue(engine)
    lease = {"lease_owner": func.gen_random_uuid(), "lease_expires_at": func.now()}
    await update_messages(engine, clients["vip"], status="sending", **lease)

    await api.patch(f"/mailings/{created['id']}", json={"client_filter": "912"})

    assert await running(engine) == []
    assert await do(engine, enqueue_chunk) is None  # a message is in flight
    await update_messages(
        engine, clients["vip"], status="delivered", lease_owner=None, lease_expires_at=None
    )
    await enqueue_and_replan(engine)
    assert len(await running(engine)) == 1


async def test_a_change_does_not_shorten_the_pause_after_a_failed_attempt(
    api: httpx.AsyncClient, engine: AsyncEngine, clients: dict[str, int]
) -> None:
    created = await create_mailing(api, DUE)
    await start_and_enqueue(engine)
    in_an_hour = datetime.now(UTC) + timedelta(hours=1)
    pause = {"due_at": in_an_hour, "retry_at": in_an_hour}
    await update_messages(engine, clients["vip"], attempts=1, reason="http_503", **pause)
    before = (await messages_by_client(api, created["id"]))[clients["vip"]]

    await api.patch(f"/mailings/{created['id']}", json={"client_filter": "vip"})
    await enqueue_and_replan(engine)

    after = (await messages_by_client(api, created["id"]))[clients["vip"]]
    assert (after["datetime_send"], after["reason"]) == (before["datetime_send"], "http_503")


async def test_a_new_sending_window_replans_scheduled_messages(
    api: httpx.AsyncClient, engine: AsyncEngine, clients: dict[str, int]
) -> None:
    created = await create_mailing(api, DUE)
    await start_and_enqueue(engine)
    await update_messages(engine, clients["blank"], status="delivered", sent_at=func.now())
    sent = (await messages_by_client(api, created["id"]))[clients["blank"]]
    one_minute = {"send_interval_time_start": "09:00", "send_interval_time_end": "09:01"}

    await api.patch(f"/mailings/{created['id']}", json=one_minute)
    await enqueue_and_replan(engine)

    messages = await messages_by_client(api, created["id"])
    for name in ("vip", "moscow", "tagged 912"):
        zone = ZoneInfo(CLIENTS[name].get("time_zone", "UTC"))
        due_at = datetime.fromisoformat(messages[clients[name]]["datetime_send"])
        assert time(9, 0) <= due_at.astimezone(zone).time() < time(9, 1)
        # the window may be open now, and close while the test runs
        assert timedelta(minutes=-1) < due_at - datetime.now(UTC) < timedelta(days=1)
    assert messages[clients["blank"]] == sent

    without_window = dict.fromkeys(one_minute)
    await api.patch(f"/mailings/{created['id']}", json=without_window)
    await enqueue_and_replan(engine)

    messages = await messages_by_client(api, created["id"])
    for name in ("vip", "moscow", "tagged 912"):
        due_at = datetime.fromisoformat(messages[clients[name]]["datetime_send"])
        assert due_at <= datetime.now(UTC)


async def test_messages_cancelled_by_a_sending_window_are_rescheduled_when_it_can_open(
    api: httpx.AsyncClient, engine: AsyncEngine
) -> None:
    await api.post("/clients", json={"phone": "79160000001"})
    now = datetime.now(UTC)
    created = await create_mailing(
        api, DUE | {"datetime_end": (now + timedelta(hours=1)).isoformat()}
    )
    address = f"/mailings/{created['id']}"
    await start_and_enqueue(engine)
    window = {
        "send_interval_time_start": f"{now + timedelta(hours=3):%H:%M}",
        "send_interval_time_end": f"{now + timedelta(hours=4):%H:%M}",
    }

    await api.patch(address, json=window)
    await enqueue_and_replan(engine)

    [cancelled] = (await api.get(address)).json()["mailing_messages"]
    assert (cancelled["status"], cancelled["reason"]) == ("cancelled", "no_window")

    later_end = {"datetime_end": (now + timedelta(hours=5)).isoformat()}
    await api.patch(address, json=later_end)
    await enqueue_and_replan(engine)

    [rescheduled] = (await api.get(address)).json()["mailing_messages"]
    assert (rescheduled["status"], rescheduled["reason"]) == ("scheduled", None)


# ---- after the end --------------------------------------------------------------------------


@pytest.mark.parametrize(
    "change", [{}, {"text": "x"}, {"datetime_end": "2050-01-01T00:00:00Z"}, {"on_unknown": "hold"}]
)
@pytest.mark.parametrize(
    "ended",
    [
        {"status": "finished"},
        {"status": "cancelled"},
        {"status": "running", "datetime_end": datetime(2021, 1, 1, tzinfo=UTC)},
    ],
    ids=["finished", "cancelled", "past its end"],
)
async def test_after_the_end_any_change_is_409(
    api: httpx.AsyncClient, engine: AsyncEngine, ended: dict[str, Any], change: dict[str, Any]
) -> None:
    created = await create_mailing(api, DUE)
    async with engine.begin() as connection:
        await connection.execute(update(mailing).values(**ended))
    before = (await api.get(f"/mailings/{created['id']}")).json()

    answer = await api.patch(f"/mailings/{created['id']}", json=change)

    assert answer.status_code == 409
    assert answer.headers["content-type"] == "application/problem+json"
    assert (await api.get(f"/mailings/{created['id']}")).json() == before
