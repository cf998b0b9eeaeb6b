"""Import of clients from a CSV file or an Excel workbook.

Lines are validated one by one as they arrive, and staged: written to a temporary table. At the end
of the file the staged lines are stored as clients, in one transaction.
"""

from collections.abc import AsyncIterator
from contextlib import aclosing, nullcontext
from typing import Any, ClassVar, Literal

import asyncpg
import msgspec
from msgspec import UNSET, UnsetType
from sqlalchemy.ext.asyncio import AsyncEngine

from mailer.access import audit, reauthorize
from mailer.access.model import Actor
from mailer.client.decoding import Encoding
from mailer.client.field_limit import FieldLimit, delete_lines_over_limit, errors_over_limit
from mailer.client.lists.membership import add_imported
from mailer.client.lists.model import ImportedList
from mailer.client.reading import AS_DETECTED, ClientFile, ImportOptions, usable_zones
from mailer.client.rows import RejectedField, RowValidator, without_value
from mailer.db.engine import IMPORT_LOCK, affected_rows, asyncpg_connection
from mailer.errors import ConflictError
from mailer.idempotency.do_once import do_once
from mailer.idempotency.model import IdempotencyClaim
from mailer.time_slices import TimeSlices

COPY_BATCH = 100
"""Rows passed to the database before other tasks may run: at most half a millisecond too."""
MAX_STORE_ATTEMPTS = 5
"""Attempts to store the staged lines while other requests create clients with the same phones."""
IMPORT_STATEMENT_TIMEOUT = 3600.0
"""Seconds that a statement over all staged lines may take, including the wait for other imports."""


ImportOutcome = Literal["all", "some", "nothing", "empty"]
"""The lines that were stored: all, some, or none; `empty` when the file had no lines."""


class ImportReport(msgspec.Struct, frozen=True):
    """Result of an import: counts of lines, without the header and empty lines.

    `errors` lists every wrong field of the first 100 rejected lines. `ignored_columns` names the
    columns that are no field of a client. `fields` names the fields, named by users, that the file
    has columns for; it is absent if there are none. `encoding` is the detected encoding of the
    file; it is absent for UTF-8. `list` is the list that the clients of all stored lines, also of
    unchanged ones, were put on; it is absent without one.
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
        "ignored_columns": ["City"],
        "fields": ["name"],
    }

    created: int
    updated: int
    unchanged: int
    rejected: int
    errors: list[RejectedField]
    ignored_columns: list[str]
    fields: list[str] | UnsetType = UNSET
    encoding: Encoding | UnsetType = UNSET
    client_list: ImportedList | UnsetType = msgspec.field(default=UNSET, name="list")

    @property
    def outcome(self) -> ImportOutcome:
        """Whether all, some or no lines were stored."""
        stored = self.created + self.updated + self.unchanged
        if not stored:
            return "nothing" if self.rejected else "empty"
        return "some" if self.rejected else "all"

    @property
    def unlisted(self) -> int:
        """The number of rejected lines that `errors` does not list."""
        return self.rejected - len({error.line for error in self.errors})


class PhonesTakenError(ConflictError):
    """Other requests keep creating clients with the same phones. Nothing was stored; try again."""


async def import_clients(
    engine: AsyncEngine,
    parts: AsyncIterator[bytes],
    actor: Actor,
    claim: IdempotencyClaim | None = None,
    options: ImportOptions = AS_DETECTED,
) -> ImportReport:
    """Import the clients of a CSV file or Excel workbook that arrives in `parts` of any size.

    A line updates the client that has its phone, or else creates one. An update leaves columns that
    the file lacks as they are, and does not empty the operator code or the time zone; an empty tag
    becomes null. A new client without an operator code gets that of its phone, and one without a
    time zone gets UTC. When a phone is in several lines, the last one wins; the earlier ones change
    nothing and count as unchanged. Apostrophes that an export put before formulas are removed.

    Of the fields that users have named, an update changes those that the file has columns for. An
    empty cell removes the field. A line that would give its client too many fields is rejected.

    All valid lines are stored in one transaction; invalid lines are reported. Nothing is stored
    when `parts` raises, when the file cannot be read (`InvalidError`), or when `actor` has lost the
    right to write by the end of the upload (`AccessRevokedError`).

    With a claim the report has no rejected values: the response to a request with an
    Idempotency-Key is stored for a day, and could otherwise keep personal data of a client who is
    erased meanwhile. When an earlier attempt of the request has stored the lines, its report is
    returned and `parts` is not read.

    The database role must be allowed to create temporary tables.
    """
    if claim is not None and claim.result is not None:
        return msgspec.convert(claim.result, ImportReport)
    async with engine.connect() as connection:
        try:
            return await _import(await asyncpg_connection(connection), parts, actor, claim, options)
        except BaseException:
            await connection.invalidate()  # closing the session drops the temporary table
            raise


# The temporary table exists until the end of the session, so that each batch can be written in a
# transaction of its own. One transaction during the whole upload would keep vacuum from cleaning
# every table.
CREATE_STAGING_TABLE = """
    CREATE TEMPORARY TABLE client_import (
        line bigint, phone text, operator_code text, tag text, tag_written text, time_zone text,
        fields jsonb)"""


async def _import(
    database: asyncpg.Connection,
    parts: AsyncIterator[bytes],
    actor: Actor,
    claim: IdempotencyClaim | None,
    options: ImportOptions,
) -> ImportReport:
    """Read, validate and stage the lines as they arrive; then store them. See `import_clients`."""
    limit = FieldLimit(lambda: nullcontext(database))
    file = ClientFile(parts, await usable_zones(database), limit, options)
    await database.execute(CREATE_STAGING_TABLE)
    staged_count = 0
    async with aclosing(file.batches()) as batches:
        async for _ in batches:
            staged_count += await _stage(database, file.validator, file.slices)
    errors, layout = file.validator.errors, file.layout
    if claim is not None:
        errors = [without_value(error) for error in errors]
    report = ImportReport(
        created=0,
        updated=0,
        unchanged=0,
        rejected=file.validator.rejected,
        errors=errors,
        ignored_columns=layout.ignored,
        fields=file.reader.field_names or UNSET,
        encoding=UNSET if file.decoder.encoding == "UTF-8" else file.decoder.encoding,
    )
    staged = _StagedFile(
        line_count=staged_count,
        has_tags="tag" in layout.fields,
        field_names=file.reader.field_names,
        report=report,
        list_name=options.list_name,
    )
    return await _store(database, staged, actor, claim)


async def _stage(database: asyncpg.Connection, validator: RowValidator, slices: TimeSlices) -> int:
    """Move the valid rows from the validator to the staging table; return their number."""
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


# The statements below store the staged lines, in one transaction.
#
# One import at a time stores its lines: two that update the same clients in different orders would
# deadlock. Requests that create, change or erase one client go on meanwhile, and the statements
# wait for those that have written one of their clients. UPDATE_EXISTING then skips a client that
# was erased or has another phone now. INSERT_NEW fails when a request has created its phone, and
# the whole transaction is repeated. ON CONFLICT would avoid that, but make every import a sixth
# slower.
LOCK_IMPORT = "SELECT pg_advisory_xact_lock($1)"
# Lets PostgreSQL plan for the number of lines, and sort them in memory.
ANALYZE_STAGED_LINES = "ANALYZE client_import; SET LOCAL work_mem = '64MB'"
# Of the lines with the same phone, the last one stays.
DELETE_REPEATED_PHONES = """
    DELETE FROM client_import USING (
        SELECT phone, max(line) AS last FROM client_import GROUP BY phone HAVING count(*) > 1
    ) AS repeated
    WHERE client_import.phone = repeated.phone AND client_import.line < repeated.last"""
# Creates a client for each phone that no client has, in the order of the lines.
INSERT_NEW = """
    INSERT INTO client (phone, operator_code, tag, tag_written, time_zone, fields)
    SELECT phone, coalesce(operator_code, substr(phone, 2, 3)), tag, tag_written,
        coalesce(time_zone, 'UTC'), coalesce(fields, '{}')
    FROM client_import AS staged
    WHERE NOT EXISTS (SELECT FROM client WHERE client.phone = staged.phone)
    ORDER BY line"""
# Updates each client whose phone is in the file, if a column differs. Clients of INSERT_NEW do not
# differ. Null leaves a column as it is, but empties a tag if $1: if the file has a column of tags.
# Of the fields, those of the names $2 are replaced: the names that the file has columns for.
UPDATE_EXISTING = """
    UPDATE client SET operator_code = coalesce(staged.operator_code, client.operator_code),
        tag = CASE WHEN $1 THEN staged.tag ELSE client.tag END,
        tag_written = CASE WHEN $1 THEN staged.tag_written ELSE client.tag_written END,
        time_zone = coalesce(staged.time_zone, client.time_zone),
        fields = CASE WHEN $2::text[] = '{}' THEN client.fields
            ELSE (client.fields - $2::text[]) || staged.fields END,
        updated_at = now()
    FROM client_import AS staged
    WHERE client.phone = staged.phone
        AND (client.operator_code <> staged.operator_code
            OR client.time_zone <> staged.time_zone
            OR ($2::text[] <> '{}'
                AND client.fields <> ((client.fields - $2::text[]) || staged.fields))
            OR ($1 AND (client.tag IS DISTINCT FROM staged.tag
                OR client.tag_written IS DISTINCT FROM staged.tag_written)))"""
DROP_STAGING_TABLE = "DROP TABLE client_import"


class _StagedFile(msgspec.Struct, frozen=True):
    """A file whose valid lines are in the staging table."""

    line_count: int
    """Lines in the staging table."""
    has_tags: bool
    """Whether the file has a column of tags."""
    field_names: list[str]
    """The names of the fields that the file has columns for."""
    report: ImportReport
    """The report on the rejected lines; it counts no stored lines yet."""
    list_name: str | None
    """The list to put the clients on, if any."""


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
            continue  # a request created this client: the next attempt updates it
        return msgspec.convert(done.result, ImportReport)
    raise PhonesTakenError


async def _store_lines(
    database: asyncpg.Connection, staged: _StagedFile, actor: Actor
) -> ImportReport:
    """Store the staged lines and write the audit log, in the caller's transaction."""
    await database.execute(LOCK_IMPORT, IMPORT_LOCK, timeout=IMPORT_STATEMENT_TIMEOUT)
    await database.execute(ANALYZE_STAGED_LINES, timeout=IMPORT_STATEMENT_TIMEOUT)
    await database.execute(DELETE_REPEATED_PHONES, timeout=IMPORT_STATEMENT_TIMEOUT)
    over_limit = await delete_lines_over_limit(
        database, staged.field_names, timeout=IMPORT_STATEMENT_TIMEOUT
    )
    created = affected_rows(await database.execute(INSERT_NEW, timeout=IMPORT_STATEMENT_TIMEOUT))
    updated = 0
    if created < staged.line_count:  # else every line has created a client
        status = await database.execute(
            UPDATE_EXISTING,
            staged.has_tags,
            staged.field_names,
            timeout=IMPORT_STATEMENT_TIMEOUT,
        )
        updated = affected_rows(status)
    report = staged.report
    if staged.list_name is not None and staged.line_count:
        client_list = await add_imported(database, staged.list_name, IMPORT_STATEMENT_TIMEOUT)
        report = msgspec.structs.replace(report, client_list=client_list)
    await database.execute(DROP_STAGING_TABLE)
    unchanged = staged.line_count - len(over_limit) - created - updated
    # the right may have been revoked during a long upload
    await reauthorize.ensure_authorized(database, actor, "write")
    counts = {"created": created, "updated": updated, "unchanged": unchanged}
    all_counts = counts | {"rejected": report.rejected + len(over_limit)}
    after: dict[str, object] = {**all_counts}
    if report.client_list:
        after |= {"list": report.client_list.name, "added": report.client_list.added}
    target = audit.Target("directory")
    await audit.record(database, actor, "clients_imported", target, after=after)
    errors = report.errors + errors_over_limit(over_limit, report.rejected)
    return msgspec.structs.replace(report, errors=errors, **all_counts)
