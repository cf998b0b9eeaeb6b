"""Downloads of clients and messages as CSV."""

import csv
import io
from collections.abc import AsyncGenerator
from datetime import UTC, datetime
from typing import Any

import httpx
import pytest
from sqlalchemy.ext.asyncio import AsyncEngine
from tests.asgi_client import inside
from tests.factories import NOON, OPEN, add_clients, add_mailing, add_messages

from mailer.app import create_app
from mailer.db.csv_export import CsvPart
from mailer.db.engine import create_engine
from mailer.web.download import csv_answer

CSV = {"accept": "text/csv"}


def rows(response: httpx.Response) -> list[dict[str, str]]:
    """Return the rows of a CSV file by column name."""
    assert response.status_code == 200
    assert response.headers["content-type"] == "text/csv; header=present; charset=utf-8"
    return list(csv.DictReader(io.StringIO(response.text)))


async def test_a_client_export_can_be_imported_unchanged(api: httpx.AsyncClient) -> None:
    tagged = {"phone": "79161234567", "tag": 'a "quoted", one', "time_zone": "Asia/Tokyo"}
    untagged = {"phone": "79031234567"}
    for client in (tagged, untagged):
        assert (await api.post("/clients", json=client)).status_code == 201

    response = await api.get("/clients", headers=CSV)

    assert response.headers["content-disposition"] == 'attachment; filename="clients.csv"'
    assert [(row["phone"], row["tag"]) for row in rows(response)] == [
        ("79161234567", 'a "quoted", one'),
        ("79031234567", ""),
    ]
    headers = {"content-type": "text/csv"}
    imported = await api.post("/clients/import", content=response.content, headers=headers)
    counts = {"created": 0, "updated": 0, "unchanged": 2, "rejected": 0}
    assert imported.json() == counts | {"errors": [], "ignored_columns": []}


async def test_filters_apply_to_the_file(api: httpx.AsyncClient, engine: AsyncEngine) -> None:
    await add_clients(engine, 2, "912")
    await add_clients(engine, 3, "916")
    exported = rows(await api.get("/clients?operator_code=916&limit=1", headers=CSV))
    assert [row["operator_code"] for row in exported] == ["916"] * 3


async def test_exported_messages_have_the_values_of_the_api(
    api: httpx.AsyncClient, engine: AsyncEngine
) -> None:
    path = await add_messages_with_two_results(engine)
    exported = rows(await api.get(path, headers=CSV))
    listed = (await api.get(path)).json()["results"]
    for row, message in zip(sorted(exported, key=by_id), sorted(listed, key=by_id), strict=True):
        assert row.keys() == message.keys() | {"text"}
        for name, value in message.items():
            if name in {"datetime_send", "created_at", "updated_at"}:
                assert row[name].endswith("Z")
                assert parse_time(row[name]) == parse_time(value)
            else:
                assert row[name] == ("" if value is None else str(value))


async def test_filters_apply_to_exported_messages(
    api: httpx.AsyncClient, engine: AsyncEngine
) -> None:
    path = await add_messages_with_two_results(engine)
    exported = rows(await api.get(f"{path}?reason=rejected_400&status=undelivered", headers=CSV))
    assert [row["reason"] for row in exported] == ["rejected_400"] * 2


async def add_messages_with_two_results(engine: AsyncEngine) -> str:
    """Create a mailing with two delivered and two rejected messages; return their path."""
    clients = await add_clients(engine, 4)
    mailing_id = await add_mailing(engine)
    await add_messages(engine, mailing_id, clients[:2], "delivered", at=NOON)
    await add_messages(engine, mailing_id, clients[2:], "undelivered", "rejected_400")
    return f"/mailings/{mailing_id}/messages"


def by_id(row: dict[str, Any]) -> int:
    """Return the key by which rows are sorted."""
    return int(row["id"])


def parse_time(text: str) -> datetime:
    return datetime.fromisoformat(text).astimezone(UTC)


@pytest.mark.parametrize(
    "accept", ["*/*", "application/json", "text/csv;q=0.5, application/json", "image/png"]
)
async def test_the_response_is_json_unless_csv_is_preferred(
    api: httpx.AsyncClient, accept: str
) -> None:
    response = await api.get("/clients", headers={"accept": accept})
    assert response.json()["results"] == []


async def test_an_unknown_mailing_is_404_and_an_invalid_filter_400(api: httpx.AsyncClient) -> None:
    assert (await api.get("/mailings/1/messages", headers=CSV)).status_code == 404
    assert (await api.get("/clients?tag=", headers=CSV)).status_code == 400


async def test_an_unavailable_database_is_503_not_an_empty_file() -> None:
    engine = create_engine("postgresql://127.0.0.1:1/")
    transport = inside(create_app(engine, settings=OPEN))
    async with httpx.AsyncClient(transport=transport, base_url="http://mailer") as api:
        response = await api.get("/api/v1/clients", headers=CSV)
    assert (response.status_code, response.headers["retry-after"]) == (503, "1")
    await engine.dispose()


async def test_a_download_that_fails_midway_does_not_end_normally() -> None:
    async def failing_parts() -> AsyncGenerator[CsvPart, None]:
        yield CsvPart(b"first", rows=1)
        raise ConnectionResetError

    response = await csv_answer("x.csv", failing_parts(), owner=None)
    chunks = aiter(response.iterator)  # type: ignore[arg-type]  # an async generator
    assert await anext(chunks) == b"first"
    with pytest.raises(ConnectionResetError):
        await anext(chunks)


async def test_the_schema_declares_json_and_csv(api: httpx.AsyncClient) -> None:
    schema = (await api.get("http://mailer/openapi.json")).json()
    for path in ("/api/v1/clients", "/api/v1/mailings/{mailing_id}/messages"):
        content = schema["paths"][path]["get"]["responses"]["200"]["content"]
        assert set(content) == {"application/json", "text/csv"}
        assert content["application/json"]["schema"]["$ref"].startswith("#/components/schemas/")
