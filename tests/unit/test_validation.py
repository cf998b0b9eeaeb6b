"""What is given is checked field by field, and every wrong one is named."""

from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from typing import Annotated, Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import UNSET, Meta, UnsetType

from mailer.errors import FieldError, InvalidError
from mailer.validation import MAX_ID, Input, check

NOW = datetime(2026, 3, 4, tzinfo=UTC)
Name = Annotated[str, Meta(min_length=1, extra={"rule": "must have a name"})]


class Address(Input, frozen=True, kw_only=True):
    street: Name
    number: int = 1


class Person(Input, frozen=True, kw_only=True):
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


def errors_of(given: object, *, strict: bool = True) -> dict[str, str]:
    with pytest.raises(InvalidError) as caught:
        check(Person, given, NOW, strict=strict)
    return {error.field: error.message for error in caught.value.errors}


def test_what_is_right_is_returned_as_the_model() -> None:
    person = check(Person, {"name": "Ann", "address": {"street": "Main"}}, NOW)
    assert person == Person(name="Ann", address=Address(street="Main"))
    assert person.email is UNSET


@pytest.mark.parametrize("given", [None, [], "text", 1, True, 1.5, [{}], {1, 2}])
def test_only_an_object_has_fields(given: object) -> None:
    assert errors_of(given) == {"": "expected an object"}


def test_a_missing_field_is_required() -> None:
    assert errors_of({}) == {"name": "is required"}


def test_an_unknown_field_is_refused() -> None:
    assert errors_of({"name": "Ann", "nmae": 1, "": 2}) == {
        "nmae": "is not a known field",
        "": "is not a known field",
    }


def test_errors_do_not_grow_with_what_was_given() -> None:
    given = {"name": "", "kind": "x" * 10_000} | {f"{n:07}" + "x" * 993: 1 for n in range(1000)}
    errors = errors_of(given)
    assert len(errors) == 100
    assert all(len(name) <= 64 for name in errors)
    assert errors["name"] == "must have a name"
    assert len(errors["kind"]) == 200
    within = errors_of({"name": "Ann", "address": given | {"street": ""}})
    assert len(within) == 100
    assert within["address.street"] == "must have a name"


def test_a_field_says_its_own_rule_where_it_has_one() -> None:
    assert errors_of({"name": ""})["name"] == "must have a name"
    assert errors_of({"name": "Ann", "email": 5})["email"] == "must have a name"


def test_a_field_without_a_rule_says_what_was_expected() -> None:
    message = errors_of({"name": "Ann", "age": 151})["age"]
    assert message == "expected int <= 150"


def test_null_is_a_value_where_the_model_says_so_alone() -> None:
    assert check(Person, {"name": "Ann", "email": None}, NOW).email is None
    assert errors_of({"name": None}).keys() == {"name"}
    assert errors_of({"name": "Ann", "age": None}).keys() == {"age"}


def test_every_wrong_field_is_named_at_once() -> None:
    given = {"age": -1, "email": "", "address": 5, "born": "2030-01-01T00:00:00Z", "x": 1}
    assert errors_of(given).keys() == given.keys() | {"name"}


def test_a_wrong_field_of_an_object_within_is_named_with_its_path() -> None:
    given = {"name": "Ann", "address": {"number": "x", "town": 1}}
    assert errors_of(given).keys() == {"address.street", "address.number", "address.town"}


def test_rules_between_fields_see_the_moment_and_what_is_right_so_far() -> None:
    born = {"born": "2026-03-04T00:00:01Z"}
    assert errors_of(born) == {"name": "is required", "born": "must not be in the future"}
    assert check(Person, {"name": "Ann", "born": "2026-03-04T00:00:00Z"}, NOW).born == NOW


@pytest.mark.parametrize("age", ["5", 5.5, True, "x"])
def test_strictly_a_number_is_not_read_from_anything_else(age: object) -> None:
    assert errors_of({"name": "Ann", "age": age}).keys() == {"age"}


def test_a_query_gives_numbers_as_text() -> None:
    assert check(Person, {"name": "Ann", "age": "5"}, NOW, strict=False).age == 5
    assert errors_of({"name": "Ann", "age": "x"}, strict=False).keys() == {"age"}


def test_the_error_reads_as_one_line() -> None:
    with pytest.raises(InvalidError, match=r"^name: is required; age: expected int, got str$"):
        check(Person, {"age": ""}, NOW)


def test_the_largest_id_is_exact_for_every_reader_of_json() -> None:
    assert int(float(MAX_ID)) == MAX_ID
    assert int(float(MAX_ID + 2)) != MAX_ID + 2


anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


@given(
    given=anything
    | st.dictionaries(st.sampled_from([*Person.__struct_fields__, "x"]), anything)
    | st.fixed_dictionaries({"name": st.text()}, optional={"address": anything, "age": anything})
)
def test_whatever_is_given_is_taken_or_refused(given: object) -> None:
    try:
        person = check(Person, given, NOW)
    except InvalidError as error:
        assert error.errors  # noqa: PT017  # either way is right
    else:
        assert isinstance(given, Mapping)
        assert person.name == given["name"]
