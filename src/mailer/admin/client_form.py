"""What is typed into the forms of clients, as the API's models take it.

People write phones as they like, leave blank what has a default, and leave blanks around.
"""

from collections.abc import Mapping
from typing import Any

from mailer.client.api import ClientQuery
from mailer.client.model import Client, ClientChange, NewClient, operator_code
from mailer.client.phone import normalize_phone
from mailer.clock import database_clock
from mailer.text import clean_label
from mailer.validation import check

FIELDS = ("phone", "operator_code", "tag", "time_zone")
WAS = {field: f"was_{field}" for field in FIELDS}
"""Fields that nobody sees: what stood in each when the form was made, for it may differ by now."""


def as_filter(given: Mapping[str, str | list[str]]) -> ClientQuery:
    """Return which clients are asked for; raises `InvalidError` naming all that is wrong."""
    tidy = dict(given)
    for field in FIELDS:
        if isinstance(each := given.get(field), str):
            tidy[field] = _tidy(field, each)
    return check(ClientQuery, tidy, database_clock.now(), strict=False)


def as_new(typed: Mapping[str, str]) -> NewClient:
    """Return the client to add; raises `InvalidError` naming every wrong field."""
    tidy = {field: _tidy(field, typed[field]) for field in FIELDS}
    given = {field: each for field, each in tidy.items() if each or field == "phone"}
    return check(NewClient, given, database_clock.now())


def as_shown(client: Client) -> dict[str, str]:
    """Return what the form of a client holds at first."""
    shown = {field: getattr(client, field) or "" for field in FIELDS}
    return shown | {was: shown[field] for field, was in WAS.items()}


def as_change(typed: Mapping[str, str]) -> ClientChange:
    """Return what differs from what the form showed; raises `InvalidError` likewise.

    What others have changed meanwhile in other fields stays as they have it.
    """
    given: dict[str, Any] = {}
    for field, was in WAS.items():
        tidy = _tidy(field, typed[field])
        if typed[was] not in (typed[field], tidy):
            given[field] = tidy
    if given.get("operator_code") == "":
        del given["operator_code"]  # which a new phone brings
        if "phone" not in given:
            given["operator_code"] = operator_code(typed["was_phone"])
    if given.get("tag") == "":
        given["tag"] = None
    if given.get("time_zone") == "":
        given["time_zone"] = "UTC"
    return check(ClientChange, given, database_clock.now())


def _tidy(field: str, text: str) -> str:
    return normalize_phone(text) if field == "phone" else clean_label(text)
