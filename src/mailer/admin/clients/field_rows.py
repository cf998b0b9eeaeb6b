"""The rows of a form in which the fields of a client are edited: a name and a value in each."""

from collections.abc import Mapping, Sequence

import msgspec

from mailer.client.fields import (
    MAX_CLIENT_FIELDS,
    WRONG_FIELD_NAME,
    WRONG_FIELD_VALUE,
    clean_value,
    is_field_name,
    is_value,
)
from mailer.errors import FieldError

ROW_NUMBERS = range(1, MAX_CLIENT_FIELDS + 1)
EMPTY_ROWS = 2
"""Rows for new fields, below those that are filled in."""
ORIGINAL_FIELDS_OF_ROWS = "was_fields"
"""The hidden field with the fields that the form was rendered with, as JSON."""
ROW_FIELDS = tuple(f"field_{part}_{number}" for number in ROW_NUMBERS for part in ("name", "value"))
"""The fields of all rows of the form."""
FieldValues = dict[str, str]


def row_values(fields: Mapping[str, str]) -> dict[str, str]:
    """Return the initial values of the rows for these fields, including the hidden field."""
    values = dict.fromkeys(ROW_FIELDS, "")
    for number, (name, value) in zip(ROW_NUMBERS, sorted(fields.items()), strict=False):
        values |= {f"field_name_{number}": name, f"field_value_{number}": value}
    return values | {ORIGINAL_FIELDS_OF_ROWS: msgspec.json.encode(fields).decode()}


def shown_rows(form: Mapping[str, str]) -> range:
    """Return the numbers of the rows to show: up to the last one that is filled in, and more."""
    filled = (
        number
        for number in ROW_NUMBERS
        if form.get(f"field_name_{number}") or form.get(f"field_value_{number}")
    )
    return range(1, min(max(filled, default=0) + EMPTY_ROWS, MAX_CLIENT_FIELDS) + 1)


def read_rows(form: Mapping[str, str]) -> tuple[FieldValues, Sequence[FieldError]]:
    """Return the fields in the rows, and the errors of the rows. A row without a value is none."""
    fields: FieldValues = {}
    errors = []
    for number in ROW_NUMBERS:
        name_field, value_field = f"field_name_{number}", f"field_value_{number}"
        name, value = form[name_field].strip(), clean_value(form[value_field])
        if not value:
            continue
        if not name:
            errors.append(FieldError(name_field, "is required"))
        elif not is_field_name(name):
            errors.append(FieldError(name_field, WRONG_FIELD_NAME))
        elif name in fields:
            errors.append(FieldError(name_field, "appears more than once"))
        if not is_value(value):
            errors.append(FieldError(value_field, WRONG_FIELD_VALUE))
        fields[name] = value
    return fields, errors


def read_edits(form: Mapping[str, str], fields: FieldValues) -> FieldValues:
    """Return the values that differ from those of the rendered form; "" for a field to remove."""
    try:
        original = msgspec.json.decode(form[ORIGINAL_FIELDS_OF_ROWS] or "{}", type=FieldValues)
    except msgspec.DecodeError:  # not a form of this page
        original = {}
    edits = {name: value for name, value in fields.items() if original.get(name) != value}
    return edits | {name: "" for name in original if name not in fields}
