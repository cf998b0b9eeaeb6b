"""A client: a person in the directory."""

import functools
import zoneinfo
from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import Annotated, Any, ClassVar

import msgspec
from msgspec import UNSET, Meta, UnsetType

from mailer.errors import FieldError
from mailer.text import clean_label, fold_label
from mailer.validation import STORABLE, Input

UNKNOWN_ZONE = "must be an IANA time zone, such as Europe/Moscow"

Phone = Annotated[
    str,
    Meta(
        pattern=r"^7[0-9]{10}$",
        max_length=11,  # `$` also matches before a line's end
        description="`7XXXXXXXXXX`, X a digit; unique.",
        examples=["79161234567"],
        extra={"rule": "must be 7 and ten more digits, such as 79161234567"},
    ),
]
OperatorCode = Annotated[
    str,
    Meta(
        pattern=r"^[0-9]{3}$",
        max_length=3,
        description="Three digits; digits 2-4 of the phone unless given, since numbers are ported.",
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
        description="A free label; filters compare it without case. Blanks around it and characters"
        " that cannot be seen are taken away.",
        examples=["vip"],
        extra={
            "rule": "must be 1 to 64 characters without NUL, or null",
            "normalize": clean_label,
        },
    ),
]
TimeZone = Annotated[
    str,
    Meta(
        max_length=64,
        pattern=STORABLE,
        description="An IANA time zone's name.",
        examples=["Europe/Moscow"],
        extra={"rule": UNKNOWN_ZONE},
    ),
]


@functools.cache
def known_zones() -> frozenset[str]:
    """Return every IANA name that Python knows; the database's constraint adds its own word."""
    return frozenset(zoneinfo.available_timezones())


def unknown_zone(values: Mapping[str, Any]) -> Iterable[FieldError]:
    """Name a time zone that is given and that nobody knows."""
    if values.get("time_zone", "UTC") not in known_zones():
        yield FieldError("time_zone", UNKNOWN_ZONE)


class ClientInput(Input, frozen=True, kw_only=True):
    """A client as it is given."""

    @classmethod
    def broken_rules(cls, values: Mapping[str, Any], at: datetime) -> Iterable[FieldError]:  # noqa: ARG003  # zones do not depend on the moment
        """Name a time zone that nobody knows."""
        return unknown_zone(values)


class NewClient(ClientInput, frozen=True, kw_only=True):
    """A client to be added to the directory."""

    EXAMPLE: ClassVar[dict[str, Any]] = {
        "phone": "79161234567",
        "tag": "vip",
        "time_zone": "Europe/Moscow",
    }

    phone: Phone
    operator_code: OperatorCode | UnsetType = UNSET
    tag: Tag | None = None
    time_zone: TimeZone = "UTC"

    def values(self) -> dict[str, Any]:
        """Return the columns to store."""
        code = operator_code(self.phone) if self.operator_code is UNSET else self.operator_code
        return {**msgspec.structs.asdict(self), "operator_code": code, **tag_columns(self.tag)}


class ClientChange(ClientInput, frozen=True, kw_only=True):
    """What is to change in a client; absent fields stay. A new phone brings its own code."""

    EXAMPLE: ClassVar[dict[str, Any]] = {"tag": None, "time_zone": "Asia/Vladivostok"}

    phone: Phone | UnsetType = UNSET
    operator_code: OperatorCode | UnsetType = UNSET
    tag: Tag | UnsetType | None = UNSET
    time_zone: TimeZone | UnsetType = UNSET

    def values(self) -> dict[str, Any]:
        """Return the columns to change."""
        given = {
            name: value
            for name, value in msgspec.structs.asdict(self).items()
            if value is not UNSET
        }
        return given | ({} if self.tag is UNSET else tag_columns(self.tag))


class Client(msgspec.Struct, frozen=True):
    """A client of the directory."""

    EXAMPLE: ClassVar[dict[str, Any]] = {
        "id": 1,
        "phone": "79161234567",
        "operator_code": "916",
        "tag": "vip",
        "time_zone": "Europe/Moscow",
        "created_at": "2030-01-10T08:00:00Z",
        "updated_at": "2030-01-10T08:00:00Z",
    }

    id: int
    phone: Phone
    operator_code: OperatorCode
    tag: Tag | None
    time_zone: TimeZone
    created_at: datetime
    updated_at: datetime


def tag_columns(tag: str | None) -> dict[str, str | None]:
    """Return how a clean tag is stored: as it is compared, and as written if that differs."""
    folded = None if tag is None else fold_label(tag)
    return {"tag": folded, "tag_written": None if folded == tag else tag}


def operator_code(phone: str) -> str:
    """Return the operator's code that a phone has before it is ported."""
    return phone[1:4]
