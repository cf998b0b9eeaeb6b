"""The directory as a CSV file that an import takes back."""

from collections.abc import AsyncGenerator
from contextlib import aclosing

from sqlalchemy.ext.asyncio import AsyncEngine

from mailer.access import audit, still
from mailer.access.model import Actor
from mailer.client.formulas import harmless
from mailer.client.store import as_stored
from mailer.db.copying import CsvPart, Source, copy_in_chunks

COLUMNS = f"phone, operator_code, {harmless('coalesce(tag_written, tag)')} AS tag, time_zone"
CLIENTS = Source("client", "id", COLUMNS, "deleted_at IS NULL")


async def export_clients(
    engine: AsyncEngine, by: Actor, **equal: str
) -> AsyncGenerator[CsvPart, None]:
    """Give the living clients whose fields equal what is given, as CSV, oldest first.

    COPY quotes what needs it. A tag that a spreadsheet would take for a formula is marked as text,
    and an import takes the mark away: an export that is imported changes nothing. Null is empty,
    and no tag is.

    That it begins is written into the audit log before anything is given. It breaks off with
    `TakenAwayError` when `by` may not read any more.
    """
    is_written = False
    chunks = copy_in_chunks(engine, CLIENTS, as_stored(equal))
    async with aclosing(still.while_allowed(engine, by, "read", chunks)) as parts:
        async for part in parts:
            if not is_written:
                await _record(engine, by, sorted(equal))
                is_written = True
            yield part


async def _record(engine: AsyncEngine, by: Actor, filtered_by: list[str]) -> None:
    """Write down who takes clients out; of the filter only the fields, which may name somebody."""
    async with engine.begin() as connection:
        after = {"filter": filtered_by}
        target = audit.Target("directory")
        await audit.record(connection, by, "clients_exported", target, after=after)
