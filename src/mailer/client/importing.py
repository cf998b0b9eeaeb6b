"""Clients from a CSV file: checked line by line, staged, and then stored all at once."""

from collections.abc import AsyncIterator, Iterator
from typing import Any, AnyStr, ClassVar, Literal

import asyncpg
import msgspec
from msgspec import UNSET, UnsetType
from sqlalchemy.ext.asyncio import AsyncEngine

from mailer.access import audit, still
from mailer.access.model import Actor
from mailer.client.csvfile import CsvFile
from mailer.client.decoding import Encoding, TextDecoder
from mailer.client.model import known_zones
from mailer.client.rows import COLUMNS, RejectedField, RowValidator, without_value
from mailer.db import locks
from mailer.db.engine import raw
from mailer.errors import ConflictError
from mailer.time_slices import TimeSlices

UNIT = 256
"""Bytes or characters that are read at once: half a millisecond, whatever they are."""
BATCH = 2_000
"""Lines that are staged at once."""
ROWS = 100
"""Rows that are handed to the database at once, in as little time."""
TRIES = 5
"""Times that the staged lines are stored while others add clients of the same phones."""
LONGEST = 3600.0
"""Seconds that one statement over a file may take, or wait for other imports."""


Outcome = Literal["all", "some", "nothing", "empty"]
"""Whether good lines were in a file, and bad ones; `empty` when there was no line at all."""


class ImportReport(msgspec.Struct, frozen=True):
    """What became of every line of a file, the header and empty lines apart.

    `errors` names every wrong field of the first 100 rejected lines. `encoding` is what the file
    was read as; absent when that is UTF-8.
    """

    EXAMPLE: ClassVar[dict[str, Any]] = {
        "created": 2,
        "updated": 1,
        "unchanged": 0,
        "rejected": 1,
        "errors": [
            {
                "line": 3,
                "field": "operator_code",
                "value": "91",
                "message": "must be three digits, such as 916",
            }
        ],
    }

    created: int
    updated: int
    unchanged: int
    rejected: int
    errors: list[RejectedField]
    encoding: Encoding | UnsetType = UNSET

    @property
    def outcome(self) -> Outcome:
        """Return what became of the lines on the whole."""
        stored = self.created + self.updated + self.unchanged
        if not stored:
            return "nothing" if self.rejected else "empty"
        return "some" if self.rejected else "all"

    @property
    def unnamed(self) -> int:
        """Return how many rejected lines `errors` does not name."""
        return self.rejected - len({error.line for error in self.errors})


class PhonesTakenError(ConflictError):
    """Others keep adding clients of the same phones; nothing was stored, try again."""


async def import_clients(
    engine: AsyncEngine, parts: AsyncIterator[bytes], by: Actor
) -> ImportReport:
    """Store the clients of a CSV file that comes in `parts` of any size.

    A phone that is in the directory names a client to update: columns that the file lacks stay,
    an empty tag becomes null, an empty operator code or time zone stays too; a tag that an export
    marked as no formula loses the mark. A new client gets the phone's operator code and UTC for
    these. When a phone comes again the last line wins, and those before it count as unchanged: they
    change nothing.

    All good lines are stored in one transaction, or none when `parts` raises or the file's header
    is wrong (`InvalidError`) or `by` may not write any more by then (`TakenAwayError`); bad lines
    are reported. Under an Idempotency-Key the report has no values: it is kept for a day, and what
    a value tells of a client would outlive the client. Needs the right to make temporary tables.
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
        line bigint, phone text, operator_code text, tag text, tag_written text, time_zone text)"""


async def _import(
    database: asyncpg.Connection, parts: AsyncIterator[bytes], by: Actor
) -> ImportReport:
    zones = known_zones() & {row["name"] for row in await database.fetch(KNOWN_TIME_ZONES)}
    decoder, file, slices = TextDecoder(), CsvFile(COLUMNS, required=["phone"]), TimeSlices()
    lines = RowValidator(zones, decoder)
    staged = 0
    await database.execute(STAGE)
    async for text in _decoded(parts, decoder):
        lines.validate(file.feed(text))
        await slices.pause()
        if len(lines.good) >= BATCH:
            staged += await _stage(database, lines, slices)
    lines.validate(file.end())
    staged += await _stage(database, lines, slices)
    encoding = UNSET if decoder.encoding == "UTF-8" else decoder.encoding
    errors = lines.errors if by.claim is None else [without_value(each) for each in lines.errors]
    report = ImportReport(0, 0, 0, lines.rejected, errors, encoding)
    return await _store(database, report, staged, by, sets_tag="tag" in file.header)


async def _decoded(parts: AsyncIterator[bytes], decoder: TextDecoder) -> AsyncIterator[str]:
    """Give the text of a file in units that take little time."""
    async for part in parts:
        for unit in _units(part):
            for text in _units(decoder.feed(unit)):
                yield text
    for text in _units(decoder.end()):
        yield text


def _units(whole: AnyStr) -> Iterator[AnyStr]:
    return (whole[start : start + UNIT] for start in range(0, len(whole), UNIT))


async def _stage(database: asyncpg.Connection, lines: RowValidator, slices: TimeSlices) -> int:
    """Move the good lines to the staging table and return how many there were."""
    rows, lines.good = lines.good, []

    async def paused() -> AsyncIterator[tuple[object, ...]]:
        for start in range(0, len(rows), ROWS):
            await slices.pause()
            for row in rows[start : start + ROWS]:
                yield row

    await database.copy_records_to_table("client_import", records=paused(), timeout=LONGEST)
    return len(rows)


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
    INSERT INTO client (phone, operator_code, tag, tag_written, time_zone)
    SELECT phone, coalesce(operator_code, substr(phone, 2, 3)), tag, tag_written,
        coalesce(time_zone, 'UTC')
    FROM client_import AS given
    WHERE NOT EXISTS (SELECT FROM client WHERE client.phone = given.phone)
    ORDER BY line"""
UPDATE = """
    UPDATE client SET operator_code = coalesce(given.operator_code, client.operator_code),
        tag = CASE WHEN $1 THEN given.tag ELSE client.tag END,
        tag_written = CASE WHEN $1 THEN given.tag_written ELSE client.tag_written END,
        time_zone = coalesce(given.time_zone, client.time_zone),
        updated_at = now()
    FROM client_import AS given
    WHERE client.phone = given.phone
        AND (client.operator_code <> given.operator_code
            OR client.time_zone <> given.time_zone
            OR ($1 AND (client.tag IS DISTINCT FROM given.tag
                OR client.tag_written IS DISTINCT FROM given.tag_written)))"""
DROP = "DROP TABLE client_import"


async def _store(
    database: asyncpg.Connection, read: ImportReport, staged: int, by: Actor, *, sets_tag: bool
) -> ImportReport:
    """Move the staged lines to the directory, and complete the report of what was read."""
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
                report = msgspec.structs.replace(
                    read, created=created, updated=updated, unchanged=unchanged
                )
                await still.ensure(database, by, "write")  # an upload takes its time
                await _record(database, by, report)
        except asyncpg.UniqueViolationError as error:
            if error.constraint_name != "client_phone_key":
                raise
            continue  # now that client can be seen, and is updated
        return report
    raise PhonesTakenError


async def _record(database: asyncpg.Connection, by: Actor, report: ImportReport) -> None:
    effect = msgspec.to_builtins(report)
    counts = {name: effect[name] for name in ("created", "updated", "unchanged", "rejected")}
    target = audit.Target("directory")
    await audit.record(database, by, "clients_imported", target, after=counts, effect=effect)


def _count(status: str) -> int:
    """Return the rows of a command tag, such as INSERT 0 5 or UPDATE 5."""
    return int(status.rpartition(" ")[2])
