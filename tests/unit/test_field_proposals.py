"""Names of fields that are proposed for the columns of a file."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mailer.admin.clients.field_proposals import COMMON_NAMES, propose_names, select_fields
from mailer.client.fields import is_field_name


@pytest.mark.parametrize(
    ("header", "name"),
    [
        ("Имя", "name"),
        ("ФИО клиента", "fio_klienta"),
        ("First Name", "name"),
        ("Любимый цвет", "lyubimyy_tsvet"),
        ("Щёлково", "shchelkovo"),
        ("Ville préférée", "ville_preferee"),
        ("bonus_2", "bonus_2"),
        ("2030 год", "field_2030_god"),
        ("79161234567", "column_1"),
        ("名前", "column_1"),
        ("", "column_1"),
        ("x" * 40, "x" * 32),
    ],
)
def test_a_header_is_transliterated_to_a_name(header: str, name: str) -> None:
    assert propose_names([header], [""]) == [name]


def test_common_names_are_valid() -> None:
    assert all(map(is_field_name, COMMON_NAMES.values()))


def test_a_field_keeps_its_name_and_the_others_get_different_names() -> None:
    headers = ["Имя", "имя", "name", "x" * 40, "x" * 33]
    fields = ["", "", "fields.name", "phone", ""]
    expected = ["name_2", "name_3", "name", "x" * 32, f"{'x' * 30}_2"]
    assert propose_names(headers, fields) == expected


@given(st.lists(st.text(max_size=40), max_size=5))
def test_proposed_names_are_valid_and_different(headers: list[str]) -> None:
    names = propose_names(headers, [""] * len(headers))
    assert all(map(is_field_name, names))
    assert len(set(names)) == len(names)


def test_valid_common_and_known_names_become_fields_by_themselves() -> None:
    headers = ["", "bonus", "Имя", "Любимый цвет", "Рост", "rejected_reason", "bonus", "Город"]
    assert select_fields(["rost"])(headers) == [
        *("", "fields.bonus", "fields.name", "", "fields.rost", "", "", "fields.city")
    ]
