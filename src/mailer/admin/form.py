"""HTML forms: their values, and the errors shown beside each field."""

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
from mailer.validation import Model, check

MAX_SMALL_FORM_BYTES = 32 * 1024
"""Maximum bytes of a form that needs no sign-in: a name, a password, and a path to redirect to."""
MAX_FORM_BYTES = 64 * 1024
"""Maximum bytes of other forms, except those of mailings."""
MAX_LONG_FORM_BYTES = 256 * 1024
"""Maximum bytes of a mailing's form: one character of its text or filter may take twelve bytes."""
MAX_FIELDS = 100
"""Maximum fields of a form: parsing very many small ones would block the event loop."""
UNQUOTE_CHUNK_BYTES = 4096
"""Bytes to unquote without a pause: a third of a millisecond if all of them are escaped."""


class Form(msgspec.Struct, frozen=True):
    """A form as the page shows it: the text of each field, and its errors."""

    values: Mapping[str, str]
    errors: Mapping[str, Sequence[str]] = msgspec.field(default_factory=dict)

    def __getitem__(self, field: str) -> str:
        """Return the text of a field."""
        return self.values.get(field, "")

    def with_errors(self, error: InvalidError, names: Mapping[str, str] | None = None) -> "Form":
        """Return the form with the errors of `error`.

        `names` maps fields of the API to fields of the form where their names differ. Errors of a
        field that the form does not have are filed under "", and shown above the form.
        """
        errors: dict[str, list[str]] = defaultdict(list)
        for field_error in error.errors:
            field = (names or {}).get(field_error.field, field_error.field)
            errors[field if field in self.values else ""].append(field_error.message)
        return Form(self.values, errors)


async def read_form(request: Request[Any, Any, Any], *fields: str) -> dict[str, str]:
    """Return the values of `fields` in a submitted form, with a line feed as line end.

    A field that was not sent, such as a box that is not ticked, is empty. Raises `InvalidError` if
    the body is not a form in UTF-8 or has more than `MAX_FIELDS` fields.
    """
    body = await request.body()
    slices = TimeSlices()
    if body.count(b"&") >= MAX_FIELDS:
        raise InvalidError([FieldError("", "has too many fields")])
    values = {}
    try:
        for name, _, value in (pair.partition(b"=") for pair in body.split(b"&")):
            values[await _unquote(name, slices)] = await _unquote(value, slices)
    except UnicodeDecodeError as error:
        raise InvalidError([FieldError("", "is not a form in UTF-8")]) from error
    return {field: values.get(field, "").replace("\r\n", "\n") for field in fields}


async def _unquote(text: bytes, slices: TimeSlices) -> str:
    """Return URL-encoded text decoded, with pauses: tens of thousands of escapes take long.

    Raises `UnicodeDecodeError` if it is not UTF-8.
    """
    text = text.replace(b"+", b" ")
    chunks, start = [], 0
    while start < len(text):
        end = start + UNQUOTE_CHUNK_BYTES
        escape = text.rfind(b"%", end - 2, end)  # an escape must not be cut in two
        end = end if escape < 0 else escape
        chunks.append(unquote_to_bytes(text[start:end]))
        await slices.pause()
        start = end
    return b"".join(chunks).decode()


def validate(
    model: type[Model], values: Mapping[str, Any], errors: Sequence[FieldError], at: datetime
) -> Model:
    """Return the values of a form as a `model`.

    Raises `InvalidError` with every wrong field, including `errors`, which the caller has found.
    """
    try:
        valid = check(model, values, at)
    except InvalidError as error:
        raise InvalidError([*error.errors, *errors]) from error
    if errors:
        raise InvalidError(errors)
    return valid


def validate_password_form(model: type[Model], values: Mapping[str, str]) -> Model:
    """Return the values of a form as a `model`; `password` and `repeated_password` must be equal.

    Raises `InvalidError` with every wrong field.
    """
    rest = {field: text for field, text in values.items() if field != "repeated_password"}
    is_same = values["repeated_password"] == values["password"]
    errors = [] if is_same else [FieldError("repeated_password", "differs from the password above")]
    return validate(model, rest, errors, database_clock.now())
