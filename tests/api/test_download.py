"""Lists as CSV files."""

import csv
import io
from collections.abc import AsyncGenerator
from datetime import UTC, datetime
from typing import Any

import httpx
import pytest
from sqlalchemy.ext.asyncio import AsyncEngine
from tests.asked import inside
from tests.sample import NOON, OPEN, add_clients, add_mailing, add_messages

from mailer.app import create_app
from mailer.db.copying import CsvPart
from mailer.db.engine import create_engine
from mailer.web.download import csv_answer

CSV = {"accept": "text/csv"}


def rows(answer: httpx.Response) -> list[dict[str, str]]:
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "text/csv; header=present; charset=utf-8"
    return list(csv.DictReader(io.StringIO(answer.text)))


async def test_clients_come_as_a_file_that_an_import_takes_back(api: httpx.AsyncClient) -> None:
    for phone, tag in (("79161234567", 'a "quoted", one'), ("79031234567", None)):
        body = {"phone": phone, "tag": tag, "time_zone": "Asia/Tokyo"}
        assert (await api.post("/clients", json=body)).status_code == 201

    answer = await api.get("/clients", headers=CSV)

    assert answer.headers["content-disposition"] == 'attachment; filename="clients.csv"'
    assert [(row["phone"], row["tag"]) for row in rows(answer)] == [
        ("79161234567", 'a "quoted", one'),
        ("79031234567", ""),
    ]
    headers = {"content-type": "text/csv"}
    again = await api.post("/clients/import", content=answer.content, headers=headers)
    counts = {"created": 0, "updated": 0, "unchanged": 2, "rejected": 0}
    assert again.json() == counts | {"errors": []}


async def test_filters_choose_what_is_in_the_file(
    api: httpx.AsyncClient, engine: AsyncEngine
) -> None:
    await add_clients(engine, 2, "912")
    await add_clients(engine, 3, "916")
    found = rows(await api.get("/clients?operator_code=916&limit=1", headers=CSV))
    assert [row["operator_code"] for row in found] == ["916"] * 3


async def test_messages_come_as_the_api_shows_them(
    api: httpx.AsyncClient, engine: AsyncEngine
) -> None:
    clients = await add_clients(engine, 4)
    mailing_id = await add_mailing(engine)
    await add_messages(engine, mailing_id, clients[:2], "delivered", at=NOON)
    await add_messages(engine, mailing_id, clients[2:], "undelivered", "rejected_400")
    path = f"/mailings/{mailing_id}/messages"

    found = rows(await api.get(path, headers=CSV))

    shown = (await api.get(path)).json()["results"]
    moments = ("datetime_send", "created_at", "updated_at")
    for row, message in zip(sorted(found, key=by_id), sorted(shown, key=by_id), strict=True):
        told: dict[str, Any] = {k: None if v == "" else v for k, v in row.items()}
        for name in moments:
            assert told.pop(name)[-1] == "Z"
            assert moment(row[name]) == moment(message.pop(name))
        assert told == {k: v if v is None else str(v) for k, v in message.items()}

    refused = rows(await api.get(f"{path}?reason=rejected_400&status=undelivered", headers=CSV))
    assert {row["client_id"] for row in refused} == {str(client) for client in clients[2:]}


def by_id(row: dict[str, Any]) -> int:
    return int(row["id"])


def moment(written: str) -> datetime:
    return datetime.fromisoformat(written).astimezone(UTC)


@pytest.mark.parametrize(
    "accept", ["*/*", "application/json", "text/csv;q=0.5, application/json", "image/png"]
)
async def test_who_does_not_ask_for_csv_gets_json(api: httpx.AsyncClient, accept: str) -> None:
    answer = await api.get("/clients", headers={"accept": accept})
    assert answer.json()["results"] == []


async def test_unknown_mailing_is_404_and_a_wrong_filter_400(api: httpx.AsyncClient) -> None:
    assert (await api.get("/mailings/1/messages", headers=CSV)).status_code == 404
    assert (await api.get("/clients?tag=", headers=CSV)).status_code == 400


async def test_with_the_database_away_it_is_503_and_no_empty_file() -> None:
    engine = create_engine("postgresql://127.0.0.1:1/")
    transport = inside(create_app(engine, settings=OPEN))
    async with httpx.AsyncClient(transport=transport, base_url="http://mailer") as api:
        answer = await api.get("/api/v1/clients", headers=CSV)
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")
    await engine.dispose()


async def test_what_fails_in_the_middle_does_not_end_as_if_it_were_whole() -> None:
    async def failing() -> AsyncGenerator[CsvPart, None]:
        yield CsvPart(b"first", 1)
        raise ConnectionResetError

    parts = aiter((await csv_answer("x.csv", failing(), None)).iterator)  # type: ignore[arg-type]  # an async generator
    assert await anext(parts) == b"first"
    with pytest.raises(ConnectionResetError):
        await anext(parts)


async def test_schema_names_both_forms(api: httpx.AsyncClient) -> None:
    schema = (await api.get("http://mailer/openapi.json")).json()
    for path in ("/api/v1/clients", "/api/v1/mailings/{mailing_id}/messages"):
        answer = schema["paths"][path]["get"]["responses"]["200"]["content"]
        assert set(answer) == {"application/json", "text/csv"}
        assert answer["application/json"]["schema"]["$ref"].startswith("#/components/schemas/")
