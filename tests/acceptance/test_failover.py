"""Servers that take over: a promotion, a restore to a moment, a copy of the folder."""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import pytest
from tests.acceptance.test_main_job import a_mailing, add_clients
from tests.processes import Gateway, Gateways, MailerProcess, mailers, run, until
from tests.servers import Programs, Server

from mailer.db.engine import connect
from mailer.dispatch.watch import KEEPALIVES
from mailer.validation import MAX_ID

QUICK = {"lease": "8", "gateway_timeout": "4"}
IDS = "SELECT array_agg(id) FROM message WHERE mailing_id = $1"

Servers = Callable[[str], Server]


@pytest.fixture
async def new_server(data_dir: Path) -> AsyncIterator[Servers]:
    """Makes servers, and stops them at the end."""
    programs = Programs(data_dir)
    made: list[Server] = []

    def make(name: str) -> Server:
        made.append(Server(programs, name))
        return made[-1]

    programs.own(data_dir)
    yield make
    for server in made:
        await server.stop()


@pytest.fixture
async def primary(new_server: Servers) -> Server:
    """A server that runs, with an empty database."""
    server = new_server("primary")
    server.make()
    await server.start("postgres")
    await server.create_database()
    return server


@asynccontextmanager
async def mailer_on(server: Server, **settings: str) -> AsyncIterator[MailerProcess]:
    """A process on a server's database, whose ledgers must add up at the end."""
    async with AsyncExitStack() as stack:
        start: Callable[..., Awaitable[MailerProcess]] = await stack.enter_async_context(
            mailers(server.url)
        )
        yield await start(**QUICK | settings)


async def sent(mailer: MailerProcess) -> set[int]:
    """Send a mailing to everybody and return the ids of its messages."""
    created = await mailer.call("POST", "/mailings", a_mailing(), 201)
    mailing = await mailer.finished(created["id"])
    assert mailing["delivered_messages"] == mailing["clients_count"] > 0
    ids: list[int] = await mailer.query(IDS, created["id"])
    return set(ids)


@asynccontextmanager
async def mailer_that_has_sent(server: Server, gateway: Gateway) -> AsyncIterator[MailerProcess]:
    """A process on a server's database that has sent a mailing to a hundred clients."""
    async with mailer_on(server, **gateway.settings) as mailer:
        await add_clients(mailer, 100)
        await sent(mailer)
        yield mailer


async def behind(primary: Server, new_server: Servers) -> Server:
    """Return a standby that has what there is now, and gets nothing more."""
    standby = new_server("standby")
    standby.copy(primary, "standby")
    await standby.start()
    await standby.stop()
    return standby


async def test_promoted_standby_that_lost_the_end_goes_on_by_itself_under_ids_never_given_before(
    start_gateway: Gateways, primary: Server, new_server: Servers
) -> None:
    gateway = await start_gateway()
    async with mailer_that_has_sent(primary, gateway) as mailer:
        standby = await behind(primary, new_server)
        lost = await sent(mailer)
        assert len(lost) == 100
        gave_before = set(gateway.ids)
    await primary.stop()
    await standby.start()
    await standby.promote()

    async with mailer_on(standby, **gateway.settings) as mailer:
        assert await mailer.query("SELECT count(*) FROM mailing") == 1  # the second is lost
        new = await sent(mailer)
        assert len(new) == 100
        assert new.isdisjoint(gave_before)
        assert max(new) <= MAX_ID
        assert new <= set(gateway.ids)
        assert await mailer.query("SELECT count(*) FROM origin WHERE held_since IS NULL") == 1


async def test_process_that_stays_connected_through_a_promotion_sends_again_by_itself(
    start_gateway: Gateways, primary: Server, new_server: Servers
) -> None:
    gateway = await start_gateway()
    async with mailer_that_has_sent(primary, gateway) as mailer:
        standby = await behind(primary, new_server)
        await primary.stop()
        gave_before = set(gateway.ids)
        standby.port = primary.port  # as when an address moves: first read-only, then promoted
        await standby.start()
        await mailer.event("database_away")
        await standby.promote()

        async def is_ready() -> bool | None:
            async with mailer.session.get("/health/ready") as answer:
                return answer.status == 200 or None

        await until(is_ready)
        new = await sent(mailer)
        assert new.isdisjoint(gave_before)
        assert max(new) <= MAX_ID
        assert not any(event["event"] == "sending_held" for event in mailer.events)


async def test_database_restored_to_a_moment_is_held(
    start_gateway: Gateways, primary: Server, new_server: Servers
) -> None:
    gateway = await start_gateway()
    restored = new_server("restored")
    async with mailer_that_has_sent(primary, gateway) as mailer:
        restored.copy(primary)
        await sent(mailer)
        gave_before = set(gateway.ids)
    await primary.stop()
    restored.set(
        recovery_target="immediate", recovery_target_action="promote", restore_command="false"
    )
    (restored.data / "recovery.signal").touch()
    restored.programs.own(restored.data)
    await restored.start()

    async def is_written_to() -> bool | None:
        return not await restored.query("SELECT pg_is_in_recovery()") or None

    await until(is_written_to)
    async with mailer_on(restored, **gateway.settings) as mailer:
        await mailer.event("sending_held")
        agreed = run("resume-after-restore", "--yes", database_url=restored.url)
        assert agreed.returncode == 0, agreed.stderr
        assert (await sent(mailer)).isdisjoint(gave_before)


async def test_copy_of_a_stopped_servers_folder_gives_other_ids(
    start_gateway: Gateways, primary: Server, new_server: Servers
) -> None:
    gateway = await start_gateway()
    async with mailer_that_has_sent(primary, gateway):
        given = [set(gateway.ids)]
    await primary.stop()
    copy = new_server("copy")
    copy.copy_folder(primary)
    for server in (primary, copy):
        await server.start()
        async with mailer_on(server, **gateway.settings) as mailer:
            given.append(await sent(mailer))

    assert len(set().union(*given)) == sum(map(len, given)) == 300


async def test_server_ends_the_session_of_a_worker_whose_machine_is_gone(
    primary: Server, server_url: str
) -> None:
    """The parameters of the session; a UNIX socket cannot outlive its machine."""
    for url, is_tcp in ((primary.url, True), (server_url, False)):
        connection = await connect(url, patience=None, **KEEPALIVES)
        try:
            for name, given in KEEPALIVES.items():
                query = "SELECT setting FROM pg_settings WHERE name = $1"
                assert await connection.fetchval(query, name) == (given if is_tcp else "0")
        finally:
            await connection.close()
