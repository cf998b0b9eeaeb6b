"""Export of the clients as a CSV file that can be imported again."""

from collections.abc import AsyncGenerator
from contextlib import aclosing

from sqlalchemy.ext.asyncio import AsyncEngine

from mailer.access import audit, reauthorize
from mailer.access.model import Actor
from mailer.client.formulas import escape_formula_sql
from mailer.client.store import normalize_filter
from mailer.db.csv_export import CsvPart, CsvSource, copy_in_chunks

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
