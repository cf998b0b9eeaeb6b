"""Validation of the lines of an imported file: valid lines become rows, others are reported."""

import functools
import re
import sys
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import TypeAlias, get_args

import msgspec

from mailer.client.columns import CLIENT_FILE_COLUMNS
from mailer.client.csv_reader import CsvReader, Record, UnreadableRecord
from mailer.client.decoding import TextDecoder, is_decoded
from mailer.client.exporting import unescape_formula
from mailer.client.field_columns import field_column
from mailer.client.fields import MAX_CLIENT_FIELDS, TOO_MANY_FIELDS, clean_value, is_value
from mailer.client.model import (
    UNKNOWN_ZONE_MESSAGE,
    NewClient,
    OperatorCode,
    Phone,
    Tag,
    tag_columns,
)
from mailer.client.phone import ROUNDED_MESSAGE, is_rounded, normalize_phone
from mailer.client.rejected import RejectedLines
from mailer.clock import database_clock
from mailer.errors import InvalidError
from mailer.text import clean_label, strip_invisible
from mailer.validation import check

CSV_COLUMNS = tuple(column.name for column in CLIENT_FILE_COLUMNS)
"""The columns that a file may have, besides fields that users have named."""
COLUMN_COUNT = len(CSV_COLUMNS)
StagedRow: TypeAlias = tuple[int, str, str | None, str | None, str | None, str | None, str | None]
"""A row of the staging table: line number, phone, operator code, tag, tag as written, time zone,
and as JSON the fields that users have named; null if the file has none."""
CACHED_VALUES = 4096
"""Operator codes, and tags, whose validation is remembered: a file has few, on many lines."""
MAX_REPORTED_LINES = 100
"""Rejected lines listed in a report; further ones are only counted."""
MAX_REPORTED_VALUE_LENGTH = 64
"""Characters of a wrong value shown in a report."""


class RejectedField(msgspec.Struct, frozen=True):
    """A wrong field of a rejected line, with the start of its value and an error message.

    `field` is empty when the line as a whole is wrong. `value` is empty under an Idempotency-Key,
    because the response is stored.
    """

    line: int
    field: str
    value: str
    message: str


def without_value(rejected: RejectedField) -> RejectedField:
    """Return a copy without the value, which may identify a client: the copy may be stored."""
    return msgspec.structs.replace(rejected, value="")


class RowValidator:
    """Validates records: valid ones become `valid_rows` to stage, others are reported in `errors`.

    `zones` are the valid time zones. `decoder` has the file's encoding, which an error names. All
    rejected lines are added to `rejected_lines`, if it is given, with the fields in `reader`.
    """

    def __init__(
        self,
        zones: frozenset[str],
        decoder: TextDecoder,
        reader: CsvReader,
        rejected_lines: RejectedLines | None = None,
    ) -> None:
        self.valid_rows: list[StagedRow] = []
        self.rejected = 0
        """The number of rejected lines."""
        self.errors: list[RejectedField] = []
        self.kept_rows: dict[int, Sequence[str]] | None = None if rejected_lines is None else {}
        """By line, what the file has in the valid rows, which may still be rejected; see
        `reject_over_limit`. None if it is not needed."""
        self._zones = zones
        self._decoder = decoder
        self._reader = reader
        self._rejected_lines = rejected_lines
        self._is_phone = _compile_rule(Phone)
        self._is_code = functools.lru_cache(CACHED_VALUES)(_compile_rule(OperatorCode))
        self._is_tag = functools.lru_cache(CACHED_VALUES)(_compile_rule(Tag))
        self._tag_columns = functools.lru_cache(CACHED_VALUES)(_tag_columns)
        self._encoder = msgspec.json.Encoder()
        self._clean_value = functools.lru_cache(CACHED_VALUES)(_clean_value)

    def validate(self, records: Iterable[Record]) -> None:
        """Validate more records. Beyond `MAX_REPORTED_LINES`, rejected lines are only counted.

        Bytes that are invalid in the file's encoding are lone surrogates here (`TextDecoder`). They
        need no check of their own: no phone, operator code or time zone has one, and the pattern of
        a tag and of named fields (`STORABLE`) excludes them. `_find_errors` only gives such a field
        a better message.
        """
        # local names are found faster than attributes, and this loop is the longest of an import
        add_row, zones = self.valid_rows.append, self._zones
        is_phone, is_code, is_tag = self._is_phone, self._is_code, self._is_tag
        to_columns, kept_rows = self._tag_columns, self.kept_rows
        named = None
        for line, fields in records:
            if isinstance(fields, UnreadableRecord):
                self._reject(line, fields)
                continue
            phone, code, tag, zone = _normalize(fields)
            if (
                is_phone(phone)
                and (not code or is_code(code))
                and (not tag or is_tag(tag))
                and (not zone or zone in zones)
                and (not (values := fields[COLUMN_COUNT:]) or (named := self._to_json(values)))
            ):
                folded, written = to_columns(tag)
                add_row((line, phone, code or None, folded, written, zone or None, named))
                if values and kept_rows is not None:
                    kept_rows[line] = self._reader.row
            else:
                self._reject(line, fields)

    def reject_over_limit(self, lines: Collection[int]) -> None:
        """Reject those of the valid rows that would give a client too many fields."""
        if not lines:
            return
        self.valid_rows = [row for row in self.valid_rows if row[0] not in lines]
        for line in sorted(lines):
            self.rejected += 1
            if self.rejected <= MAX_REPORTED_LINES:
                self.errors.append(RejectedField(line, "fields", "", TOO_MANY_FIELDS))
            if self._rejected_lines is not None and self.kept_rows is not None:
                messages = {"fields": TOO_MANY_FIELDS}
                self._rejected_lines.add(self._reader, self.kept_rows[line], messages)
        self.errors.sort(key=lambda error: error.line)

    def _to_json(self, values: Sequence[str]) -> str | None:
        """Return the fields to store, without those that are empty; None if they are not valid."""
        fields = self._fields(values)
        if len(fields) > MAX_CLIENT_FIELDS or not all(map(is_value, fields.values())):
            return None
        return self._encoder.encode(fields).decode()

    def _fields(self, values: Sequence[str]) -> dict[str, str]:
        cleaned = zip(self._reader.field_names, map(self._clean_value, values), strict=True)
        return {name: value for name, value in cleaned if value}

    def _reject(self, line: int, fields: Sequence[str] | UnreadableRecord) -> None:
        """Count a rejected line, and report its errors up to `MAX_REPORTED_LINES`."""
        self.rejected += 1
        is_reported = self.rejected <= MAX_REPORTED_LINES
        if not is_reported and self._rejected_lines is None:
            return
        if isinstance(fields, UnreadableRecord):
            row, messages = [fields.line], {"": fields.message}
            values = {"": fields.line}
        else:
            row, messages = self._reader.row, self._find_errors(fields)
            columns = (*CSV_COLUMNS, *map(field_column, self._reader.field_names))
            values = {**dict(zip(columns, fields, strict=True)), "fields": ""}
        if is_reported:
            self.errors += (
                RejectedField(line, name, excerpt(value), messages[name])
                for name, value in values.items()
                if name in messages
            )
        if self._rejected_lines is not None:
            self._rejected_lines.add(self._reader, row, messages)

    def _find_errors(self, fields: Sequence[str]) -> dict[str, str]:
        """Return the error message of each wrong field: that of the model, or a more exact one."""
        all_values = zip(CSV_COLUMNS, _normalize(fields), strict=True)
        # an empty field means no value, except that a phone is required
        values = {name: value for name, value in all_values if value or name == "phone"}
        named = self._fields(fields[COLUMN_COUNT:])
        messages = {}
        try:
            check(NewClient, {**values, "fields": named}, database_clock.now())
        except InvalidError as error:
            messages = {error.field: error.message for error in error.errors}
        if values.get("time_zone", "UTC") not in self._zones:
            messages["time_zone"] = UNKNOWN_ZONE_MESSAGE
        if is_rounded(values["phone"]):
            messages["phone"] = ROUNDED_MESSAGE
        # rejected by the rules of the model already; this message is more exact
        undecodable = f"is not {self._decoder.encoding}"
        values |= {field_column(name): value for name, value in named.items()}
        return messages | {
            name: undecodable for name, value in values.items() if not is_decoded(value)
        }


def _normalize(fields: Sequence[str]) -> tuple[str, str, str, str]:
    """Return the fields of a line, in the order of `CSV_COLUMNS`, in the form that is validated."""
    phone, code, tag, zone = fields[:COLUMN_COUNT]
    code, zone = (strip_invisible(field).strip() for field in (code, zone))
    return normalize_phone(phone), code, clean_label(unescape_formula(tag)), zone


def _clean_value(value: str) -> str:
    """Return the value of a field that a user has named in the form that is validated."""
    return clean_value(unescape_formula(value))


def _tag_columns(tag: str) -> tuple[str | None, str | None]:
    """Return the columns `tag` and `tag_written` of a tag; an empty one is null."""
    columns = tag_columns(tag or None)
    return columns["tag"], columns["tag_written"]


def excerpt(value: str) -> str:
    """Return the start of a value on one line; non-printable characters become U+FFFD."""
    start = "".join(map(_to_printable, value[: MAX_REPORTED_VALUE_LENGTH + 1]))
    if len(start) <= MAX_REPORTED_VALUE_LENGTH:
        return start
    return f"{start[: MAX_REPORTED_VALUE_LENGTH - 1]}…"


def _to_printable(character: str) -> str:
    if character.isspace():
        return " "
    return character if character.isprintable() else "\ufffd"


def _compile_rule(annotation: object) -> Callable[[str], bool]:
    """Return a function that checks a text against the length and pattern of a model's field."""
    meta = next(part for part in get_args(annotation) if isinstance(part, msgspec.Meta))
    min_length, max_length = meta.min_length or 0, meta.max_length or sys.maxsize
    search = re.compile(meta.pattern or "").search

    def is_valid(value: str) -> bool:
        return min_length <= len(value) <= max_length and search(value) is not None

    return is_valid
