"""The size of JSON input is checked before the input is decoded."""

import msgspec
import pytest

from mailer.json_input import MAX_JSON_CONTAINERS, MAX_JSON_ENTRIES, TooManyValuesError, read_json

LIMIT = 1024 * 1024
"""Maximum bytes: more than any input of these tests."""


class NeverDecoded(msgspec.Struct):
    """A model that no input of these tests fits: decoding one fails with another error."""

    required: int


@pytest.mark.parametrize("part", [b"[],", b"{},", b"[ ] ,", b'{"a":1},', b'"",', b"1,", b"1,[],"])
@pytest.mark.parametrize("is_lenient", [False, True])
def test_json_with_too_many_values_is_rejected_without_decoding(
    part: bytes, *, is_lenient: bool
) -> None:
    content = b"[" + part * (MAX_JSON_ENTRIES + 1) + b"1]"
    with pytest.raises(TooManyValuesError):
        read_json(content, NeverDecoded, limit=LIMIT, is_lenient=is_lenient)


@pytest.mark.parametrize("part", [b"[", b'{"a":'])
def test_json_with_too_many_levels_is_rejected_without_decoding(part: bytes) -> None:
    with pytest.raises(TooManyValuesError):
        read_json(part * (MAX_JSON_CONTAINERS + 1), NeverDecoded, limit=LIMIT)


def test_json_with_the_maximum_number_of_values_is_decoded() -> None:
    list_count = MAX_JSON_CONTAINERS - 1  # beside the outer list
    lists, numbers = [b"[]"] * list_count, [b"1"] * (MAX_JSON_ENTRIES - list_count)
    content = b"[" + b",".join([*lists, *numbers]) + b"]"
    decoded = read_json(content, list[object], limit=LIMIT)
    assert decoded == [[]] * list_count + [1] * len(numbers)
