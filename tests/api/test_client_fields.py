"""The fields of clients over the API."""

import httpx
import pytest
from sqlalchemy.ext.asyncio import AsyncEngine
from tests.api.calls import field_errors
from tests.factories import value

from mailer.client.fields import WRONG_FIELD_NAME, WRONG_FIELD_VALUE

PHONE = "79161234567"


async def create_client(api: httpx.AsyncClient, fields: dict[str, str]) -> int:
    created = await api.post("/clients", json={"phone": PHONE, "fields": fields})
    assert created.status_code == 201
    client_id: int = created.json()["id"]
    return client_id


async def test_a_client_has_the_fields_it_was_created_with(api: httpx.AsyncClient) -> None:
    fields = {"name": "Анна", "bonus_2": "250"}
    client_id = await create_client(api, fields)
    assert (await api.get(f"/clients/{client_id}")).json()["fields"] == fields
    [listed] = (await api.get("/clients")).json()["results"]
    assert listed["fields"] == fields


async def test_a_change_replaces_all_fields(api: httpx.AsyncClient) -> None:
    client_id = await create_client(api, {"name": "Anna", "bonus": "250"})
    changed = await api.patch(f"/clients/{client_id}", json={"fields": {"bonus": "300"}})
    assert changed.json()["fields"] == {"bonus": "300"}


async def test_a_change_without_fields_keeps_them(api: httpx.AsyncClient) -> None:
    client_id = await create_client(api, {"name": "Anna"})
    changed = await api.patch(f"/clients/{client_id}", json={"tag": "vip"})
    assert changed.json()["fields"] == {"name": "Anna"}


async def test_a_value_is_stored_without_blanks_around_it_and_invisible_characters(
    api: httpx.AsyncClient,
) -> None:
    client_id = await create_client(api, {"name": " Anna\u200b  Maria\n", "empty": " "})
    assert (await api.get(f"/clients/{client_id}")).json()["fields"] == {"name": "Anna Maria"}


@pytest.mark.parametrize("name", ["Name", "1st", "_x", "имя", "a-b", "a b", "a" * 33, "a\n"])
async def test_a_wrong_name_is_named(api: httpx.AsyncClient, name: str) -> None:
    response = await api.post("/clients", json={"phone": PHONE, "fields": {name: "x", "ok": "y"}})
    assert field_errors(response) == {f"fields.{name}": WRONG_FIELD_NAME}


@pytest.mark.parametrize("wrong", ["x" * 201, None, 5, "\0", ["x"]])
async def test_every_wrong_value_is_named(api: httpx.AsyncClient, wrong: object) -> None:
    body = {"phone": PHONE, "fields": {"name": wrong, "ok": "y", "city": wrong}, "tag": ""}
    response = await api.post("/clients", json=body)
    errors = field_errors(response)
    assert errors.pop("tag")
    assert errors == {"fields.name": WRONG_FIELD_VALUE, "fields.city": WRONG_FIELD_VALUE}


async def test_a_client_has_32_fields_of_200_characters_at_most(api: httpx.AsyncClient) -> None:
    fields = {f"{'x' * 30}{number:02}": "я" * 200 for number in range(32)}
    client_id = await create_client(api, fields)
    assert (await api.get(f"/clients/{client_id}")).json()["fields"] == fields
    response = await api.patch(f"/clients/{client_id}", json={"fields": fields | {"one": "more"}})
    assert list(field_errors(response)) == ["fields"]


@pytest.mark.parametrize("wrong", [None, [], "name", 1])
async def test_fields_that_are_no_object_are_refused(api: httpx.AsyncClient, wrong: object) -> None:
    response = await api.post("/clients", json={"phone": PHONE, "fields": wrong})
    assert list(field_errors(response)) == ["fields"]


async def test_deleting_a_client_erases_the_fields(
    api: httpx.AsyncClient, engine: AsyncEngine
) -> None:
    client_id = await create_client(api, {"name": "Anna"})
    await api.delete(f"/clients/{client_id}")
    assert await value(engine, "SELECT count(*) FROM client WHERE fields::text = '{}'") == 1


async def test_the_audit_log_has_the_names_of_fields_and_not_their_values(
    api: httpx.AsyncClient,
) -> None:
    client_id = await create_client(api, {"name": "Anna"})
    await api.patch(f"/clients/{client_id}", json={"fields": {"name": "Maria", "city": "Omsk"}})
    entries = (await api.get("/audit")).text
    assert '"city"' in entries
    assert not any(text in entries for text in ("Anna", "Maria", "Omsk"))
