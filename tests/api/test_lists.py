"""Lists of clients in the API: creating, deleting, members, imports, and filters."""

from typing import Any

import httpx
import pytest
from sqlalchemy.ext.asyncio import AsyncEngine
from tests.api.calls import NEW, create_mailing, field_errors
from tests.factories import rows

PHONES = ("79160000001", "79160000002", "79160000003")
CSV = {"Content-Type": "text/csv"}
KEY = {"Idempotency-Key": "list-1"}


async def create_list(api: httpx.AsyncClient, name: str = "Spring") -> int:
    """Create a list; return its id."""
    response = await api.post("/lists", json={"name": name})
    assert response.status_code == 201, response.text
    return int(response.json()["id"])


async def create_clients(api: httpx.AsyncClient) -> list[int]:
    """Create a client for each of `PHONES`; return their ids."""
    created = [await api.post("/clients", json={"phone": phone}) for phone in PHONES]
    return [response.json()["id"] for response in created]


async def change_members(
    api: httpx.AsyncClient, method: str, list_id: int, **members: Any
) -> dict[str, int]:
    """Put clients on a list by POST, or take them off by DELETE; return the answer."""
    response = await api.request(method, f"/lists/{list_id}/clients", json=members)
    assert response.status_code == 200, response.text
    counts: dict[str, int] = response.json()
    return counts


async def test_a_list_has_its_name_and_number_of_clients(api: httpx.AsyncClient) -> None:
    await create_clients(api)
    list_id = await create_list(api, "  Spring   sale ")
    await change_members(api, "POST", list_id, phones=PHONES[:2])
    shown = (await api.get(f"/lists/{list_id}")).json()
    assert shown == {
        "id": list_id,
        "name": "Spring sale",
        "clients_count": 2,
        "created_at": shown["created_at"],
    }
    assert (await api.get("/lists")).json()["results"] == [shown]


async def test_lists_are_paged_newest_first_and_found_by_name(api: httpx.AsyncClient) -> None:
    ids = [await create_list(api, name) for name in ("A", "100% off", "C")]
    first = (await api.get("/lists?limit=2")).json()
    assert first["count"] == 3
    assert [row["id"] for row in first["results"]] == [ids[2], ids[1]]
    second = (await api.get(first["next"])).json()
    assert [row["id"] for row in second["results"]] == [ids[0]]
    for search in ("OFF", "0%"):
        found = (await api.get("/lists", params={"search": search})).json()
        assert [row["id"] for row in found["results"]] == [ids[1]]
        assert found["count"] == 1
    assert (await api.get("/lists", params={"search": "%"})).json()["count"] == 1


async def test_the_name_of_a_list_is_unique_without_case(api: httpx.AsyncClient) -> None:
    await create_list(api, "Spring")
    response = await api.post("/lists", json={"name": "sPRING"})
    assert response.status_code == 409
    assert response.json()["detail"] == "Another list has this name."


@pytest.mark.parametrize("name", ["", " ", "\u200b", "x" * 101, None, 5])
async def test_a_wrong_name_is_refused(api: httpx.AsyncClient, name: object) -> None:
    response = await api.post("/lists", json={"name": name})
    assert field_errors(response) == {"name": "must be 1 to 100 characters"}


async def test_a_repeated_request_creates_one_list(api: httpx.AsyncClient) -> None:
    answers = [await api.post("/lists", json={"name": "A"}, headers=KEY) for _ in range(2)]
    assert answers[0].json() == answers[1].json()
    assert answers[1].headers["Idempotency-Replayed"] == "true"


async def test_clients_are_put_on_a_list_and_taken_off_by_phone_and_id(
    api: httpx.AsyncClient,
) -> None:
    ids = await create_clients(api)
    list_id = await create_list(api)
    added = await change_members(api, "POST", list_id, phones=PHONES[:2], ids=[ids[1], ids[2]])
    assert added == {"added": 3, "unchanged": 0}
    again = await change_members(api, "POST", list_id, phones=PHONES[:1])
    assert again == {"added": 0, "unchanged": 1}
    removed = await change_members(api, "DELETE", list_id, phones=PHONES[:1], ids=[ids[0]])
    assert removed == {"removed": 1, "unchanged": 0}
    again = await change_members(api, "DELETE", list_id, ids=[ids[0]])
    assert again == {"removed": 0, "unchanged": 1}
    members = (await api.get(f"/lists/{list_id}/clients")).json()
    assert [row["id"] for row in members["results"]] == [ids[2], ids[1]]
    assert members["count"] == 2


@pytest.mark.parametrize("method", ["POST", "DELETE"])
async def test_every_unknown_client_is_named_by_its_position_and_nothing_changes(
    api: httpx.AsyncClient, method: str
) -> None:
    ids = await create_clients(api)
    list_id = await create_list(api)
    await change_members(api, "POST", list_id, phones=PHONES[:1])
    members = {"phones": [PHONES[0], "79990000001", PHONES[1], "79990000002"], "ids": [999, ids[2]]}
    response = await api.request(method, f"/lists/{list_id}/clients", json=members)
    assert response.status_code == 400
    assert field_errors(response) == {
        "phones[1]": "is the phone of no client",
        "phones[3]": "is the phone of no client",
        "ids[0]": "is the id of no client",
    }
    assert "7999" not in response.text
    assert (await api.get(f"/lists/{list_id}")).json()["clients_count"] == 1


@pytest.mark.parametrize(
    ("members", "field"),
    [
        ({}, "phones"),
        ({"phones": []}, "phones"),
        ({"phones": ["+79160000001"]}, "phones"),
        ({"ids": ["1"]}, "ids"),
        ({"ids": [0]}, "ids"),
        ({"ids": list(range(1, 1002))}, "ids"),
        ({"ids": [1], "phones": PHONES[:1] * 1001}, "phones"),
        ({"names": ["A"]}, "names"),
    ],
)
async def test_wrong_members_are_refused(
    api: httpx.AsyncClient, members: dict[str, Any], field: str
) -> None:
    list_id = await create_list(api)
    response = await api.post(f"/lists/{list_id}/clients", json=members)
    assert response.status_code == 400
    assert field in field_errors(response)


async def test_a_list_that_does_not_exist_is_not_found(api: httpx.AsyncClient) -> None:
    assert (await api.get("/lists/1")).status_code == 404
    assert (await api.delete("/lists/1")).status_code == 404
    for method in ("GET", "POST", "DELETE"):
        body = None if method == "GET" else {"phones": [PHONES[0]]}
        response = await api.request(method, "/lists/1/clients", json=body)
        assert response.status_code == 404, method


async def test_a_deleted_list_leaves_its_clients_in_the_directory(api: httpx.AsyncClient) -> None:
    await create_clients(api)
    list_id = await create_list(api)
    await change_members(api, "POST", list_id, phones=PHONES)
    assert (await api.delete(f"/lists/{list_id}")).status_code == 204
    assert (await api.get(f"/lists/{list_id}")).status_code == 404
    assert (await api.get("/clients")).json()["count"] == 3
    await create_list(api)  # the name is free again


async def test_the_error_for_a_list_in_use_names_the_mailings(api: httpx.AsyncClient) -> None:
    list_id = await create_list(api)
    mailing = await create_mailing(api, NEW | {"client_filter": {"lists": ["SPRING"]}})
    response = await api.delete(f"/lists/{list_id}")
    assert response.status_code == 409
    assert f"#{mailing['id']}" in response.json()["detail"]
    assert (await api.delete(f"/mailings/{mailing['id']}")).status_code == 204
    assert (await api.delete(f"/lists/{list_id}")).status_code == 204


async def test_a_mailing_for_a_list_has_the_exact_number_of_clients_before_its_start(
    api: httpx.AsyncClient,
) -> None:
    await create_clients(api)
    list_id = await create_list(api)
    await change_members(api, "POST", list_id, phones=PHONES[:2])
    client_filter = {"lists": ["spring"]}
    mailing = await create_mailing(api, NEW | {"client_filter": client_filter})
    assert mailing["clients_count"] == 2
    assert mailing["client_filter"] == client_filter  # as it was given


async def test_unknown_lists_in_a_filter_are_named(api: httpx.AsyncClient) -> None:
    await create_list(api)
    response = await api.post(
        "/mailings", json=NEW | {"client_filter": {"lists": ["Spring", "Summer", "Autumn"]}}
    )
    assert response.status_code == 400
    assert field_errors(response) == {
        "client_filter.lists": "must name existing lists; not found: Summer, Autumn"
    }


@pytest.mark.parametrize("lists", [[], [""], [5], "Spring", ["x" * 101]])
async def test_wrong_lists_in_a_filter_are_refused(api: httpx.AsyncClient, lists: object) -> None:
    response = await api.post("/mailings", json=NEW | {"client_filter": {"lists": lists}})
    assert response.status_code == 400
    assert "client_filter.lists" in field_errors(response)


async def test_clients_are_found_by_their_list_and_other_fields(api: httpx.AsyncClient) -> None:
    ids = await create_clients(api)
    await api.patch(f"/clients/{ids[0]}", json={"tag": "vip"})
    list_id = await create_list(api)
    await change_members(api, "POST", list_id, ids=ids[:2])

    async def found(**query: str) -> list[int]:
        page = (await api.get("/clients", params=query)).json()
        assert page["count"] == len(page["results"])
        return [row["id"] for row in page["results"]]

    assert await found(list="SPRING") == [ids[1], ids[0]]
    assert await found(list="Spring", tag="vip") == [ids[0]]
    assert await found(list="Spring", phone=PHONES[2]) == []
    assert await found(list="Spring", opted_out="true") == []
    response = await api.get("/clients?list=Summer")
    assert field_errors(response) == {"list": "must name existing lists; not found: Summer"}
    lines = (await api.get("/clients?list=Spring", headers={"Accept": "text/csv"})).text
    assert len(lines.splitlines()) == 3
    response = await api.get("/clients?list=Summer", headers={"Accept": "text/csv"})
    assert response.status_code == 400


async def test_an_import_puts_its_clients_on_a_list(api: httpx.AsyncClient) -> None:
    await create_clients(api)
    content = f"phone\n{PHONES[0]}\n79990000001\nwrong\n"
    response = await api.post(
        "/clients/import", params={"list": " New  list"}, content=content, headers=CSV
    )
    report = response.json()
    assert report["list"] == {
        "id": report["list"]["id"],
        "name": "New list",
        "is_new": True,
        "added": 2,
    }
    assert (await api.get(f"/lists/{report['list']['id']}")).json()["clients_count"] == 2
    for query in ({"list": ""}, {"list": "x" * 101}, {"lists": "A"}):
        refused = await api.post("/clients/import", params=query, content=content, headers=CSV)
        assert refused.status_code == 400, query


async def test_an_import_without_a_list_reports_none(api: httpx.AsyncClient) -> None:
    response = await api.post("/clients/import", content=f"phone\n{PHONES[0]}\n", headers=CSV)
    assert "list" not in response.json()


async def test_changes_of_lists_are_in_the_audit_log_without_phones(
    api: httpx.AsyncClient, engine: AsyncEngine
) -> None:
    await create_clients(api)
    list_id = await create_list(api)
    await change_members(api, "POST", list_id, phones=PHONES[:2])
    await change_members(api, "POST", list_id, phones=PHONES[:2])  # changes nothing
    await change_members(api, "DELETE", list_id, phones=PHONES[:1])
    await api.delete(f"/lists/{list_id}")
    query = """
        SELECT action, target_id, before, after FROM audit
        WHERE target_kind = 'list' ORDER BY id"""
    entries: list[Any] = [tuple(row.values()) for row in await rows(engine, query)]
    assert entries == [
        ("list_created", list_id, None, {"name": "Spring"}),
        ("list_clients_added", list_id, None, {"name": "Spring", "added": 2}),
        ("list_clients_removed", list_id, None, {"name": "Spring", "removed": 1}),
        ("list_deleted", list_id, {"name": "Spring", "clients_count": 1}, None),
    ]
