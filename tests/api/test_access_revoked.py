"""Long operations (imports, downloads) are authorized again before they commit or continue."""

from collections.abc import AsyncIterator
from contextlib import aclosing

import httpx
import pytest
from sqlalchemy.ext.asyncio import AsyncEngine
from tests.api.browser_session import create_browser, signed_in_browser
from tests.factories import add_clients, add_mailing, add_messages, do, execute, value

from mailer.access import keys
from mailer.access.model import COMMAND_LINE, Actor
from mailer.access.reauthorize import AccessRevokedError
from mailer.client.exporting import export_clients
from mailer.db.csv_export import CHUNK_ROWS
from mailer.message.exporting import export_messages

CSV = {"Content-Type": "text/csv"}
COUNT_CLIENTS = "SELECT count(*) FROM client"
COUNT_RECORDED_IMPORTS = "SELECT count(*) FROM audit WHERE action = 'clients_imported'"
COUNT_STAGING_TABLES = "SELECT count(*) FROM pg_class WHERE relname = 'client_import'"
"""An import copies the rows of the file into a temporary table first."""


async def create_key(engine: AsyncEngine) -> tuple[keys.Key, str]:
    """Create a key and return it with its secret."""
    new = keys.NewKey(name="crm", scope="write")
    return await do(engine, lambda connection: keys.create(connection, new, COMMAND_LINE))


async def upload(engine: AsyncEngine, meanwhile: str) -> AsyncIterator[bytes]:
    """Yield a CSV file of 3001 clients; before the last row, execute the statement `meanwhile`."""
    yield b"phone\n"
    yield "".join(f"7916{n:07}\n" for n in range(3000)).encode()
    await execute(engine, meanwhile)
    yield b"79170000000\n"


async def assert_nothing_is_stored(engine: AsyncEngine, answer: httpx.Response) -> None:
    """Assert that an import was refused and has left nothing in the database."""
    assert answer.status_code == 403
    assert "The right to do this was revoked in the meantime." in answer.text
    assert await value(engine, COUNT_CLIENTS) == 0
    assert await value(engine, COUNT_RECORDED_IMPORTS) == 0
    assert await value(engine, COUNT_STAGING_TABLES) == 0


@pytest.mark.parametrize(
    "meanwhile",
    [
        "UPDATE api_key SET revoked_at = now()",
        "UPDATE api_key SET expires_at = now()",
        "UPDATE api_key SET scope = 'read'",
    ],
)
async def test_import_stores_nothing_when_its_key_loses_access_during_the_upload(
    engine: AsyncEngine, meanwhile: str
) -> None:
    _, secret = await create_key(engine)
    headers = CSV | {"Authorization": f"Bearer {secret}", "Accept": "application/json"}
    async with create_browser(engine) as program:
        content = upload(engine, meanwhile)
        answer = await program.post("/api/v1/clients/import", content=content, headers=headers)
    await assert_nothing_is_stored(engine, answer)


@pytest.mark.parametrize(
    "meanwhile",
    [
        "UPDATE app_user SET disabled_at = now()",
        "UPDATE app_user SET role = 'viewer'",
        "DELETE FROM session",
        "UPDATE session SET created_at = now() - interval '12 hours'",
    ],
)
async def test_import_stores_nothing_when_its_user_loses_access_during_the_upload(
    engine: AsyncEngine, meanwhile: str
) -> None:
    async with await signed_in_browser(engine, "operator") as browser:
        content = upload(engine, meanwhile)
        answer = await browser.post("/clients/import", content=content, headers=CSV)
    await assert_nothing_is_stored(engine, answer)


async def test_import_succeeds_when_the_new_role_of_its_user_still_allows_it(
    engine: AsyncEngine,
) -> None:
    async with await signed_in_browser(engine, "admin") as browser:
        content = upload(engine, "UPDATE app_user SET role = 'operator'")
        answer = await browser.post("/clients/import", content=content, headers=CSV)
    assert answer.status_code == 200
    assert await value(engine, COUNT_CLIENTS) == 3001


@pytest.mark.parametrize("exported", ["clients", "messages"])
async def test_download_stops_after_its_key_is_revoked(engine: AsyncEngine, exported: str) -> None:
    clients = await add_clients(engine, CHUNK_ROWS + 1)  # so there are two chunks
    mailing_id = await add_mailing(engine)
    await add_messages(engine, mailing_id, clients, "scheduled")
    key, _ = await create_key(engine)
    actor = Actor("key", key.name, key.id, key.scope)
    export = (
        export_clients(engine, actor)
        if exported == "clients"
        else export_messages(engine, mailing_id, actor)
    )
    async with aclosing(export) as chunks:
        assert (await anext(chunks)).rows == CHUNK_ROWS
        await do(engine, lambda connection: keys.revoke(connection, key.id, COMMAND_LINE))
        with pytest.raises(AccessRevokedError):
            await anext(chunks)
