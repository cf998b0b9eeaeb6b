"""Commands other than `mailer serve`, on a database that a running mailer uses."""

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
from tests.processes import Gateways, MailerProcess, Mailers, run

from mailer.cli.runner import EXIT_CANNOT_START
from mailer.db.engine import create_engine
from mailer.sample_data import new_mailing


async def test_clients_are_imported_from_and_exported_to_csv(
    database_url: str, tmp_path: Path
) -> None:
    source = tmp_path / "source.csv"
    exported = tmp_path / "exported.csv"
    source.write_text("phone,tag\n79160000001,vip\n79160000002,\n")
    first_import = run("clients", "import", str(source), database_url=database_url)
    assert first_import.returncode == 0
    assert "2 created" in first_import.stderr

    assert run("clients", "export", str(exported), database_url=database_url).returncode == 0
    assert exported.read_text() == (
        "phone,operator_code,tag,time_zone\n79160000001,916,vip,UTC\n79160000002,916,,UTC\n"
    )
    second_import = run("clients", "import", str(exported), database_url=database_url)
    assert "0 created, 0 updated, 2 unchanged, 0 rejected" in second_import.stderr


def test_import_takes_the_columns_as_told_and_puts_the_clients_on_a_list(
    database_url: str, tmp_path: Path
) -> None:
    source, exported = tmp_path / "source.csv", tmp_path / "exported.csv"
    source.write_text("Mobile,City,Client\n79160000001,Omsk,Vera\n")
    options = ("--list", "Spring", "--columns", "phone, ,name")
    imported = run("clients", "import", *options, str(source), database_url=database_url)
    assert imported.returncode == 0, imported.stderr
    assert "fields: name" in imported.stderr
    assert "ignored columns: City" in imported.stderr
    assert "1 put on the list Spring" in imported.stderr
    assert run("clients", "export", str(exported), database_url=database_url).returncode == 0
    assert exported.read_text().splitlines()[1] == "79160000001,916,,UTC,Vera"

    wrong = run("clients", "import", "--columns", "phone", str(source), database_url=database_url)
    assert wrong.returncode != 0
    assert "columns: must name a field for each column" in wrong.stderr


async def test_import_with_an_invalid_line_exits_1_and_names_the_line(
    database_url: str, tmp_path: Path
) -> None:
    source = tmp_path / "source.csv"
    source.write_text("phone\n79160000001\n7916\n")
    process = run("clients", "import", str(source), database_url=database_url)
    assert process.returncode == 1
    assert "line 3: phone must be 7 and ten more digits" in process.stderr
    assert "1 created" in process.stderr


async def test_commands_share_the_embedded_database_of_a_running_mailer(
    data_dir: Path, tmp_path: Path
) -> None:
    mailer = MailerProcess(data_dir=str(data_dir))
    await mailer.start()
    await mailer.call("POST", "/clients", {"phone": "79160000001"}, 201)
    process = run("clients", "export", str(tmp_path / "all.csv"), data_dir=str(data_dir))
    assert process.returncode == 0, process.stderr
    assert "79160000001" in (tmp_path / "all.csv").read_text()
    assert await mailer.stop() == 0


async def test_key_created_at_the_command_line_is_valid_until_it_is_revoked(
    start_mailer: Mailers,
) -> None:
    mailer = await start_mailer(auth="required")

    async def status(secret: str) -> int:
        """Return the status of a request with a key."""
        headers = {"Authorization": f"Bearer {secret}"}
        async with mailer.session.get("/api/v1/clients", headers=headers) as response:
            return response.status

    def keys(*arguments: str) -> subprocess.CompletedProcess[str]:
        return run("keys", *arguments, database_url=mailer.database_url)

    created = keys("create", "shop", "--scope", "read", "--expires", "30")
    assert (created.returncode, created.stderr) == (0, "Store it now: it is not shown again.\n")
    assert re.fullmatch(r"mailer_[\w-]{43}\n", created.stdout)
    secret = created.stdout.strip()
    assert await status(secret) == 200
    [header, line] = keys("list").stdout.splitlines()
    assert header.split()[:3] == ["id", "name", "scope"]
    # the three times: created, last used, expires
    assert re.fullmatch(r"1   shop  read   (20\d\d-\d\d-\d\d \d\d:\d\d  +){3}active", line)

    duplicate = keys("create", "shop", "--scope", "admin")
    assert (duplicate.returncode, duplicate.stdout) == (1, "")
    assert duplicate.stderr == "mailer: Another key that is not revoked has this name.\n"
    invalid_name = keys("create", "a\nb", "--scope", "read")
    assert invalid_name.returncode == 1
    without_scope = keys("create", "x")
    unknown_scope = keys("create", "x", "--scope", "all")
    assert without_scope.returncode == unknown_scope.returncode == 2

    assert keys("revoke", "shop").returncode == 0
    assert await status(secret) == 401
    assert keys("revoke", "shop").returncode == 1
    assert keys("list").stdout.splitlines()[1].endswith("revoked")


async def test_report_command_prints_the_report_of_a_day(
    start_gateway: Gateways, start_mailer: Mailers
) -> None:
    mailer = await start_mailer(**(await start_gateway()).settings)
    await mailer.create_clients(3)
    created = await mailer.call("POST", "/mailings", new_mailing(), 201)
    await mailer.finished(created["id"])

    today = datetime.now(UTC).date().isoformat()
    report = run("report", "--date", today, database_url=mailer.database_url)
    assert report.returncode == 0
    assert "delivered 3 undelivered 0" in " ".join(report.stdout.split())

    not_sent = run("report", "--date", today, "--send", database_url=mailer.database_url)
    assert not_sent.returncode == EXIT_CANNOT_START
    assert "MAILER_SMTP_URL is not set" in not_sent.stderr


async def test_verify_exits_1_and_names_the_wrong_count(
    start_gateway: Gateways, start_mailer: Mailers
) -> None:
    mailer = await start_mailer(**(await start_gateway()).settings)
    await mailer.create_clients(1)
    created = await mailer.call("POST", "/mailings", new_mailing(), 201)
    await mailer.finished(created["id"])
    assert run("verify", database_url=mailer.database_url).returncode == 0

    engine: AsyncEngine = create_engine(mailer.database_url)
    async with engine.begin() as connection:
        await connection.execute(text("UPDATE mailing_counts SET delivered = 7"))
    process = run("verify", database_url=mailer.database_url)
    async with engine.begin() as connection:
        # the right count again, which `start_mailer` verifies at the end
        await connection.execute(text("UPDATE mailing_counts SET delivered = 1"))
    await engine.dispose()
    assert process.returncode == 1
    assert process.stdout == "mailing 1: count of delivered messages: 7, expected 1\n"


async def test_migrate_brings_an_empty_database_to_the_newest_schema(data_dir: Path) -> None:
    for _ in range(2):  # the second run has nothing to do
        assert run("migrate", data_dir=str(data_dir)).returncode == 0


@pytest.mark.parametrize("stop_signal", [signal.SIGTERM, signal.SIGINT])
async def test_sandbox_gateway_prints_its_address_and_its_counts(
    stop_signal: signal.Signals,
) -> None:
    gateway = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "mailer", "sandbox", "--port", "0", "--latency", "0.01"),
        env={name: value for name, value in os.environ.items() if "MAILER" not in name},
        stdout=asyncio.subprocess.PIPE,
    )
    assert gateway.stdout is not None
    address = await gateway.stdout.readline()
    assert address.startswith(b"http://127.0.0.1:")
    gateway.send_signal(stop_signal)
    output, _ = await gateway.communicate()
    assert b"none" in output  # the count of requests
    assert gateway.returncode == 0


async def test_sandbox_gateway_speaks_the_kind_that_it_is_told(tmp_path: Path) -> None:
    options = ("--kind", "kannel", "--username", "ann", "--password", "p")
    gateway = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "mailer", "sandbox", "--port", "0", *options),
        stdout=asyncio.subprocess.PIPE,
    )
    assert gateway.stdout is not None
    url = (await gateway.stdout.readline()).decode().strip()
    table = f'[[gateway]]\nname = "main"\nkind = "kannel"\nurl = "{url}"\nusername = "ann"\n'
    outputs = []
    for password in ("p", "wrong"):
        file = tmp_path / f"{password}.toml"
        file.write_text(f'{table}password = "{password}"\n')
        send = ("gateways", "check", "--send", "79161234567")
        outputs.append((await asyncio.to_thread(run, *send, gateways=str(file))).stdout)
    gateway.terminate()
    output, _ = await gateway.communicate()
    assert "accepted" in outputs[0]
    assert "bad_credentials" in outputs[1]
    assert b"accepted 1, unauthorized 1" in output


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--kind", "kanel"), "mailer: kind: must be one of android, "),
        (("--kind", "kannel", "--token", "t"), "mailer: token: is not used by the kind kannel"),
        (("--receipts-url", "mailer"), "mailer: receipts_url: must start with http:// or https://"),
    ],
)
def test_sandbox_gateway_names_a_wrong_option(options: tuple[str, ...], message: str) -> None:
    process = run("sandbox", "--port", "0", *options)
    assert process.returncode == 1
    assert process.stderr.startswith(message)


def test_gateways_check_names_every_mistake_of_the_file(tmp_path: Path) -> None:
    file = tmp_path / "gateways.toml"
    file.write_text('[[gateway]]\nname = "main"\nkind = "twilio"\ncolour = "red"\n')
    check = run("gateways", "check", gateways=str(file))
    assert check.returncode == 78
    unknown, *missing = check.stderr.splitlines()
    assert unknown.startswith(
        f"mailer: {file}: gateway[1].colour: is not known; possible are account,"
    )
    assert missing == [
        f"mailer: {file}: gateway[1].account: is required for the kind twilio",
        f"mailer: {file}: gateway[1].token: is required for the kind twilio",
    ]


def test_serve_names_a_mistake_in_the_file_of_gateways(database_url: str, tmp_path: Path) -> None:
    serve = run("serve", database_url=database_url, gateways=str(tmp_path / "none.toml"), port="0")
    assert serve.returncode == 78
    assert serve.stderr.splitlines()[-1].endswith(
        "none.toml: cannot be read: No such file or directory"
    )
