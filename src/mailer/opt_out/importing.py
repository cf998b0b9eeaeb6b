"""Import of opt-outs from a CSV file, in the same way as clients are imported."""

from collections.abc import AsyncIterator, Iterable
from contextlib import aclosing
from datetime import UTC, datetime
from typing import Any, ClassVar, TypeAlias
from zoneinfo import ZoneInfo

import asyncpg
import msgspec
from msgspec import UNSET, UnsetType
from sqlalchemy.ext.asyncio import AsyncEngine

from mailer.access import audit, reauthorize
from mailer.access.model import Actor
from mailer.client.columns import PHONE, TIME_ZONE, Column, header_names
from mailer.client.csv_reader import CsvReader, Record, UnreadableRecord
from mailer.client.decoding import Encoding
from mailer.client.importing import IMPORT_STATEMENT_TIMEOUT, LOCK_IMPORT
from mailer.client.model import UNKNOWN_ZONE_MESSAGE, known_zones
from mailer.client.phone import ROUNDED_MESSAGE, STORED_FORM, is_rounded, normalize_phone
from mailer.client.previewing import ImportPreview, preview_file
from mailer.client.reading import AS_DETECTED, ImportedFile, ImportOptions
from mailer.client.rejected import RejectedLines
from mailer.client.rows import MAX_REPORTED_LINES, RejectedField, excerpt, without_value
from mailer.clock import database_clock
from mailer.db.engine import IMPORT_LOCK, asyncpg_connection
from mailer.errors import FieldError
from mailer.idempotency.do_once import do_once
from mailer.idempotency.model import IdempotencyClaim
from mailer.opt_out.store import ADD_OPT_OUTS, DIGEST, NOTIFY_OPT_OUTS, stop_messages
from mailer.text import strip_invisible

CANCEL_BATCH = 1_000
"""Clients whose messages one transaction cancels."""
WRONG_PHONE = "must be 7 and ten more digits, such as 79161234567"
WRONG_TIME = "must be a past date and time, such as 2025-01-15T09:00:00Z"
OptOutRow: TypeAlias = tuple[str, datetime | None]
"""A phone, and since when it is opted out; None: now."""
FIRST_TIME = datetime(1970, 1, 1, tzinfo=UTC)
"""The earliest time of an opt-out."""


class OptOutImportReport(msgspec.Struct, frozen=True):
    """Result of an import of opt-outs: counts of lines, without the header and empty lines.

    `errors` lists every wrong field of the first 100 rejected lines. `encoding` is the detected
    encoding of the file; it is absent for UTF-8. `ignored_columns` names the other columns.
    """

    EXAMPLE: ClassVar[dict[str, Any]] = {
        "created": 2,
        "unchanged": 1,
        "rejected": 1,
        "errors": [{"line": 3, "field": "phone", "value": "916", "message": WRONG_PHONE}],
        "ignored_columns": ["city"],
    }

    created: int
    unchanged: int
    """Lines whose phones were opted out already, or are in the file several times."""
    rejected: int
    errors: list[RejectedField]
    ignored_columns: list[str]
    encoding: Encoding | UnsetType = UNSET

    @property
    def unlisted(self) -> int:
        """The number of rejected lines that `errors` does not list."""
        return self.rejected - len({error.line for error in self.errors})


async def import_opt_outs(
    engine: AsyncEngine,
    parts: AsyncIterator[bytes],
    actor: Actor,
    claim: IdempotencyClaim | None = None,
    options: ImportOptions = AS_DETECTED,
) -> OptOutImportReport:
    """Opt out the phones of a CSV file that arrives in `parts` of any size.

    A phone that is opted out already stays as it is. All valid lines are stored in one transaction;
    invalid lines are reported. After that, the clients' marketing messages are cancelled in chunks;
    those that are left by a crash are cancelled when they are claimed. Nothing is stored when
    `parts` raises, when the header is wrong (`InvalidError`), or when `actor` has lost the right to
    write by the end of the upload (`AccessRevokedError`).
    """
    if claim is not None and claim.result is not None:
        return msgspec.convert(claim.result, OptOutImportReport)
    async with engine.connect() as connection:
        try:
            return await _import(await asyncpg_connection(connection), parts, actor, claim, options)
        finally:
            await connection.invalidate()  # closing the session drops the temporary tables


# See the comments on the staging table of `mailer.client.importing`.
CREATE_STAGING_TABLES = """
    CREATE TEMPORARY TABLE opt_out_import (phone text, opted_out_at timestamptz);
    CREATE TEMPORARY TABLE opted_out_client (client_id bigint)"""


async def _import(
    database: asyncpg.Connection,
    parts: AsyncIterator[bytes],
    actor: Actor,
    claim: IdempotencyClaim | None,
    options: ImportOptions,
) -> OptOutImportReport:
    """Read, validate and stage the lines as they arrive; then store them. See `import_opt_outs`."""
    file = OptOutFile(parts, options)
    lines = file.validator
    await database.execute(CREATE_STAGING_TABLES)
    async with aclosing(file.batches()) as batches:
        async for _ in batches:
            await _stage(database, lines)
    # the stored response to a request with an Idempotency-Key must have no personal data
    errors = lines.errors if claim is None else [without_value(error) for error in lines.errors]
    encoding = UNSET if file.decoder.encoding == "UTF-8" else file.decoder.encoding
    report = OptOutImportReport(
        0, lines.staged, lines.rejected, errors, file.layout.ignored, encoding
    )
    async with database.transaction():
        done = await do_once(
            database, claim, lambda: _store(database, report, actor), msgspec.to_builtins
        )
    await _stop_messages(database)
    return msgspec.convert(done.result, OptOutImportReport)


class OptOutLines:
    """Validates lines: valid ones become `valid_rows` to stage, others are reported in `errors`.

    All rejected lines are added to `rejected_lines`, if it is given, with the fields in `reader`.
    """

    def __init__(
        self, now: datetime, reader: CsvReader, rejected_lines: RejectedLines | None
    ) -> None:
        self.valid_rows: list[OptOutRow] = []
        self.staged = 0
        """The number of lines that were valid, and are staged."""
        self.rejected = 0
        self.errors: list[RejectedField] = []
        self._now = now
        self._reader = reader
        self._rejected_lines = rejected_lines

    def validate(self, records: Iterable[Record]) -> None:
        """Validate more lines."""
        for number, fields in records:
            if isinstance(fields, UnreadableRecord):
                error = RejectedField(number, "", excerpt(fields.line), fields.message)
                self._reject(error, unreadable=fields)
                continue
            written_phone, written_time, zone = fields
            phone, time = normalize_phone(written_phone), _read_time(written_time, zone, self._now)
            is_phone = STORED_FORM.fullmatch(phone) is not None
            if is_phone and not isinstance(time, FieldError):
                self.valid_rows.append((phone, time))
                continue
            errors = []
            if not is_phone:
                message = ROUNDED_MESSAGE if is_rounded(written_phone) else WRONG_PHONE
                errors.append(RejectedField(number, "phone", excerpt(written_phone), message))
            if isinstance(time, FieldError):
                value = zone if time.field == TIME_ZONE.name else written_time
                errors.append(RejectedField(number, time.field, excerpt(value), time.message))
            self._reject(*errors)

    def _reject(self, *errors: RejectedField, unreadable: UnreadableRecord | None = None) -> None:
        """Count a rejected line, and report its errors up to `MAX_REPORTED_LINES`."""
        self.rejected += 1
        if self.rejected <= MAX_REPORTED_LINES:
            self.errors += errors
        if self._rejected_lines is not None:
            messages = {error.field: error.message for error in errors}
            row = [unreadable.line] if unreadable else self._reader.row
            self._rejected_lines.add(self._reader, row, messages)


OPT_OUT_COLUMNS = (
    PHONE,
    Column(
        "opted_out_at",
        header_names(
            *("opt-out date", "opted out at, local time"),
            *("дата отписки", "время отписки", "отписался", "время отписки, местное"),
        ),
        # without a colon it may be another number or the day of something else
        lambda text: (
            ":" in text and isinstance(_read_time(text, "", database_clock.now()), datetime)
        ),
    ),
    TIME_ZONE,
)
"""The columns that a file may have; the time zone is that of times without an offset."""


def _read_time(written: str, written_zone: str, now: datetime) -> datetime | FieldError | None:
    """Return the time of an opt-out; None if it is empty, or what is wrong.

    Without an offset it is a time of the time zone, or of UTC if that is empty: Excel has no
    offsets. A day without a time means its start.
    """
    if not written.strip():
        return None
    zone = strip_invisible(written_zone).strip() or "UTC"
    try:
        time = datetime.fromisoformat(written.strip())
        if time.tzinfo is None:
            if zone not in known_zones():
                return FieldError(TIME_ZONE.name, UNKNOWN_ZONE_MESSAGE)
            time = time.replace(tzinfo=ZoneInfo(zone))
        is_past = FIRST_TIME <= time <= now
    except (ValueError, OverflowError):
        is_past = False
    return time if is_past else FieldError("opted_out_at", WRONG_TIME)


class OptOutFile(ImportedFile[OptOutRow]):
    """A file of opt-outs."""

    validator: OptOutLines

    def __init__(self, parts: AsyncIterator[bytes], options: ImportOptions) -> None:
        super().__init__(parts, OPT_OUT_COLUMNS, options)
        self.validator = OptOutLines(database_clock.now(), self.reader, options.rejected)


class OptOutPreviewRow(msgspec.Struct, frozen=True):
    """An opt-out as the import would store it."""

    phone: str
    opted_out_at: datetime | None
    """None: the time of the import."""


async def preview_opt_outs(
    parts: AsyncIterator[bytes], options: ImportOptions = AS_DETECTED
) -> ImportPreview[OptOutPreviewRow]:
    """Read a file as an import does, and store nothing; see `preview_clients`."""
    file = OptOutFile(parts, options)
    return await preview_file(file, parts, lambda row: OptOutPreviewRow(*row))


async def _stage(database: asyncpg.Connection, lines: OptOutLines) -> None:
    """Move the valid lines to the staging table."""
    rows, lines.valid_rows = lines.valid_rows, []
    await database.copy_records_to_table(
        "opt_out_import", records=rows, timeout=IMPORT_STATEMENT_TIMEOUT
    )
    lines.staged += len(rows)


ANALYZE_STAGED_OPT_OUTS = "ANALYZE opt_out_import; SET LOCAL work_mem = '64MB'"
# Of the lines with the same phone, the earliest time counts. Returns the number of new opt-outs.
STORE_OPT_OUTS = ADD_OPT_OUTS.format(
    DIGEST=DIGEST,
    phones="SELECT phone, min(opted_out_at) FROM opt_out_import GROUP BY phone",
    source="'import', NULL",
    returned=""", clients AS (
        INSERT INTO opted_out_client SELECT client_id FROM added WHERE client_id IS NOT NULL)
    SELECT count(*) FROM added""",
)


async def _store(
    database: asyncpg.Connection, report: OptOutImportReport, actor: Actor
) -> OptOutImportReport:
    """Store the staged lines and write the audit log; return the report with all counts."""
    timeout = IMPORT_STATEMENT_TIMEOUT
    # one import at a time: two in different orders could wait for each other in a circle
    await database.execute(LOCK_IMPORT, IMPORT_LOCK, timeout=timeout)
    await database.execute(ANALYZE_STAGED_OPT_OUTS, timeout=timeout)
    created = await database.fetchval(STORE_OPT_OUTS, timeout=timeout)
    # not only with the chunks that follow: workers stop claimed messages right after the commit
    await database.execute(NOTIFY_OPT_OUTS)
    # the right may have been revoked during a long upload
    await reauthorize.ensure_authorized(database, actor, "write")
    counts = {"created": created, "unchanged": report.unchanged - created}
    target = audit.Target("opt_out")
    all_counts = counts | {"rejected": report.rejected}
    await audit.record(database, actor, "opt_outs_imported", target, after=all_counts)
    return msgspec.structs.replace(report, **counts)


TAKE_CLIENTS = f"""
    DELETE FROM opted_out_client WHERE ctid = ANY (ARRAY(
        SELECT ctid FROM opted_out_client LIMIT {CANCEL_BATCH}))
    RETURNING client_id"""  # noqa: S608  # no user input


async def _stop_messages(database: asyncpg.Connection) -> None:
    """Cancel the messages of the clients in chunks, so that sending goes on meanwhile."""
    while True:
        async with database.transaction():
            rows = await database.fetch(TAKE_CLIENTS)
            if not rows:
                return
            await stop_messages(database, [row["client_id"] for row in rows])
