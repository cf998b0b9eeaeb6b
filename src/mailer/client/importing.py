"""Clients from a CSV file: checked line by line, staged, and then stored all at once."""

import functools
import re
import sys
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from typing import Any, ClassVar, get_args

import asyncpg
import msgspec
from sqlalchemy.ext.asyncio import AsyncEngine

from mailer.access import audit, still
from mailer.access.model import Actor
from mailer.client.csvfile import NOT_UTF8, CsvFile, Record, is_utf8
from mailer.client.formulas import as_given
from mailer.client.model import UNKNOWN_ZONE, NewClient, OperatorCode, Phone, Tag, known_zones
from mailer.client.phone import ROUNDED, is_rounded, normalize_phone
from mailer.clock import database_clock
from mailer.db import locks
from mailer.db.engine import raw
from mailer.errors import ConflictError, FieldError, InvalidError
from mailer.validation import check

COLUMNS = ("phone", "operator_code", "tag", "time_zone")
REPORTED = 100
"""Rejected lines that a report names."""
BATCH = 2_000
"""Lines that are staged at once, for some 10 ms in which this process does nothing else."""
TRIES = 5
"""Times that the staged lines are stored while others add clients of the same phones."""
LONGEST = 3600.0
"""Seconds that one statement over a file may take, or wait for other imports."""


class RejectedField(msgspec.Struct, frozen=True):
    """What is wrong with one field of a line; `field` is empty when it is the line as a whole."""

    line: int
    field: str
    message: str


class ImportReport(msgspec.Struct, frozen=True):
    """What became of every line of a file, the header and empty lines apart.

    `errors` names every wrong field of the first 100 rejected lines.
    """

    EXAMPLE: ClassVar[dict[str, Any]] = {
        "created": 2,
        "updated": 1,
        "unchanged": 0,
        "rejected": 1,
        "errors": [
            {"line": 3, "field": "operator_code", "message": "must be three digits, such as 916"}
        ],
    }

    created: int
    updated: int
    unchanged: int
    rejected: int
    errors: list[RejectedField]


class PhonesTakenError(ConflictError):
    """Others keep adding clients of the same phones; nothing was stored, try again."""


async def import_clients(
    engine: AsyncEngine, parts: AsyncIterator[bytes], by: Actor
) -> ImportReport:
    """Store the clients of a CSV file in UTF-8 that comes in `parts` of any size.

    A phone that is in the directory names a client to update: columns that the file lacks stay,
    an empty tag becomes null, an empty operator code or time zone stays too; a tag that an export
    marked as no formula loses the mark. A new client gets the phone's operator code and UTC for
    these. When a phone comes again the last line wins, and those before it count as unchanged: they
    change nothing.

    All good lines are stored in one transaction, or none when `parts` raises or the file's header
    is wrong (`InvalidError`) or `by` may not write any more by then (`TakenAwayError`); bad lines
    are reported. Needs the right to make temporary tables.
    """
    if by.effect is not None:
        return msgspec.convert(by.effect, ImportReport)
    async with engine.connect() as connection:
        try:
            return await _import(await raw(connection), parts, by)
        except BaseException:
            await connection.invalidate()  # the staged lines end with their connection
            raise


KNOWN_TIME_ZONES = "SELECT name FROM pg_timezone_names"

# Lines are staged each batch for itself, and not in the transaction that stores them: one that is
# open while a client uploads would keep vacuum from every table for as long.
STAGE = """
    CREATE TEMPORARY TABLE client_import (
        line bigint, phone text, operator_code text, tag text, time_zone text)"""


async def _import(
    database: asyncpg.Connection, parts: AsyncIterator[bytes], by: Actor
) -> ImportReport:
    zones = known_zones() & {row["name"] for row in await database.fetch(KNOWN_TIME_ZONES)}
    file = CsvFile(COLUMNS, required=["phone"])
    lines = LineSorter(zones)
    staged = 0
    await database.execute(STAGE)
    async for part in parts:
        lines.sort(file.feed(part))
        if len(lines.good) >= BATCH:
            staged += await _stage(database, lines)
    lines.sort(file.end())
    staged += await _stage(database, lines)
    return await _store(database, lines, staged, by, sets_tag="tag" in file.header)


class LineSorter:
    """Sorts lines into good ones, as rows to stage, and bad ones, as what to report."""

    def __init__(self, zones: frozenset[str]) -> None:
        self.good: list[tuple[int, str, str | None, str | None, str | None]] = []
        self.rejected = 0
        self.errors: list[RejectedField] = []
        self._zones = zones
        self._is_phone = _rule_of(Phone)
        self._is_code = functools.lru_cache(4096)(_rule_of(OperatorCode))
        self._is_tag = functools.lru_cache(4096)(_rule_of(Tag))

    def sort(self, records: Iterable[Record]) -> None:
        """Sort some more. A good line must be quick to know; a bad one may take its time."""
        take, zones = self.good.append, self._zones
        is_phone, is_code, is_tag = self._is_phone, self._is_code, self._is_tag
        for line, fields in records:
            if isinstance(fields, FieldError):
                self._reject(line, [fields])
                continue
            phone, code, tag, zone = fields
            phone, tag = normalize_phone(phone), as_given(tag)
            if (
                is_phone(phone)
                and (not code or is_code(code))
                and (not tag or is_tag(tag))
                and (not zone or zone in zones)
            ):
                take((line, phone, code or None, tag or None, zone or None))
            else:
                self._reject(line, self._wrong(fields))

    def _wrong(self, fields: Sequence[str]) -> list[FieldError]:
        """Name every wrong field of a line, in the model's own words."""
        given = {
            name: value
            for name, value in zip(COLUMNS, fields, strict=True)
            if value or name == "phone"
        }
        found = {}
        try:
            check(NewClient, given, database_clock.now())
        except InvalidError as error:
            found = {error.field: error.message for error in error.errors}
        if given.get("time_zone", "UTC") not in self._zones:
            found["time_zone"] = UNKNOWN_ZONE
        if is_rounded(given["phone"]):
            found["phone"] = ROUNDED
        found |= {name: NOT_UTF8 for name, value in given.items() if not is_utf8(value)}
        return [FieldError(name, found[name]) for name in COLUMNS if name in found]

    def _reject(self, line: int, errors: list[FieldError]) -> None:
        self.rejected += 1
        if self.rejected <= REPORTED:
            self.errors += (RejectedField(line, error.field, error.message) for error in errors)


def _rule_of(annotation: object) -> Callable[[str], bool]:
    """Return what tells whether a text from a file keeps the model's rule for it."""
    meta = next(part for part in get_args(annotation) if isinstance(part, msgspec.Meta))
    shortest, longest = meta.min_length or 0, meta.max_length or sys.maxsize
    matches = re.compile(meta.pattern or "").search

    def keeps_rule(value: str) -> bool:
        return shortest <= len(value) <= longest and matches(value) is not None

    return keeps_rule


async def _stage(database: asyncpg.Connection, lines: LineSorter) -> int:
    """Move the good lines to the staging table and return how many there were."""
    count = len(lines.good)
    await database.copy_records_to_table("client_import", records=lines.good, timeout=LONGEST)
    lines.good.clear()
    return count


# One import at a time, since two that update the same clients in different orders would wait for
# each other. Others who write a client meanwhile are waited for: one that they change or erase no
# longer matches; a phone that they add breaks off the INSERT, and all is tried again. ON CONFLICT
# would spare that, and cost every import a sixth of its time.
TAKE_TURNS = "SELECT pg_advisory_xact_lock($1)"
PREPARE = "ANALYZE client_import; SET LOCAL work_mem = '64MB'"
LEAVE_LAST = """
    DELETE FROM client_import USING (
        SELECT phone, max(line) AS last FROM client_import GROUP BY phone HAVING count(*) > 1
    ) AS repeated
    WHERE client_import.phone = repeated.phone AND client_import.line < repeated.last"""
INSERT = """
    INSERT INTO client (phone, operator_code, tag, time_zone)
    SELECT phone, coalesce(operator_code, substr(phone, 2, 3)), tag, coalesce(time_zone, 'UTC')
    FROM client_import AS given
    WHERE NOT EXISTS (SELECT FROM client WHERE client.phone = given.phone)
    ORDER BY line"""
UPDATE = """
    UPDATE client SET operator_code = coalesce(given.operator_code, client.operator_code),
        tag = CASE WHEN $1 THEN given.tag ELSE client.tag END,
        time_zone = coalesce(given.time_zone, client.time_zone),
        updated_at = now()
    FROM client_import AS given
    WHERE client.phone = given.phone
        AND (client.operator_code <> given.operator_code
            OR client.time_zone <> given.time_zone
            OR ($1 AND client.tag IS DISTINCT FROM given.tag))"""
DROP = "DROP TABLE client_import"


async def _store(
    database: asyncpg.Connection, lines: LineSorter, staged: int, by: Actor, *, sets_tag: bool
) -> ImportReport:
    """Move the staged lines to the directory, and tell what became of all."""
    for _ in range(TRIES):
        try:
            async with database.transaction():
                await database.execute(TAKE_TURNS, locks.IMPORT, timeout=LONGEST)
                await database.execute(PREPARE, timeout=LONGEST)
                await database.execute(LEAVE_LAST, timeout=LONGEST)
                created = _count(await database.execute(INSERT, timeout=LONGEST))
                updated = 0
                if created < staged:
                    updated = _count(await database.execute(UPDATE, sets_tag, timeout=LONGEST))
                await database.execute(DROP)
                unchanged = staged - created - updated
                report = ImportReport(created, updated, unchanged, lines.rejected, lines.errors)
                await still.ensure(database, by, "write")  # an upload takes its time
                await _record(database, by, report)
        except asyncpg.UniqueViolationError:
            continue  # now that client can be seen, and is updated
        return report
    raise PhonesTakenError


async def _record(database: asyncpg.Connection, by: Actor, report: ImportReport) -> None:
    effect = msgspec.to_builtins(report)
    counts = {name: count for name, count in effect.items() if name != "errors"}
    target = audit.Target("directory")
    await audit.record(database, by, "clients_imported", target, after=counts, effect=effect)


def _count(status: str) -> int:
    """Return the rows of a command tag, such as INSERT 0 5 or UPDATE 5."""
    return int(status.rpartition(" ")[2])
