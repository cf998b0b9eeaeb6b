"""Import of clients from a CSV file.

Lines are validated one by one, staged in a temporary table, then stored in one transaction.
"""

from collections.abc import AsyncIterator, Iterator
from typing import Any, AnyStr, ClassVar, Literal

import asyncpg
import msgspec
from msgspec import UNSET, UnsetType
from sqlalchemy.ext.asyncio import AsyncEngine

from mailer.access import audit, reauthorize
from mailer.access.model import Actor
from mailer.client.csv_reader import CsvReader
from mailer.client.decoding import Encoding, TextDecoder
from mailer.client.model import known_zones
from mailer.client.rows import CSV_COLUMNS, RejectedField, RowValidator, without_value
from mailer.db.engine import IMPORT_LOCK, affected_rows, asyncpg_connection
from mailer.errors import ConflictError
from mailer.idempotency.do_once import do_once
from mailer.idempotency.model import IdempotencyClaim
from mailer.time_slices import TimeSlices

UNIT_SIZE = 256
"""Bytes or characters processed between two pauses: at most half a millisecond of work."""
STAGE_BATCH = 2_000
"""Lines staged at once."""
COPY_BATCH = 100
"""Rows passed to the database between two pauses; takes about as long as a unit."""
MAX_STORE_ATTEMPTS = 5
"""Attempts to store the staged lines while other requests create clients with the same phones."""
IMPORT_STATEMENT_TIMEOUT = 3600.0
"""Seconds that a statement over all staged lines may take, including the wait for other imports."""


ImportOutcome = Literal["all", "some", "nothing", "empty"]
"""The lines that were stored: all, some, or none; `empty` when the file had no lines."""


class ImportReport(msgspec.Struct, frozen=True):
    """Result of an import: counts of lines, without the header and empty lines.

    `errors` lists every wrong field of the first 100 rejected lines. `encoding` is the detected
    encoding of the file; it is absent for UTF-8.
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
    def outcome(self) -> ImportOutcome:
        """The lines that were stored."""
        stored = self.created + self.updated + self.unchanged
        if not stored:
            return "nothing" if self.rejected else "empty"
        return "some" if self.rejected else "all"

    @property
    def unlisted(self) -> int:
        """Number of rejected lines that `errors` does not list."""
        return self.rejected - len({error.line for error in self.errors})


class PhonesTakenError(ConflictError):
    """Other requests keep creating clients with the same phones. Nothing was stored; try again."""


async def import_clients(
    engine: AsyncEngine,
    parts: AsyncIterator[bytes],
    actor: Actor,
    claim: IdempotencyClaim | None = None,
) -> ImportReport:
    """Import the clients of a CSV file that arrives in `parts` of any size.

    A phone that is already stored means an update of that client. Columns that the file lacks stay
    as they are, as do an empty operator code and an empty time zone; an empty tag becomes null. The
    escape that an export added to a tag is removed. A new client without an operator code or time
    zone gets the operator code of the phone and UTC. When a phone is in several lines, the last
    one wins; the earlier ones change nothing and count as unchanged.

    All valid lines are stored in one transaction; invalid lines are reported. Nothing is stored
    when `parts` raises, when the header is wrong (`InvalidError`), or when `actor` has lost the
    right to write by the end of the upload (`AccessRevokedError`).

    Under an Idempotency-Key the report has no rejected values: the response is stored for a day,
    and could otherwise keep personal data of a client who is erased meanwhile. A repeat of an
    import that was stored reads no file and returns the report of that import.

    The database role must be allowed to create temporary tables.
    """
    if claim is not None and claim.result is not None:  # a large file is not kept for a repeat
        return msgspec.convert(claim.result, ImportReport)
    async with engine.connect() as connection:
        try:
            return await _import(await asyncpg_connection(connection), parts, actor, claim)
        except BaseException:
            await connection.invalidate()  # closing the session drops the temporary table
            raise


KNOWN_TIME_ZONES = "SELECT name FROM pg_timezone_names"

# Each batch is staged in a transaction of its own, not in the one that stores the lines: a
# transaction that is open during a whole upload would keep vacuum from cleaning every table.
STAGE = """
    CREATE TEMPORARY TABLE client_import (
        line bigint, phone text, operator_code text, tag text, tag_written text, time_zone text)"""


async def _import(
    database: asyncpg.Connection,
    parts: AsyncIterator[bytes],
    actor: Actor,
    claim: IdempotencyClaim | None,
) -> ImportReport:
    zones = known_zones() & {row["name"] for row in await database.fetch(KNOWN_TIME_ZONES)}
    decoder, slices = TextDecoder(), TimeSlices()
    reader = CsvReader(CSV_COLUMNS, required=["phone"])
    validator = RowValidator(zones, decoder)
    staged_count = 0
    await database.execute(STAGE)
    async for text in _decode(parts, decoder):
        validator.validate(reader.feed(text))
        await slices.pause()
        if len(validator.valid_rows) >= STAGE_BATCH:
            staged_count += await _stage(database, validator, slices)
    validator.validate(reader.end())
    staged_count += await _stage(database, validator, slices)
    encoding = UNSET if decoder.encoding == "UTF-8" else decoder.encoding
    errors = validator.errors
    if claim is not None:
        errors = [without_value(error) for error in errors]
    report = ImportReport(0, 0, 0, validator.rejected, errors, encoding)
    staged = _StagedFile(staged_count, "tag" in reader.header, report)
    return await _store(database, staged, actor, claim)


async def _decode(parts: AsyncIterator[bytes], decoder: TextDecoder) -> AsyncIterator[str]:
    """Yield the text of a file in units of `UNIT_SIZE`."""
    async for part in parts:
        for unit in _split(part):
            for text in _split(decoder.feed(unit)):
                yield text
    for text in _split(decoder.end()):
        yield text


def _split(whole: AnyStr) -> Iterator[AnyStr]:
    return (whole[start : start + UNIT_SIZE] for start in range(0, len(whole), UNIT_SIZE))


async def _stage(database: asyncpg.Connection, validator: RowValidator, slices: TimeSlices) -> int:
    """Move the validated rows to the staging table; return their number."""
    rows, validator.valid_rows = validator.valid_rows, []

    async def rows_with_pauses() -> AsyncIterator[tuple[object, ...]]:
        for start in range(0, len(rows), COPY_BATCH):
            await slices.pause()
            for row in rows[start : start + COPY_BATCH]:
                yield row

    await database.copy_records_to_table(
        "client_import", records=rows_with_pauses(), timeout=IMPORT_STATEMENT_TIMEOUT
    )
    return len(rows)


# One import at a time: two imports that update the same clients in different orders would deadlock.
# A statement waits for single requests that write one of its clients. A client that such a request
# changed or erased no longer matches. A phone that it created makes the INSERT fail, and the whole
# transaction is tried again; ON CONFLICT would avoid the retry, but make every import a sixth
# slower.
LOCK_IMPORT = "SELECT pg_advisory_xact_lock($1)"
PREPARE = "ANALYZE client_import; SET LOCAL work_mem = '64MB'"
DELETE_REPEATED = """
    DELETE FROM client_import USING (
        SELECT phone, max(line) AS last FROM client_import GROUP BY phone HAVING count(*) > 1
    ) AS repeated
    WHERE client_import.phone = repeated.phone AND client_import.line < repeated.last"""
INSERT_NEW = """
    INSERT INTO client (phone, operator_code, tag, tag_written, time_zone)
    SELECT phone, coalesce(operator_code, substr(phone, 2, 3)), tag, tag_written,
        coalesce(time_zone, 'UTC')
    FROM client_import AS staged
    WHERE NOT EXISTS (SELECT FROM client WHERE client.phone = staged.phone)
    ORDER BY line"""
UPDATE_KNOWN = """
    UPDATE client SET operator_code = coalesce(staged.operator_code, client.operator_code),
        tag = CASE WHEN $1 THEN staged.tag ELSE client.tag END,
        tag_written = CASE WHEN $1 THEN staged.tag_written ELSE client.tag_written END,
        time_zone = coalesce(staged.time_zone, client.time_zone),
        updated_at = now()
    FROM client_import AS staged
    WHERE client.phone = staged.phone
        AND (client.operator_code <> staged.operator_code
            OR client.time_zone <> staged.time_zone
            OR ($1 AND (client.tag IS DISTINCT FROM staged.tag
                OR client.tag_written IS DISTINCT FROM staged.tag_written)))"""
DROP_STAGE = "DROP TABLE client_import"


class _StagedFile(msgspec.Struct, frozen=True):
    """A file whose valid lines are in the staging table."""

    lines: int
    has_tags: bool
    """Whether the file has a column of tags."""
    report: ImportReport
    """The report on the rejected lines; it counts no stored lines yet."""


async def _store(
    database: asyncpg.Connection,
    staged: _StagedFile,
    actor: Actor,
    claim: IdempotencyClaim | None,
) -> ImportReport:
    """Store the staged lines as clients; return the report with the counts of stored lines.

    Raises `PhonesTakenError`, `AccessRevokedError` and `ClaimLostError`.
    """
    for _ in range(MAX_STORE_ATTEMPTS):
        try:
            async with database.transaction():
                done = await do_once(
                    database,
                    claim,
                    lambda: _store_lines(database, staged, actor),
                    msgspec.to_builtins,
                )
        except asyncpg.UniqueViolationError as error:
            if error.constraint_name != "client_phone_key":
                raise
            continue  # the other client is visible now: the next attempt updates it
        return msgspec.convert(done.result, ImportReport)
    raise PhonesTakenError


async def _store_lines(
    database: asyncpg.Connection, staged: _StagedFile, actor: Actor
) -> ImportReport:
    """Store the staged lines and write the audit log, in the caller's transaction."""
    await database.execute(LOCK_IMPORT, IMPORT_LOCK, timeout=IMPORT_STATEMENT_TIMEOUT)
    await database.execute(PREPARE, timeout=IMPORT_STATEMENT_TIMEOUT)
    await database.execute(DELETE_REPEATED, timeout=IMPORT_STATEMENT_TIMEOUT)
    created = affected_rows(await database.execute(INSERT_NEW, timeout=IMPORT_STATEMENT_TIMEOUT))
    updated = 0
    if created < staged.lines:
        updated = affected_rows(
            await database.execute(UPDATE_KNOWN, staged.has_tags, timeout=IMPORT_STATEMENT_TIMEOUT)
        )
    await database.execute(DROP_STAGE)
    unchanged = staged.lines - created - updated
    # the right may have been revoked during a long upload
    await reauthorize.ensure_authorized(database, actor, "write")
    counts = {"created": created, "updated": updated, "unchanged": unchanged}
    all_counts = counts | {"rejected": staged.report.rejected}
    target = audit.Target("directory")
    await audit.record(database, actor, "clients_imported", target, after=all_counts)
    return msgspec.structs.replace(staged.report, **counts)
