"""Input is validated field by field, and every wrong field is named."""

from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from typing import Annotated, Any, Literal

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import UNSET, Meta, UnsetType

from mailer.errors import FieldError, InvalidError
from mailer.validation import (
    MAX_ERRORS,
    MAX_FIELD_NAME_LENGTH,
    MAX_ID,
    MAX_MESSAGE_LENGTH,
    Input,
    check,
)

NOW = datetime(2026, 3, 4, tzinfo=UTC)
NAME_RULE = "must have a name"
Name = Annotated[str, Meta(min_length=1, extra={"rule": NAME_RULE})]


class Address(Input, frozen=True, kw_only=True):
    street: Name
    number: int = 1


class Person(Input, frozen=True, kw_only=True):
    """A model with every type of field: required, optional, nullable, nested, without a rule."""

    name: Name
    age: Annotated[int, Meta(ge=0, le=150)] = 30
    email: Name | UnsetType | None = UNSET
    address: Address | str | None = None
    born: datetime | UnsetType = UNSET
    kind: Literal["a", "b"] = "a"

    @classmethod
    def broken_rules(cls, values: Mapping[str, Any], at: datetime) -> Iterable[FieldError]:
        if values.get("born", at) > at:
            yield FieldError("born", "must not be in the future")


def errors_of(value: object, *, strict: bool = True) -> dict[str, str]:
    """Return the error message of each wrong field of an invalid person."""
    with pytest.raises(InvalidError) as caught:
        check(Person, value, NOW, strict=strict)
    return {error.field: error.message for error in caught.value.errors}


class Query(Input, frozen=True, kw_only=True):
    """A model of a query: a list, and a field whose name is a keyword of Python."""

    kinds: list[Literal["a", "b"]] | UnsetType = UNSET
    first: int = msgspec.field(name="from", default=1)


@pytest.mark.parametrize("kinds", ["a,b", " a , b ", ["a", "b"], ["a,b"]])
def test_commas_and_repetition_separate_the_entries_of_a_list_in_a_query(kinds: object) -> None:
    assert check(Query, {"kinds": kinds}, NOW, strict=False).kinds == ["a", "b"]


@pytest.mark.parametrize("kinds", ["", "a,", "a,c", "a;b", ["a", "\udcff"], "," * 2_000])
def test_a_list_in_a_query_with_a_wrong_entry_is_refused(kinds: object) -> None:
    with pytest.raises(InvalidError) as caught:
        check(Query, {"kinds": kinds}, NOW, strict=False)
    assert [error.field for error in caught.value.errors] == ["kinds"]


def test_a_text_is_no_list_in_json() -> None:
    with pytest.raises(InvalidError):
        check(Query, {"kinds": "a,b"}, NOW)


def test_a_field_is_known_by_its_name_in_the_api_alone() -> None:
    assert check(Query, {"from": 7}, NOW).first == 7
    with pytest.raises(InvalidError, match="first"):
        check(Query, {"first": 7}, NOW)


def test_valid_input_is_returned_as_the_model() -> None:
    person = check(Person, {"name": "Ann", "address": {"street": "Main"}}, NOW)
    assert person == Person(name="Ann", address=Address(street="Main"))
    assert person.email is UNSET


@pytest.mark.parametrize("value", [None, [], "text", 1, True, 1.5, [{}], {1, 2}])
def test_input_that_is_no_object_is_rejected(value: object) -> None:
    assert errors_of(value) == {"": "expected an object"}


def test_missing_field_is_reported_as_required() -> None:
    assert errors_of({}) == {"name": "is required"}


def test_unknown_field_is_rejected() -> None:
    assert errors_of({"name": "Ann", "unknown": 1, "": 2}) == {
        "unknown": "is not a known field",
        "": "is not a known field",
    }


THOUSAND_UNKNOWN_FIELDS = {f"{n:07}" + "x" * 993: 1 for n in range(1000)}
"""Fields with names of a thousand characters."""


def test_size_of_errors_is_limited_and_known_fields_come_first() -> None:
    errors = errors_of({"name": "", "kind": "x" * 10_000} | THOUSAND_UNKNOWN_FIELDS)
    assert len(errors) == MAX_ERRORS
    assert all(len(name) <= MAX_FIELD_NAME_LENGTH for name in errors)
    assert errors["name"] == NAME_RULE
    assert len(errors["kind"]) == MAX_MESSAGE_LENGTH


def test_number_of_errors_in_a_nested_object_is_limited() -> None:
    errors = errors_of({"name": "Ann", "address": {"street": ""} | THOUSAND_UNKNOWN_FIELDS})
    assert len(errors) == MAX_ERRORS
    assert errors["address.street"] == NAME_RULE


def test_error_of_a_field_with_a_rule_is_the_text_of_the_rule() -> None:
    assert errors_of({"name": ""})["name"] == NAME_RULE
    assert errors_of({"name": "Ann", "email": 5})["email"] == NAME_RULE


def test_error_of_a_field_without_a_rule_names_the_expected_value() -> None:
    message = errors_of({"name": "Ann", "age": 151})["age"]
    assert message == "expected int <= 150"


def test_null_is_valid_only_if_the_model_allows_it() -> None:
    assert check(Person, {"name": "Ann", "email": None}, NOW).email is None
    assert errors_of({"name": None}).keys() == {"name"}
    assert errors_of({"name": "Ann", "age": None}).keys() == {"age"}


def test_all_wrong_fields_are_reported_together() -> None:
    value = {"age": -1, "email": "", "address": 5, "born": "2030-01-01T00:00:00Z", "x": 1}
    assert errors_of(value).keys() == value.keys() | {"name"}


def test_wrong_field_of_a_nested_object_is_reported_with_its_path() -> None:
    value = {"name": "Ann", "address": {"number": "x", "town": 1}}
    assert errors_of(value).keys() == {"address.street", "address.number", "address.town"}


def test_rules_between_fields_get_the_time_and_the_valid_fields() -> None:
    one_second_later = {"born": "2026-03-04T00:00:01Z"}
    assert errors_of(one_second_later) == {
        "name": "is required",
        "born": "must not be in the future",
    }
    assert check(Person, {"name": "Ann", "born": "2026-03-04T00:00:00Z"}, NOW).born == NOW


@pytest.mark.parametrize("age", ["5", 5.5, True, "x"])
def test_strict_validation_accepts_only_numbers_as_numbers(age: object) -> None:
    assert errors_of({"name": "Ann", "age": age}).keys() == {"age"}


def test_lax_validation_reads_numbers_from_text() -> None:
    """As in a query string."""
    assert check(Person, {"name": "Ann", "age": "5"}, NOW, strict=False).age == 5
    assert errors_of({"name": "Ann", "age": "x"}, strict=False).keys() == {"age"}


def test_error_as_text_is_one_line() -> None:
    with pytest.raises(InvalidError, match=r"^name: is required; age: expected int, got str$"):
        check(Person, {"age": ""}, NOW)


def test_largest_id_is_exact_as_a_floating_point_number() -> None:
    """Many JSON readers decode integers as floating-point numbers."""
    assert int(float(MAX_ID)) == MAX_ID
    assert int(float(MAX_ID + 2)) != MAX_ID + 2


any_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


@given(
    value=any_json
    | st.dictionaries(st.sampled_from([*Person.__struct_fields__, "x"]), any_json)
    | st.fixed_dictionaries({"name": st.text()}, optional={"address": any_json, "age": any_json})
)
def test_any_input_is_either_accepted_or_rejected_with_errors(value: object) -> None:
    try:
        person = check(Person, value, NOW)
    except InvalidError as error:
        assert error.errors  # noqa: PT017  # both outcomes are right
    else:
        assert isinstance(value, Mapping)
        assert person.name == value["name"]
