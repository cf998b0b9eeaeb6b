"""Values of the client forms, converted to the models of the API.

Users write phones in any usual format, leave fields blank that have a default, and type spaces
around values.
"""

from collections.abc import Mapping
from typing import Any, TypeVar

from msgspec import UNSET, UnsetType

from mailer.admin.clients.field_rows import read_edits, read_rows, row_values
from mailer.admin.form import validate
from mailer.client.api import ClientQuery
from mailer.client.model import Client, ClientChange, NewClient, operator_code
from mailer.client.phone import normalize_phone
from mailer.client.phone_search import PhoneSearch
from mailer.client.service import FieldEdits
from mailer.clock import database_clock
from mailer.message.spreadsheet import Separator
from mailer.text import clean_label
from mailer.validation import check

CLIENT_FIELDS = ("phone", "operator_code", "tag", "time_zone")
ORIGINAL_FIELDS = {field: f"was_{field}" for field in CLIENT_FIELDS}
"""By field, the hidden field with the value that the form was rendered with.

Without the hidden fields, saving would undo changes that another user has made since then.
"""


class ClientListQuery(ClientQuery, frozen=True, kw_only=True):
    """Filters of the list: those of the API, and a phone by its last digits."""

    phone: PhoneSearch | UnsetType = UNSET


class ClientDownloadQuery(ClientListQuery, frozen=True, kw_only=True):
    """Filters of a download, and what separates its cells; that depends on the language."""

    separator: Separator | UnsetType = UNSET

    def filters(self) -> dict[str, Any]:
        """Return the given filters."""
        return {name: value for name, value in super().filters().items() if name != "separator"}


FilterQuery = TypeVar("FilterQuery", bound=ClientListQuery)


def read_filter(parameters: Mapping[str, str | list[str]], model: type[FilterQuery]) -> FilterQuery:
    """Return the query of a filter form as a `model`; raises `InvalidError` with every wrong field.

    `parameters` are those of the URL. One that is repeated is a list, which is always wrong.
    """
    normalized = dict(parameters)
    for field in CLIENT_FIELDS:
        # the query itself normalizes the phone, which may be its last digits only
        if field != "phone" and isinstance(text := parameters.get(field), str):
            normalized[field] = _normalize(field, text)
    return check(model, normalized, database_clock.now(), strict=False)


def read_new(form: Mapping[str, str]) -> NewClient:
    """Return the client to create; raises `InvalidError` with every wrong field."""
    normalized = {field: _normalize(field, form[field]) for field in CLIENT_FIELDS}
    # a blank field gets its default, but the phone has none
    values = {field: text for field, text in normalized.items() if text or field == "phone"}
    fields, errors = read_rows(form)
    # the names of wrong rows would be reported again
    given = {**values, "fields": {} if errors else fields}
    return validate(NewClient, given, errors, database_clock.now())


def form_values(client: Client) -> dict[str, str]:
    """Return the initial values of the form of a client, including the hidden fields."""
    values = {field: getattr(client, field) or "" for field in CLIENT_FIELDS}
    original = {original: values[field] for field, original in ORIGINAL_FIELDS.items()}
    return values | original | row_values(client.fields)


def read_change(form: Mapping[str, str]) -> tuple[ClientChange, FieldEdits]:
    """Return the fields whose values differ from those that the form was rendered with.

    Those that the users have named are the `FieldEdits`. The other fields of the client do not
    change. Raises `InvalidError` with every wrong field.
    """
    changes: dict[str, Any] = {}
    for field, original_field in ORIGINAL_FIELDS.items():
        normalized = _normalize(field, form[field])
        is_unchanged = form[original_field] in (form[field], normalized)
        if not is_unchanged:
            changes[field] = normalized
    if changes.get("operator_code") == "":
        # blank means the code in the phone; if the phone is changed too, that sets the code
        del changes["operator_code"]
        if "phone" not in changes:
            changes["operator_code"] = operator_code(form["was_phone"])
    if changes.get("tag") == "":
        changes["tag"] = None
    if changes.get("time_zone") == "":
        changes["time_zone"] = "UTC"
    fields, errors = read_rows(form)
    change = validate(ClientChange, changes, errors, database_clock.now())
    return change, FieldEdits(read_edits(form, fields))


def _normalize(field: str, text: str) -> str:
    """Return the text of a field as it is stored, if it is valid."""
    return normalize_phone(text) if field == "phone" else clean_label(text)
