"""The client: a person in the directory who receives messages.

The inputs that create and change a client, the rules for their fields, and the columns to store.
"""

import functools
import zoneinfo
from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import Annotated, Any, ClassVar

import msgspec
from msgspec import UNSET, Meta, UnsetType

from mailer.client.fields import Fields
from mailer.errors import FieldError
from mailer.text import clean_label, fold_label
from mailer.validation import STORABLE, Input

UNKNOWN_ZONE_MESSAGE = "must be an IANA time zone, such as Europe/Moscow"

# `extra` has the error message and the normalization of a field; see `mailer.validation.Input`
Phone = Annotated[
    str,
    Meta(
        pattern=r"^7[0-9]{10}$",
        max_length=11,  # `$` also matches before a line feed at the end
        description="`7XXXXXXXXXX`, where X is a digit; unique.",
        examples=["79161234567"],
        extra={"rule": "must be 7 and ten more digits, such as 79161234567"},
    ),
]
OperatorCode = Annotated[
    str,
    Meta(
        pattern=r"^[0-9]{3}$",
        max_length=3,
        description="Three digits. Default: digits 2-4 of the phone. They differ when the number"
        " was ported to another operator.",
        examples=["916"],
        extra={"rule": "must be three digits, such as 916"},
    ),
]
Tag = Annotated[
    str,
    Meta(
        min_length=1,
        max_length=64,
        pattern=STORABLE,
        description="A label of your own; filters compare it without regard to case. Blanks around"
        " it and invisible characters are removed. It cannot hold the character U+0000.",
        examples=["vip"],
        extra={
            "rule": "must be 1 to 64 characters, or null",
            "normalize": clean_label,
        },
    ),
]
TimeZone = Annotated[
    str,
    Meta(
        max_length=64,
        pattern=STORABLE,
        description="Name of an IANA time zone.",
        examples=["Europe/Moscow"],
        extra={"rule": UNKNOWN_ZONE_MESSAGE},
    ),
]


@functools.cache
def known_zones() -> frozenset[str]:
    """Return the names of all IANA time zones that Python knows.

    PostgreSQL may know others: a constraint of the table checks them too.
    """
    return frozenset(zoneinfo.available_timezones())


def unknown_zone_errors(values: Mapping[str, Any]) -> Iterable[FieldError]:
    """Yield an error when `values` have an unknown time zone."""
    if values.get("time_zone", "UTC") not in known_zones():
        yield FieldError("time_zone", UNKNOWN_ZONE_MESSAGE)


class ClientInput(Input, frozen=True, kw_only=True):
    """Base of the inputs that describe a client."""

    @classmethod
    def broken_rules(cls, values: Mapping[str, Any], at: datetime) -> Iterable[FieldError]:  # noqa: ARG003  # the rule does not depend on the time
        """Refuse an unknown time zone."""
        return unknown_zone_errors(values)


class NewClient(ClientInput, frozen=True, kw_only=True):
    """A client to create."""

    EXAMPLE: ClassVar[dict[str, Any]] = {
        "phone": "79161234567",
        "tag": "vip",
        "time_zone": "Europe/Moscow",
        "fields": {"name": "Anna", "bonus": "250"},
    }

    phone: Phone
    operator_code: OperatorCode | UnsetType = UNSET
    tag: Tag | None = None
    time_zone: TimeZone = "UTC"
    fields: Fields = msgspec.field(default_factory=dict)

    def values(self) -> dict[str, Any]:
        """Return the columns to store, by name."""
        code = operator_code(self.phone) if self.operator_code is UNSET else self.operator_code
        return {**msgspec.structs.asdict(self), "operator_code": code, **tag_columns(self.tag)}


class ClientChange(ClientInput, frozen=True, kw_only=True):
    """Changes to a client; what is absent stays as it is.

    A new phone also sets the operator code to digits 2-4 of that phone, unless one is given.
    `fields` replaces all fields: to keep one, repeat it.
    """

    EXAMPLE: ClassVar[dict[str, Any]] = {
        "tag": None,
        "time_zone": "Asia/Vladivostok",
        "fields": {"name": "Anna", "bonus": "300"},
    }

    phone: Phone | UnsetType = UNSET
    operator_code: OperatorCode | UnsetType = UNSET
    tag: Tag | UnsetType | None = UNSET
    time_zone: TimeZone | UnsetType = UNSET
    fields: Fields | UnsetType = UNSET

    def values(self) -> dict[str, Any]:
        """Return the columns to change, by name."""
        changed = {
            name: value
            for name, value in msgspec.structs.asdict(self).items()
            if value is not UNSET
        }
        return changed | ({} if self.tag is UNSET else tag_columns(self.tag))


class Client(msgspec.Struct, frozen=True):
    """A client: a person in the directory who receives messages."""

    EXAMPLE: ClassVar[dict[str, Any]] = {
        "id": 1,
        "phone": "79161234567",
        "operator_code": "916",
        "tag": "vip",
        "time_zone": "Europe/Moscow",
        "fields": {"name": "Anna", "bonus": "250"},
        "opted_out_at": None,
        "created_at": "2030-01-10T08:00:00Z",
        "updated_at": "2030-01-10T08:00:00Z",
    }

    id: int
    phone: Phone
    operator_code: OperatorCode
    tag: Tag | None
    time_zone: TimeZone
    fields: Fields
    opted_out_at: datetime | None
    """Since when marketing messages are not sent to the client; null while they are."""
    created_at: datetime
    updated_at: datetime


def tag_columns(tag: str | None) -> dict[str, str | None]:
    """Return the columns of a tag in the form of `clean_label`; None: no tag.

    `tag` is the folded form, in which tags are compared. `tag_written` is the form in which the
    user wrote the tag, or None if it is the same: VIP is stored as vip and VIP, vip as vip and
    None.
    """
    folded = None if tag is None else fold_label(tag)
    return {"tag": folded, "tag_written": None if folded == tag else tag}


def operator_code(phone: str) -> str:
    """Return digits 2-4 of a phone: its operator code, unless the number was ported."""
    return phone[1:4]
