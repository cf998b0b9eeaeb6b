"""Export of the clients as CSV, or as rows of a workbook, that can be imported again."""

import re
from collections.abc import AsyncGenerator, Collection, Iterable
from contextlib import aclosing

from sqlalchemy.ext.asyncio import AsyncEngine

from mailer.access import audit
from mailer.access.audited_export import stream_audited
from mailer.access.model import Actor
from mailer.client.field_columns import field_column, header_of
from mailer.client.field_names import known_field_names
from mailer.client.lists.store import find_ids
from mailer.client.store import find_ids_by_phone, normalize_filter
from mailer.db.csv_export import PLAIN_CSV, CsvLayout, CsvPart, CsvSource, copy_in_chunks

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
BEFORE_FORMULA_OF_WORKBOOK = BEFORE_FORMULA.replace("('*)", "('+)")
WORKBOOK_TAG = escape_formula_sql("coalesce(tag_written, tag)", BEFORE_FORMULA_OF_WORKBOOK)
CLIENT_ROWS = CLIENT_SOURCE._replace(columns=f"phone, operator_code, {WORKBOOK_TAG}, time_zone")

ON_LIST = "id IN (SELECT client_id FROM client_list_member WHERE list_id = {})"
"""SQL for whether a client is on a list; `{}` is the place of the list's id."""


def with_fields(
    source: CsvSource, names: Iterable[str], before_formula: str = BEFORE_FORMULA
) -> CsvSource:
    """Return a source of clients with a column for each of these fields, sorted by name.

    Their names need no quotes in SQL strings: they have letters, digits and _ alone.
    """
    columns = []
    for name in sorted(names):
        value = escape_formula_sql(f"fields ->> '{name}'", before_formula)
        columns.append(f'{value} AS "{header_of(field_column(name))}"')
    return source._replace(columns=", ".join([source.columns, *columns]))


async def export_clients(
    engine: AsyncEngine,
    actor: Actor,
    *,
    layout: CsvLayout = PLAIN_CSV,
    workbook_fields: Collection[str] | None = None,
    opted_out: bool | None = None,
    **filters: str,
) -> AsyncGenerator[CsvPart, None]:
    """Yield as CSV the clients whose fields equal `filters`, oldest first; deleted ones excluded.

    The filter `phone` is a `PhoneSearch`, and `list` the name of a list. `opted_out` is whether the
    clients have opted out; None for both. `layout` is how the file is written. `workbook_fields`
    are the fields of a workbook, whose rows are yielded instead: without a header, and without
    apostrophes before formulas.

    PostgreSQL's COPY quotes the fields. A formula in a tag gets an apostrophe, which an import
    removes. A null tag is written as an empty field, which an import reads as null; no stored tag
    is empty. The same holds for the fields that users have named: each of the most used names has a
    column (`mailer.client.field_names`). So importing an export changes nothing.

    The start of the export is written to the audit log before the first part is yielded. Raises
    `AccessRevokedError` midway when `actor` loses the right to read.
    """
    if workbook_fields is None:
        async with engine.connect() as connection:
            field_names = await known_field_names(connection)
        source = with_fields(CLIENT_SOURCE, field_names)
    else:
        source = with_fields(CLIENT_ROWS, workbook_fields, BEFORE_FORMULA_OF_WORKBOOK)
        layout = CsvLayout(header=b"")
    filtered_by = sorted(filters)
    if opted_out is not None:
        condition = f"opted_out_at IS {'NOT ' if opted_out else ''}NULL"
        source = source._replace(where=f"{source.where} AND {condition}")
        filtered_by.append("opted_out")
    conditions: dict[str, str | list[int]] = {**normalize_filter(filters)}
    if (list_name := filters.get("list")) is not None:
        del conditions["list"]
        async with engine.connect() as connection:
            (list_id,) = await find_ids(connection, [list_name], "list")
        source = source._replace(where=f"{source.where} AND {ON_LIST.format(list_id)}")
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
