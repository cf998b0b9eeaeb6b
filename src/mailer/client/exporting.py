"""Export of the clients as a CSV file that can be imported again."""

import re
from collections.abc import AsyncGenerator
from contextlib import aclosing

from sqlalchemy.ext.asyncio import AsyncEngine

from mailer.access import audit, reauthorize
from mailer.access.model import Actor
from mailer.client.store import normalize_filter
from mailer.db.csv_export import CsvPart, CsvSource, copy_in_chunks

# An apostrophe before a formula makes it plain text, as OWASP advises
# (https://owasp.org/www-community/attacks/CSV_Injection). It is added at the start of a cell and
# also after every comma, semicolon, tab and line end inside the cell: a program that opens the file
# with another delimiter lets new cells begin there, even inside quotes. Where apostrophes already
# precede the formula one more is added, so that removing one restores every text exactly.
FORMULA_STARTS = r"=+@\t\r\n\uff1d\uff0b\uff0d\uff20\-"
"""First characters of formulas: the signs, their full-width forms, and blanks that spreadsheets
skip."""
BEFORE_FORMULA = rf"(?<![^,;\t\r\n])('*)(?=[{FORMULA_STARTS}])"
"""The start of a cell under any delimiter, with its apostrophes, when a formula follows. Python and
PostgreSQL interpret the pattern in the same way."""
_ESCAPED_FORMULA = re.compile(rf"(?<![^,;\t\r\n])'('*)(?=[{FORMULA_STARTS}])")


def escape_formula_sql(column: str) -> str:
    """Return an SQL expression that escapes the formulas in a text column."""
    pattern = BEFORE_FORMULA.replace("'", "''")
    return rf"regexp_replace({column}, '{pattern}', '''\1', 'g')"


def unescape_formula(cell: str) -> str:
    """Return the text of a cell before it was escaped; cells without an escape stay as they are."""
    return _ESCAPED_FORMULA.sub(r"\1", cell) if "'" in cell else cell


EXPORT_COLUMNS = (
    f"phone, operator_code, {escape_formula_sql('coalesce(tag_written, tag)')} AS tag, time_zone"
)
CLIENTS = CsvSource("client", "id", EXPORT_COLUMNS, "deleted_at IS NULL")


async def export_clients(
    engine: AsyncEngine, actor: Actor, **filters: str
) -> AsyncGenerator[CsvPart, None]:
    """Yield as CSV the clients whose fields equal `filters`, oldest first; deleted ones excluded.

    PostgreSQL's COPY quotes the fields. A tag that a spreadsheet would run as a formula is escaped,
    and an import removes the escape: importing an export changes nothing. A null tag is written as
    an empty field; no stored tag is empty.

    The start of the export is written to the audit log before the first part is yielded. Raises
    `AccessRevokedError` midway when `actor` loses the right to read.
    """
    is_audited = False
    chunks = copy_in_chunks(engine, CLIENTS, normalize_filter(filters))
    async with aclosing(
        reauthorize.stream_while_authorized(engine, actor, "read", chunks)
    ) as parts:
        async for part in parts:
            if not is_audited:
                await _write_audit(engine, actor, sorted(filters))
                is_audited = True
            yield part


async def _write_audit(engine: AsyncEngine, actor: Actor, filtered_by: list[str]) -> None:
    """Write the export to the audit log.

    Only the names of the filtered fields are logged: their values may identify a client.
    """
    async with engine.begin() as connection:
        after = {"filter": filtered_by}
        target = audit.Target("directory")
        await audit.record(connection, actor, "clients_exported", target, after=after)
