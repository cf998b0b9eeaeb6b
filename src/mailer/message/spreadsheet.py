"""Export of a mailing's messages to read: as an Excel workbook, or as CSV for spreadsheets.

It has phones, local times, costs, and words instead of names of the API. That for programs is in
`exporting`.
"""

import csv
import io
from collections.abc import AsyncGenerator, Mapping, Sequence
from typing import Literal, NamedTuple

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
from mailer.web.workbook_layout import ColumnKind, WorkbookColumn, WorkbookLayout

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
# SQL expressions by column; {words} is the JSON of `SpreadsheetWords`. Texts are written as they
# are; in CSV, those of `UNSAFE_COLUMNS` are escaped.
SPREADSHEET_COLUMNS: Mapping[SpreadsheetColumn, str] = {
    "phone": "phone",
    "tag": "tag",
    "time_zone": "local_zone",
    "sent_at": "to_char(sent_at AT TIME ZONE local_zone, 'YYYY-MM-DD HH24:MI:SS')",
    "status": "{words} -> 'statuses' ->> status",
    "reason": "coalesce({words} -> 'reasons' ->> reason, reason)",
    "gateway": "gateway",
    "parts": "parts",
    "cost": "replace(trim_scale(round(parts * ({words} -> 'prices' ->> gateway)::numeric,"
    f" {COST_DECIMALS}))::text, '.', {{decimal_mark}})",
    "text": "text",
}


UNSAFE_COLUMNS: frozenset[SpreadsheetColumn] = frozenset({"tag", "reason", "gateway", "text"})
"""Columns whose texts a spreadsheet that reads CSV may interpret as formulas."""
WORKBOOK_COLUMNS: Mapping[SpreadsheetColumn, tuple[float, ColumnKind]] = {
    "phone": (14, "text"),
    "tag": (16, "text"),
    "time_zone": (20, "text"),
    "sent_at": (20, "time"),
    "status": (16, "text"),
    "reason": (32, "text"),
    "gateway": (14, "text"),
    "parts": (9, "number"),
    "cost": (11, "number"),
    "text": (60, "text"),
}
"""Width and kind of the columns of a workbook."""


class SpreadsheetExport(NamedTuple):
    """The messages of a mailing to export, who reads them, and the words for them."""

    engine: AsyncEngine
    mailing_id: int
    actor: Actor
    words: SpreadsheetWords
    filters: CsvFilters

    def as_csv(self, separator: Separator) -> AsyncGenerator[CsvPart, None]:
        """Yield the messages as CSV for spreadsheets, ordered by client.

        The file begins with a byte order mark, by which Excel recognizes UTF-8. No value is one
        that a spreadsheet interprets as a formula. The start of the export is written to the audit
        log before the first part is yielded. Raises `AccessRevokedError` in the middle of the file
        when the actor may no longer read.
        """
        delimiter = DELIMITER_CHARACTERS[separator]
        columns = [
            escape_formula_sql(expression) if column in UNSAFE_COLUMNS else expression
            for column, expression in SPREADSHEET_COLUMNS.items()
        ]
        layout = CsvLayout(delimiter, _header(self.words, delimiter), has_mark=True)
        return self._read(columns, DECIMAL_MARKS[separator], layout)

    def rows(self) -> AsyncGenerator[CsvPart, None]:
        """Yield the rows of `workbook_layout`, as `as_csv` does otherwise."""
        return self._read(list(SPREADSHEET_COLUMNS.values()), ".", CsvLayout(header=b""))

    def workbook_layout(self, sheet: str) -> WorkbookLayout:
        """Return the columns of a workbook whose sheet has this name."""
        columns = [
            WorkbookColumn(self.words.header[column], *WORKBOOK_COLUMNS[column])
            for column in SPREADSHEET_COLUMNS
        ]
        return WorkbookLayout(sheet, columns)

    def _read(
        self, columns: Sequence[str], decimal_mark: str, layout: CsvLayout
    ) -> AsyncGenerator[CsvPart, None]:
        conditions = {"mailing_id": self.mailing_id, **self.filters}
        expressions = ", ".join(columns).format(
            words=f"({constant_parameter(conditions, 0)}::text)::jsonb",
            decimal_mark=f"{constant_parameter(conditions, 1)}::text",
        )
        source = CsvSource(
            MESSAGES_WITH_CLIENTS, key="client_id", columns=expressions, where="true"
        )
        constants = (msgspec.json.encode(self.words).decode(), decimal_mark)
        chunks = copy_in_chunks(self.engine, source, conditions, constants, layout)
        return stream_audited(
            self.engine,
            self.actor,
            chunks,
            "messages_exported",
            audit.Target("mailing", self.mailing_id),
            # names only: the ids of clients may identify one
            after={"filter": sorted(self.filters)},
        )


def _header(words: SpreadsheetWords, delimiter: str) -> bytes:
    """Return the first line of the file."""
    line = io.StringIO()
    writer = csv.writer(line, delimiter=delimiter, lineterminator="\n")
    writer.writerow(words.header[column] for column in SPREADSHEET_COLUMNS)
    return line.getvalue().encode()
