"""Tests of paths into JSON documents, and of the decoder that skips what is at no path."""

import json

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.examples import thorough

from mailer.gateway.json_path import JsonPath, shape_of

NAMES = st.sampled_from(["a", "b", "c-d"])
STEPS = st.one_of(NAMES.map(".{}".format), st.sampled_from(["[0]", "[1]", "[*]", ".*"]))
PATHS = st.builds(lambda first, rest: first + "".join(rest), NAMES, st.lists(STEPS, max_size=3))
SCALARS = st.one_of(st.none(), st.booleans(), st.integers(0, 9), st.text(max_size=2))
DOCUMENTS = st.recursive(
    SCALARS,
    lambda values: st.lists(values, max_size=3) | st.dictionaries(NAMES, values, max_size=3),
    max_leaves=12,
)


@pytest.mark.parametrize(
    ("path", "document", "found"),
    [
        ("a", {"a": 1}, [1]),
        ("a", {"a": None}, [None]),
        ("a", {"b": 1}, []),
        ("a", ["a"], []),
        ("a", "a", []),
        ("a.b", {"a": {"b": [1]}}, [[1]]),
        ("a[1]", {"a": [1, 2]}, [2]),
        ("a[2]", {"a": [1, 2]}, []),
        ("a[0]", {"a": "text"}, []),
        ("a[0]", {"a": {"0": 1}}, []),
        ("a[*].b", {"a": [{"b": 1}, {"c": 2}, 3, {"b": 4}]}, [1, 4]),
        ("a.*.b", {"a": {"x": {"b": 1}, "y": {"b": 2}}}, [1, 2]),
        ("a[*][0]", {"a": [[1, 2], [3], []]}, [1, 3]),
    ],
)
def test_values_at_a_path(path: str, document: object, found: list[object]) -> None:
    assert JsonPath(path).find(document) == found


@thorough
@given(st.lists(PATHS, max_size=4), DOCUMENTS)
def test_values_are_the_same_if_the_rest_of_a_document_is_skipped(
    texts: list[str], document: object
) -> None:
    paths = [JsonPath(text) for text in texts]
    try:
        read = msgspec.json.decode(json.dumps(document), type=shape_of(paths))
    except msgspec.ValidationError:
        return  # the whole document is decoded then
    for path in paths:
        assert path.find(read) == path.find(document)


def test_the_rest_of_a_document_is_skipped() -> None:
    paths = [JsonPath(text) for text in ("data.id", "errors[*].code", "list[0].a", "list[1].b")]
    document = {
        "data": {"id": 1, "text": "skipped"},
        "errors": [],
        "list": [{"a": 1, "skipped": 2}, {"b": 3}],
        "skipped": {},
    }
    read = msgspec.json.decode(json.dumps(document), type=shape_of(paths))
    assert read == {"data": {"id": 1}, "errors": [], "list": [{"a": 1}, {"b": 3}]}
