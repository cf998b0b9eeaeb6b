"""The size of JSON input is checked before the input is decoded."""

import msgspec
import pytest

from mailer.json_input import MAX_JSON_CONTAINERS, MAX_JSON_ENTRIES, TooManyValuesError, read_json

LIMIT = 1024 * 1024


class NeverDecoded(msgspec.Struct):
    """A model for which decoding any of the inputs would fail with another error."""

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
    content = (
        b"["
        + b"[]," * (MAX_JSON_CONTAINERS - 1)
        + b"1," * (MAX_JSON_ENTRIES - MAX_JSON_CONTAINERS)
        + b"1]"
    )
    assert len(read_json(content, list[object], limit=LIMIT)) == MAX_JSON_ENTRIES
    lists = b"[" + b",".join([b"[]"] * (MAX_JSON_CONTAINERS - 1)) + b"]"
    assert read_json(lists, list[object], limit=LIMIT) == [[]] * (MAX_JSON_CONTAINERS - 1)
