"""Opt-outs in the API: adding, listing, deleting, import and export."""

import re
from datetime import UTC, datetime
from typing import Any

import httpx
import pytest
from sqlalchemy.ext.asyncio import AsyncEngine
from tests.api.calls import NEW, create_mailing, field_errors
from tests.factories import execute, rows, value
from tests.workbooks import XLSX, by_openpyxl

PHONE, OTHER_PHONE = "79161234567", "79037654321"
CSV = {"Content-Type": "text/csv"}
AS_CSV = {"Accept": "text/csv"}
KEY = {"Idempotency-Key": "opt-out-1"}


async def create_client(api: httpx.AsyncClient, phone: str = PHONE, **fields: str) -> int:
    """Create a client; return its id."""
    response = await api.post("/clients", json={"phone": phone} | fields)
    assert response.status_code == 201
    return int(response.json()["id"])


async def opt_out(
    api: httpx.AsyncClient,
    phone: str = PHONE,
    status: int = 201,
    headers: dict[str, str] | None = None,
) -> dict[str, Any]:
    """Opt a phone out; return the opt-out."""
    response = await api.post("/opt-outs", json={"phone": phone}, headers=headers)
    assert response.status_code == status, response.text
    created: dict[str, Any] = response.json()
    return created


async def opt_in(api: httpx.AsyncClient, phone: str = PHONE) -> int:
    """Opt a phone in; return the status of the response."""
    return (await api.post("/opt-outs/delete", json={"phone": phone})).status_code


async def opted_out_at(api: httpx.AsyncClient, client_id: int) -> str | None:
    since: str | None = (await api.get(f"/clients/{client_id}")).json()["opted_out_at"]
    return since


async def test_an_opt_out_has_its_client_time_and_source(api: httpx.AsyncClient) -> None:
    client_id = await create_client(api)
    before = datetime.now(UTC)
    created = await opt_out(api)
    assert created == {
        "id": created["id"],
        "client_id": client_id,
        "phone": PHONE,
        "opted_out_at": created["opted_out_at"],
        "source": "api",
        "gateway": None,
    }
    assert abs((datetime.fromisoformat(created["opted_out_at"]) - before).total_seconds()) < 60
    assert await opted_out_at(api, client_id) == created["opted_out_at"]
    assert await opt_out(api, status=200) == created
    assert (await api.get("/opt-outs")).json()["results"] == [created]


async def test_an_opt_out_without_a_client_shows_no_phone(api: httpx.AsyncClient) -> None:
    created = await opt_out(api)
    assert (created["client_id"], created["phone"]) == (None, None)
    client_id = await create_client(api)
    assert await opted_out_at(api, client_id) == created["opted_out_at"]
    assert (await api.delete(f"/clients/{client_id}")).status_code == 204
    [listed] = (await api.get("/opt-outs")).json()["results"]
    assert listed == created


async def test_a_new_client_with_an_opted_out_phone_is_created_as_such(
    api: httpx.AsyncClient,
) -> None:
    await opt_out(api)
    created = await api.post("/clients", json={"phone": PHONE})
    assert created.json()["opted_out_at"] is not None


async def test_opted_out_at_cannot_be_written(api: httpx.AsyncClient) -> None:
    response = await api.post("/clients", json={"phone": PHONE, "opted_out_at": None})
    assert field_errors(response) == {"opted_out_at": "is not a known field"}


@pytest.mark.parametrize("phone", ["9161234567", "+79161234567", "", 79161234567, None])
async def test_only_a_phone_can_be_opted_out(api: httpx.AsyncClient, phone: object) -> None:
    for path in ("/opt-outs", "/opt-outs/delete"):
        response = await api.post(path, json={"phone": phone})
        assert response.status_code == 400
        assert field_errors(response).keys() == {"phone"}


async def test_a_phone_is_opted_in_by_phone_or_by_id(api: httpx.AsyncClient) -> None:
    client_id = await create_client(api)
    for delete in ("phone", "id"):
        created = await opt_out(api)
        if delete == "phone":
            assert await opt_in(api) == 204
        else:
            assert (await api.delete(f"/opt-outs/{created['id']}")).status_code == 204
        assert await opted_out_at(api, client_id) is None
        assert await opt_in(api) == 404
        assert (await api.delete(f"/opt-outs/{created['id']}")).status_code == 404
    assert (await api.get("/opt-outs")).json()["count"] == 0


async def test_opt_outs_are_listed_newest_first_and_by_page(api: httpx.AsyncClient) -> None:
    phones = [f"7916000000{number}" for number in range(5)]
    for phone in phones:
        await create_client(api, phone)
        await opt_out(api, phone)
    listed: list[str] = []
    url: str | None = "/opt-outs?limit=2"
    while url is not None:
        page = (await api.get(url)).json()
        assert page["count"] == 5
        listed += (row["phone"] for row in page["results"])
        url = page["next"]
    assert listed == phones[::-1]


async def test_opt_outs_are_found_by_phone_and_by_client(api: httpx.AsyncClient) -> None:
    client_id = await create_client(api)
    created, without_client = await opt_out(api), await opt_out(api, OTHER_PHONE)
    for query, expected in (
        (f"phone={PHONE}", [created]),
        (f"phone={OTHER_PHONE}", [without_client]),
        ("phone=79990000000", []),
        (f"client_id={client_id}", [created]),
        (f"client_id={client_id}&phone={OTHER_PHONE}", []),
    ):
        page = (await api.get(f"/opt-outs?{query}")).json()
        assert page["results"] == expected
        assert page["count"] == len(expected)


async def test_clients_are_filtered_by_opt_out(api: httpx.AsyncClient) -> None:
    out, other = await create_client(api), await create_client(api, OTHER_PHONE)
    await opt_out(api)
    for query, ids in (
        ("opted_out=true", [out]),
        ("opted_out=false", [other]),
        ("opted_out=true&operator_code=916", [out]),
        ("opted_out=true&operator_code=903", []),
        ("opted_out=false&time_zone=UTC", [other]),
        (f"opted_out=true&phone={PHONE}", [out]),
    ):
        page = (await api.get(f"/clients?{query}")).json()
        assert [client["id"] for client in page["results"]] == ids, query
        assert page["count"] == len(ids)
    exported = await api.get("/clients?opted_out=true", headers=AS_CSV)
    assert exported.text.splitlines()[1:] == [f"{PHONE},916,,UTC"]
    wrong = await api.get("/clients?opted_out=maybe")
    assert field_errors(wrong) == {"opted_out": "must be true or false"}


async def test_a_repeated_request_opts_out_once(api: httpx.AsyncClient) -> None:
    await create_client(api)
    first = await opt_out(api, headers=KEY)
    assert await opt_in(api) == 204
    assert await opt_out(api, headers=KEY) == first  # the stored response
    assert (await api.get("/opt-outs")).json()["count"] == 0


async def test_deleting_a_client_erases_the_stored_response_with_the_phone(
    api: httpx.AsyncClient, engine: AsyncEngine
) -> None:
    client_id = await create_client(api)
    await opt_out(api, headers=KEY)
    await api.delete(f"/clients/{client_id}")
    [stored] = await rows(engine, "SELECT * FROM idempotency")
    assert (stored["status"], stored["body"]) == (409, None)


async def test_an_export_can_be_imported_again(api: httpx.AsyncClient) -> None:
    await create_client(api)
    first = await opt_out(api)
    await opt_out(api, OTHER_PHONE)  # without a client: not exported
    exported = await api.get("/opt-outs", headers=AS_CSV)
    assert exported.text.splitlines()[0] == "phone,opted_out_at"
    assert len(exported.text.splitlines()) == 2
    assert await opt_in(api) == 204
    imported = await api.post("/opt-outs/import", content=exported.content, headers=CSV)
    assert (imported.json()["created"], imported.json()["rejected"]) == (1, 0)
    [again] = (await api.get(f"/opt-outs?phone={PHONE}")).json()["results"]
    assert again["opted_out_at"] == first["opted_out_at"]
    assert again["source"] == "import"


async def test_good_lines_of_a_file_go_in_and_bad_ones_are_reported(
    api: httpx.AsyncClient,
) -> None:
    content = f'PHONE;\n{PHONE};\n916;\n"\n8 (903) 765-43-21;\n'
    imported = await api.post("/opt-outs/import", content=content, headers=CSV)
    report = imported.json()
    assert (report["created"], report["rejected"]) == (2, 2)
    assert [error["line"] for error in report["errors"]] == [3, 4]
    assert report["errors"][0] == {
        "line": 3,
        "field": "phone",
        "value": "916",
        "message": "must be 7 and ten more digits, such as 79161234567",
    }


async def test_the_example_in_the_message_about_a_wrong_time_is_a_right_time(
    api: httpx.AsyncClient,
) -> None:
    content = f"phone,opted_out_at\n{PHONE},yesterday\n"
    refused = await api.post("/opt-outs/import", content=content, headers=CSV)
    [error] = refused.json()["errors"]
    example = re.search(r"such as (\S+)", error["message"])
    assert example is not None
    content = f"phone,opted_out_at\n{PHONE},{example[1]}\n"
    imported = await api.post("/opt-outs/import", content=content, headers=CSV)
    assert (imported.json()["created"], imported.json()["rejected"]) == (1, 0)


async def test_the_example_of_the_api_documentation_can_be_imported(api: httpx.AsyncClient) -> None:
    document = (await api.get("http://mailer/openapi.json")).json()
    operation = document["paths"]["/api/v1/opt-outs/import"]["post"]
    example = operation["requestBody"]["content"]["text/csv"]["example"]
    imported = await api.post("/opt-outs/import", content=example, headers=CSV)
    assert (imported.json()["created"], imported.json()["rejected"]) == (2, 0)


async def test_a_workbook_is_imported_and_ignored_columns_are_named(api: httpx.AsyncClient) -> None:
    content = by_openpyxl([["Телефон", "Город"], [int(PHONE), "Томск"]])
    imported = await api.post("/opt-outs/import", content=content, headers=XLSX)
    assert imported.json()["created"] == 1
    assert imported.json()["ignored_columns"] == ["Город"]


async def test_a_file_with_a_wrong_header_or_type_is_refused(api: httpx.AsyncClient) -> None:
    wrong_header = await api.post("/opt-outs/import", content="tag\nvip\n", headers=CSV)
    assert field_errors(wrong_header).keys() == {"phone"}
    wrong_type = await api.post("/opt-outs/import", json={"phone": PHONE})
    assert wrong_type.status_code == 415
    assert (await api.get("/opt-outs")).json()["count"] == 0


@pytest.mark.parametrize(
    ("line", "stored"),
    [
        (",2025-01-15 09:30:00", "2025-01-15T09:30:00Z"),
        (",2025-01-15", "2025-01-15T00:00:00Z"),
        ("Asia/Omsk,2025-01-15 09:30:00", "2025-01-15T03:30:00Z"),
        ("Asia/Omsk,2025-01-15T09:30:00Z", "2025-01-15T09:30:00Z"),
        ("nowhere,2025-01-15T09:30:00Z", "2025-01-15T09:30:00Z"),  # the zone is not needed
    ],
)
async def test_a_time_without_an_offset_is_one_of_the_time_zone_or_of_utc(
    api: httpx.AsyncClient, line: str, stored: str
) -> None:
    content = f"phone,time_zone,opted_out_at\n{PHONE},{line}\n"
    imported = await api.post("/opt-outs/import", content=content, headers=CSV)
    assert imported.json()["created"] == 1
    [created] = (await api.get("/opt-outs")).json()["results"]
    assert created["opted_out_at"] == stored


@pytest.mark.parametrize(
    ("line", "field"),
    [("Asia/Tomsk ,2999-01-01", "opted_out_at"), ("nowhere,2025-01-15", "time_zone")],
)
async def test_a_wrong_time_or_time_zone_is_reported(
    api: httpx.AsyncClient, line: str, field: str
) -> None:
    content = f"phone,time_zone,opted_out_at\n{PHONE},{line}\n"
    refused = await api.post("/opt-outs/import", content=content, headers=CSV)
    assert [error["field"] for error in refused.json()["errors"]] == [field]


async def test_the_query_says_what_the_columns_of_a_file_are(api: httpx.AsyncClient) -> None:
    content = f"name,number,since\nA,{PHONE},2025-01-15T09:30:00Z\n"
    path = "/opt-outs/import?columns=,phone,opted_out_at"
    assert (await api.post(path, content=content, headers=CSV)).json()["created"] == 1
    [created] = (await api.get("/opt-outs")).json()["results"]
    assert created["opted_out_at"] == "2025-01-15T09:30:00Z"


@pytest.mark.parametrize("columns", ["phone,name", "phone,tag", "phone,fields.name", "phone"])
async def test_a_file_of_opt_outs_has_no_columns_of_clients(
    api: httpx.AsyncClient, columns: str
) -> None:
    path = f"/opt-outs/import?columns={columns}"
    refused = await api.post(path, content=f"phone,name\n{PHONE},A\n", headers=CSV)
    assert refused.status_code == 400
    assert field_errors(refused).keys() == {"columns"}
    assert (await api.get("/opt-outs")).json()["count"] == 0


async def test_the_answer_as_csv_is_the_file_of_rejected_lines(api: httpx.AsyncClient) -> None:
    content = f"phone,since\n{PHONE},\n916,x\n"
    answer = await api.post("/opt-outs/import", content=content, headers=CSV | AS_CSV)
    assert answer.headers["Content-Type"].startswith("text/csv")
    assert answer.headers["Import-Counts"] == "created=1, unchanged=0, rejected=1"
    header, line = answer.content.decode("utf-8-sig").splitlines()
    assert header == "phone,since,rejected_reason"
    assert line.startswith('916,x,"phone: must be')
    refused = await api.post("/opt-outs/import", content=content, headers=CSV | AS_CSV | KEY)
    assert field_errors(refused).keys() == {"Idempotency-Key"}


async def test_a_repeated_import_reports_the_first_result_without_values(
    api: httpx.AsyncClient,
) -> None:
    content = f"phone\n{PHONE}\n916\n"
    first = await api.post("/opt-outs/import", content=content, headers=CSV | KEY)
    assert first.json()["errors"][0]["value"] == ""
    again = await api.post("/opt-outs/import", content=content, headers=CSV | KEY)
    assert again.json() == first.json()


async def test_what_users_do_is_in_the_audit_log_without_phones(api: httpx.AsyncClient) -> None:
    client_id = await create_client(api)
    await opt_out(api)
    await opt_in(api)
    without_client = await opt_out(api, OTHER_PHONE)
    await api.delete(f"/opt-outs/{without_client['id']}")
    await api.post("/opt-outs/import", content=f"phone\n{PHONE}\n", headers=CSV)
    await api.get("/opt-outs", headers=AS_CSV)
    log = (await api.get("/audit?limit=6")).json()["results"]
    assert [(entry["action"], entry["target"]) for entry in log] == [
        ("opt_outs_exported", {"kind": "opt_out", "id": None}),
        ("opt_outs_imported", {"kind": "opt_out", "id": None}),
        ("client_opted_in", {"kind": "opt_out", "id": without_client["id"]}),
        ("client_opted_out", {"kind": "opt_out", "id": without_client["id"]}),
        ("client_opted_in", {"kind": "client", "id": client_id}),
        ("client_opted_out", {"kind": "client", "id": client_id}),
    ]
    assert PHONE not in str(log)
    assert OTHER_PHONE not in str(log)


async def test_an_opt_out_that_changes_nothing_is_not_audited(api: httpx.AsyncClient) -> None:
    await opt_out(api)
    await opt_out(api, status=200)
    log = (await api.get("/audit?action=client_opted_out")).json()
    assert log["count"] == 1


async def test_the_purpose_of_a_mailing(api: httpx.AsyncClient, engine: AsyncEngine) -> None:
    mailing = await create_mailing(api, NEW)
    assert mailing["purpose"] == "marketing"
    path = f"/mailings/{mailing['id']}"
    changed = await api.patch(path, json={"purpose": "service"})
    assert changed.json()["purpose"] == "service"
    wrong = await api.patch(path, json={"purpose": "spam"})
    assert field_errors(wrong) == {"purpose": "must be marketing or service"}
    await execute(
        engine,
        "UPDATE mailing SET datetime_start = now() - interval '1 minute', status = 'running',"
        " audience_until = 0, datetime_end = now() + interval '1 hour'",
    )
    started = await api.patch(path, json={"purpose": "marketing"})
    assert started.status_code == 409
    assert await value(engine, "SELECT purpose FROM mailing") == "service"
