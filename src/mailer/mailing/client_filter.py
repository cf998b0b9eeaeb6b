"""The filter of a mailing: it selects the clients of its audience by their fields and lists.

A filter has one of three forms: an object of lists, one for each field and one of the lists of
clients; a string of terms, each of
which is an operator code or a tag; or null, which all clients match.
"""

from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import Annotated, Any

import msgspec
from msgspec import UNSET, Meta, UnsetType

from mailer.client.lists.model import ListName
from mailer.client.model import UNKNOWN_ZONE_MESSAGE, OperatorCode, Tag, TimeZone, known_zones
from mailer.errors import FieldError
from mailer.text import clean_label, fold_label
from mailer.validation import MAX_LIST_ENTRIES, STORABLE, Input

Terms = Annotated[
    str,
    Meta(
        max_length=10_000,
        pattern=STORABLE,
        description="Operator codes and tags separated by commas. A client matches if its operator"
        " code or its tag equals any of them.",
        examples=["912, vip"],
        extra={"rule": "must be a string of up to 10,000 characters, an object, or null"},
    ),
]


LIST_SIZE = {"minItems": 1, "maxItems": MAX_LIST_ENTRIES}
"""Limits of each list in a filter."""


class AudienceLists(Input, frozen=True, kw_only=True, omit_defaults=True):
    """A filter by lists. A client must match one entry of every list that is present."""

    operator_codes: (
        Annotated[
            list[OperatorCode],
            Meta(
                extra_json_schema=LIST_SIZE,
                extra={"rule": "must be a list of operator codes of three digits"},
            ),
        ]
        | UnsetType
    ) = UNSET
    tags: (
        Annotated[
            list[Tag],
            Meta(
                extra_json_schema=LIST_SIZE,
                extra={"rule": "must be a list of tags of 1 to 64 characters"},
            ),
        ]
        | UnsetType
    ) = UNSET
    time_zones: (
        Annotated[
            list[TimeZone],
            Meta(
                extra_json_schema=LIST_SIZE,
                extra={"rule": "must be a list of IANA time zones, such as Europe/Moscow"},
            ),
        ]
        | UnsetType
    ) = UNSET

    lists: (
        Annotated[
            list[ListName],
            Meta(
                description="Names of lists of clients, compared without regard to case. A client"
                " must be on one of them.",
                examples=[["spring sale"]],
                extra_json_schema=LIST_SIZE,
                extra={"rule": "must be a list of names of 1 to 100 characters"},
            ),
        ]
        | UnsetType
    ) = UNSET

    @classmethod
    def broken_rules(cls, values: Mapping[str, Any], at: datetime) -> Iterable[FieldError]:  # noqa: ARG003  # no rule here depends on the time
        """Report empty lists, blank tags and names of lists, and unknown time zones."""
        for name, entries in values.items():
            if not entries:
                yield FieldError(name, "must have an entry")
        if not all(map(clean_label, values.get("tags", ()))):
            yield FieldError("tags", "must contain a visible character in every tag")
        if not all(map(clean_label, values.get("lists", ()))):
            yield FieldError("lists", "must contain a visible character in every name")
        if set(values.get("time_zones", ())) - known_zones():
            yield FieldError("time_zones", UNKNOWN_ZONE_MESSAGE)


ClientFilter = AudienceLists | Terms | None
"""A filter in one of its three forms."""


def stored_filter(value: Any) -> ClientFilter:  # noqa: ANN401  # JSON
    """Return a filter as the database returned it, without validation.

    It was validated before it was stored. To validate it again would take 1 ms for each 1,000
    entries.
    """
    return AudienceLists(**value) if isinstance(value, dict) else value


def split_terms(text: str) -> list[str]:
    """Return the terms of a string filter, which commas separate; empty ones are left out."""
    return [term for part in text.split(",") if (term := clean_label(part))]


def is_empty(client_filter: AudienceLists | str) -> bool:
    """Return whether a filter has no entry.

    Such a filter is refused as a mistake: an object without lists would match all clients, and a
    string without terms nobody.
    """
    if isinstance(client_filter, str):
        return not split_terms(client_filter)
    return not msgspec.to_builtins(client_filter)


def folded_terms(client_filter: str) -> list[str]:
    """Return the terms of a string filter in the form in which tags are stored and compared."""
    return [fold_label(term) for term in split_terms(client_filter)]


def list_name_keys(client_filter: ClientFilter) -> tuple[str, ...] | None:
    """Return the folded names of the lists of clients in a filter; None if it has none."""
    if not isinstance(client_filter, AudienceLists) or client_filter.lists is UNSET:
        return None
    return tuple(sorted(set(map(fold_label, client_filter.lists))))


def filter_fields(client_filter: AudienceLists | None) -> dict[str, list[str]]:
    """Return the permitted values of a filter by column of `client`; empty when all are permitted.

    Tags are in the form in which they are stored and compared. Lists of clients are no column.
    """
    if client_filter is None:
        return {}
    lists = {
        "operator_code": client_filter.operator_codes,
        "tag": client_filter.tags,
        "time_zone": client_filter.time_zones,
    }
    present = {name: list(values) for name, values in lists.items() if values is not UNSET}
    if "tag" in present:
        present["tag"] = [fold_label(tag) for tag in present["tag"]]
    return present
