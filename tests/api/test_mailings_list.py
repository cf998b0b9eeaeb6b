"""Mailings over the API: pages of mailings and of their messages, newest first.

The fixture `clients` creates four clients, who have names for the tests: see `CLIENTS`.
"""

from datetime import UTC, datetime
from itertools import pairwise

import httpx
import pytest
from sqlalchemy import update
from sqlalchemy.ext.asyncio import AsyncEngine
from tests.api.browser_session import BROWSER, SITE
from tests.api.calls import (
    DUE,
    NEW,
    create_mailing,
    field_errors,
    messages_by_client,
    update_messages,
)
from tests.factories import NOON, add_clients, add_mailings, start_and_enqueue

from mailer.db.tables.mailing import mailing
from mailer.sample_data import SampleMailing
from mailer.validation import MAX_ID

# ---- listing --------------------------------------------------------------------------------


@pytest.mark.parametrize("status", ["scheduled", "running", "paused", "finished", "cancelled"])
async def test_the_list_is_filtered_by_status(
    api: httpx.AsyncClient, engine: AsyncEngine, status: str
) -> None:
    requested, other = await create_mailing(api, NEW), await create_mailing(api, NEW)
    other_status = "running" if status == "scheduled" else "scheduled"
    async with engine.begin() as connection:
        for row, value in ((requested, status), (other, other_status)):
            await connection.execute(
                update(mailing).where(mailing.c.id == row["id"]).values(status=value)
            )

    page = (await api.get(f"/mailings?status={status}")).json()

    assert (page["count"], page["next"], page["previous"]) == (1, None, None)
    assert [row["id"] for row in page["results"]] == [requested["id"]]


@pytest.mark.parametrize(
    ("path", "query", "field"),
    [
        *(
            ("", f"status={value}", "status")
            for value in ("", "x", "RUNNING", "running,", "running,x")
        ),
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
async def test_an_invalid_parameter_is_refused_by_its_name(
    api: httpx.AsyncClient, path: str, query: str, field: str
) -> None:
    if path:
        path = f"/{(await create_mailing(api, NEW))['id']}{path}"
    answer = await api.get(f"/mailings{path}?{query}")
    assert answer.status_code == 400
    assert field_errors(answer).keys() == {field}


@pytest.mark.parametrize(
    ("query", "field"),
    [
        *((f"label={value}", "label") for value in ("", "%20", "x" * 33, "a%00")),
        *((f"search={value}", "search") for value in ("x" * 201, "a%00")),
        *(
            (f"{name}={value}", name)
            for name in ("from", "to")
            for value in ("", "x", "1969-12-31", "9000-01-01", "2030-02-30", "2030-1-1", "0")
        ),
        ("from=2030-01-02&to=2030-01-01", "to"),
        *((f"sort={value}", "sort") for value in ("", "x", "-start", "id")),
        *((f"from=2030-01-01&sort={value}", "sort") for value in ("newest", "audience")),
        *((f"sort=start&{side}=1", "key") for side in ("before", "after")),
        ("from=2030-01-01&before=1", "key"),
        *((f"sort=end&before=1&key={value}", "key") for value in ("-1", "x", "9" * 18)),
        ("first_day=2030-01-01", "first_day"),
    ],
)
async def test_an_invalid_filter_or_order_is_refused_by_its_name(
    api: httpx.AsyncClient, query: str, field: str
) -> None:
    answer = await api.get(f"/mailings?{query}")
    assert answer.status_code == 400
    assert field_errors(answer).keys() == {field}


@pytest.mark.parametrize(
    "query",
    ["status=running,paused", "status=running&status=paused", "status=paused, running,running"],
)
async def test_the_list_is_filtered_by_several_statuses(
    api: httpx.AsyncClient, engine: AsyncEngine, query: str
) -> None:
    statuses = ("scheduled", "running", "paused", "finished", "running")
    ids = await add_mailings(
        engine, *(SampleMailing(start=NOON, status=status) for status in statuses)
    )

    first = (await api.get(f"/mailings?{query}&limit=2")).json()
    second = (await api.get(first["next"])).json()

    assert [row["id"] for row in (*first["results"], *second["results"])] == [
        ids[4],
        ids[2],
        ids[1],
    ]
    assert (first["count"], second["next"]) == (3, None)
    assert (await api.get(second["previous"])).json() == first


async def test_the_list_is_filtered_by_label_and_searched_by_name(api: httpx.AsyncClient) -> None:
    sale = await create_mailing(api, NEW | {"name": "Big sale", "labels": ["Spring", "a,b"]})
    spring = await create_mailing(api, NEW | {"labels": ["spring"], "text": "Flowers"})
    await create_mailing(api, NEW | {"name": "Springs", "labels": ["spring 2030"]})

    async def ids(query: str) -> list[int]:
        return [row["id"] for row in (await api.get(f"/mailings?{query}")).json()["results"]]

    assert await ids("label=SPRING") == [spring["id"], sale["id"]]
    assert await ids("label=a,b") == [sale["id"]]
    assert await ids("label=a") == []
    assert await ids("search=sale") == [sale["id"]]
    assert await ids("search=flowers&label=spring") == [spring["id"]]
    assert await ids("label=spring&status=paused") == []
    await api.patch(f"/mailings/{sale['id']}", json={"name": "Offers", "labels": []})
    assert await ids("search=sale") == []
    assert await ids("search=offers") == [sale["id"]]
    assert await ids("label=spring") == [spring["id"]]


async def test_days_of_the_list_are_those_of_utc_and_include_both(
    api: httpx.AsyncClient,
) -> None:
    period = {"datetime_start": "2040-01-10T00:00:00Z", "datetime_end": "2040-01-12T00:00:00Z"}
    created = await create_mailing(api, NEW | period)

    async def finds(query: str) -> bool:
        page = (await api.get(f"/mailings?{query}")).json()
        assert page["count"] == len(page["results"])
        return [row["id"] for row in page["results"]] == [created["id"]]

    assert await finds("from=2040-01-11")
    assert not await finds("from=2040-01-12")  # the end is excluded
    assert await finds("to=2040-01-10")
    assert not await finds("to=2040-01-09")
    assert await finds("from=2040-01-10&to=2040-01-10&sort=end")
    assert await finds("from=2040-01-01&to=2040-01-31&search=order")
    assert not await finds("from=2040-02-01&search=order")


async def test_all_invalid_parameters_are_named_in_one_response(api: httpx.AsyncClient) -> None:
    answer = await api.get("/mailings?status=x&limit=0&offset=1")
    assert field_errors(answer).keys() == {"status", "limit", "offset"}


async def test_links_between_pages_lead_through_all_mailings_and_back(
    api: httpx.AsyncClient,
) -> None:
    newest_first = [(await create_mailing(api, NEW))["id"] for _ in range(5)][::-1]
    first = (await api.get("/mailings?status=scheduled&limit=2")).json()
    second = (await api.get(first["next"])).json()
    third = (await api.get(second["next"])).json()
    pages = [first, second, third]
    assert [[row["id"] for row in page["results"]] for page in pages] == [
        newest_first[:2],
        newest_first[2:4],
        newest_first[4:],
    ]
    assert [page["count"] for page in pages] == [5, 5, 5]
    assert first["previous"] is None
    assert third["next"] is None
    second_again = (await api.get(third["previous"])).json()
    assert second_again["results"] == second["results"]
    first_again = (await api.get(second_again["previous"])).json()
    assert first_again["results"] == first["results"]
    assert first_again["previous"] is None


# ---- messages -------------------------------------------------------------------------------


async def test_a_message_has_these_fields(
    api: httpx.AsyncClient, engine: AsyncEngine, clients: dict[str, int]
) -> None:
    created = await create_mailing(api, DUE | {"client_filter": "vip"})
    await start_and_enqueue(engine)
    [row] = (await api.get(f"/mailings/{created['id']}")).json()["mailing_messages"]
    assert row == {
        "id": row["id"],
        "mailing_id": created["id"],
        "client_id": clients["vip"],
        "phone": "79160000001",
        "status": "scheduled",
        "reason": None,
        "last_failure": None,
        "attempts": 0,
        "gateway": None,
        "gateway_message_id": None,
        "parts": None,
        "text_version": None,
        "datetime_send": created["datetime_start"],
        "created_at": row["created_at"],
        "updated_at": row["updated_at"],
    }
    [listed] = (await api.get(f"/mailings/{created['id']}/messages")).json()["results"]
    assert listed == row


async def test_datetime_send_of_a_sent_message_is_when_it_was_sent(
    api: httpx.AsyncClient, engine: AsyncEngine, clients: dict[str, int]
) -> None:
    created = await create_mailing(api, DUE)
    await start_and_enqueue(engine)
    sent_at = datetime(2025, 6, 7, 8, 9, tzinfo=UTC)
    await update_messages(engine, clients["vip"], status="delivered", sent_at=sent_at)
    messages = await messages_by_client(api, created["id"])
    assert messages[clients["vip"]]["datetime_send"] == "2025-06-07T08:09:00Z"


async def test_a_mailing_shows_its_newest_hundred_messages_and_pages_show_all(
    api: httpx.AsyncClient, engine: AsyncEngine
) -> None:
    await add_clients(engine, 101)
    created = await create_mailing(api, DUE)
    await start_and_enqueue(engine)
    address = f"/mailings/{created['id']}"
    everything = (await api.get(f"{address}/messages?limit=1000")).json()
    assert everything["count"] == len(everything["results"]) == 101
    assert all(newer["id"] > older["id"] for newer, older in pairwise(everything["results"]))
    newest = (await api.get(address)).json()["mailing_messages"]
    assert newest == everything["results"][:100]
    page = (await api.get(f"{address}/messages?limit=40")).json()
    of_all_pages = page["results"]
    while page["next"]:
        page = (await api.get(page["next"])).json()
        of_all_pages += page["results"]
    assert of_all_pages == everything["results"]


async def test_messages_are_filtered_by_status_reason_and_client(
    api: httpx.AsyncClient, engine: AsyncEngine, clients: dict[str, int]
) -> None:
    await create_mailing(api, DUE)  # another mailing, whose messages must not be returned
    await start_and_enqueue(engine)
    created = await create_mailing(api, DUE)
    await start_and_enqueue(engine)
    await update_messages(engine, clients["vip"], status="undelivered", reason="rejected_400")
    await update_messages(
        engine, clients["moscow"], status="undelivered", reason="attempts_exhausted"
    )
    await update_messages(engine, clients["blank"], status="cancelled", reason="expired")
    expected_by_query: dict[str, set[str]] = {
        "status=scheduled": {"tagged 912"},
        "status=undelivered": {"vip", "moscow"},
        "status=delivered": set(),
        "reason=expired": {"blank"},
        "reason=nothing": set(),
        "status=undelivered&reason=rejected_400": {"vip"},
        "status=cancelled&reason=rejected_400": set(),
        f"client_id={clients['moscow']}": {"moscow"},
        f"client_id={clients['moscow']}&status=scheduled": set(),
        f"client_id={MAX_ID}": set(),
    }
    for query, names in expected_by_query.items():
        page = (await api.get(f"/mailings/{created['id']}/messages?{query}")).json()
        assert page["count"] == len(names), query
        assert {row["client_id"] for row in page["results"]} == {clients[name] for name in names}
        assert {row["mailing_id"] for row in page["results"]} <= {created["id"]}


async def test_a_page_says_why_too_many_found_mailings_are_not_sorted(
    api: httpx.AsyncClient, engine: AsyncEngine
) -> None:
    await add_mailings(engine, *(SampleMailing(start=NOON) for _ in range(2)))
    path = f"{SITE}/mailings?search=order&sort=start"
    sorted_page = await api.get(path, headers=BROWSER)
    assert sorted_page.status_code == 200
    assert '<option value="start" selected>' in sorted_page.text
    await add_mailings(engine, *(SampleMailing(start=NOON) for _ in range(1_000)))
    refused = await api.get(path, headers=BROWSER)
    assert refused.status_code == 400
    assert "at most 1,000 mailings of a search or a label" in refused.text
    assert field_errors(await api.get("/mailings?search=order&sort=start")).keys() == {"sort"}
