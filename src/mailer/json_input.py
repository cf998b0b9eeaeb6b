"""Reading of JSON from strangers: bounded in size, and with one error class for all faults."""

import functools
import json
from collections.abc import Hashable
from typing import Any, TypeVar

import msgspec

Shape = TypeVar("Shape")


MAX_JSON_CONTAINERS = 5_000
"""Lists and objects in one document: decoding a million would take 100 ms, in which no other task
runs, and freeing them longer."""
MAX_JSON_COMMAS = 50_000
"""Commas in one document. They are counted in place of the entries of its lists and objects: n
entries have n - 1 commas."""


class JsonError(ValueError):
    """The bytes are not JSON of the expected shape."""


class TooManyValuesError(JsonError):
    """The JSON has more than `MAX_JSON_CONTAINERS` or `MAX_JSON_COMMAS`."""


def read_json(content: bytes, shape: type[Shape], *, limit: int, is_lenient: bool = False) -> Shape:
    """Decode JSON (RFC 8259, UTF-8) of at most `limit` bytes into the type `shape`.

    With `is_lenient`, common faults of other programs are accepted: lone surrogates, invalid bytes,
    other Unicode encodings, a byte order mark, control characters, NaN.

    Raises `TooManyValuesError` before anything is decoded, from the number of brackets, braces and
    commas; those inside texts count too. Raises `JsonError` for any other fault, and for nesting
    deeper than Python's recursion limit.
    """
    if len(content) > limit:
        raise JsonError
    containers, commas = content.count(b"[") + content.count(b"{"), content.count(b",")
    if containers > MAX_JSON_CONTAINERS or commas > MAX_JSON_COMMAS:
        raise TooManyValuesError
    try:
        shaped: Shape = _decoder(shape).decode(content)  # type: ignore[arg-type]  # a cast costs time
        return shaped  # noqa: TRY300  # the lenient attempt follows the except clause
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        if not is_lenient:
            raise JsonError from error
    try:
        text = content.decode(json.detect_encoding(content), errors="replace")
        document = json.loads(text, strict=False, object_pairs_hook=_build_object)
        return msgspec.convert(document, shape)
    except (ValueError, RecursionError) as error:  # msgspec's errors are ValueErrors too
        raise JsonError from error


def _build_object(pairs: list[tuple[str, object]]) -> dict[str, object]:
    """Return a dict with names that msgspec can read; the last of two equal names counts."""
    return {name.encode(errors="replace").decode(): value for name, value in pairs}


@functools.cache
def _decoder(shape: Hashable) -> msgspec.json.Decoder[Any]:
    return msgspec.json.Decoder(shape)
