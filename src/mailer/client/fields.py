"""The fields of a client: values for the placeholders in texts of mailings, by name."""

import re
from collections.abc import Iterable, Mapping
from itertools import islice
from typing import Annotated, Any

from msgspec import Meta

from mailer.errors import FieldError, InvalidError
from mailer.text import clean_label
from mailer.validation import MAX_ERRORS, MAX_FIELD_NAME_LENGTH, STORABLE

MAX_CLIENT_FIELDS = 32
"""Fields of a client."""
MAX_VALUE_LENGTH = 200
"""Characters of a value."""
MAX_CLIENT_FIELD_NAME = 32
"""Characters of a name."""
FIELD_NAME = re.compile(rf"[a-z][a-z0-9_]{{0,{MAX_CLIENT_FIELD_NAME - 1}}}")
"""A name of a field, as it is also in a placeholder."""
_STORABLE = re.compile(STORABLE).match
WRONG_FIELD_NAME = "must be named with 1 to 32 of a-z, 0-9 and _, the first of them a letter"
WRONG_FIELD_VALUE = f"must be a text of up to {MAX_VALUE_LENGTH} characters"
TOO_MANY_FIELDS = f"must have at most {MAX_CLIENT_FIELDS} names"


def is_field_name(text: str) -> bool:
    """Return whether a field may have this name."""
    return FIELD_NAME.fullmatch(text) is not None


def clean_value(text: str) -> str:
    """Return a value as it is stored: without blanks around it and invisible characters.

    Several blanks, and line ends, become one blank. An empty value is not stored.
    """
    return clean_label(text)


def is_value(text: str) -> bool:
    """Return whether a text in the form of `clean_value` can be stored as a value."""
    return len(text) <= MAX_VALUE_LENGTH and _STORABLE(text) is not None


def check_fields(given: Mapping[Any, Any]) -> dict[str, str]:
    """Return the fields to store; raises `InvalidError` with every wrong name and value.

    A field with an empty value is left out: the client does not have it.
    """
    if errors := list(_errors(given)):
        raise InvalidError(errors)
    cleaned = ((name, clean_value(text)) for name, text in given.items())
    fields = {name: value for name, value in cleaned if value}
    if len(fields) > MAX_CLIENT_FIELDS:
        raise InvalidError([FieldError("", TOO_MANY_FIELDS)])
    return fields


def _errors(given: Mapping[Any, Any]) -> Iterable[FieldError]:
    if len(given) > MAX_ERRORS:
        yield FieldError("", TOO_MANY_FIELDS)
    for name, text in islice(given.items(), MAX_ERRORS):
        if not is_field_name(name):
            yield FieldError(_start(name), WRONG_FIELD_NAME)
        elif not (isinstance(text, str) and is_value(clean_value(text))):
            yield FieldError(name, WRONG_FIELD_VALUE)


def _start(name: str) -> str:
    """Return the start of a wrong name."""
    is_short = len(name) <= MAX_FIELD_NAME_LENGTH
    return name if is_short else f"{name[: MAX_FIELD_NAME_LENGTH - 1]}…"


Fields = Annotated[
    dict[
        Annotated[str, Meta(pattern=rf"^{FIELD_NAME.pattern}$", max_length=MAX_CLIENT_FIELD_NAME)],
        Annotated[str, Meta(max_length=MAX_VALUE_LENGTH, pattern=STORABLE)],
    ],
    Meta(
        max_length=MAX_CLIENT_FIELDS,
        description="Values for the placeholders in texts of mailings, such as `{{ name }}`. A name"
        " has 1 to 32 of a-z, 0-9 and _, and begins with a letter. A value is a text of up to 200"
        " characters; blanks around it and invisible characters are removed. A field with an empty"
        " value is not stored.",
        examples=[{"name": "Anna", "bonus": "250"}],
        extra={
            "rule": f"must be an object of up to {MAX_CLIENT_FIELDS} texts by name",
            "check_object": check_fields,
        },
    ),
]
