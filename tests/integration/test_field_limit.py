"""Lines of a file that would give a client too many fields, with those of the client."""

import csv
import io
from collections.abc import AsyncIterator

import pytest
from sqlalchemy.ext.asyncio import AsyncEngine
from tests.factories import execute
from tests.integration.client_files import LineCounts, line_counts, split_into_chunks
from tests.integration.test_field_columns import ANNA, BORIS, VERA, create_client, stored_fields

from mailer.access.model import COMMAND_LINE
from mailer.client.fields import MAX_CLIENT_FIELDS, TOO_MANY_FIELDS
from mailer.client.importing import import_clients
from mailer.client.previewing import preview_clients
from mailer.client.reading import BATCH_SIZE, ImportOptions
from mailer.client.rejected import RejectedLines
from mailer.client.rows import RejectedField

FULL = {f"f{n}": "x" for n in range(MAX_CLIENT_FIELDS)}
FILE = f"note,phone,f0,name\na,{BORIS},x,Boris\nb,{ANNA},y,Anna\nc,916,,\nd,{VERA},,Vera\n"
OVER_LIMIT = RejectedField(3, "fields", "", TOO_MANY_FIELDS)


@pytest.fixture(autouse=True)
async def anna(engine: AsyncEngine) -> None:
    """A client who has as many fields as allowed."""
    await create_client(engine, ANNA, FULL)


async def test_the_file_of_rejected_lines_has_those_over_the_limit(engine: AsyncEngine) -> None:
    columns = ["", "phone", "f0", "name"]
    with RejectedLines() as rejected:
        parts = split_into_chunks(FILE.encode(), 10)
        options = ImportOptions(columns, rejected)
        report = await import_clients(engine, parts, COMMAND_LINE, options=options)
        text = b"".join([part.content async for part in rejected.parts()]).decode("utf-8-sig")
    assert line_counts(report) == LineCounts(created=2, rejected=2)
    assert [error.line for error in report.errors] == [3, 4]
    assert report.errors[0] == OVER_LIMIT
    header, *lines = csv.reader(io.StringIO(text))
    assert header == ["note", "phone", "f0", "name", "rejected_reason"]
    assert min(lines) == ["b", ANNA, "y", "Anna", f"fields: {TOO_MANY_FIELDS}"]
    assert len(lines) == 2
    assert (await stored_fields(engine))[ANNA] == FULL


async def test_a_preview_counts_lines_over_the_limit_as_wrong(engine: AsyncEngine) -> None:
    with RejectedLines() as rejected:
        parts = split_into_chunks(FILE.encode(), 10)
        options = ImportOptions(("", "phone", "f0", "name"), rejected)
        preview = await preview_clients(engine, parts, options)
        text = b"".join([part.content async for part in rejected.parts()]).decode()
    assert (preview.valid, preview.rejected) == (2, 2)
    assert [row.phone for row in preview.rows] == [BORIS, VERA]
    assert preview.errors[0] == OVER_LIMIT
    assert TOO_MANY_FIELDS in text


async def test_a_client_who_gets_fields_during_the_upload_is_not_given_more(
    engine: AsyncEngine,
) -> None:
    await create_client(engine, VERA, {})
    fillers = "".join(f"7999{number:07},x\n" for number in range(BATCH_SIZE))

    async def upload() -> AsyncIterator[bytes]:
        yield f"phone,name\n{VERA},Vera\n{fillers}".encode()
        await execute(
            engine,
            "UPDATE client SET fields = (SELECT fields FROM client WHERE id = 1) WHERE id = 2",
        )
        yield b"79998000000,x\n"

    report = await import_clients(engine, upload(), COMMAND_LINE)
    assert line_counts(report) == LineCounts(created=BATCH_SIZE + 1, rejected=1)
    assert report.errors == [RejectedField(2, "fields", "", TOO_MANY_FIELDS)]
    assert (await stored_fields(engine))[VERA] == FULL
