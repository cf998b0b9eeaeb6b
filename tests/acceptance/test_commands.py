"""The commands that end by themselves, on a database that a running mailer uses."""

import asyncio
import os
import re
import signal
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine
from tests.acceptance.test_main_job import a_mailing, add_clients
from tests.processes import Gateways, MailerProcess, Mailers, run

from mailer.db.engine import create_engine


async def test_clients_go_in_and_out_as_csv(database_url: str, tmp_path: Path) -> None:
    given, exported = tmp_path / "given.csv", tmp_path / "exported.csv"
    given.write_text("phone,tag\n79160000001,vip\n79160000002,\n")
    imported = run("clients", "import", str(given), database_url=database_url)
    assert imported.returncode == 0
    assert "2 created" in imported.stderr

    assert run("clients", "export", str(exported), database_url=database_url).returncode == 0
    assert exported.read_text() == (
        "phone,operator_code,tag,time_zone\n79160000001,916,vip,UTC\n79160000002,916,,UTC\n"
    )
    again = run("clients", "import", str(exported), database_url=database_url)
    assert "0 created, 0 updated, 2 unchanged, 0 rejected" in again.stderr


async def test_import_with_a_bad_line_exits_1_and_names_it(
    database_url: str, tmp_path: Path
) -> None:
    given = tmp_path / "given.csv"
    given.write_text("phone\n79160000001\n7916\n")
    imported = run("clients", "import", str(given), database_url=database_url)
    assert imported.returncode == 1
    assert "line 3: phone must be 7 and ten more digits" in imported.stderr
    assert "1 created" in imported.stderr


async def test_commands_share_the_embedded_database_of_a_running_mailer(
    data_dir: Path, tmp_path: Path
) -> None:
    mailer = MailerProcess(data_dir=str(data_dir))
    await mailer.start()
    await mailer.call("POST", "/clients", {"phone": "79160000001"}, 201)
    exported = run("clients", "export", str(tmp_path / "all.csv"), data_dir=str(data_dir))
    assert exported.returncode == 0, exported.stderr
    assert "79160000001" in (tmp_path / "all.csv").read_text()
    assert await mailer.stop() == 0


async def test_a_key_made_at_the_command_line_opens_a_running_mailer_until_it_is_revoked(
    start_mailer: Mailers,
) -> None:
    mailer = await start_mailer(auth="required")

    async def status(secret: str) -> int:
        headers = {"Authorization": f"Bearer {secret}"}
        async with mailer.session.get("/api/v1/clients", headers=headers) as answer:
            return answer.status

    def keys(*arguments: str) -> subprocess.CompletedProcess[str]:
        return run("keys", *arguments, database_url=mailer.database_url)

    made = keys("make", "shop", "--scope", "read", "--expires", "30")
    assert (made.returncode, made.stderr) == (0, "Keep it: it is not shown again.\n")
    assert re.fullmatch(r"mailer_[\w-]{43}\n", made.stdout)
    secret = made.stdout.strip()
    assert await status(secret) == 200
    [head, line] = keys("list").stdout.splitlines()
    assert head.split()[:3] == ["id", "name", "scope"]
    assert re.fullmatch(r"1   shop  read   (20\d\d-\d\d-\d\d \d\d:\d\d  +){3}good", line)

    taken = keys("make", "shop", "--scope", "admin")
    assert (taken.returncode, taken.stdout) == (1, "")
    assert taken.stderr == "mailer: Another key that is not revoked has this name.\n"
    assert keys("make", "a\nb", "--scope", "read").returncode == 1
    assert keys("make", "none").returncode == keys("make", "x", "--scope", "all").returncode == 2

    assert keys("revoke", "shop").returncode == 0
    assert await status(secret) == 401
    assert keys("revoke", "shop").returncode == 1
    assert keys("list").stdout.splitlines()[1].endswith("revoked")


async def test_report_tells_of_a_day(start_gateway: Gateways, start_mailer: Mailers) -> None:
    mailer = await start_mailer(**(await start_gateway()).settings)
    await add_clients(mailer, 3)
    created = await mailer.call("POST", "/mailings", a_mailing(), 201)
    await mailer.finished(created["id"])

    today = datetime.now(UTC).date().isoformat()
    report = run("report", "--date", today, database_url=mailer.database_url)
    assert report.returncode == 0
    assert "delivered 3 undelivered 0" in " ".join(report.stdout.split())

    unsent = run("report", "--date", today, "--send", database_url=mailer.database_url)
    assert unsent.returncode == 78
    assert "MAILER_SMTP_URL is not set" in unsent.stderr


async def test_verify_exits_1_and_names_the_ledger_that_is_off(
    start_gateway: Gateways, start_mailer: Mailers
) -> None:
    mailer = await start_mailer(**(await start_gateway()).settings)
    await add_clients(mailer, 1)
    created = await mailer.call("POST", "/mailings", a_mailing(), 201)
    await mailer.finished(created["id"])
    assert run("verify", database_url=mailer.database_url).returncode == 0

    engine: AsyncEngine = create_engine(mailer.database_url)
    async with engine.begin() as connection:
        await connection.execute(text("UPDATE ledger SET delivered = 7"))
    off = run("verify", database_url=mailer.database_url)
    async with engine.begin() as connection:
        await connection.execute(text("UPDATE ledger SET delivered = 1"))
    await engine.dispose()
    assert off.returncode == 1
    assert off.stdout == "mailing 1: delivered in the ledger: 7, expected 1\n"


async def test_migrate_brings_an_empty_database_to_the_newest_schema(data_dir: Path) -> None:
    for _ in range(2):
        assert run("migrate", data_dir=str(data_dir)).returncode == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_gateway_says_where_it_is_and_what_it_took(number: signal.Signals) -> None:
    gateway = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "mailer", "gateway", "--port", "0", "--latency", "0.01"),
        env={name: value for name, value in os.environ.items() if "MAILER" not in name},
        stdout=asyncio.subprocess.PIPE,
    )
    assert gateway.stdout is not None
    address = await gateway.stdout.readline()
    assert address.startswith(b"http://127.0.0.1:")
    gateway.send_signal(number)
    said, _ = await gateway.communicate()
    assert b"nothing" in said
    assert gateway.returncode == 0
