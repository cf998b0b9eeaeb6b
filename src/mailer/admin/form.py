"""HTML forms: read what a browser submits, and show it again with errors beside the fields."""

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
"""Maximum bytes of a short form, such as a name, a password, and a path to redirect to."""
MAX_FORM_BYTES = 64 * 1024
"""Maximum bytes of other forms, except those of mailings."""
MAX_LONG_FORM_BYTES = 256 * 1024
"""Maximum bytes of a mailing's form: URL encoding makes up to twelve bytes of one character."""
MAX_FIELDS = 100
"""Maximum number of fields of a form.

The pauses of `read_form` are inside the text of a field. A form of 250,000 empty fields would be
split and read without a pause, and block the event loop.
"""
UNQUOTE_CHUNK_BYTES = 4096
"""Bytes to decode without a pause: a third of a millisecond if all characters are escaped."""


class Form(msgspec.Struct, frozen=True):
    """A form as the page shows it: the text of each field, and its errors."""

    values: Mapping[str, str]
    """The text of each field, by the field's name."""
    errors: Mapping[str, Sequence[str]] = msgspec.field(default_factory=dict)
    """The errors of each field, by the field's name; those of the whole form under ""."""

    def __getitem__(self, field: str) -> str:
        """Return the text of a field."""
        return self.values.get(field, "")

    def with_errors(
        self, error: InvalidError, form_fields: Mapping[str, str] | None = None
    ) -> "Form":
        """Return the form with the errors of `error`.

        `form_fields` maps fields of the API to fields of the form where their names differ. Errors
        of a field that the form does not have become errors of the whole form.
        """
        errors: dict[str, list[str]] = defaultdict(list)
        for field_error in error.errors:
            field = (form_fields or {}).get(field_error.field, field_error.field)
            errors[field if field in self.values else ""].append(field_error.message)
        return Form(self.values, errors)


async def read_form(request: Request[Any, Any, Any], *fields: str) -> dict[str, str]:
    """Return the values of `fields` in a submitted form, with a line feed as line end.

    A field that was not sent, such as a radio button that is not selected, is empty. Other fields
    are ignored. Raises `InvalidError` if the body is not a form in UTF-8 or has more than
    `MAX_FIELDS` fields.
    """
    body = await request.body()
    slices = TimeSlices()  # a long form must not block the event loop
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
    """Return URL-encoded text decoded, with pauses: decoding 100,000 escapes takes long.

    Raises `UnicodeDecodeError` if it is not UTF-8.
    """
    text = text.replace(b"+", b" ")
    chunks, start = [], 0
    while start < len(text):
        end = start + UNQUOTE_CHUNK_BYTES
        # an escape has three bytes, such as %41: one that starts in the last two would be divided
        divided_escape = text.rfind(b"%", end - 2, end)
        end = end if divided_escape < 0 else divided_escape
        chunks.append(unquote_to_bytes(text[start:end]))
        await slices.pause()
        start = end
    return b"".join(chunks).decode()


def validate(
    model: type[Model], values: Mapping[str, Any], errors: Sequence[FieldError], at: datetime
) -> Model:
    """Return the values of a form as a `model`; `at` is the current time.

    Raises `InvalidError` with every wrong field, including `errors`, which the caller has found.
    """
    try:
        result = check(model, values, at)
    except InvalidError as error:
        raise InvalidError([*error.errors, *errors]) from error
    if errors:
        raise InvalidError(errors)
    return result


def validate_password_form(model: type[Model], values: Mapping[str, str]) -> Model:
    """Return the values of a form as a `model`, which has no field `repeated_password`.

    Raises `InvalidError` with every wrong field; `repeated_password` must equal `password`.
    """
    model_values = {name: text for name, text in values.items() if name != "repeated_password"}
    is_same = values["repeated_password"] == values["password"]
    errors = [] if is_same else [FieldError("repeated_password", "differs from the password above")]
    return validate(model, model_values, errors, database_clock.now())
