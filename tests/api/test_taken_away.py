"""What takes long is done only for who may still do it when it counts."""

from collections.abc import AsyncIterator
from contextlib import aclosing

import httpx
import pytest
from sqlalchemy.ext.asyncio import AsyncEngine
from tests.api.visits import signed_in, visitor
from tests.sample import add_clients, add_mailing, add_messages, do, execute, value

from mailer.access import keys
from mailer.access.model import COMMAND_LINE, Actor
from mailer.access.still import TakenAwayError
from mailer.client.exporting import export_clients
from mailer.db.copying import CHUNK
from mailer.message.exporting import export_messages

CSV = {"Content-Type": "text/csv"}
STORED = "SELECT count(*) FROM client"
IMPORTED = "SELECT count(*) FROM audit WHERE action = 'clients_imported'"
STAGING = "SELECT count(*) FROM pg_class WHERE relname = 'client_import'"


async def made_key(engine: AsyncEngine) -> tuple[keys.Key, str]:
    new = keys.NewKey(name="crm", scope="write")
    return await do(engine, lambda connection: keys.add(connection, new, COMMAND_LINE))


async def upload(engine: AsyncEngine, meanwhile: str) -> AsyncIterator[bytes]:
    """Give a file, in whose middle something happens."""
    yield b"phone\n"
    yield "".join(f"7916{n:07}\n" for n in range(3000)).encode()
    await execute(engine, meanwhile)
    yield b"79170000000\n"


async def assert_nothing_is_stored(engine: AsyncEngine, answer: httpx.Response) -> None:
    assert answer.status_code == 403
    assert "The right to do this was taken away meanwhile." in answer.text
    assert await value(engine, STORED) == 0
    assert await value(engine, IMPORTED) == 0
    assert await value(engine, STAGING) == 0


@pytest.mark.parametrize(
    "meanwhile",
    [
        "UPDATE api_key SET revoked_at = now()",
        "UPDATE api_key SET expires_at = now()",
        "UPDATE api_key SET scope = 'read'",
    ],
)
async def test_import_by_a_key_that_ends_while_it_is_uploaded_stores_nothing(
    engine: AsyncEngine, meanwhile: str
) -> None:
    _, secret = await made_key(engine)
    headers = CSV | {"Authorization": f"Bearer {secret}", "Accept": "application/json"}
    async with visitor(engine) as program:
        content = upload(engine, meanwhile)
        answer = await program.post("/api/v1/clients/import", content=content, headers=headers)
    await assert_nothing_is_stored(engine, answer)


@pytest.mark.parametrize(
    "meanwhile",
    [
        "UPDATE account SET disabled_at = now()",
        "UPDATE account SET role = 'viewer'",
        "DELETE FROM session",
        "UPDATE session SET created_at = now() - interval '12 hours'",
    ],
)
async def test_import_by_somebody_who_loses_the_right_while_it_is_uploaded_stores_nothing(
    engine: AsyncEngine, meanwhile: str
) -> None:
    async with await signed_in(engine, "operator") as browser:
        content = upload(engine, meanwhile)
        answer = await browser.post("/clients/import", content=content, headers=CSV)
    await assert_nothing_is_stored(engine, answer)


async def test_import_stores_what_somebody_may_who_still_has_the_right(engine: AsyncEngine) -> None:
    async with await signed_in(engine, "admin") as browser:
        content = upload(engine, "UPDATE account SET role = 'operator'")
        answer = await browser.post("/clients/import", content=content, headers=CSV)
    assert answer.status_code == 200
    assert await value(engine, STORED) == 3001


@pytest.mark.parametrize("what", ["clients", "messages"])
async def test_download_is_broken_off_once_its_key_is_revoked(
    engine: AsyncEngine, what: str
) -> None:
    clients = await add_clients(engine, CHUNK + 1)
    mailing_id = await add_mailing(engine)
    await add_messages(engine, mailing_id, clients, "scheduled")
    key, _ = await made_key(engine)
    by = Actor("key", key.name, key.id, key.scope)
    export = (
        export_clients(engine, by) if what == "clients" else export_messages(engine, mailing_id, by)
    )
    async with aclosing(export) as parts:
        assert (await anext(parts)).rows == CHUNK
        await do(engine, lambda connection: keys.revoke(connection, key.id, COMMAND_LINE))
        with pytest.raises(TakenAwayError):
            await anext(parts)
