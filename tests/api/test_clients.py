"""Clients over the API: creating, changing, deleting and listing them."""

import asyncio
from datetime import UTC, datetime, timedelta
from typing import Any, Literal
from urllib.parse import parse_qs, urlsplit

import httpx
import pytest
from sqlalchemy import func, select, update
from sqlalchemy.ext.asyncio import AsyncEngine
from tests.api.calls import field_errors
from tests.factories import add_clients, advance, do

from mailer.db.tables.client import client
from mailer.db.tables.message import message

PHONE = "79161234567"
MAILING = {
    "datetime_start": "2020-01-01T00:00:00Z",
    "datetime_end": "2040-01-01T00:00:00Z",
    "text": "Hello",
}


@pytest.fixture
async def many_clients(engine: AsyncEngine) -> list[int]:
    """The ids of 1,001 clients, newest first."""
    return (await add_clients(engine, 1001))[::-1]


async def create_client(api: httpx.AsyncClient, **values: Any) -> dict[str, Any]:
    """Create a client with these fields, by default with `PHONE`; return the client."""
    response = await api.post("/clients", json={"phone": PHONE} | values)
    assert response.status_code == 201
    created: dict[str, Any] = response.json()
    return created


# ---- creating -------------------------------------------------------------------------------


async def test_a_client_created_with_a_phone_alone_has_defaults_in_all_other_fields(
    api: httpx.AsyncClient,
) -> None:
    created = await create_client(api)
    assert created == {
        "id": created["id"],
        "phone": PHONE,
        "operator_code": "916",
        "tag": None,
        "time_zone": "UTC",
        "fields": {},
        "opted_out_at": None,
        "created_at": created["created_at"],
        "updated_at": created["created_at"],
    }
    assert (await api.get(f"/clients/{created['id']}")).json() == created


async def test_the_time_of_creation_is_now_in_utc(api: httpx.AsyncClient) -> None:
    created_at = (await create_client(api))["created_at"]
    assert created_at.endswith("Z")
    assert abs(datetime.fromisoformat(created_at) - datetime.now(UTC)) < timedelta(minutes=1)


async def test_given_values_are_returned(api: httpx.AsyncClient) -> None:
    given = {"operator_code": "999", "tag": "vip, новый 😀", "time_zone": "Asia/Kathmandu"}
    created = await create_client(api, **given)
    assert {name: created[name] for name in given} == given


@pytest.mark.parametrize("phone", ["70000000000", "79999999999", "71234567890"])
async def test_the_operator_code_is_digits_2_to_4_of_the_phone_unless_given(
    api: httpx.AsyncClient, phone: str
) -> None:
    assert (await create_client(api, phone=phone))["operator_code"] == phone[1:4]


@pytest.mark.parametrize("tag", ["a", "a" * 64, "😀" * 64, "VIP", "a b", None])
async def test_a_tag_is_1_to_64_characters_or_null(api: httpx.AsyncClient, tag: str | None) -> None:
    assert (await create_client(api, tag=tag))["tag"] == tag


@pytest.mark.parametrize("zone", ["UTC", "Europe/Moscow", "Africa/Casablanca", "EST5EDT", "Zulu"])
async def test_a_time_zone_is_any_iana_name(api: httpx.AsyncClient, zone: str) -> None:
    assert (await create_client(api, time_zone=zone))["time_zone"] == zone


NOT_PHONES: list[Any] = [
    *(None, "", "7", "7916123456", "791612345678", "89161234567", "+79161234567", " 79161234567"),
    *("79161234567 ", "79161234567\n", "7916123456x", "7916123456\u0663", "7 916 123-45-67"),
    *(79161234567, 7.9e10, True, [PHONE], {"phone": PHONE}),
]
NOT_CODES: list[Any] = [
    *("", "91", "9161", "91x", " 91", "91 ", "91\n", "916\n", "\u0669\u0661\u0666", 916, True, []),
]
NOT_TAGS: list[Any] = [
    "",
    " ",
    "\u200b",
    "\u3164\u00a0",
    "a" * 65,
    "😀" * 65,
    "\0",
    "a\0b",
    5,
    True,
    [],
    {},
]
NOT_ZONES: list[Any] = [
    *("", "Mars/Base", "utc", "europe/moscow", "Europe/Moscow ", "Europe/Moscow\n", "+03:00"),
    *("UTC+3", "MSK", "../etc/passwd", "/UTC", "posixrules", "\0", "a" * 10_000),
    *(3, True, [], {}),
]
INVALID_FIELDS: list[tuple[str, Any, str]] = [
    *(("phone", wrong, "must be 7 and ten more digits") for wrong in NOT_PHONES),
    *(("operator_code", wrong, "must be three digits") for wrong in (None, *NOT_CODES)),
    *(("tag", wrong, "must be 1 to 64 characters") for wrong in NOT_TAGS),
    *(("time_zone", wrong, "must be an IANA time zone") for wrong in (None, *NOT_ZONES)),
    *((name, 1, "is not a known field") for name in ("id", "created_at", "updated_at")),
    *((name, 1, "is not a known field") for name in ("deleted_at", "Phone", "nonsense", "")),
]
"""Name of a field, an invalid value, and the start of the error message."""


@pytest.mark.parametrize(("field", "invalid", "rule"), INVALID_FIELDS)
async def test_creating_with_an_invalid_field_is_400_and_names_the_field(
    api: httpx.AsyncClient, field: str, invalid: Any, rule: str
) -> None:
    response = await api.post("/clients", json={"phone": PHONE} | {field: invalid})
    assert response.status_code == 400
    assert field_errors(response).keys() == {field}
    assert rule in field_errors(response)[field]
    assert (await api.get("/clients")).json()["count"] == 0


@pytest.mark.parametrize(("field", "invalid", "rule"), INVALID_FIELDS)
async def test_changing_to_an_invalid_value_is_400_and_names_the_field(
    api: httpx.AsyncClient, field: str, invalid: Any, rule: str
) -> None:
    created = await create_client(api)
    response = await api.patch(f"/clients/{created['id']}", json={"tag": "new"} | {field: invalid})
    assert response.status_code == 400
    assert field_errors(response).keys() == {field}
    assert rule in field_errors(response)[field]
    assert (await api.get(f"/clients/{created['id']}")).json() == created


async def test_the_phone_is_required(api: httpx.AsyncClient) -> None:
    response = await api.post("/clients", json={"tag": "vip"})
    assert response.status_code == 400
    assert field_errors(response) == {"phone": "is required"}


async def test_all_invalid_fields_are_named_in_one_response(api: httpx.AsyncClient) -> None:
    given = {"operator_code": "x", "tag": "", "time_zone": "Mars/Base", "nonsense": 1, "id": 7}
    response = await api.post("/clients", json=given)
    assert field_errors(response).keys() == given.keys() | {"phone"}
    created = await create_client(api)
    response = await api.patch(f"/clients/{created['id']}", json=given | {"phone": "1"})
    assert field_errors(response).keys() == given.keys() | {"phone"}


async def test_creating_with_a_used_phone_is_409(api: httpx.AsyncClient) -> None:
    created = await create_client(api)
    response = await api.post("/clients", json={"phone": PHONE, "tag": "other"})
    assert response.status_code == 409
    assert response.headers["content-type"] == "application/problem+json"
    assert (await api.get("/clients")).json()["results"] == [created]


async def test_one_of_concurrent_requests_with_the_same_phone_succeeds(
    api: httpx.AsyncClient,
) -> None:
    requests = (api.post("/clients", json={"phone": PHONE}) for _ in range(8))
    responses = await asyncio.gather(*requests)
    assert sorted(response.status_code for response in responses) == [201] + [409] * 7
    assert (await api.get("/clients")).json()["count"] == 1


# ---- changing -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"phone": "79031234567", "operator_code": "916"},
        {"operator_code": "903"},
        {"tag": "other"},
        {"tag": None},
        {"time_zone": "Asia/Tokyo"},
        {"tag": None, "time_zone": "Asia/Tokyo"},
    ],
)
async def test_given_fields_change_and_absent_fields_stay(
    api: httpx.AsyncClient, change: dict[str, Any]
) -> None:
    created = await create_client(api, tag="vip", time_zone="Europe/Moscow")
    response = await api.patch(f"/clients/{created['id']}", json=change)
    assert response.status_code == 200
    assert response.json() == created | change | {"updated_at": response.json()["updated_at"]}
    assert response.json()["updated_at"] > created["updated_at"]
    assert (await api.get(f"/clients/{created['id']}")).json() == response.json()


@pytest.mark.parametrize(
    ("change", "operator_code"),
    [
        ({"phone": "79031234567"}, "903"),
        ({"phone": "79031234567", "operator_code": "921"}, "921"),
        ({"phone": PHONE, "tag": "vip"}, "999"),
    ],
    ids=["new phone", "new phone and code", "same phone"],
)
async def test_a_new_phone_sets_the_operator_code_unless_one_is_given(
    api: httpx.AsyncClient, change: dict[str, str], operator_code: str
) -> None:
    client_id = (await create_client(api, operator_code="999"))["id"]
    changed = (await api.patch(f"/clients/{client_id}", json=change)).json()
    assert changed["phone"] == change["phone"]
    assert changed["operator_code"] == operator_code


async def test_changing_to_a_used_phone_is_409(api: httpx.AsyncClient) -> None:
    await create_client(api, phone="79160000001")
    created = await create_client(api)
    address = f"/clients/{created['id']}"
    response = await api.patch(address, json={"phone": "79160000001", "tag": "new"})
    assert response.status_code == 409
    assert response.headers["content-type"] == "application/problem+json"
    assert (await api.get(address)).json() == created


async def test_a_client_can_be_changed_to_the_phone_that_it_has(api: httpx.AsyncClient) -> None:
    created = await create_client(api)
    response = await api.patch(f"/clients/{created['id']}", json={"phone": PHONE})
    assert response.status_code == 200


@pytest.mark.parametrize("method", ["GET", "PATCH", "DELETE"])
async def test_an_unknown_client_is_404(api: httpx.AsyncClient, method: str) -> None:
    unknown = (await create_client(api))["id"] + 1
    response = await api.request(method, f"/clients/{unknown}", json={"tag": "new"})
    assert response.status_code == 404
    assert response.headers["content-type"] == "application/problem+json"


# ---- deleting -------------------------------------------------------------------------------


async def test_a_deleted_client_is_gone(api: httpx.AsyncClient) -> None:
    address = f"/clients/{(await create_client(api))['id']}"
    response = await api.delete(address)
    assert (response.status_code, response.content) == (204, b"")
    assert (await api.get("/clients")).json()["count"] == 0
    assert (await api.get(f"/clients?phone={PHONE}")).json()["results"] == []
    for method in ("GET", "PATCH", "DELETE"):
        assert (await api.request(method, address, json={"tag": "x"})).status_code == 404


async def test_deleting_erases_phone_and_tag_in_the_database(
    api: httpx.AsyncClient, engine: AsyncEngine
) -> None:
    created = await create_client(api, tag="vip")
    await api.delete(f"/clients/{created['id']}")
    async with engine.connect() as connection:
        [row] = await connection.execute(select(client).where(client.c.id == created["id"]))
    assert (row.phone, row.tag) == (None, None)
    assert not {PHONE, "vip"} & set(map(str, row))


async def test_a_client_can_be_created_with_the_phone_of_a_deleted_one(
    api: httpx.AsyncClient,
) -> None:
    deleted = await create_client(api)
    await api.delete(f"/clients/{deleted['id']}")
    assert (await create_client(api))["id"] > deleted["id"]


async def test_a_client_can_be_changed_to_the_phone_of_a_deleted_one(
    api: httpx.AsyncClient,
) -> None:
    deleted, other = await create_client(api), await create_client(api, phone="79160000001")
    await api.delete(f"/clients/{deleted['id']}")
    response = await api.patch(f"/clients/{other['id']}", json={"phone": PHONE})
    assert response.status_code == 200


async def create_mailing_with_messages(api: httpx.AsyncClient, engine: AsyncEngine) -> int:
    """Create a mailing to all clients, and their messages; return the id of the mailing."""
    mailing_id: int = (await api.post("/mailings", json=MAILING)).json()["id"]
    await advance(engine)
    return mailing_id


async def get_mailing(api: httpx.AsyncClient, mailing_id: int) -> dict[str, Any]:
    mailing: dict[str, Any] = (await api.get(f"/mailings/{mailing_id}")).json()
    return mailing


def message_to(mailing: dict[str, Any], recipient: dict[str, Any]) -> dict[str, Any]:
    """Return the message of a mailing to a client."""
    messages: list[dict[str, Any]] = mailing["mailing_messages"]
    [to_recipient] = [each for each in messages if each["client_id"] == recipient["id"]]
    return to_recipient


async def test_deleting_a_client_cancels_its_open_messages_alone(
    api: httpx.AsyncClient, engine: AsyncEngine
) -> None:
    deleted, other = await create_client(api), await create_client(api, phone="79160000001")
    mailing_id = await create_mailing_with_messages(api, engine)
    await api.delete(f"/clients/{deleted['id']}")

    mailing = await get_mailing(api, mailing_id)
    assert message_to(mailing, deleted)["status"] == "cancelled"
    assert message_to(mailing, deleted)["reason"] == "client_deleted"
    assert message_to(mailing, other)["status"] == "scheduled"
    assert mailing["clients_count"] == mailing["created_messages"] == 2
    assert mailing["scheduled_messages"] == mailing["cancelled_messages"] == 1


async def test_deleting_a_client_keeps_its_sent_messages(
    api: httpx.AsyncClient, engine: AsyncEngine
) -> None:
    deleted = await create_client(api)
    mailing_id = await create_mailing_with_messages(api, engine)
    delivered = update(message).values(status="delivered", sent_at=func.now())
    await do(engine, lambda connection: connection.execute(delivered))
    await api.delete(f"/clients/{deleted['id']}")

    mailing = await get_mailing(api, mailing_id)
    assert message_to(mailing, deleted)["status"] == "delivered"
    assert message_to(mailing, deleted)["reason"] is None
    assert mailing["clients_count"] == mailing["created_messages"] == 1
    assert mailing["delivered_messages"] == 1


# ---- listing --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("", {"a", "b", "c"}),
        ("operator_code=916", {"a", "b"}),
        ("operator_code=999", {"c"}),
        ("operator_code=000", set()),
        ("tag=vip", {"a", "c"}),
        ("tag=VIP", {"a", "c"}),
        ("tag=%C2%A0Vip%E2%80%8B", {"a", "c"}),
        ("tag=vi", set()),
        ("tag=a%26b%3D%D1%8F%2B%25", {"b"}),
        ("time_zone=Asia/Tokyo", {"b", "c"}),
        ("time_zone=Asia%2FTokyo", {"b", "c"}),
        ("phone=79160000001", {"a"}),
        ("phone=79160000009", set()),
        ("operator_code=916&tag=vip", {"a"}),
        ("operator_code=916&tag=vip&time_zone=Asia/Tokyo", set()),
        ("tag=vip&time_zone=Asia/Tokyo&limit=1", {"c"}),
    ],
)
async def test_the_list_contains_the_clients_that_match_every_parameter(
    api: httpx.AsyncClient, query: str, expected: set[str]
) -> None:
    created = {
        "a": await create_client(api, phone="79160000001", tag="vip"),
        "b": await create_client(api, phone="79160000002", tag="a&b=я+%", time_zone="Asia/Tokyo"),
        "c": await create_client(
            api, phone="79160000003", operator_code="999", tag="vip", time_zone="Asia/Tokyo"
        ),
    }
    page = (await api.get(f"/clients?{query}")).json()
    assert page == {
        "count": len(expected),
        "next": None,
        "previous": None,
        "results": [created[name] for name in sorted(expected, reverse=True)],
    }


@pytest.mark.parametrize(
    ("query", "field"),
    [
        *(
            (f"limit={value}", "limit")
            for value in ("0", "1001", "-1", "x", "", "1.5", "10000000000")
        ),
        *((f"before={value}", "before") for value in ("0", "-1", "x", "", 10**30)),
        *((f"after={value}", "after") for value in ("0", "-1", "x", "", 10**30)),
        *((f"phone={value}", "phone") for value in ("", "7916", "x", "%2B79161234567")),
        *((f"operator_code={value}", "operator_code") for value in ("", "91", "9161", "x")),
        *((f"tag={value}", "tag") for value in ("", "a" * 65)),
        *((f"time_zone={value}", "time_zone") for value in ("", "Mars/Base")),
        ("limit=5&limit=5", "limit"),
        ("tag=a&tag=b", "tag"),
        ("phone=79161234567&phone=79161234567", "phone"),
        ("before=5&before=6", "before"),
        ("offset=5", "offset"),
        ("Limit=5", "Limit"),
        ("id=5", "id"),
        ("q=", "q"),
    ],
)
async def test_an_invalid_parameter_is_400_and_named(
    api: httpx.AsyncClient, query: str, field: str
) -> None:
    response = await api.get(f"/clients?{query}")
    assert response.status_code == 400
    assert field_errors(response).keys() == {field}


async def test_all_invalid_parameters_are_named_in_one_response(api: httpx.AsyncClient) -> None:
    response = await api.get("/clients?phone=1&operator_code=x&tag=&limit=0&page=2&before=x")
    assert field_errors(response).keys() == {
        "phone",
        "operator_code",
        "tag",
        "limit",
        "page",
        "before",
    }


async def test_a_page_has_100_rows_unless_another_limit_is_given(
    api: httpx.AsyncClient, many_clients: list[int]
) -> None:
    for query, row_count in (("", 100), ("?limit=1", 1), ("?limit=1000", 1000)):
        page = (await api.get(f"/clients{query}")).json()
        assert [row["id"] for row in page["results"]] == many_clients[:row_count]
        assert page["count"] == len(many_clients)


async def follow_links(
    api: httpx.AsyncClient, page: dict[str, Any], direction: Literal["next", "previous"]
) -> list[dict[str, Any]]:
    """Return a page and all pages that its links lead to in one direction."""
    pages = [page]
    while pages[-1][direction]:
        pages.append((await api.get(pages[-1][direction])).json())
    return pages


@pytest.mark.parametrize("limit", [1000, 300, 143])
async def test_next_links_lead_to_the_oldest_page_and_previous_links_back(
    api: httpx.AsyncClient, many_clients: list[int], limit: int
) -> None:
    newest_page = (await api.get(f"/clients?operator_code=916&limit={limit}")).json()
    pages = await follow_links(api, newest_page, "next")
    assert newest_page["previous"] is None
    assert [row["id"] for page in pages for row in page["results"]] == many_clients
    assert {len(page["results"]) for page in pages[:-1]} == {limit}
    assert {page["count"] for page in pages} == {len(many_clients)}

    pages_back = await follow_links(api, pages[-1], "previous")
    results = [page["results"] for page in pages]
    assert [page["results"] for page in pages_back] == list(reversed(results))
    assert all(page["next"] for page in pages_back[1:])


def phones_of(page: dict[str, Any]) -> list[str]:
    return [row["phone"] for row in page["results"]]


async def test_rows_created_or_deleted_between_pages_shift_no_page(
    api: httpx.AsyncClient,
) -> None:
    phones = [f"7916000000{n}" for n in range(6)]
    ids = {phone: (await create_client(api, phone=phone))["id"] for phone in phones}
    first = (await api.get("/clients?limit=2")).json()
    assert phones_of(first) == [phones[5], phones[4]]

    await create_client(api, phone="79169999999")
    await api.delete(f"/clients/{ids[phones[4]]}")
    second = (await api.get(first["next"])).json()
    assert phones_of(second) == [phones[3], phones[2]]

    await api.delete(f"/clients/{ids[phones[1]]}")
    third = (await api.get(second["next"])).json()
    assert phones_of(third) == [phones[0]]
    assert third["next"] is None

    newest = (await api.get(second["previous"])).json()
    assert phones_of(newest) == ["79169999999", phones[5]]
    assert newest["previous"] is None


async def test_links_keep_the_filter(api: httpx.AsyncClient) -> None:
    for number in range(3):
        await create_client(api, phone=f"7916000000{number}", tag="a&b=я+%")
    await create_client(api, phone="79160000009")
    page = (await api.get("/clients", params={"tag": "a&b=я+%", "limit": 2})).json()
    assert parse_qs(urlsplit(page["next"]).query)["tag"] == ["a&b=я+%"]
    assert len((await api.get(page["next"])).json()["results"]) == 1


async def test_a_trailing_slash_changes_nothing(api: httpx.AsyncClient) -> None:
    created = (await api.post("/clients/", json={"phone": PHONE})).json()
    address = f"/clients/{created['id']}"
    assert (await api.get("/clients/")).json() == (await api.get("/clients")).json()
    assert (await api.get("/clients/?limit=1")).json()["results"] == [created]
    assert (await api.get(f"{address}/")).json() == created
    assert (await api.patch(f"{address}/", json={"tag": "x"})).json()["tag"] == "x"
    assert (await api.delete(f"{address}/")).status_code == 204
