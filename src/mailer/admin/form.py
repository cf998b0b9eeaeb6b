"""Forms: what was typed, and what is wrong with it, beside each field."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any
from urllib.parse import unquote_to_bytes

import msgspec
from litestar import Request

from mailer.clock import database_clock
from mailer.errors import FieldError, InvalidError
from mailer.time_slices import TimeSlices
from mailer.validation import Given, check

SMALL_LIMIT = 32 * 1024
"""Bytes of a form that anybody may send: a name, a password, and where to go back to."""
FORM_LIMIT = 64 * 1024
"""Bytes of any other form."""
LONG_LIMIT = 256 * 1024
"""Bytes of a mailing's form: a character of its text or filter may take twelve."""
MOST_FIELDS = 100
"""Fields of a form: to take a body of many small ones apart keeps everybody else waiting."""
PIECE = 4096
"""Bytes of a form that are unquoted at once: a third of a millisecond, if all are escaped."""


class Form(msgspec.Struct, frozen=True):
    """A form as it is shown: the text of each field, and what is wrong with it."""

    values: Mapping[str, str]
    errors: Mapping[str, Sequence[str]] = msgspec.field(default_factory=dict)

    def __getitem__(self, field: str) -> str:
        """Return what stands in a field."""
        return self.values.get(field, "")

    def refused(self, error: InvalidError, names: Mapping[str, str] | None = None) -> "Form":
        """Return the form with what is wrong with it; `names` has fields that are called otherwise.

        What is wrong with a field that the form lacks is said under "", above all fields.
        """
        errors: dict[str, list[str]] = defaultdict(list)
        for each in error.errors:
            field = (names or {}).get(each.field, each.field)
            errors[field if field in self.values else ""].append(each.message)
        return Form(self.values, errors)


async def typed(request: Request[Any, Any, Any], *fields: str) -> dict[str, str]:
    """Return what was typed into `fields` of a form, with line ends as text has them.

    A box that is not ticked is not sent, and counts as empty. Raises `InvalidError` when it is not
    a form in UTF-8, or has more than `MOST_FIELDS`.
    """
    body = await request.body()
    slices = TimeSlices()
    if body.count(b"&") >= MOST_FIELDS:
        raise InvalidError([FieldError("", "has too many fields")])
    given = {}
    try:
        for name, _, value in (pair.partition(b"=") for pair in body.split(b"&")):
            given[await _unquoted(name, slices)] = await _unquoted(value, slices)
    except UnicodeDecodeError as error:
        raise InvalidError([FieldError("", "is not a form in UTF-8")]) from error
    return {field: given.get(field, "").replace("\r\n", "\n") for field in fields}


async def _unquoted(text: bytes, slices: TimeSlices) -> str:
    """Return what a browser has quoted, piece by piece: tens of thousands of escapes take long.

    Raises `UnicodeDecodeError`.
    """
    text = text.replace(b"+", b" ")
    found, start = [], 0
    while start < len(text):
        end = start + PIECE
        is_cut = text.rfind(b"%", end - 2, end)  # no escape is to be cut in two
        end = end if is_cut < 0 else is_cut
        found.append(unquote_to_bytes(text[start:end]))
        await slices.pause()
        start = end
    return b"".join(found).decode()


def checked(
    model: type[Given], given: Mapping[str, Any], errors: Sequence[FieldError], at: datetime
) -> Given:
    """Return what was typed as a `model`.

    Raises `InvalidError` naming every wrong field, also those of `errors`, which were found before.
    """
    try:
        new = check(model, given, at)
    except InvalidError as error:
        raise InvalidError([*error.errors, *errors]) from error
    if errors:
        raise InvalidError(errors)
    return new


def checked_twice(model: type[Given], given: Mapping[str, str]) -> Given:
    """Return what was typed as a `model` whose `password` must stand in `again`, too.

    Raises `InvalidError` naming every wrong field.
    """
    rest = {field: text for field, text in given.items() if field != "again"}
    is_same = given["again"] == given["password"]
    errors = [] if is_same else [FieldError("again", "differs from the password above")]
    return checked(model, rest, errors, database_clock.now())
