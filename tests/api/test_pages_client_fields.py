"""The fields of clients on the pages of clients, without a browser."""

import html
from typing import Any

import httpx
import pytest
from tests.api.test_pages_clients import (
    ANNA,
    BORIS,
    create_client,
    error_of,
    form_values,
    get_client,
    get_page,
    post_form,
)

from mailer.client.fields import WRONG_FIELD_NAME, WRONG_FIELD_VALUE


async def get_form(api: httpx.AsyncClient, client_id: int) -> dict[str, str]:
    """Return the values of the form of a client, as a browser would send them."""
    values = form_values(await get_page(api, f"/clients/{client_id}"))
    return {name: html.unescape(value) for name, value in values.items()}


async def fields_of(api: httpx.AsyncClient, client_id: int) -> dict[str, str]:
    fields: dict[str, str] = (await get_client(api, client_id))["fields"]
    return fields


async def test_the_page_of_a_client_shows_its_fields_in_rows_and_two_empty_rows(
    api: httpx.AsyncClient,
) -> None:
    anna = await create_client(api, phone=ANNA, fields={"name": "<Anna>", "bonus": "250"})
    form = await get_form(api, anna)
    rows = {name: value for name, value in form.items() if name.startswith("field_")}
    assert rows == {
        "field_name_1": "bonus",
        "field_value_1": "250",
        "field_name_2": "name",
        "field_value_2": "<Anna>",
        **{f"field_{part}_{number}": "" for number in (3, 4) for part in ("name", "value")},
    }


async def test_fields_are_created_changed_and_removed_in_the_rows(api: httpx.AsyncClient) -> None:
    new = {"phone": ANNA, "field_name_2": " name ", "field_value_2": " Anna ", "field_name_3": "x"}
    response = await post_form(api, "/clients/new", new)
    anna = int(response.headers["Location"].rpartition("/")[2])
    assert await fields_of(api, anna) == {"name": "Anna"}

    form = await get_form(api, anna)
    added = {"field_name_2": "city", "field_value_2": "Omsk", "field_value_1": "Maria"}
    await post_form(api, f"/clients/{anna}", form | added)
    assert await fields_of(api, anna) == {"name": "Maria", "city": "Omsk"}

    form = await get_form(api, anna)
    await post_form(api, f"/clients/{anna}", form | {"field_name_1": "town", "field_value_2": ""})
    assert await fields_of(api, anna) == {"town": "Omsk"}


async def test_only_the_fields_that_the_user_changed_are_saved(api: httpx.AsyncClient) -> None:
    anna = await create_client(api, phone=ANNA, fields={"name": "Anna", "city": "Omsk"})
    form = await get_form(api, anna)
    by_another_user = {"city": "Tomsk", "bonus": "1"}
    await api.patch(f"/clients/{anna}", json={"fields": by_another_user})
    await post_form(api, f"/clients/{anna}", form | {"tag": "vip"})
    assert await fields_of(api, anna) == by_another_user

    await post_form(api, f"/clients/{anna}", form | {"field_value_2": "Maria"})
    assert await fields_of(api, anna) == by_another_user | {"name": "Maria"}


async def test_saving_unchanged_fields_changes_nothing(api: httpx.AsyncClient) -> None:
    anna = await create_client(api, phone=ANNA, fields={"name": "Anna"})
    before = await get_client(api, anna)
    await post_form(api, f"/clients/{anna}", await get_form(api, anna))
    assert await get_client(api, anna) == before


async def test_wrong_rows_are_shown_again_with_their_errors(api: httpx.AsyncClient) -> None:
    anna = await create_client(api, phone=BORIS)
    wrong = {
        "phone": "12",
        "field_name_1": "Имя",
        "field_value_1": "x",
        "field_name_2": "name",
        "field_value_2": "x" * 201,
        "field_name_4": "name",
        "field_value_4": "y",
        "field_value_5": "z",
    }
    for path in ("/clients/new", f"/clients/{anna}"):
        page = (await post_form(api, path, wrong, 400)).text
        shown = {
            "field_name_1": WRONG_FIELD_NAME,
            "field_value_2": WRONG_FIELD_VALUE,
            "field_name_4": "appears more than once",
            "field_name_5": "is required",
        }
        assert {field: error_of(page, field) for field in shown} == shown
        assert error_of(page, "phone")
        assert 'href="#field_name_4">Name of field 4</a>' in page
        assert form_values(page)["field_value_5"] == "z"
        assert form_values(page)["field_value_7"] == ""


async def test_a_form_can_have_32_fields_of_200_characters_each(api: httpx.AsyncClient) -> None:
    fields = {f"name_{number:02}": "😀" * 200 for number in range(32)}
    anna = await create_client(api, phone=ANNA, fields=fields)
    form = await get_form(api, anna)
    await post_form(api, f"/clients/{anna}", form | {"field_value_32": "new"})
    assert await fields_of(api, anna) == fields | {"name_31": "new"}

    form = await get_form(api, anna)
    await api.patch(f"/clients/{anna}", json={"fields": fields | {"other": "x", "name_00": ""}})
    page = (await post_form(api, f"/clients/{anna}", form | {"field_value_1": "y"}, 400)).text
    assert "must have at most 32 names" in page


@pytest.mark.parametrize("hidden", ["", "{", "[]", '{"name": 1}'])
async def test_a_wrong_hidden_field_is_never_a_server_error(
    api: httpx.AsyncClient, hidden: str
) -> None:
    anna = await create_client(api, phone=ANNA, fields={"name": "Anna"})
    form: dict[str, Any] = await get_form(api, anna)
    await post_form(api, f"/clients/{anna}", form | {"was_fields": hidden})
    assert await fields_of(api, anna) == {"name": "Anna"}


async def test_known_names_are_offered(api: httpx.AsyncClient) -> None:
    await create_client(api, phone=ANNA, fields={"city": "Omsk"})
    assert '<option value="city">' in await get_page(api, "/clients/new")
