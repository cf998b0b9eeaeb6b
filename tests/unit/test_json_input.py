"""JSON from outside is bounded before it is decoded."""

import msgspec
import pytest

from mailer.json_input import MOST_CONTAINERS, MOST_ENTRIES, TooManyValuesError, read_json

LIMIT = 1024 * 1024


class NeverDecoded(msgspec.Struct):
    """A shape that fails for whatever is decoded."""

    needed: int


@pytest.mark.parametrize("part", [b"[],", b"{},", b"[ ] ,", b'{"a":1},', b'"",', b"1,", b"1,[],"])
@pytest.mark.parametrize("is_lenient", [False, True])
def test_json_of_many_values_is_refused_undecoded(part: bytes, *, is_lenient: bool) -> None:
    content = b"[" + part * (MOST_ENTRIES + 1) + b"1]"
    with pytest.raises(TooManyValuesError):
        read_json(content, NeverDecoded, limit=LIMIT, is_lenient=is_lenient)


@pytest.mark.parametrize("part", [b"[", b'{"a":'])
def test_json_of_many_levels_is_refused_undecoded(part: bytes) -> None:
    with pytest.raises(TooManyValuesError):
        read_json(part * (MOST_CONTAINERS + 1), NeverDecoded, limit=LIMIT)


def test_json_of_as_many_values_as_are_read_is_read() -> None:
    content = (
        b"[" + b"[]," * (MOST_CONTAINERS - 1) + b"1," * (MOST_ENTRIES - MOST_CONTAINERS) + b"1]"
    )
    assert len(read_json(content, list[object], limit=LIMIT)) == MOST_ENTRIES
    lists = b"[" + b",".join([b"[]"] * (MOST_CONTAINERS - 1)) + b"]"
    assert read_json(lists, list[object], limit=LIMIT) == [[]] * (MOST_CONTAINERS - 1)
