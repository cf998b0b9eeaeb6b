"""The mailer process: errors that end its start, a kill, and work without the database.

Exit statuses are those of sysexits.h, in `mailer.cli.runner`.
"""

import signal
import socket
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

import pytest
from tests.processes import Gateways, MailerProcess, Mailers, run

from mailer.cli.runner import EXIT_CANNOT_START, EXIT_TEMPORARY_FAILURE
from mailer.embedded_postgres.cluster import embedded_postgres
from mailer.sample_data import new_mailing


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"auth": "none", "host": "0.0.0.0"}, "loopback"),  # noqa: S104  # rejected
        ({"prot": "8000"}, "MAILER_PROT"),  # there is no such setting
        ({"port": "x"}, "MAILER_PORT"),
        ({"auth": "none", "data_dir": "/proc/nowhere"}, "MAILER_DATA_DIR"),  # cannot be created
    ],
)
def test_wrong_setting_stops_the_start_with_one_line(
    settings: dict[str, str], expected: str
) -> None:
    process = run("serve", **settings)
    assert process.returncode == EXIT_CANNOT_START
    assert expected in process.stderr
    assert len(process.stderr.splitlines()) == 1


def test_wrong_database_url_stops_the_start_with_one_line(server_url: str) -> None:
    wrong = urlunsplit(urlsplit(server_url)._replace(path="/nowhere"))
    process = run("serve", auth="none", database_url=wrong)
    assert process.returncode == EXIT_CANNOT_START
    [line] = [line for line in process.stderr.splitlines() if line.startswith("mailer:")]
    assert "MAILER_DATABASE_URL" in line
    assert "Traceback" not in process.stderr


async def test_busy_port_stops_the_start_with_one_line(database_url: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = str(other.getsockname()[1])
        process = run("serve", auth="none", database_url=database_url, port=port)
    assert process.returncode == EXIT_TEMPORARY_FAILURE  # a later start may succeed
    [line] = [line for line in process.stderr.splitlines() if line.startswith("mailer:")]
    assert f"cannot listen on 127.0.0.1:{port}" in line
    assert "Traceback" not in process.stderr


async def test_embedded_database_is_used_again_after_a_kill(
    data_dir: Path, start_gateway: Gateways
) -> None:
    gateway = await start_gateway()
    first = MailerProcess(data_dir=str(data_dir), **gateway.settings)
    await first.start()
    await first.call("POST", "/clients", {"phone": "79160000001"}, 201)
    second = run("serve", auth="none", data_dir=str(data_dir))
    assert second.returncode == EXIT_TEMPORARY_FAILURE  # until the first process has ended
    assert len(second.stderr.splitlines()) == 1
    await first.stop(signal.SIGKILL)

    third = MailerProcess(data_dir=str(data_dir), **gateway.settings)
    await third.start()
    created = await third.call("POST", "/mailings", new_mailing(), 201)
    assert (await third.finished(created["id"]))["delivered_messages"] == 1
    assert await third.stop() == 0


async def test_without_the_database_calls_answer_503_and_work_continues_when_it_is_back(
    data_dir: Path, start_gateway: Gateways, start_mailer: Mailers
) -> None:
    gateway = await start_gateway(latency=0.05)
    async with embedded_postgres(data_dir) as url:
        mailer = await start_mailer(
            database_url=url,
            gateway_concurrency="5",
            lease="4",
            gateway_timeout="2",
            **gateway.settings,
        )
        await mailer.create_clients(100)
        created = await mailer.call("POST", "/mailings", new_mailing(), 201)
        await mailer.event("mailing_started")
    # the server has stopped at the end of the block

    problem = await mailer.call("GET", "/clients", status=503)
    assert problem["status"] == 503
    await mailer.call("POST", "/clients", {"phone": "79990000000"}, status=503)
    await mailer.call("GET", "/health/live")
    await mailer.call("GET", "/health/ready", status=503)
    assert mailer.process.returncode is None

    async with embedded_postgres(data_dir) as same_url:
        assert same_url == url
        await mailer.until_ready()
        mailing = await mailer.finished(created["id"])
        assert mailing["delivered_messages"] == 100
        assert await mailer.stop() == 0
