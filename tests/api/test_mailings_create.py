"""Mailings over the API: creating them, and the rules of their fields."""

from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import pytest
from sqlalchemy.ext.asyncio import AsyncEngine
from tests.api.calls import COUNT_FIELDS, MAILING_FIELDS, NEW, create_mailing, field_errors
from tests.factories import execute


async def test_a_created_mailing_has_all_fields_of_a_mailing(api: httpx.AsyncClient) -> None:
    created = await create_mailing(api, NEW)
    assert created.keys() == MAILING_FIELDS
    assert created["created_at"].endswith("Z")
    assert created["updated_at"] == created["created_at"]
    age = datetime.now(UTC) - datetime.fromisoformat(created["created_at"])
    assert abs(age) < timedelta(minutes=1)


async def test_the_defaults_are_all_clients_all_day_and_retry(api: httpx.AsyncClient) -> None:
    created = await create_mailing(api, NEW)
    assert created["client_filter"] is None
    assert created["send_interval_time_start"] is None
    assert created["send_interval_time_end"] is None
    assert created["on_unknown"] == "retry"
    assert created["status"] == "scheduled"


async def test_every_call_returns_the_given_values(api: httpx.AsyncClient) -> None:
    payload = NEW | {
        "send_interval_time_start": "22:30",
        "send_interval_time_end": "06:00:30",
        "client_filter": "912, vip",
        "on_unknown": "hold",
    }
    created = await create_mailing(api, payload)
    assert {name: created[name] for name in payload} == payload
    mailing = (await api.get(f"/mailings/{created['id']}")).json()
    assert mailing == created | {"mailing_messages": []}
    assert (await api.get("/mailings")).json()["results"] == [created]


@pytest.mark.parametrize("missing", ["datetime_start", "datetime_end", "text"])
async def test_a_required_field_that_is_missing_is_named(
    api: httpx.AsyncClient, missing: str
) -> None:
    answer = await api.post("/mailings", json={k: v for k, v in NEW.items() if k != missing})
    assert answer.status_code == 400
    assert field_errors(answer) == {missing: "is required"}


# ---- wrong values ---------------------------------------------------------------------------
# A constant `..._RULE` is a part of an error message. `NOT_...` are values that a field refuses.

TIMESTAMP_RULE = "must be a date and time with an offset"
TIME_OF_DAY_RULE = "must be a time of day"
TEXT_RULE = "must be 1 to 1,600 characters"
FILTER_RULE = "must be a string of up to 10,000 characters, an object, or null"
EMPTY_RULE = "must have an entry; null means everybody"
CODES_RULE = "must be a list of operator codes"
TAGS_RULE = "must be a list of tags"
ZONE_RULE = "IANA time zone"
NOT_TIMESTAMPS: list[Any] = [
    *(None, "", 0, 1893456000, True, [], {}, "tomorrow", "2040-01-01", "2040-01-01T09:00"),
    *("2040-01-01T09:00:00", "2040-13-01T09:00:00Z", "2040-02-30T09:00:00Z"),
    *("2040-01-01T24:00:00Z", "2040-01-01T09:00:60Z", "2040-01-01T09:00:00+24:00"),
    "2040-01-01T09:00:00Z\n",
]
NOT_TIMES_OF_DAY: list[Any] = [
    *("", "9:00", "09", "0900", "24:00", "09:60", "09:00:60", "09:00:00.5", "09:00Z", "09:00\n"),
    *("09:00:00\n", " 09:00", "\u0660\u0669:\u0660\u0660", "nine", 900, False, [], {}),
]
NOT_TEXTS: list[Any] = ["", "a" * 1601, "😀" * 1601, "a\0", None, 5, []]
NOT_FILTERS: list[Any] = [0, 912, True, 1.5, [], ["912"], "9" * 10_001, "vip\0"]
# A valid entry for each list of a filter.
LIST_ENTRIES = {"operator_codes": "912", "tags": "vip", "time_zones": "UTC"}
NOT_CODES: list[Any] = [
    *(None, "912", 912, [912], ["91"], ["9123"], ["91a"], ["912\n"], [None], {}),
]
NOT_TAGS: list[Any] = [None, "vip", [""], ["a" * 65], ["a\0"], [1], [None], [["a"]], {}]
NOT_ZONES: list[Any] = [
    *(None, "UTC", ["Mars/Base"], ["utc"], [""], ["UTC", "UTC+3"], [3], [None], {}),
]
# Fields that make a valid mailing wrong, the field that the error names, and a part of its message.
WRONG: list[tuple[dict[str, Any], str, str]] = [
    *(({"datetime_start": wrong}, "datetime_start", TIMESTAMP_RULE) for wrong in NOT_TIMESTAMPS),
    *(({"datetime_end": wrong}, "datetime_end", TIMESTAMP_RULE) for wrong in NOT_TIMESTAMPS),
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
        (
            {"send_interval_time_start": wrong, "send_interval_time_end": wrong},
            name,
            TIME_OF_DAY_RULE,
        )
        for wrong in NOT_TIMES_OF_DAY
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
    *(({"text": wrong}, "text", TEXT_RULE) for wrong in NOT_TEXTS),
    *(({"client_filter": wrong}, "client_filter", FILTER_RULE) for wrong in NOT_FILTERS),
    *(
        ({"client_filter": wrong}, "client_filter", EMPTY_RULE)
        for wrong in ("", " ", ",", " , ,, ")
    ),
    ({"client_filter": {}}, "client_filter", EMPTY_RULE),
    *(
        ({"client_filter": {"operator_codes": wrong}}, "client_filter.operator_codes", CODES_RULE)
        for wrong in NOT_CODES
    ),
    *(({"client_filter": {"tags": wrong}}, "client_filter.tags", TAGS_RULE) for wrong in NOT_TAGS),
    *(
        ({"client_filter": {"time_zones": wrong}}, "client_filter.time_zones", ZONE_RULE)
        for wrong in NOT_ZONES
    ),
    *(
        ({"client_filter": {name: []}}, f"client_filter.{name}", "must have an entry")
        for name in LIST_ENTRIES
    ),
    *(
        ({"client_filter": {name: [entry] * 1_001}}, f"client_filter.{name}", "1,000 entries")
        for name, entry in LIST_ENTRIES.items()
    ),
    ({"text": ["a"] * 1_001}, "text", TEXT_RULE),
    ({"client_filter": {"phones": ["79160000001"]}}, "client_filter.phones", "not a known field"),
    *(({"on_unknown": wrong}, "on_unknown", "retry or hold") for wrong in (None, "", "drop", 1)),
    *(
        ({name: 1}, name, "is not a known field")
        for name in ("id", "status", "clients_count", "created_messages", *COUNT_FIELDS)
    ),
    *(
        ({name: 1}, name, "is not a known field")
        for name in ("created_at", "updated_at", "mailing_messages", "nonsense", "Text", "")
    ),
]


@pytest.mark.parametrize(("change", "field", "rule"), WRONG)
async def test_creating_with_an_invalid_field_is_refused_by_its_name(
    api: httpx.AsyncClient, change: dict[str, Any], field: str, rule: str
) -> None:
    answer = await api.post("/mailings", json=NEW | change)
    assert answer.status_code == 400
    assert rule in field_errors(answer)[field]
    assert (await api.get("/mailings")).json()["count"] == 0


@pytest.mark.parametrize(("change", "field", "rule"), WRONG)
async def test_changing_to_an_invalid_value_is_refused_by_its_name(
    api: httpx.AsyncClient, change: dict[str, Any], field: str, rule: str
) -> None:
    created = await create_mailing(api, NEW)
    answer = await api.patch(f"/mailings/{created['id']}", json=change)
    assert answer.status_code == 400
    assert rule in field_errors(answer)[field]
    assert (await api.get("/mailings")).json()["results"] == [created]


@pytest.mark.parametrize("name", LIST_ENTRIES)
async def test_a_list_of_a_thousand_entries_is_accepted(api: httpx.AsyncClient, name: str) -> None:
    client_filter = {name: [LIST_ENTRIES[name]] * 1_000}
    created = await create_mailing(api, NEW | {"client_filter": client_filter})
    assert created["client_filter"] == client_filter


async def test_a_list_in_the_database_that_is_longer_than_allowed_is_returned(
    api: httpx.AsyncClient, engine: AsyncEngine
) -> None:
    created = await create_mailing(api, NEW | {"client_filter": {"tags": ["vip"]}})
    await execute(
        engine,
        "UPDATE mailing SET client_filter ="
        " jsonb_build_object('tags', array_fill('vip'::text, ARRAY[1001]))",
    )
    mailing = (await api.get(f"/mailings/{created['id']}")).json()
    assert mailing["client_filter"] == {"tags": ["vip"] * 1_001}


async def test_all_invalid_fields_are_named_in_one_response(api: httpx.AsyncClient) -> None:
    payload = {
        "datetime_start": "soon",
        "datetime_end": None,
        "send_interval_time_start": "25:00",
        "send_interval_time_end": 7,
        "client_filter": {"operator_codes": "912", "tags": [""], "phones": []},
        "on_unknown": "drop",
        "status": "running",
        "nonsense": 1,
    }
    answer = await api.post("/mailings", json=payload)
    assert answer.status_code == 400
    assert field_errors(answer).keys() == payload.keys() - {"client_filter"} | {
        "text",
        "client_filter.operator_codes",
        "client_filter.tags",
        "client_filter.phones",
    }


@pytest.mark.parametrize("wrong", ["send_interval_time_start", "send_interval_time_end"])
async def test_an_invalid_window_bound_is_not_reported_as_missing(
    api: httpx.AsyncClient, wrong: str
) -> None:
    window = {"send_interval_time_start": "09:00", "send_interval_time_end": "18:00"}
    answer = await api.post("/mailings", json=NEW | window | {wrong: "24:00"})
    assert [error["field"] for error in answer.json()["errors"]] == [wrong]


@pytest.mark.parametrize(
    ("given", "stored"),
    [
        ("2040-01-01T09:00:00Z", "2040-01-01T09:00:00Z"),
        ("2040-01-01T09:00:00+03:00", "2040-01-01T06:00:00Z"),
        ("2040-01-01T09:00:00-11:30", "2040-01-01T20:30:00Z"),
        ("2040-01-01t09:00:00z", "2040-01-01T09:00:00Z"),
        ("2040-01-01T09:00:00.25Z", "2040-01-01T09:00:00.250000Z"),
        ("1970-01-01T00:00:00Z", "1970-01-01T00:00:00Z"),
    ],
)
async def test_a_timestamp_is_returned_in_utc(
    api: httpx.AsyncClient, given: str, stored: str
) -> None:
    assert (await create_mailing(api, NEW | {"datetime_start": given}))["datetime_start"] == stored


async def test_the_end_may_follow_the_start_by_a_microsecond(api: httpx.AsyncClient) -> None:
    created = await create_mailing(api, NEW | {"datetime_end": "2040-01-01T09:00:00.000001Z"})
    assert created["datetime_end"] == "2040-01-01T09:00:00.000001Z"


@pytest.mark.parametrize(
    ("opens", "closes"),
    [("09:00", "18:00"), ("22:00", "06:00"), ("00:00", "23:59:59"), ("09:00:01", "09:00:02")],
)
async def test_a_sending_window_is_returned_as_given(
    api: httpx.AsyncClient, opens: str, closes: str
) -> None:
    window = {"send_interval_time_start": opens, "send_interval_time_end": closes}
    created = await create_mailing(api, NEW | window)
    assert {name: created[name] for name in window} == window


@pytest.mark.parametrize(
    "given", ["a", "a" * 1600, "😀" * 1600, " a ", "two\nlines", "\u202e\ufeffa"]
)
async def test_a_text_is_returned_as_given(api: httpx.AsyncClient, given: str) -> None:
    assert (await create_mailing(api, NEW | {"text": given}))["text"] == given


@pytest.mark.parametrize("blank", [" ", "\n\t\u00a0", "\u200b", "\u202e\ufeff", "\u200d \u3164"])
async def test_an_invisible_text_or_tag_is_refused(api: httpx.AsyncClient, blank: str) -> None:
    answer = await api.post("/mailings", json=NEW | {"text": blank})
    assert answer.status_code == 400
    assert [error["field"] for error in answer.json()["errors"]] == ["text"]
    for client_filter in ({"tags": ["vip", blank]}, f"{blank},", blank):
        answer = await api.post("/mailings", json=NEW | {"client_filter": client_filter})
        assert answer.status_code == 400


async def test_a_text_is_normalized_to_composed_characters(api: httpx.AsyncClient) -> None:
    created = await create_mailing(api, NEW | {"text": "и\u0306"})
    assert created["text"] == "й"


async def test_a_filter_compares_tags_without_case_and_is_returned_as_given(
    api: httpx.AsyncClient,
) -> None:
    for digit, tag in enumerate(("VIP", "vip", "Юг", "other")):
        await api.post("/clients", json={"phone": f"7916000000{digit}", "tag": tag})
    for client_filter, clients_count in (
        ("vIp", 2),
        (" ЮГ,Vip\u200b", 3),
        ({"tags": ["Vip", "юг"]}, 3),
        ({"tags": [" OTHER "]}, 1),
    ):
        created = await create_mailing(api, NEW | {"client_filter": client_filter})
        assert created["client_filter"] == client_filter
        assert created["clients_count"] == clients_count
    tags = [client["tag"] for client in (await api.get("/clients")).json()["results"]]
    assert tags == ["other", "Юг", "vip", "VIP"]
