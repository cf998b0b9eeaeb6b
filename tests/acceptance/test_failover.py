"""mailer on another database server: a promoted standby, a restored backup, a copied data folder.

Such a server may lack the latest changes, yet no message id may be used twice. A standby is a
server that repeats all changes of the primary. It is promoted to become the primary itself.
"""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import pytest
from tests.processes import Gateway, Gateways, MailerProcess, mailers, run, until_true
from tests.servers import Programs, Server

from mailer.db.engine import connect
from mailer.dispatch.running_mailings import KEEPALIVES
from mailer.sample_data import new_mailing
from mailer.validation import MAX_ID

QUICK = {"lease": "8", "gateway_timeout": "4"}
"""Settings under which claims in a copy of the database expire within seconds."""
SELECT_IDS = "SELECT array_agg(id) FROM message WHERE mailing_id = $1"

Servers = Callable[[str], Server]
"""Prepares a server whose data folder has this name."""


@pytest.fixture
async def new_server(data_dir: Path) -> AsyncIterator[Servers]:
    """A function that prepares servers, without data; they are stopped at the end."""
    programs = Programs(data_dir)
    servers: list[Server] = []

    def create(name: str) -> Server:
        servers.append(Server(programs, name))
        return servers[-1]

    programs.chown(data_dir)
    yield create
    for server in servers:
        await server.stop()


@pytest.fixture
async def primary(new_server: Servers) -> Server:
    """A running server with an empty database."""
    server = new_server("primary")
    server.create()
    await server.start(database="postgres")  # which every new server has
    await server.create_database()
    return server


@asynccontextmanager
async def mailer_on(server: Server, **settings: str) -> AsyncIterator[MailerProcess]:
    """Run a mailer process on a server's database.

    At the end all counts in this database must equal the rows.
    """
    async with AsyncExitStack() as stack:
        start: Callable[..., Awaitable[MailerProcess]] = await stack.enter_async_context(
            mailers(server.url)
        )
        yield await start(**QUICK | settings)


async def send_mailing(mailer: MailerProcess) -> set[int]:
    """Send a mailing to all clients and return the ids of its messages."""
    created = await mailer.call("POST", "/mailings", new_mailing(), 201)
    mailing = await mailer.finished(created["id"])
    assert mailing["delivered_messages"] == mailing["clients_count"] > 0
    ids: list[int] = await mailer.query(SELECT_IDS, created["id"])
    return set(ids)


@asynccontextmanager
async def mailer_that_has_sent(server: Server, gateway: Gateway) -> AsyncIterator[MailerProcess]:
    """Run a mailer process on a server's database, which first sends a mailing to 100 clients."""
    async with mailer_on(server, **gateway.settings) as mailer:
        await mailer.create_clients(100)
        await send_mailing(mailer)
        yield mailer


async def stopped_standby(primary: Server, new_server: Servers) -> Server:
    """Return a standby that has repeated the changes until now, and gets no later ones."""
    standby = new_server("standby")
    standby.copy(primary, as_standby=True)
    await standby.start()
    await standby.stop()
    return standby


async def test_on_a_promoted_standby_that_lost_changes_mailer_sends_with_unused_ids(
    start_gateway: Gateways, primary: Server, new_server: Servers
) -> None:
    gateway = await start_gateway()
    async with mailer_that_has_sent(primary, gateway) as mailer:
        standby = await stopped_standby(primary, new_server)
        lost_ids = await send_mailing(mailer)
        assert len(lost_ids) == 100
        ids_before = set(gateway.ids)
    await primary.stop()
    await standby.start()
    await standby.promote()

    async with mailer_on(standby, **gateway.settings) as mailer:
        assert await mailer.query("SELECT count(*) FROM mailing") == 1  # the second one is lost
        new_ids = await send_mailing(mailer)
        assert len(new_ids) == 100
        assert new_ids.isdisjoint(ids_before)
        assert max(new_ids) <= MAX_ID
        assert new_ids <= set(gateway.ids)
        # sending was not held, unlike after a restore
        assert await mailer.query("SELECT count(*) FROM origin WHERE held_since IS NULL") == 1


async def test_process_that_runs_during_a_promotion_continues_by_itself(
    start_gateway: Gateways, primary: Server, new_server: Servers
) -> None:
    gateway = await start_gateway()
    async with mailer_that_has_sent(primary, gateway) as mailer:
        standby = await stopped_standby(primary, new_server)
        await primary.stop()
        ids_before = set(gateway.ids)
        standby.port = primary.port  # the address moves to the standby before it is promoted
        await standby.start()
        await mailer.event("database_unavailable")
        await standby.promote()
        await mailer.until_ready()
        new_ids = await send_mailing(mailer)
        assert new_ids.isdisjoint(ids_before)
        assert max(new_ids) <= MAX_ID
        assert not any(event["event"] == "sending_held" for event in mailer.events)


async def test_on_a_restored_base_backup_sending_is_held_until_it_is_confirmed(
    start_gateway: Gateways, primary: Server, new_server: Servers
) -> None:
    gateway = await start_gateway()
    restored = new_server("restored")
    async with mailer_that_has_sent(primary, gateway) as mailer:
        restored.copy(primary)
        await send_mailing(mailer)
        ids_before = set(gateway.ids)
    await primary.stop()
    # the settings of a restore that ends at the end of the backup
    restored.set(
        recovery_target="immediate", recovery_target_action="promote", restore_command="false"
    )
    (restored.data / "recovery.signal").touch()
    restored.programs.chown(restored.data)
    await restored.start()

    async def is_writable() -> bool:
        return not await restored.query("SELECT pg_is_in_recovery()")

    await until_true(is_writable)
    async with mailer_on(restored, **gateway.settings) as mailer:
        await mailer.event("sending_held")
        process = run("resume-after-restore", "--yes", database_url=restored.url)
        assert process.returncode == 0, process.stderr
        assert (await send_mailing(mailer)).isdisjoint(ids_before)


async def test_copy_of_a_stopped_servers_data_folder_uses_other_ids(
    start_gateway: Gateways, primary: Server, new_server: Servers
) -> None:
    gateway = await start_gateway()
    async with mailer_that_has_sent(primary, gateway):
        ids_before = set(gateway.ids)
    await primary.stop()
    copy = new_server("copy")
    copy.copy_folder(primary)
    new_ids: dict[str, set[int]] = {}
    for name, server in (("primary", primary), ("copy", copy)):
        await server.start()
        async with mailer_on(server, **gateway.settings) as mailer:
            new_ids[name] = await send_mailing(mailer)

    all_ids = ids_before | new_ids["primary"] | new_ids["copy"]
    assert len(all_ids) == 3 * 100  # so no id was used twice


async def test_sessions_have_keepalives_that_detect_a_dead_machine(
    primary: Server, server_url: str
) -> None:
    """Over a Unix socket keepalives have no effect, and are not needed."""
    for url, is_tcp in ((primary.url, True), (server_url, False)):
        connection = await connect(url, statement_timeout=None, **KEEPALIVES)
        try:
            for name, value in KEEPALIVES.items():
                query = "SELECT setting FROM pg_settings WHERE name = $1"
                assert await connection.fetchval(query, name) == (value if is_tcp else "0")
        finally:
            await connection.close()
