"""Export of a mailing's messages as a CSV file that spreadsheets open as a table.

It has phones, local times, costs, and words instead of names of the API. That for programs is in
`exporting`.
"""

import codecs
import csv
import io
from collections.abc import AsyncGenerator, Mapping
from typing import Literal

import msgspec
from sqlalchemy.ext.asyncio import AsyncEngine

from mailer.access import audit
from mailer.access.audited_export import stream_audited
from mailer.access.model import Actor
from mailer.client.exporting import escape_formula_sql
from mailer.db.csv_export import (
    CsvFilters,
    CsvLayout,
    CsvPart,
    CsvSource,
    constant_parameter,
    copy_in_chunks,
)
from mailer.message.reading import SHOWN_TEXT

Separator = Literal["comma", "semicolon"]
DELIMITER_CHARACTERS: Mapping[Separator, str] = {"comma": ",", "semicolon": ";"}
DECIMAL_MARKS: Mapping[Separator, str] = {"comma": ".", "semicolon": ","}
"""The mark in decimal fractions. Spreadsheets in languages that write fractions with a comma expect
semicolons between the cells."""
COST_DECIMALS = 6
"""Decimals of a cost; prices of a part may have several."""

SpreadsheetColumn = Literal[
    "phone", "tag", "time_zone", "sent_at", "status", "reason", "gateway", "parts", "cost", "text"
]


class SpreadsheetWords(msgspec.Struct, frozen=True):
    """What the file has in the language of its reader, and the prices."""

    header: Mapping[SpreadsheetColumn, str]
    statuses: Mapping[str, str]
    reasons: Mapping[str, str]
    """Words for reasons; other reasons are written as they are."""
    prices: Mapping[str, float | None]
    """Price of a part by gateway."""


# OFFSET 0 keeps the planner from reading the whole directory for each chunk of messages.
MESSAGES_WITH_CLIENTS = f"""(
    SELECT mailing_id, client_id, status, reason, gateway, parts, sent_at, {SHOWN_TEXT} AS text,
        client.phone, client.tag, client.time_zone AS local_zone
    FROM message LEFT JOIN LATERAL (
        SELECT phone, coalesce(tag_written, tag) AS tag, time_zone
        FROM client WHERE client.id = client_id OFFSET 0
    ) AS client ON true) AS message"""  # noqa: S608  # inserts an expression of our own
# SQL expressions by column; {words} is the JSON of `SpreadsheetWords`
SPREADSHEET_COLUMNS: Mapping[SpreadsheetColumn, str] = {
    "phone": "phone",
    "tag": escape_formula_sql("tag"),
    "time_zone": "local_zone",
    "sent_at": "to_char(sent_at AT TIME ZONE local_zone, 'YYYY-MM-DD HH24:MI:SS')",
    "status": "{words} -> 'statuses' ->> status",
    "reason": escape_formula_sql("coalesce({words} -> 'reasons' ->> reason, reason)"),
    "gateway": escape_formula_sql("gateway"),
    "parts": "parts",
    "cost": "replace(trim_scale(round(parts * ({words} -> 'prices' ->> gateway)::numeric,"
    f" {COST_DECIMALS}))::text, '.', {{decimal_mark}})",
    "text": escape_formula_sql("text"),
}


def export_spreadsheet(  # noqa: PLR0913, PLR0917  # what the file has, and who reads it
    engine: AsyncEngine,
    mailing_id: int,
    actor: Actor,
    words: SpreadsheetWords,
    separator: Separator,
    filters: CsvFilters,
) -> AsyncGenerator[CsvPart, None]:
    """Yield a mailing's messages as CSV for spreadsheets, ordered by client.

    The file begins with a byte order mark, by which Excel recognizes UTF-8. No value is one that a
    spreadsheet interprets as a formula. The start of the export is written to the audit log before
    the first part is yielded. Raises `AccessRevokedError` in the middle of the file when
    `actor` may no longer read.
    """
    conditions = {"mailing_id": mailing_id, **filters}
    columns = ", ".join(SPREADSHEET_COLUMNS.values()).format(
        words=f"({constant_parameter(conditions, 0)}::text)::jsonb",
        decimal_mark=f"{constant_parameter(conditions, 1)}::text",
    )
    source = CsvSource(table=MESSAGES_WITH_CLIENTS, key="client_id", columns=columns, where="true")
    constants = (msgspec.json.encode(words).decode(), DECIMAL_MARKS[separator])
    layout = CsvLayout(
        DELIMITER_CHARACTERS[separator], _header(words, DELIMITER_CHARACTERS[separator])
    )
    chunks = copy_in_chunks(engine, source, conditions, constants, layout)
    return stream_audited(
        engine,
        actor,
        chunks,
        "messages_exported",
        audit.Target("mailing", mailing_id),
        # names only: the ids of clients may identify one
        after={"filter": sorted(filters)},
    )


def _header(words: SpreadsheetWords, delimiter: str) -> bytes:
    """Return the byte order mark and the first line of the file."""
    line = io.StringIO()
    writer = csv.writer(line, delimiter=delimiter, lineterminator="\n")
    writer.writerow(words.header[column] for column in SPREADSHEET_COLUMNS)
    return codecs.BOM_UTF8 + line.getvalue().encode()
