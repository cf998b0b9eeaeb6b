"""JSON from outside, read in one way: bounded, and with one error for whatever is wrong with it."""

import functools
import json
from collections.abc import Hashable
from typing import Any, TypeVar

import msgspec

Shape = TypeVar("Shape")


MOST_CONTAINERS = 5_000
"""Lists and objects that are read: a million of them would take 100 ms, and more to be freed."""
MOST_ENTRIES = 50_000
"""Entries that are read, of all lists and objects together."""


class JsonError(ValueError):
    """The bytes are no JSON of the expected shape."""


class TooManyValuesError(JsonError):
    """The JSON has more than `MOST_CONTAINERS` or `MOST_ENTRIES`."""


def read_json(content: bytes, shape: type[Shape], *, limit: int, is_lenient: bool = False) -> Shape:
    """Return `content`, of up to `limit` bytes, as JSON of a shape (RFC 8259, UTF-8).

    A lenient reader also takes what others write wrongly: lone surrogates, bytes that are no
    characters, other Unicode encodings, a byte order mark, control characters, NaN. Raises
    `JsonError` for anything else, and for what is nested deeper than Python's recursion limit;
    `TooManyValuesError` before anything is decoded. Its count includes signs inside of texts.
    """
    if len(content) > limit:
        raise JsonError
    containers, entries = content.count(b"[") + content.count(b"{"), content.count(b",")
    if containers > MOST_CONTAINERS or entries > MOST_ENTRIES:
        raise TooManyValuesError
    try:
        shaped: Shape = _decoder(shape).decode(content)  # type: ignore[arg-type]  # a cast costs
        return shaped  # noqa: TRY300  # what else may fail is below
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        if not is_lenient:
            raise JsonError from error
    try:
        text = content.decode(json.detect_encoding(content), errors="replace")
        given = json.loads(text, strict=False, object_pairs_hook=_object)
        return msgspec.convert(given, shape)
    except (ValueError, RecursionError) as error:  # msgspec's errors are ValueErrors too
        raise JsonError from error


def _object(pairs: list[tuple[str, object]]) -> dict[str, object]:
    """Return an object whose names msgspec can read; of a name given twice the last counts."""
    return {name.encode(errors="replace").decode(): value for name, value in pairs}


@functools.cache
def _decoder(shape: Hashable) -> msgspec.json.Decoder[Any]:
    return msgspec.json.Decoder(shape)
