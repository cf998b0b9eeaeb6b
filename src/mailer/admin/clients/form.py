"""Values of the client forms, converted to the models of the API.

Users write phones in any format, leave fields with a default blank, and add spaces around values.
"""

from collections.abc import Mapping
from typing import Any

from mailer.client.api import ClientQuery
from mailer.client.model import Client, ClientChange, NewClient, operator_code
from mailer.client.phone import normalize_phone
from mailer.clock import database_clock
from mailer.text import clean_label
from mailer.validation import check

CLIENT_FIELDS = ("phone", "operator_code", "tag", "time_zone")
ORIGINAL_FIELDS = {field: f"was_{field}" for field in CLIENT_FIELDS}
"""Hidden fields with the values at the time of rendering: the client may have changed since."""


def read_filter(parameters: Mapping[str, str | list[str]]) -> ClientQuery:
    """Return the query of a filter form; raises `InvalidError` with every wrong field."""
    normalized = dict(parameters)
    for field in CLIENT_FIELDS:
        if isinstance(text := parameters.get(field), str):
            normalized[field] = _normalize(field, text)
    return check(ClientQuery, normalized, database_clock.now(), strict=False)


def read_new(form: Mapping[str, str]) -> NewClient:
    """Return the client to create; raises `InvalidError` with every wrong field."""
    normalized = {field: _normalize(field, form[field]) for field in CLIENT_FIELDS}
    values = {field: text for field, text in normalized.items() if text or field == "phone"}
    return check(NewClient, values, database_clock.now())


def form_values(client: Client) -> dict[str, str]:
    """Return the initial values of the form of a client."""
    values = {field: getattr(client, field) or "" for field in CLIENT_FIELDS}
    return values | {original: values[field] for field, original in ORIGINAL_FIELDS.items()}


def read_change(form: Mapping[str, str]) -> ClientChange:
    """Return the fields that differ from those that the form was rendered with.

    Other fields keep their stored values, which may have changed since. Raises `InvalidError` with
    every wrong field.
    """
    values: dict[str, Any] = {}
    for field, original in ORIGINAL_FIELDS.items():
        normalized = _normalize(field, form[field])
        if form[original] not in (form[field], normalized):
            values[field] = normalized
    if values.get("operator_code") == "":
        del values["operator_code"]  # a new phone sets it
        if "phone" not in values:
            values["operator_code"] = operator_code(form["was_phone"])
    if values.get("tag") == "":
        values["tag"] = None
    if values.get("time_zone") == "":
        values["time_zone"] = "UTC"
    return check(ClientChange, values, database_clock.now())


def _normalize(field: str, text: str) -> str:
    return normalize_phone(text) if field == "phone" else clean_label(text)
