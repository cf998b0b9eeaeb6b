"""Mailings over HTTP: every rule of the contract's sections 3 and 6 for them."""

from datetime import UTC, datetime, time, timedelta
from itertools import pairwise
from typing import Any
from zoneinfo import ZoneInfo

import httpx
import pytest
from sqlalchemy import func, select, text, update
from sqlalchemy.ext.asyncio import AsyncEngine

from mailer.db.schema import ledger, mailing, message
from mailer.mailing import store
from mailer.mailing.audience import take_chunk

NEW = {
    "datetime_start": "2040-01-01T09:00:00Z",
    "datetime_end": "2040-01-02T09:00:00Z",
    "text": "Your order is ready.",
}
DUE = NEW | {"datetime_start": "2020-01-01T09:00:00Z"}
LEDGER = [
    "scheduled_messages",
    "sending_messages",
    "delivered_messages",
    "undelivered_messages",
    "unknown_messages",
    "cancelled_messages",
]
FIELDS = {
    *("id", "datetime_start", "datetime_end", "text", "client_filter", "on_unknown", "status"),
    *("send_interval_time_start", "send_interval_time_end", "clients_count", "created_messages"),
    *LEDGER,
    *("created_at", "updated_at"),
}
DIRECTORY = {
    "vip": {"phone": "79160000001", "tag": "vip"},
    "moscow": {"phone": "79120000002", "time_zone": "Europe/Moscow"},
    "tagged 912": {"phone": "79030000003", "tag": "912", "time_zone": "Asia/Kathmandu"},
    "blank": {"phone": "79990000004", "tag": "two words"},
}


@pytest.fixture
async def clients(api: httpx.AsyncClient) -> dict[str, int]:
    """The directory's clients: their ids by name."""
    return {
        name: (await api.post("/clients", json=given)).json()["id"]
        for name, given in DIRECTORY.items()
    }


async def create(api: httpx.AsyncClient, given: dict[str, Any]) -> dict[str, Any]:
    answer = await api.post("/mailings", json=given)
    assert answer.status_code == 201
    created: dict[str, Any] = answer.json()
    return created


async def begin(engine: AsyncEngine) -> None:
    """Do what the dispatcher does when a mailing's start has come."""
    async with engine.begin() as connection:
        assert await store.begin_due(connection) is not None
    await take_audience(engine)


async def take_audience(engine: AsyncEngine) -> None:
    is_taken = True
    while is_taken:
        async with engine.begin() as connection:
            is_taken = await take_chunk(connection)


async def mark(engine: AsyncEngine, client_id: int, **columns: Any) -> None:
    """Let the messages for a client be in another state, as if sent."""
    async with engine.begin() as connection:
        await connection.execute(
            update(message).where(message.c.client_id == client_id).values(**columns)
        )


async def messages_of(api: httpx.AsyncClient, mailing_id: int) -> dict[int, dict[str, Any]]:
    """Return the messages of a mailing by client."""
    page = (await api.get(f"/mailings/{mailing_id}/messages?limit=1000")).json()
    return {row["client_id"]: row for row in page["results"]}


def errors(answer: httpx.Response) -> dict[str, str]:
    return {error["field"]: error["message"] for error in answer.json()["errors"]}


# ---- creating -------------------------------------------------------------------------------


async def test_a_mailing_has_the_fields_of_the_contract(api: httpx.AsyncClient) -> None:
    created = await create(api, NEW)
    assert created.keys() == FIELDS
    assert created["created_at"].endswith("Z")
    assert created["updated_at"] == created["created_at"]
    assert abs(datetime.fromisoformat(created["created_at"]) - datetime.now(UTC)).seconds < 60


async def test_defaults_are_everybody_all_day_and_retry(api: httpx.AsyncClient) -> None:
    created = await create(api, NEW)
    assert created["client_filter"] is None
    assert created["send_interval_time_start"] is None
    assert created["send_interval_time_end"] is None
    assert created["on_unknown"] == "retry"
    assert created["status"] == "scheduled"


async def test_what_was_given_is_returned_by_every_call(api: httpx.AsyncClient) -> None:
    given = NEW | {
        "send_interval_time_start": "22:30",
        "send_interval_time_end": "06:00:30",
        "client_filter": "912, vip",
        "on_unknown": "hold",
    }
    created = await create(api, given)
    assert {name: created[name] for name in given} == given
    shown = (await api.get(f"/mailings/{created['id']}")).json()
    assert shown == created | {"mailing_messages": []}
    assert (await api.get("/mailings")).json()["results"] == [created]


@pytest.mark.parametrize("missing", ["datetime_start", "datetime_end", "text"])
async def test_a_required_field_that_is_missing_is_named(
    api: httpx.AsyncClient, missing: str
) -> None:
    answer = await api.post("/mailings", json={k: v for k, v in NEW.items() if k != missing})
    assert answer.status_code == 400
    assert errors(answer) == {missing: "is required"}


MOMENT = "must be a date and time with an offset"
CLOCK = "must be a time of day"
TEXT = "must be 1 to 1,600 characters"
FILTER = "must be a string of up to 10,000 characters, an object, or null"
CODES = "must be a list of operator codes"
TAGS = "must be a list of tags"
ZONE = "IANA time zone"
NOT_MOMENTS: list[Any] = [
    *(None, "", 0, 1893456000, True, [], {}, "tomorrow", "2040-01-01", "2040-01-01T09:00"),
    *("2040-01-01T09:00:00", "2040-13-01T09:00:00Z", "2040-02-30T09:00:00Z"),
    *("2040-01-01T24:00:00Z", "2040-01-01T09:00:60Z", "2040-01-01T09:00:00+24:00"),
    "2040-01-01T09:00:00Z\n",
]
NOT_CLOCKS: list[Any] = [
    *("", "9:00", "09", "0900", "24:00", "09:60", "09:00:60", "09:00:00.5", "09:00Z", "09:00\n"),
    *("09:00:00\n", " 09:00", "\u0660\u0669:\u0660\u0660", "nine", 900, False, [], {}),
]
NOT_TEXTS: list[Any] = ["", "a" * 1601, "😀" * 1601, "a\0", None, 5, []]
NOT_FILTERS: list[Any] = [0, 912, True, 1.5, [], ["912"], "9" * 10_001, "vip\0"]
NOT_CODES: list[Any] = [
    *(None, [], "912", 912, [912], ["91"], ["9123"], ["91a"], ["912\n"], [None], {}),
]
NOT_TAGS: list[Any] = [None, [], "vip", [""], ["a" * 65], ["a\0"], [1], [None], [["a"]], {}]
NOT_ZONES: list[Any] = [
    *(None, [], "UTC", ["Mars/Base"], ["utc"], [""], ["UTC", "UTC+3"], [3], [None], {}),
]
WRONG: list[tuple[dict[str, Any], str, str]] = [
    *(({"datetime_start": wrong}, "datetime_start", MOMENT) for wrong in NOT_MOMENTS),
    *(({"datetime_end": wrong}, "datetime_end", MOMENT) for wrong in NOT_MOMENTS),
    ({"datetime_start": "1969-12-31T23:59:59Z"}, "datetime_start", "1970"),
    ({"datetime_start": "0001-01-01T00:00:00+12:00"}, "datetime_start", "1970"),
    ({"datetime_end": "9000-01-01T00:00:00Z"}, "datetime_end", "9000"),
    ({"datetime_end": "9999-12-31T23:59:59-12:00"}, "datetime_end", "9000"),
    ({"datetime_end": NEW["datetime_start"]}, "datetime_end", "after datetime_start"),
    ({"datetime_end": "2040-01-01T08:59:59Z"}, "datetime_end", "after datetime_start"),
    ({"datetime_end": "2040-01-01T11:59:59+03:00"}, "datetime_end", "after datetime_start"),
    (
        {"datetime_start": "2020-01-01T00:00:00Z", "datetime_end": "2020-01-02T00:00:00Z"},
        "datetime_end",
        "in the future",
    ),
    *(
        ({"send_interval_time_start": wrong, "send_interval_time_end": wrong}, name, CLOCK)
        for wrong in NOT_CLOCKS
        for name in ("send_interval_time_start", "send_interval_time_end")
    ),
    ({"send_interval_time_start": "09:00"}, "send_interval_time_end", "together with"),
    ({"send_interval_time_end": "09:00"}, "send_interval_time_start", "together with"),
    (
        {"send_interval_time_start": "09:00", "send_interval_time_end": None},
        "send_interval_time_end",
        "together with",
    ),
    (
        {"send_interval_time_start": "00:00", "send_interval_time_end": "00:00:00"},
        "send_interval_time_end",
        "must differ",
    ),
    *(({"text": wrong}, "text", TEXT) for wrong in NOT_TEXTS),
    *(({"client_filter": wrong}, "client_filter", FILTER) for wrong in NOT_FILTERS),
    *(
        ({"client_filter": wrong}, "client_filter", "must name a code or a tag")
        for wrong in ("", " ", ",", " , ,, ")
    ),
    *(
        ({"client_filter": {"operator_codes": wrong}}, "client_filter.operator_codes", CODES)
        for wrong in NOT_CODES
    ),
    *(({"client_filter": {"tags": wrong}}, "client_filter.tags", TAGS) for wrong in NOT_TAGS),
    *(
        ({"client_filter": {"time_zones": wrong}}, "client_filter.time_zones", ZONE)
        for wrong in NOT_ZONES
    ),
    ({"client_filter": {"phones": ["79160000001"]}}, "client_filter.phones", "not a known field"),
    *(({"on_unknown": wrong}, "on_unknown", "retry or hold") for wrong in (None, "", "drop", 1)),
    *(
        ({name: 1}, name, "is not a known field")
        for name in ("id", "status", "clients_count", "created_messages", *LEDGER)
    ),
    *(
        ({name: 1}, name, "is not a known field")
        for name in ("created_at", "updated_at", "mailing_messages", "nonsense", "Text", "")
    ),
]


@pytest.mark.parametrize(("given", "field", "rule"), WRONG)
async def test_a_wrong_field_is_refused_by_name(
    api: httpx.AsyncClient, given: dict[str, Any], field: str, rule: str
) -> None:
    answer = await api.post("/mailings", json=NEW | given)
    assert answer.status_code == 400
    assert rule in errors(answer)[field]
    assert (await api.get("/mailings")).json()["count"] == 0


@pytest.mark.parametrize(("given", "field", "rule"), WRONG)
async def test_a_wrong_change_is_refused_by_name(
    api: httpx.AsyncClient, given: dict[str, Any], field: str, rule: str
) -> None:
    created = await create(api, NEW)
    answer = await api.patch(f"/mailings/{created['id']}", json=given)
    assert answer.status_code == 400
    assert rule in errors(answer)[field]
    assert (await api.get("/mailings")).json()["results"] == [created]


async def test_every_wrong_field_is_named_at_once(api: httpx.AsyncClient) -> None:
    given = {
        "datetime_start": "soon",
        "datetime_end": None,
        "send_interval_time_start": "25:00",
        "send_interval_time_end": 7,
        "client_filter": {"operator_codes": "912", "tags": [""], "phones": []},
        "on_unknown": "drop",
        "status": "running",
        "nonsense": 1,
    }
    answer = await api.post("/mailings", json=given)
    assert answer.status_code == 400
    assert errors(answer).keys() == given.keys() - {"client_filter"} | {
        "text",
        "client_filter.operator_codes",
        "client_filter.tags",
        "client_filter.phones",
    }


@pytest.mark.parametrize("wrong", ["send_interval_time_start", "send_interval_time_end"])
async def test_a_wrong_bound_of_the_window_is_not_called_missing(
    api: httpx.AsyncClient, wrong: str
) -> None:
    window = {"send_interval_time_start": "09:00", "send_interval_time_end": "18:00"}
    answer = await api.post("/mailings", json=NEW | window | {wrong: "24:00"})
    assert [error["field"] for error in answer.json()["errors"]] == [wrong]


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ("2040-01-01T09:00:00Z", "2040-01-01T09:00:00Z"),
        ("2040-01-01T09:00:00+03:00", "2040-01-01T06:00:00Z"),
        ("2040-01-01T09:00:00-11:30", "2040-01-01T20:30:00Z"),
        ("2040-01-01t09:00:00z", "2040-01-01T09:00:00Z"),
        ("2040-01-01T09:00:00.25Z", "2040-01-01T09:00:00.250000Z"),
        ("1970-01-01T00:00:00Z", "1970-01-01T00:00:00Z"),
    ],
)
async def test_a_moment_is_kept_in_utc(api: httpx.AsyncClient, given: str, kept: str) -> None:
    assert (await create(api, NEW | {"datetime_start": given}))["datetime_start"] == kept


async def test_the_end_may_follow_the_start_by_a_microsecond(api: httpx.AsyncClient) -> None:
    created = await create(api, NEW | {"datetime_end": "2040-01-01T09:00:00.000001Z"})
    assert created["datetime_end"] == "2040-01-01T09:00:00.000001Z"


@pytest.mark.parametrize(
    ("opens", "closes"),
    [("09:00", "18:00"), ("22:00", "06:00"), ("00:00", "23:59:59"), ("09:00:01", "09:00:02")],
)
async def test_a_window_is_kept_as_given(api: httpx.AsyncClient, opens: str, closes: str) -> None:
    window = {"send_interval_time_start": opens, "send_interval_time_end": closes}
    created = await create(api, NEW | window)
    assert {name: created[name] for name in window} == window


@pytest.mark.parametrize("given", ["a", "a" * 1600, "😀" * 1600, " ", "two\nlines", "\u202e\ufeff"])
async def test_a_text_is_kept_as_given(api: httpx.AsyncClient, given: str) -> None:
    assert (await create(api, NEW | {"text": given}))["text"] == given


# ---- the filter -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "matched"),
    [
        (None, {"vip", "moscow", "tagged 912", "blank"}),
        ("912", {"moscow", "tagged 912"}),
        ("vip", {"vip"}),
        ("912, vip", {"moscow", "tagged 912", "vip"}),
        ("  912  ,vip,", {"moscow", "tagged 912", "vip"}),
        ("two words", {"blank"}),
        ("words", set()),
        ("VIP", set()),
        ("91", set()),
        ("9120", set()),
        ("79120000002", set()),
        ("Europe/Moscow", set()),
        ("%, _ip, .*", set()),
        ({}, {"vip", "moscow", "tagged 912", "blank"}),
        ({"operator_codes": ["912"]}, {"moscow"}),
        ({"operator_codes": ["912", "916", "912"]}, {"moscow", "vip"}),
        ({"tags": ["912"]}, {"tagged 912"}),
        ({"tags": ["912", "vip"]}, {"tagged 912", "vip"}),
        ({"time_zones": ["UTC"]}, {"vip", "blank"}),
        ({"time_zones": ["UTC", "Asia/Kathmandu"]}, {"vip", "blank", "tagged 912"}),
        ({"operator_codes": ["912", "903"], "tags": ["912"]}, {"tagged 912"}),
        ({"operator_codes": ["912"], "tags": ["912"]}, set()),
        ({"operator_codes": ["916"], "tags": ["vip"], "time_zones": ["UTC"]}, {"vip"}),
        ({"operator_codes": ["916"], "tags": ["vip"], "time_zones": ["Asia/Tokyo"]}, set()),
    ],
)
async def test_a_filter_is_returned_as_given_and_finds_its_audience(
    api: httpx.AsyncClient,
    engine: AsyncEngine,
    clients: dict[str, int],
    given: Any,
    matched: set[str],
) -> None:
    created = await create(api, DUE | {"client_filter": given})
    assert created["client_filter"] == given
    assert created["clients_count"] == len(matched)
    await begin(engine)
    shown = (await api.get(f"/mailings/{created['id']}")).json()
    assert shown["client_filter"] == given
    assert shown["clients_count"] == len(matched)
    assert (await messages_of(api, created["id"])).keys() == {clients[name] for name in matched}


async def test_a_deleted_client_is_in_no_audience(
    api: httpx.AsyncClient, engine: AsyncEngine, clients: dict[str, int]
) -> None:
    created = await create(api, DUE)
    await api.delete(f"/clients/{clients['vip']}")
    assert (await create(api, NEW))["clients_count"] == 3
    await begin(engine)
    assert clients["vip"] not in await messages_of(api, created["id"])


# ---- counts ---------------------------------------------------------------------------------


@pytest.mark.usefixtures("clients")
async def test_before_the_start_all_are_scheduled_and_no_message_exists(
    api: httpx.AsyncClient,
) -> None:
    created = await create(api, NEW | {"client_filter": "912"})
    assert created["clients_count"] == created["scheduled_messages"] == 2
    assert created["created_messages"] == 0
    assert [created[name] for name in LEDGER[1:]] == [0] * 5
    assert (await api.get(f"/mailings/{created['id']}/messages")).json()["results"] == []


async def test_from_the_start_on_the_ledger_adds_up(
    api: httpx.AsyncClient, engine: AsyncEngine, clients: dict[str, int]
) -> None:
    created = await create(api, DUE)
    joined_before_the_start = await api.post("/clients", json={"phone": "79160000009"})
    await begin(engine)
    await api.post("/clients", json={"phone": "79160000010"})
    await mark(engine, clients["vip"], status="delivered", sent_at=func.now())
    await mark(engine, clients["moscow"], status="undelivered", reason="rejected_400")
    await mark(engine, clients["tagged 912"], status="unknown", reason="timeout")
    await mark(engine, clients["blank"], status="cancelled", reason="expired")
    shown = (await api.get(f"/mailings/{created['id']}")).json()
    assert shown["status"] == "running"
    assert shown["clients_count"] == shown["created_messages"] == 5
    assert [shown[name] for name in LEDGER] == [1, 0, 1, 1, 1, 1]
    assert joined_before_the_start.json()["id"] in await messages_of(api, created["id"])


async def test_an_audience_may_be_empty(api: httpx.AsyncClient, engine: AsyncEngine) -> None:
    created = await create(api, DUE)
    await begin(engine)
    shown = (await api.get(f"/mailings/{created['id']}")).json()
    assert shown["clients_count"] == shown["created_messages"] == 0
    async with engine.begin() as connection:
        assert await store.finish(connection) == [created["id"]]


# ---- changing before the start --------------------------------------------------------------


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"datetime_start": "2040-01-01T10:00:00Z"},
        {"datetime_end": "2041-01-01T10:00:00Z"},
        {"datetime_start": "2050-01-01T09:00:00Z", "datetime_end": "2050-01-02T09:00:00Z"},
        {"send_interval_time_start": "09:00", "send_interval_time_end": "18:00"},
        {"text": "Changed"},
        {"client_filter": "912"},
        {"client_filter": {"tags": ["vip"]}},
        {"on_unknown": "hold"},
        {"text": "Changed", "client_filter": "vip", "on_unknown": "hold"},
    ],
)
@pytest.mark.usefixtures("clients")
async def test_before_the_start_everything_can_change_and_the_rest_stays(
    api: httpx.AsyncClient, change: dict[str, Any]
) -> None:
    created = await create(api, NEW)
    answer = await api.patch(f"/mailings/{created['id']}", json=change)
    assert answer.status_code == 200
    moved = {"updated_at", "clients_count", "scheduled_messages"}
    kept = created.keys() - change.keys() - moved
    assert {name: answer.json()[name] for name in kept} == {name: created[name] for name in kept}
    assert {name: answer.json()[name] for name in change} == change
    assert (await api.get("/mailings")).json()["results"] == [answer.json()]


@pytest.mark.usefixtures("clients")
async def test_a_new_filter_before_the_start_is_counted_anew(api: httpx.AsyncClient) -> None:
    created = await create(api, NEW | {"client_filter": "vip"})
    changed = await api.patch(f"/mailings/{created['id']}", json={"client_filter": "912"})
    assert changed.json()["clients_count"] == changed.json()["scheduled_messages"] == 2
    assert changed.json()["created_messages"] == 0


async def test_null_takes_the_filter_and_the_window_away(api: httpx.AsyncClient) -> None:
    window = {"send_interval_time_start": "09:00", "send_interval_time_end": "18:00"}
    created = await create(api, NEW | window | {"client_filter": "vip"})
    nothing = dict.fromkeys([*window, "client_filter"])
    changed = (await api.patch(f"/mailings/{created['id']}", json=nothing)).json()
    assert {name: changed[name] for name in nothing} == nothing


@pytest.mark.parametrize(
    ("stored", "change", "field"),
    [
        ({}, {"send_interval_time_start": "09:00"}, "send_interval_time_end"),
        ({}, {"send_interval_time_end": "09:00"}, "send_interval_time_start"),
        ("window", {"send_interval_time_start": None}, "send_interval_time_start"),
        ("window", {"send_interval_time_end": None}, "send_interval_time_end"),
        ("window", {"send_interval_time_start": "18:00:00"}, "send_interval_time_end"),
        ("window", {"send_interval_time_end": "09:00"}, "send_interval_time_end"),
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
async def test_a_change_that_does_not_fit_what_stays_is_refused_by_name(
    api: httpx.AsyncClient, stored: Any, change: dict[str, Any], field: str
) -> None:
    if stored == "window":
        stored = {"send_interval_time_start": "09:00", "send_interval_time_end": "18:00"}
    created = await create(api, NEW | stored)
    answer = await api.patch(f"/mailings/{created['id']}", json=change)
    assert answer.status_code == 400
    assert errors(answer).keys() == {field}
    assert (await api.get("/mailings")).json()["results"] == [created]


# ---- changing while it runs -----------------------------------------------------------------


@pytest.mark.parametrize("change", [{"text": "Changed"}, {"on_unknown": "hold"}, {}])
@pytest.mark.usefixtures("clients")
async def test_while_it_runs_the_text_and_on_unknown_change_at_once(
    api: httpx.AsyncClient, engine: AsyncEngine, change: dict[str, Any]
) -> None:
    created = await create(api, DUE)
    await begin(engine)
    before = await messages_of(api, created["id"])
    answer = await api.patch(f"/mailings/{created['id']}", json=change)
    assert answer.status_code == 200
    assert {name: answer.json()[name] for name in change} == change
    async with engine.connect() as connection:
        [running] = await store.running(connection)
    assert running.text == answer.json()["text"]
    assert running.on_unknown == answer.json()["on_unknown"]
    await take_audience(engine)
    assert await messages_of(api, created["id"]) == before


@pytest.mark.usefixtures("clients")
async def test_while_it_runs_the_end_can_change(
    api: httpx.AsyncClient, engine: AsyncEngine
) -> None:
    created = await create(api, DUE)
    await begin(engine)
    end = {"datetime_end": "2050-01-01T00:00:00Z"}
    assert (await api.patch(f"/mailings/{created['id']}", json=end)).status_code == 200
    await take_audience(engine)
    shown = (await api.get(f"/mailings/{created['id']}")).json()
    assert shown["datetime_end"] == end["datetime_end"]
    assert shown["scheduled_messages"] == shown["clients_count"] == 4


async def test_after_the_start_another_start_is_409(
    api: httpx.AsyncClient, engine: AsyncEngine
) -> None:
    created = await create(api, DUE)
    await begin(engine)
    address = f"/mailings/{created['id']}"
    late = await api.patch(address, json={"datetime_start": "2021-01-01T00:00:00Z", "text": "x"})
    assert late.status_code == 409
    assert late.headers["content-type"] == "application/problem+json"
    assert (await api.get(address)).json()["text"] == created["text"]
    same = await api.patch(address, json={"datetime_start": "2020-01-01T12:00:00+03:00"})
    assert same.status_code == 200


async def test_a_new_filter_cancels_adds_and_leaves_what_was_sent(
    api: httpx.AsyncClient, engine: AsyncEngine, clients: dict[str, int]
) -> None:
    created = await create(api, DUE | {"client_filter": "916, 912"})
    await begin(engine)
    await mark(engine, clients["vip"], status="delivered", sent_at=func.now())
    change = {"client_filter": {"operator_codes": ["903", "999"]}}
    changed = await api.patch(f"/mailings/{created['id']}", json=change)
    assert changed.json()["client_filter"] == change["client_filter"]
    await take_audience(engine)
    found = await messages_of(api, created["id"])
    assert {name: (found[n]["status"], found[n]["reason"]) for name, n in clients.items()} == {
        "vip": ("delivered", None),
        "moscow": ("cancelled", "filter_changed"),
        "tagged 912": ("scheduled", None),
        "blank": ("scheduled", None),
    }
    shown = (await api.get(f"/mailings/{created['id']}")).json()
    assert shown["clients_count"] == shown["created_messages"] == 4
    assert [shown[name] for name in LEDGER] == [2, 0, 1, 0, 0, 1]


async def test_who_matches_again_is_taken_back_with_the_same_message(
    api: httpx.AsyncClient, engine: AsyncEngine, clients: dict[str, int]
) -> None:
    created = await create(api, DUE | {"client_filter": "912"})
    address = f"/mailings/{created['id']}"
    await begin(engine)
    before = await messages_of(api, created["id"])
    await api.patch(address, json={"client_filter": "vip"})
    await take_audience(engine)
    await api.patch(address, json={"client_filter": "912"})
    await take_audience(engine)
    after = await messages_of(api, created["id"])
    for name in ("moscow", "tagged 912"):
        again = after[clients[name]]
        assert again["id"] == before[clients[name]]["id"]
        assert (again["status"], again["reason"]) == ("scheduled", None)
    assert after[clients["vip"]]["reason"] == "filter_changed"


async def test_a_client_that_joined_after_the_start_is_not_added(
    api: httpx.AsyncClient, engine: AsyncEngine, clients: dict[str, int]
) -> None:
    created = await create(api, DUE | {"client_filter": "vip"})
    await begin(engine)
    late = (await api.post("/clients", json={"phone": "79160000009", "tag": "vip"})).json()["id"]
    await api.patch(f"/mailings/{created['id']}", json={"client_filter": None})
    await take_audience(engine)
    found = await messages_of(api, created["id"])
    assert late not in found
    assert found.keys() == set(clients.values())


async def test_a_deleted_client_is_not_taken_back(
    api: httpx.AsyncClient, engine: AsyncEngine, clients: dict[str, int]
) -> None:
    created = await create(api, DUE)
    await begin(engine)
    await api.delete(f"/clients/{clients['vip']}")
    for client_filter in ("912", None):
        await api.patch(f"/mailings/{created['id']}", json={"client_filter": client_filter})
        await take_audience(engine)
    erased = (await messages_of(api, created["id"]))[clients["vip"]]
    assert (erased["status"], erased["reason"]) == ("cancelled", "client_deleted")


async def test_nothing_may_be_claimed_until_a_new_filter_is_taken(
    api: httpx.AsyncClient, engine: AsyncEngine, clients: dict[str, int]
) -> None:
    created = await create(api, DUE)
    await begin(engine)
    lease = {"lease_owner": func.gen_random_uuid(), "lease_expires_at": func.now()}
    await mark(engine, clients["vip"], status="sending", **lease)
    await api.patch(f"/mailings/{created['id']}", json={"client_filter": "912"})
    async with engine.begin() as connection:
        assert await store.running(connection) == []
        assert await take_chunk(connection) is False  # one is on its way
    await mark(engine, clients["vip"], status="delivered", lease_owner=None, lease_expires_at=None)
    await take_audience(engine)
    async with engine.connect() as connection:
        assert len(await store.running(connection)) == 1


async def test_a_change_does_not_cut_short_a_pause_after_a_failed_attempt(
    api: httpx.AsyncClient, engine: AsyncEngine, clients: dict[str, int]
) -> None:
    created = await create(api, DUE)
    await begin(engine)
    in_an_hour = datetime.now(UTC) + timedelta(hours=1)
    await mark(engine, clients["vip"], attempts=1, reason="http_503", due_at=in_an_hour)
    waits = (await messages_of(api, created["id"]))[clients["vip"]]
    await api.patch(f"/mailings/{created['id']}", json={"client_filter": "vip"})
    await take_audience(engine)
    still = (await messages_of(api, created["id"]))[clients["vip"]]
    assert (still["datetime_send"], still["reason"]) == (waits["datetime_send"], "http_503")


async def test_a_new_window_plans_what_waits_anew(
    api: httpx.AsyncClient, engine: AsyncEngine, clients: dict[str, int]
) -> None:
    created = await create(api, DUE)
    await begin(engine)
    await mark(engine, clients["blank"], status="delivered", sent_at=func.now())
    sent = (await messages_of(api, created["id"]))[clients["blank"]]
    window = {"send_interval_time_start": "09:00", "send_interval_time_end": "09:01"}
    await api.patch(f"/mailings/{created['id']}", json=window)
    await take_audience(engine)
    found = await messages_of(api, created["id"])
    for name in ("vip", "moscow", "tagged 912"):
        zone = ZoneInfo(DIRECTORY[name].get("time_zone", "UTC"))
        due_at = datetime.fromisoformat(found[clients[name]]["datetime_send"])
        assert time(9, 0) <= due_at.astimezone(zone).time() < time(9, 1)
        assert timedelta(minutes=-1) < due_at - datetime.now(UTC) < timedelta(days=1)
    assert found[clients["blank"]] == sent
    await api.patch(f"/mailings/{created['id']}", json=dict.fromkeys(window))
    await take_audience(engine)
    found = await messages_of(api, created["id"])
    for name in ("vip", "moscow", "tagged 912"):
        due_at = datetime.fromisoformat(found[clients[name]]["datetime_send"])
        assert due_at <= datetime.now(UTC)


async def test_what_a_window_kept_from_being_sent_is_taken_back_by_another(
    api: httpx.AsyncClient, engine: AsyncEngine
) -> None:
    await api.post("/clients", json={"phone": "79160000001"})
    now = datetime.now(UTC)
    created = await create(api, DUE | {"datetime_end": (now + timedelta(hours=1)).isoformat()})
    address = f"/mailings/{created['id']}"
    await begin(engine)
    window = {
        "send_interval_time_start": f"{now + timedelta(hours=3):%H:%M}",
        "send_interval_time_end": f"{now + timedelta(hours=4):%H:%M}",
    }
    await api.patch(address, json=window)
    await take_audience(engine)
    [shut] = (await api.get(address)).json()["mailing_messages"]
    assert (shut["status"], shut["reason"]) == ("cancelled", "no_window")
    later = {"datetime_end": (now + timedelta(hours=5)).isoformat()}
    await api.patch(address, json=later)
    await take_audience(engine)
    [opened] = (await api.get(address)).json()["mailing_messages"]
    assert (opened["status"], opened["reason"]) == ("scheduled", None)


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
    created = await create(api, DUE)
    async with engine.begin() as connection:
        await connection.execute(update(mailing).values(**ended))
    before = (await api.get(f"/mailings/{created['id']}")).json()
    answer = await api.patch(f"/mailings/{created['id']}", json=change)
    assert answer.status_code == 409
    assert answer.headers["content-type"] == "application/problem+json"
    assert (await api.get(f"/mailings/{created['id']}")).json() == before


# ---- deleting -------------------------------------------------------------------------------


@pytest.mark.usefixtures("clients")
async def test_a_deleted_mailing_is_gone_at_once_and_its_messages_soon(
    api: httpx.AsyncClient, engine: AsyncEngine
) -> None:
    kept = await create(api, DUE)
    await begin(engine)
    created = await create(api, DUE)
    await begin(engine)
    address = f"/mailings/{created['id']}"
    answer = await api.delete(address)
    assert (answer.status_code, answer.content) == (204, b"")
    for method, path in (
        ("DELETE", address),
        ("GET", address),
        ("PATCH", address),
        ("GET", f"{address}/messages"),
    ):
        again = await api.request(method, path, json={})
        assert again.status_code == 404
        assert again.headers["content-type"] == "application/problem+json"
    listed = (await api.get("/mailings")).json()
    assert [row["id"] for row in listed["results"]] == [kept["id"]]
    async with engine.begin() as connection:
        assert [row.id for row in await store.running(connection)] == [kept["id"]]
        assert await store.purge(connection, 100) == 4
        rows = select(func.count()).where(message.c.mailing_id == created["id"])
        assert await connection.scalar(rows) == 0
        for table in (mailing, ledger):
            assert await connection.scalar(select(func.count()).select_from(table)) == 1
    assert len(await messages_of(api, kept["id"])) == 4


@pytest.mark.parametrize("status", ["scheduled", "running", "paused", "finished", "cancelled"])
async def test_a_mailing_can_be_deleted_in_every_state(
    api: httpx.AsyncClient, engine: AsyncEngine, status: str
) -> None:
    created = await create(api, NEW)
    async with engine.begin() as connection:
        await connection.execute(update(mailing).values(status=status))
    assert (await api.delete(f"/mailings/{created['id']}")).status_code == 204


# ---- listing --------------------------------------------------------------------------------


@pytest.mark.parametrize("status", ["scheduled", "running", "paused", "finished", "cancelled"])
async def test_the_list_can_be_of_one_status(
    api: httpx.AsyncClient, engine: AsyncEngine, status: str
) -> None:
    wanted, other = await create(api, NEW), await create(api, NEW)
    elsewhere = "running" if status == "scheduled" else "scheduled"
    async with engine.begin() as connection:
        for row, value in ((wanted, status), (other, elsewhere)):
            await connection.execute(
                update(mailing).where(mailing.c.id == row["id"]).values(status=value)
            )
    page = (await api.get(f"/mailings?status={status}")).json()
    assert (page["count"], page["next"], page["previous"]) == (1, None, None)
    assert [row["id"] for row in page["results"]] == [wanted["id"]]


@pytest.mark.parametrize(
    ("path", "query", "field"),
    [
        *(("", f"status={value}", "status") for value in ("", "x", "RUNNING", "running,paused")),
        *(("/messages", f"status={value}", "status") for value in ("", "x", "finished")),
        *(("/messages", f"reason={value}", "reason") for value in ("", "x" * 65)),
        *(
            ("/messages", f"client_id={value}", "client_id")
            for value in ("", "0", "-1", "x", "1.5")
        ),
        *(
            (path, query, field)
            for path in ("", "/messages")
            for query, field in (
                ("limit=0", "limit"),
                ("limit=1001", "limit"),
                ("limit=-1", "limit"),
                ("limit=x", "limit"),
                ("limit=", "limit"),
                ("before=0", "before"),
                ("after=x", "after"),
                ("status=a&status=b", "status"),
                ("limit=5&limit=5", "limit"),
                ("offset=5", "offset"),
                ("Limit=5", "Limit"),
            )
        ),
    ],
)
async def test_a_wrong_query_is_refused_by_the_parameters_name(
    api: httpx.AsyncClient, path: str, query: str, field: str
) -> None:
    if path:
        path = f"/{(await create(api, NEW))['id']}{path}"
    answer = await api.get(f"/mailings{path}?{query}")
    assert answer.status_code == 400
    assert errors(answer).keys() == {field}


async def test_every_wrong_parameter_is_named_at_once(api: httpx.AsyncClient) -> None:
    answer = await api.get("/mailings?status=x&limit=0&offset=1")
    assert errors(answer).keys() == {"status", "limit", "offset"}


async def test_pages_of_mailings_lead_through_all_of_them_and_back(
    api: httpx.AsyncClient,
) -> None:
    created = [(await create(api, NEW))["id"] for _ in range(5)]
    first = (await api.get("/mailings?status=scheduled&limit=2")).json()
    second = (await api.get(first["next"])).json()
    third = (await api.get(second["next"])).json()
    pages = [first, second, third]
    assert [[row["id"] for row in page["results"]] for page in pages] == [
        created[:2:-1],
        created[2:0:-1],
        created[:1],
    ]
    assert [page["count"] for page in pages] == [5, 5, 5]
    assert first["previous"] is None
    assert third["next"] is None
    back = (await api.get(third["previous"])).json()
    assert back["results"] == second["results"]
    start = (await api.get(back["previous"])).json()
    assert start["results"] == first["results"]
    assert start["previous"] is None


# ---- messages -------------------------------------------------------------------------------


async def test_a_message_has_the_fields_of_the_contract_and_no_personal_data(
    api: httpx.AsyncClient, engine: AsyncEngine, clients: dict[str, int]
) -> None:
    created = await create(api, DUE | {"client_filter": "vip"})
    await begin(engine)
    [row] = (await api.get(f"/mailings/{created['id']}")).json()["mailing_messages"]
    assert row == {
        "id": row["id"],
        "mailing_id": created["id"],
        "client_id": clients["vip"],
        "status": "scheduled",
        "reason": None,
        "attempts": 0,
        "datetime_send": created["datetime_start"],
        "created_at": row["created_at"],
        "updated_at": row["updated_at"],
    }
    [listed] = (await api.get(f"/mailings/{created['id']}/messages")).json()["results"]
    assert listed == row


async def test_datetime_send_is_when_a_message_was_sent(
    api: httpx.AsyncClient, engine: AsyncEngine, clients: dict[str, int]
) -> None:
    created = await create(api, DUE)
    await begin(engine)
    sent_at = datetime(2025, 6, 7, 8, 9, tzinfo=UTC)
    await mark(engine, clients["vip"], status="delivered", sent_at=sent_at)
    found = await messages_of(api, created["id"])
    assert found[clients["vip"]]["datetime_send"] == "2025-06-07T08:09:00Z"


async def test_a_mailing_shows_its_newest_hundred_messages_and_pages_show_all(
    api: httpx.AsyncClient, engine: AsyncEngine
) -> None:
    async with engine.begin() as connection:
        await connection.execute(
            text("""
                INSERT INTO client (phone, operator_code)
                SELECT 79160000000 + n, '916' FROM generate_series(1, 101) AS n""")
        )
    created = await create(api, DUE)
    await begin(engine)
    address = f"/mailings/{created['id']}"
    everything = (await api.get(f"{address}/messages?limit=1000")).json()
    assert everything["count"] == len(everything["results"]) == 101
    assert all(newer["id"] > older["id"] for newer, older in pairwise(everything["results"]))
    newest = (await api.get(address)).json()["mailing_messages"]
    assert newest == everything["results"][:100]
    walked, page = [], (await api.get(f"{address}/messages?limit=40")).json()
    walked += page["results"]
    while page["next"]:
        page = (await api.get(page["next"])).json()
        walked += page["results"]
    assert walked == everything["results"]


async def test_messages_can_be_of_one_status_one_reason_and_one_client(
    api: httpx.AsyncClient, engine: AsyncEngine, clients: dict[str, int]
) -> None:
    await create(api, DUE)
    await begin(engine)
    created = await create(api, DUE)
    await begin(engine)
    await mark(engine, clients["vip"], status="undelivered", reason="rejected_400")
    await mark(engine, clients["moscow"], status="undelivered", reason="attempts_exhausted")
    await mark(engine, clients["blank"], status="cancelled", reason="expired")
    for query, expected in {
        "status=scheduled": {"tagged 912"},
        "status=undelivered": {"vip", "moscow"},
        "status=delivered": set[str](),
        "reason=expired": {"blank"},
        "reason=nothing": set[str](),
        "status=undelivered&reason=rejected_400": {"vip"},
        "status=cancelled&reason=rejected_400": set[str](),
        f"client_id={clients['moscow']}": {"moscow"},
        f"client_id={clients['moscow']}&status=scheduled": set[str](),
        f"client_id={2**53 - 1}": set[str](),
    }.items():
        page = (await api.get(f"/mailings/{created['id']}/messages?{query}")).json()
        assert page["count"] == len(expected), query
        assert {row["client_id"] for row in page["results"]} == {clients[n] for n in expected}
        assert {row["mailing_id"] for row in page["results"]} <= {created["id"]}


# ---- what is not there ----------------------------------------------------------------------


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
    created = await create(api, NEW)
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
