"""Export of the clients as CSV, or as rows of a workbook, that can be imported again."""

import re
from collections.abc import AsyncGenerator
from contextlib import aclosing

from sqlalchemy.ext.asyncio import AsyncEngine

from mailer.access import audit
from mailer.access.audited_export import stream_audited
from mailer.access.model import Actor
from mailer.client.store import find_ids_by_phone, normalize_filter
from mailer.db.csv_export import CsvLayout, CsvPart, CsvSource, copy_in_chunks

# A spreadsheet runs a cell that begins with a sign such as = as a formula. An apostrophe before the
# sign makes the cell plain text, as OWASP advises
# (https://owasp.org/www-community/attacks/CSV_Injection). So `=1+1` is exported as `'=1+1`.
#
# A spreadsheet that opens the file with another delimiter begins a new cell after every comma,
# semicolon, tab and line end, even inside quotes. So a sign after one of them gets an apostrophe
# too: `a;=1` is exported as `a;'=1`.
#
# A formula that has apostrophes already gets one more: `'=1` is exported as `''=1`. So an import
# restores every text exactly by removing one.
#
# PostgreSQL reads these patterns as Python does.
FORMULA_START = r"[=+@\t\r\n\uff1d\uff0b\uff0d\uff20\-]"
"""The first character of a formula: a sign, also full-width, or a blank that spreadsheets skip."""
CELL_START = r"(?<![^,;\t\r\n])"
"""The start of a cell under some delimiter: the start of the text, or after a delimiter or a line
end. The pattern says: not after any other character."""
BEFORE_FORMULA = rf"{CELL_START}('*)(?={FORMULA_START})"
"""The apostrophes, if any, between the start of a cell and a formula, as a group."""
_ESCAPED_FORMULA = re.compile(rf"{CELL_START}'('*)(?={FORMULA_START})")
"""As `BEFORE_FORMULA`, with the apostrophe that an export added outside the group."""


def escape_formula_sql(column: str, before_formula: str = BEFORE_FORMULA) -> str:
    """Return an SQL expression for a text column with an apostrophe before each formula."""
    pattern = before_formula.replace("'", "''")  # in a string of SQL, two apostrophes mean one
    return rf"regexp_replace({column}, '{pattern}', '''\1', 'g')"


def unescape_formula(cell: str) -> str:
    """Return a cell without the apostrophes that an export added; any other cell stays as it is."""
    return _ESCAPED_FORMULA.sub(r"\1", cell) if "'" in cell else cell


EXPORTED_TAG = escape_formula_sql("coalesce(tag_written, tag)")
"""The tag as a user wrote it; `tag_written` is null when it is the same as `tag`."""
CLIENT_SOURCE = CsvSource(
    table="client",
    key="id",
    columns=f"phone, operator_code, {EXPORTED_TAG} AS tag, time_zone",
    where="deleted_at IS NULL",
)
# A cell of a workbook that is a text is never run as a formula, so it needs no apostrophe. But an
# import would remove one that the text has, so that one gets another.
WORKBOOK_TAG = escape_formula_sql(
    "coalesce(tag_written, tag)", BEFORE_FORMULA.replace("('*)", "('+)")
)
CLIENT_ROWS = CLIENT_SOURCE._replace(columns=f"phone, operator_code, {WORKBOOK_TAG}, time_zone")


async def export_clients(
    engine: AsyncEngine,
    actor: Actor,
    *,
    as_workbook: bool = False,
    opted_out: bool | None = None,
    **filters: str,
) -> AsyncGenerator[CsvPart, None]:
    """Yield as CSV the clients whose fields equal `filters`, oldest first; deleted ones excluded.

    The filter `phone` is a `PhoneSearch`. `opted_out` is whether they have opted out; None for
    both. `as_workbook` yields the rows of a workbook: without a header, and without apostrophes
    before formulas.

    PostgreSQL's COPY quotes the fields. A formula in a tag gets an apostrophe, which an import
    removes. A null tag is written as an empty field, which an import reads as null; no stored tag
    is empty. So importing an export changes nothing.

    The start of the export is written to the audit log before the first part is yielded. Raises
    `AccessRevokedError` midway when `actor` loses the right to read.
    """
    source = CLIENT_ROWS if as_workbook else CLIENT_SOURCE
    layout = CsvLayout(header=b"") if as_workbook else CsvLayout()
    filtered_by = sorted(filters)
    if opted_out is not None:
        condition = f"opted_out_at IS {'NOT ' if opted_out else ''}NULL"
        source = source._replace(where=f"{source.where} AND {condition}")
        filtered_by.append("opted_out")
    conditions: dict[str, str | list[int]] = {**normalize_filter(filters)}
    if (searched := filters.get("phone")) is not None:
        del conditions["phone"]
        async with engine.connect() as connection:
            conditions["id"] = await find_ids_by_phone(connection, searched)
    chunks = copy_in_chunks(engine, source, conditions, layout=layout)
    # only the names of the filtered fields are logged: their values may identify a client
    exported = stream_audited(
        engine,
        actor,
        chunks,
        "clients_exported",
        audit.Target("directory"),
        after={"filter": filtered_by},
    )
    async with aclosing(exported) as parts:
        async for part in parts:
            yield part
