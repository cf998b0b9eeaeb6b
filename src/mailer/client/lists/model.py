"""The list of clients: a named set of them. A client may be on many lists."""

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Annotated, Any, ClassVar, Self

import msgspec
from msgspec import UNSET, Meta, UnsetType

from mailer.client.model import Phone
from mailer.errors import ConflictError, FieldError, NotFoundError
from mailer.text import clean_label
from mailer.validation import MAX_ID, MAX_LIST_ENTRIES, STORABLE, Input

ListName = Annotated[
    str,
    Meta(
        min_length=1,
        max_length=100,
        pattern=STORABLE,
        description="The name of a list of clients. Names are compared without regard to case."
        " Blanks around it and invisible characters are removed.",
        examples=["spring sale"],
        extra={"rule": "must be 1 to 100 characters", "normalize": clean_label},
    ),
]
MemberId = Annotated[int, Meta(ge=1, le=MAX_ID)]
NO_SUCH_LIST = "must name existing lists; not found: "
"""The start of an error message; the wrong names follow."""
MEMBERS_SIZE = {"minItems": 1, "maxItems": MAX_LIST_ENTRIES}


class ListNotFoundError(NotFoundError):
    """There is no such list."""


class ListNameTakenError(ConflictError):
    """Another list has this name."""


class ListInUseError(ConflictError):
    """Mailings that have not ended are for this list."""

    @classmethod
    def of(cls, mailing_ids: Sequence[int]) -> Self:
        """Return the error that names these mailings; of many, the first ones."""
        shown = ", ".join(f"#{id_}" for id_ in mailing_ids[:MAX_NAMED_MAILINGS])
        more = len(mailing_ids) - MAX_NAMED_MAILINGS
        others = f" and {more} more" if more > 0 else ""
        return cls(f"These mailings for this list have not ended: {shown}{others}")


MAX_NAMED_MAILINGS = 20
"""Mailings that an error names."""


class NewList(Input, frozen=True, kw_only=True):
    """A list to create."""

    EXAMPLE: ClassVar[dict[str, Any]] = {"name": "spring sale"}

    name: ListName


class ClientList(msgspec.Struct, frozen=True):
    """A list of clients: a named set of them. A client may be on many lists."""

    EXAMPLE: ClassVar[dict[str, Any]] = {
        "id": 1,
        "name": "spring sale",
        "clients_count": 1200,
        "created_at": "2030-01-10T08:00:00Z",
    }

    id: int
    name: ListName
    clients_count: int
    """The number of clients on the list."""
    created_at: datetime


ListToJoin = Annotated[
    ListName,
    Meta(
        description="The list to put the clients of all valid lines on, by its name. It is"
        " created if there is no such list."
    ),
]
"""The list on which an import puts its clients."""


class ListChoice(Input, frozen=True, kw_only=True):
    """The choice of that list on a page or by a command."""

    list: ListToJoin | UnsetType = UNSET

    @property
    def list_name(self) -> str | None:
        """The name of the list; None without one."""
        return None if self.list is UNSET else self.list


class ListMembers(Input, frozen=True, kw_only=True):
    """Clients to put on a list, or to take off it: by their phones, by their ids, or by both."""

    EXAMPLE: ClassVar[dict[str, Any]] = {"phones": ["79161234567", "79031234567"]}

    phones: (
        Annotated[
            list[Phone],
            Meta(
                extra_json_schema=MEMBERS_SIZE,
                extra={"rule": "must be a list of phones such as 79161234567"},
            ),
        ]
        | UnsetType
    ) = UNSET
    ids: (
        Annotated[
            list[MemberId],
            Meta(
                extra_json_schema=MEMBERS_SIZE,
                extra={"rule": "must be a list of ids of clients"},
            ),
        ]
        | UnsetType
    ) = UNSET

    @classmethod
    def broken_rules(cls, values: Mapping[str, Any], at: datetime) -> Iterable[FieldError]:  # noqa: ARG003  # no rule here depends on the time
        """Refuse a request without clients."""
        for name in ("phones", "ids"):
            if name in values and not values[name]:
                yield FieldError(name, "must have an entry")
        if "phones" not in values and "ids" not in values:
            yield FieldError("phones", "or ids must be given")


class AddedMembers(msgspec.Struct, frozen=True):
    """How many clients a request has put on a list, and how many were on it already."""

    EXAMPLE: ClassVar[dict[str, Any]] = {"added": 2, "unchanged": 0}

    added: int
    unchanged: int


class RemovedMembers(msgspec.Struct, frozen=True):
    """How many clients a request has taken off a list, and how many were not on it."""

    EXAMPLE: ClassVar[dict[str, Any]] = {"removed": 2, "unchanged": 0}

    removed: int
    unchanged: int


class ImportedList(msgspec.Struct, frozen=True):
    """The list that the clients of an import were put on."""

    EXAMPLE: ClassVar[dict[str, Any]] = {
        "id": 1,
        "name": "spring sale",
        "is_new": True,
        "added": 3,
    }

    id: int
    name: ListName
    is_new: bool
    """Whether the import has created the list."""
    added: int
    """Clients of the file who were not on the list before."""
