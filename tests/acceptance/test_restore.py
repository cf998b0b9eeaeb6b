"""After a dump is restored, no id is used twice, and nothing is sent until a user confirms it.

Messages that were sent after the dump are still scheduled in the restored database, so sending
them again needs a confirmation: `mailer resume-after-restore --yes`.
"""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import pytest
from tests.processes import Gateway, Gateways, MailerProcess, Mailers, run, until_true
from tests.servers import dump, restore

from mailer.db.engine import connect
from mailer.embedded_postgres.binaries import find_binaries
from mailer.sample_data import new_mailing
from mailer.validation import MAX_ID

QUICK = {"lease": "8", "gateway_timeout": "4"}
"""Settings under which claims in a copy of the database expire within seconds."""
SLOW = QUICK | {"gateway_concurrency": "2", "gateway_rate": "40"}
"""Settings under which a mailing is still being sent while the database is dumped."""
SELECT_IDS = "SELECT coalesce(array_agg(id ORDER BY id), '{}') FROM message WHERE mailing_id = $1"
# with `client backend`, so that no autovacuum worker is ended
END_SESSIONS = """
    SELECT pg_terminate_backend(pid) FROM pg_stat_activity
    WHERE datname = $1 AND usename = current_user AND backend_type = 'client backend'"""


@pytest.fixture
def programs() -> Path:
    """The folder with the programs pg_dump and pg_restore."""
    return find_binaries()[0].folder


@pytest.fixture
async def copy_url(server_url: str, database_url: str) -> AsyncIterator[str]:
    """A second, empty database for the test."""
    parts = urlsplit(database_url)
    name = f"{parts.path.lstrip('/')}_copy"
    connection = await connect(server_url)
    await connection.execute(f"CREATE DATABASE {name} TEMPLATE template0")
    yield urlunsplit(parts._replace(path=f"/{name}"))
    # without FORCE, which may not end an autovacuum worker; a plain DROP waits for the worker
    await connection.execute(f"ALTER DATABASE {name} ALLOW_CONNECTIONS false")
    await connection.execute(END_SESSIONS, name)
    await connection.execute(f"DROP DATABASE {name}")
    await connection.close()


async def start_mailing(mailer: MailerProcess, gateway: Gateway) -> dict[str, Any]:
    """Create a mailing to 120 clients, wait until 30 messages have been sent, and return it."""
    await mailer.create_clients(120)
    created: dict[str, Any] = await mailer.call("POST", "/mailings", new_mailing(), 201)
    await gateway.until_received(30)
    return created


async def dump_during_mailing(
    mailer: MailerProcess, gateway: Gateway, programs: Path, file: Path
) -> dict[str, Any]:
    """Dump the database in the middle of a mailing; return this mailing.

    After the dump the mailing is finished, another one is sent, and the process is stopped.
    """
    created = await start_mailing(mailer, gateway)
    dump(programs, mailer.database_url, file)
    await mailer.finished(created["id"])
    lost = await mailer.call("POST", "/mailings", new_mailing(), 201)
    await mailer.finished(lost["id"])
    await mailer.stop()
    return created


async def expect_held(mailer: MailerProcess) -> None:
    """Assert that a process enqueues a new mailing, but sends nothing of it; then cancel it."""
    created = await mailer.call("POST", "/mailings", new_mailing(text="Later."), 201)

    async def is_enqueued() -> bool:
        mailing = await mailer.mailing(created["id"])
        return bool(mailing["created_messages"] == mailing["clients_count"])

    await until_true(is_enqueued)
    held = await mailer.mailing(created["id"])
    assert held["held"]["reason"] == "restored"
    assert held["scheduled_messages"] == held["clients_count"] > 0
    await mailer.call("POST", f"/mailings/{created['id']}/cancel")


def resume(database_url: str, *options: str) -> Any:
    """Run the command that confirms that sending may resume."""
    return run("resume-after-restore", *options, database_url=database_url)


async def test_restored_dump_sends_nothing_until_confirmed_and_then_under_the_same_ids(
    start_gateway: Gateways, start_mailer: Mailers, programs: Path, copy_url: str, tmp_path: Path
) -> None:
    gateway = await start_gateway()
    mailer = await start_mailer(**gateway.settings, **SLOW)
    created = await dump_during_mailing(mailer, gateway, programs, tmp_path / "dump")
    ids_before = set(gateway.ids)
    assert len(ids_before) == 2 * 120
    requests_before = len(gateway.ids)
    restore(programs, tmp_path / "dump", copy_url)

    restored = await start_mailer(**gateway.settings, **QUICK, database_url=copy_url)
    assert (await restored.event("sending_held"))["reason"] == "restored"
    await expect_held(restored)
    assert (await restored.mailing(created["id"]))["held"]["reason"] == "restored"
    assert (await restored.call("GET", "/health/ready"))["status"] == "ok"
    assert run("verify", database_url=copy_url).returncode == 0

    open_messages = await restored.query(
        "SELECT count(*) FROM message WHERE status IN ('scheduled', 'sending')"
    )
    unconfirmed = resume(copy_url)
    assert unconfirmed.returncode == 1
    assert f"{open_messages} messages of 1 mailings" in unconfirmed.stdout
    assert "--yes" in unconfirmed.stderr
    assert len(gateway.ids) == requests_before  # nothing has been sent

    confirmed = resume(copy_url, "--yes")
    assert confirmed.returncode == 0, confirmed.stderr
    await restored.event("sending_resumed")
    mailing = await restored.finished(created["id"])
    assert mailing["delivered_messages"] == 120
    assert mailing["held"] is None
    resumed_ids = set(gateway.ids[requests_before:])
    assert resumed_ids <= set(await restored.query(SELECT_IDS, created["id"]))
    assert len(resumed_ids) == open_messages

    new = await restored.call("POST", "/mailings", new_mailing(), 201)
    await restored.finished(new["id"])
    new_ids = set(await restored.query(SELECT_IDS, new["id"]))
    assert len(new_ids) == 120
    assert new_ids.isdisjoint(ids_before)
    assert max(new_ids) <= MAX_ID
    assert resume(copy_url, "--yes").stdout == "Nothing to resume: sending is allowed.\n"
    actor = "SELECT actor_kind FROM audit WHERE action = 'sending_resumed'"
    assert await restored.query(actor) == "command"


async def test_two_copies_of_a_database_that_both_send_never_use_the_same_id(
    start_gateway: Gateways, start_mailer: Mailers, programs: Path, copy_url: str, tmp_path: Path
) -> None:
    gateway = await start_gateway()
    original = await start_mailer(**gateway.settings)
    await original.create_clients(200)
    first = await original.call("POST", "/mailings", new_mailing(), 201)
    await original.finished(first["id"])
    dump(programs, original.database_url, tmp_path / "dump")
    restore(programs, tmp_path / "dump", copy_url)
    assert resume(copy_url, "--yes").returncode == 0
    copy = await start_mailer(**gateway.settings, **QUICK, database_url=copy_url)

    async def send(mailer: MailerProcess) -> None:
        created = await mailer.call("POST", "/mailings", new_mailing(), 201)
        await mailer.finished(created["id"])

    for _ in range(2):
        await asyncio.gather(send(original), send(copy))

    # the mailing before the dump, and two of each database
    assert len(set(gateway.ids)) == 5 * 200
    assert max(gateway.ids) <= MAX_ID


async def test_dump_restored_over_its_own_database_is_held(
    start_gateway: Gateways, start_mailer: Mailers, programs: Path, tmp_path: Path
) -> None:
    gateway = await start_gateway()
    mailer = await start_mailer(**gateway.settings, **SLOW)
    created = await dump_during_mailing(mailer, gateway, programs, tmp_path / "dump")
    ids_before = set(gateway.ids)
    requests_before = len(gateway.ids)

    restore(programs, tmp_path / "dump", mailer.database_url, "--clean", "--if-exists")
    mailer = await start_mailer(**gateway.settings, **QUICK)
    await mailer.event("sending_held")
    await expect_held(mailer)
    assert len(gateway.ids) == requests_before

    assert resume(mailer.database_url, "--yes").returncode == 0
    await mailer.finished(created["id"])
    new = await mailer.call("POST", "/mailings", new_mailing(), 201)
    await mailer.finished(new["id"])
    assert ids_before.isdisjoint(await mailer.query(SELECT_IDS, new["id"]))


async def test_process_that_runs_during_a_restore_sends_nothing(
    start_gateway: Gateways, start_mailer: Mailers, programs: Path, tmp_path: Path
) -> None:
    gateway = await start_gateway()
    mailer = await start_mailer(**gateway.settings, **SLOW)
    created = await start_mailing(mailer, gateway)
    await mailer.call("POST", f"/mailings/{created['id']}/pause")
    dump(programs, mailer.database_url, tmp_path / "dump")
    requests_before = len(gateway.ids)

    restore(programs, tmp_path / "dump", mailer.database_url, "--clean", "--if-exists")
    await mailer.call("POST", f"/mailings/{created['id']}/resume")
    await mailer.event("sending_held")
    await expect_held(mailer)
    assert len(gateway.ids) == requests_before

    assert resume(mailer.database_url, "--yes").returncode == 0
    assert (await mailer.finished(created["id"]))["delivered_messages"] == 120
