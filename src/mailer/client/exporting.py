"""The directory as a CSV file that an import takes back."""

from collections.abc import AsyncGenerator

from sqlalchemy.ext.asyncio import AsyncEngine

from mailer.db.copying import CsvPart, Source, copy_in_chunks

CLIENTS = Source("client", "id", "phone, operator_code, tag, time_zone", "deleted_at IS NULL")


def export_clients(engine: AsyncEngine, **equal: str) -> AsyncGenerator[CsvPart, None]:
    """Give the living clients whose columns equal what is given, as CSV, oldest first.

    COPY quotes what needs it and leaves values as they are, also those that a spreadsheet would
    take for a formula: an export that is imported changes nothing. Null is empty, and no tag is.
    """
    return copy_in_chunks(engine, CLIENTS, equal)
