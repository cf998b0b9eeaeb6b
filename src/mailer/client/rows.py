"""The lines of a file of clients: which are good, and what is wrong with the others."""

import functools
import re
import sys
from collections.abc import Callable, Iterable, Sequence
from typing import get_args

import msgspec

from mailer.client.csvfile import Record, Unreadable
from mailer.client.decoding import TextDecoder, is_decoded
from mailer.client.formulas import as_given
from mailer.client.model import UNKNOWN_ZONE, NewClient, OperatorCode, Phone, Tag, tag_columns
from mailer.client.phone import ROUNDED, is_rounded, normalize_phone
from mailer.clock import database_clock
from mailer.errors import InvalidError
from mailer.text import clean_label, strip_invisible
from mailer.validation import check

COLUMNS = ("phone", "operator_code", "tag", "time_zone")
REPORTED = 100
"""Rejected lines that a report names."""
LONGEST_VALUE = 64
"""Characters of a wrong value that a report shows."""


class RejectedField(msgspec.Struct, frozen=True):
    """What is wrong with one field of a line, and the begin of what stands there.

    `field` is empty when it is the line as a whole. `value` is empty too under an Idempotency-Key,
    since the answer is kept.
    """

    line: int
    field: str
    value: str
    message: str


def without_value(wrong: RejectedField) -> RejectedField:
    """Return what may be kept of what is wrong: nothing that a client could be known by."""
    return msgspec.structs.replace(wrong, value="")


class RowValidator:
    """Tells good lines, as rows to stage, from bad ones, as what to report."""

    def __init__(self, zones: frozenset[str], decoder: TextDecoder) -> None:
        self.good: list[tuple[int, str, str | None, str | None, str | None, str | None]] = []
        self.rejected = 0
        self.errors: list[RejectedField] = []
        self._zones = zones
        self._decoder = decoder
        self._is_phone = _rule_of(Phone)
        self._is_code = functools.lru_cache(4096)(_rule_of(OperatorCode))
        self._is_tag = functools.lru_cache(4096)(_rule_of(Tag))
        self._tag_columns = functools.lru_cache(4096)(_tag_columns)

    def validate(self, records: Iterable[Record]) -> None:
        """Validate some more. Past those that are reported, bad lines are only counted."""
        take, zones = self.good.append, self._zones
        is_phone, is_code, is_tag = self._is_phone, self._is_code, self._is_tag
        as_columns = self._tag_columns
        for line, fields in records:
            if isinstance(fields, Unreadable):
                self._reject(line, fields)
                continue
            phone, code, tag, zone = _plain(fields)
            if (
                is_phone(phone)
                and (not code or is_code(code))
                and (not tag or is_tag(tag))
                and (not zone or zone in zones)
            ):
                folded, written = as_columns(tag)
                take((line, phone, code or None, folded, written, zone or None))
            else:
                self._reject(line, fields)

    def _reject(self, line: int, fields: Sequence[str] | Unreadable) -> None:
        self.rejected += 1
        if self.rejected > REPORTED:
            return
        if isinstance(fields, Unreadable):
            self.errors.append(RejectedField(line, "", _shown(fields.line), fields.message))
            return
        wrong = self._wrong(fields)
        self.errors += (
            RejectedField(line, name, _shown(value), wrong[name])
            for name, value in zip(COLUMNS, fields, strict=True)
            if name in wrong
        )

    def _wrong(self, fields: Sequence[str]) -> dict[str, str]:
        """Return what is wrong with each wrong field of a line, in the model's own words."""
        plain = zip(COLUMNS, _plain(fields), strict=True)
        given = {name: value for name, value in plain if value or name == "phone"}
        found = {}
        try:
            check(NewClient, given, database_clock.now())
        except InvalidError as error:
            found = {error.field: error.message for error in error.errors}
        if given.get("time_zone", "UTC") not in self._zones:
            found["time_zone"] = UNKNOWN_ZONE
        if is_rounded(given["phone"]):
            found["phone"] = ROUNDED
        undecodable = f"is not {self._decoder.encoding}"
        return found | {name: undecodable for name, value in given.items() if not is_decoded(value)}


def _plain(fields: Sequence[str]) -> tuple[str, str, str, str]:
    """Return the fields of a line in the form in which they are checked and stored."""
    phone, code, tag, zone = fields
    code, zone = (strip_invisible(each).strip() for each in (code, zone))
    return normalize_phone(phone), code, clean_label(as_given(tag)), zone


def _tag_columns(tag: str) -> tuple[str | None, str | None]:
    columns = tag_columns(tag or None)
    return columns["tag"], columns["tag_written"]


def _shown(value: str) -> str:
    """Return the begin of a value on one line; what has no look of its own stands as U+FFFD."""
    begin = value[: LONGEST_VALUE + 1]
    begin = "".join(" " if c.isspace() else c if c.isprintable() else "\ufffd" for c in begin)
    return begin if len(begin) <= LONGEST_VALUE else f"{begin[:-2]}…"


def _rule_of(annotation: object) -> Callable[[str], bool]:
    """Return what tells whether a text from a file keeps the model's rule for it."""
    meta = next(part for part in get_args(annotation) if isinstance(part, msgspec.Meta))
    shortest, longest = meta.min_length or 0, meta.max_length or sys.maxsize
    matches = re.compile(meta.pattern or "").search

    def keeps_rule(value: str) -> bool:
        return shortest <= len(value) <= longest and matches(value) is not None

    return keeps_rule
