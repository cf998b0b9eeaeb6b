"""Import and export of client files in tests, and the clients that are stored afterwards."""

from collections.abc import AsyncIterator

import msgspec
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from mailer.access.model import COMMAND_LINE
from mailer.client.exporting import export_clients
from mailer.client.importing import ImportReport, import_clients

SELECT_CLIENTS = text("""
    SELECT phone, operator_code, coalesce(tag_written, tag) AS tag, time_zone FROM client
    WHERE deleted_at IS NULL ORDER BY id""")


class LineCounts(msgspec.Struct, frozen=True, kw_only=True):
    """The counts in the report of an import; a count that a test does not name is 0."""

    created: int = 0
    updated: int = 0
    unchanged: int = 0
    rejected: int = 0


class StoredClient(msgspec.Struct, frozen=True):
    """A client in the database."""

    phone: str
    operator_code: str
    tag: str | None = None
    time_zone: str = "UTC"


def line_counts(report: ImportReport) -> LineCounts:
    return LineCounts(
        created=report.created,
        updated=report.updated,
        unchanged=report.unchanged,
        rejected=report.rejected,
    )


async def split_into_chunks(content: bytes, chunk_size: int) -> AsyncIterator[bytes]:
    for start in range(0, len(content), chunk_size):
        yield content[start : start + chunk_size]


async def import_content(
    engine: AsyncEngine, content: bytes, chunk_size: int = 65_536
) -> ImportReport:
    """Import a file that arrives in chunks of `chunk_size` bytes."""
    return await import_clients(engine, split_into_chunks(content, chunk_size), COMMAND_LINE)


async def import_lines(engine: AsyncEngine, *lines: str) -> ImportReport:
    """Import a file of these lines; the first one is the header."""
    return await import_content(engine, "\n".join(lines).encode())


async def export_all(engine: AsyncEngine) -> bytes:
    return b"".join([chunk.content async for chunk in export_clients(engine, COMMAND_LINE)])


async def stored_clients(engine: AsyncEngine) -> list[StoredClient]:
    """Return all clients that are not deleted, in the order of their creation."""
    async with engine.connect() as connection:
        rows = (await connection.execute(SELECT_CLIENTS)).mappings()
        return [StoredClient(**row) for row in rows]


async def stored_tags(engine: AsyncEngine) -> list[str | None]:
    """Return the tag of each client, as it was written, in the order of their creation."""
    return [client.tag for client in await stored_clients(engine)]


async def delete_all_clients(engine: AsyncEngine) -> None:
    async with engine.begin() as connection:
        await connection.execute(text("TRUNCATE client"))
