"""The directory as a CSV file that an import takes back."""

from collections.abc import AsyncGenerator

from sqlalchemy.ext.asyncio import AsyncEngine

from mailer.client.formulas import harmless
from mailer.db.copying import CsvPart, Source, copy_in_chunks

COLUMNS = f"phone, operator_code, {harmless('tag')} AS tag, time_zone"
CLIENTS = Source("client", "id", COLUMNS, "deleted_at IS NULL")


def export_clients(engine: AsyncEngine, **equal: str) -> AsyncGenerator[CsvPart, None]:
    """Give the living clients whose columns equal what is given, as CSV, oldest first.

    COPY quotes what needs it. A tag that a spreadsheet would take for a formula is marked as text,
    and an import takes the mark away: an export that is imported changes nothing. Null is empty,
    and no tag is.
    """
    return copy_in_chunks(engine, CLIENTS, equal)
