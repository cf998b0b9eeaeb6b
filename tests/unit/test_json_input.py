"""The size of JSON input is checked before the input is decoded."""

import msgspec
import pytest

from mailer.json_input import MAX_JSON_COMMAS, MAX_JSON_CONTAINERS, TooManyValuesError, read_json

LIMIT = 1024 * 1024
"""Maximum bytes: more than any input of these tests."""


class NeverDecoded(msgspec.Struct):
    """A model that no input of these tests fits: decoding one fails with another error."""

    required: int


def list_of(*, containers: int, commas: int) -> bytes:
    """Return a list with this many containers, itself included, and this many commas.

    Its entries are empty lists, and then numbers. It has one entry more than commas.
    """
    list_count = containers - 1
    number_count = commas + 1 - list_count
    return b"[" + b",".join([b"[]"] * list_count + [b"1"] * number_count) + b"]"


# each part has one comma or more
@pytest.mark.parametrize("part", [b"[],", b"{},", b"[ ] ,", b'{"a":1},', b'"",', b"1,", b"1,[],"])
@pytest.mark.parametrize("is_lenient", [False, True])
def test_json_with_too_many_values_is_rejected_without_decoding(
    part: bytes, *, is_lenient: bool
) -> None:
    content = b"[" + part * (MAX_JSON_COMMAS + 1) + b"1]"
    with pytest.raises(TooManyValuesError):
        read_json(content, NeverDecoded, limit=LIMIT, is_lenient=is_lenient)


@pytest.mark.parametrize("part", [b"[", b'{"a":'])
def test_json_with_too_many_levels_is_rejected_without_decoding(part: bytes) -> None:
    with pytest.raises(TooManyValuesError):
        read_json(part * (MAX_JSON_CONTAINERS + 1), NeverDecoded, limit=LIMIT)


def test_json_with_the_maximum_number_of_containers_and_commas_is_decoded() -> None:
    content = list_of(containers=MAX_JSON_CONTAINERS, commas=MAX_JSON_COMMAS)
    decoded = read_json(content, list[object], limit=LIMIT)
    assert decoded.count([]) == MAX_JSON_CONTAINERS - 1
    assert len(decoded) == MAX_JSON_COMMAS + 1


@pytest.mark.parametrize(
    ("containers", "commas"),
    [(MAX_JSON_CONTAINERS + 1, MAX_JSON_COMMAS), (MAX_JSON_CONTAINERS, MAX_JSON_COMMAS + 1)],
)
def test_json_with_one_container_or_comma_more_is_rejected(containers: int, commas: int) -> None:
    with pytest.raises(TooManyValuesError):
        read_json(list_of(containers=containers, commas=commas), list[object], limit=LIMIT)
