"""The start of mailer with a database that is unavailable, or that it can never use.

The service waits for an unavailable database. A database that it can never use ends the start with
one line.
"""

import asyncio
import contextlib
import socket
import ssl
from collections.abc import AsyncIterator
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

import pytest
import trustme
from sqlalchemy import text
from tests.event_timeout import EVENT_TIMEOUT
from tests.processes import MailerProcess, run

from mailer.cli.runner import EXIT_CANNOT_START, EXIT_TEMPORARY_FAILURE
from mailer.db.engine import connect, create_engine
from mailer.db.requirements import WaitReason
from mailer.db.startup import DatabaseSource, prepare_database
from mailer.embedded_postgres.cluster import embedded_postgres
from mailer.settings import Settings

WAITING_TEXT = "The database cannot be reached; mailer waits for it."


@contextlib.asynccontextmanager
async def waiting_mailer(url: str, **settings: str) -> AsyncIterator[MailerProcess]:
    """Start a mailer process, and wait until it has logged that its database is unavailable."""
    mailer = MailerProcess(database_url=url, **settings)
    await mailer.launch()
    try:
        await mailer.event("database_unavailable")
        yield mailer
    finally:
        await mailer.stop()


async def test_service_waits_for_a_database_that_is_unavailable_at_its_start(
    data_dir: Path,
) -> None:
    async with embedded_postgres(data_dir) as url:
        pass  # the server stops at once
    async with waiting_mailer(url) as mailer:
        await mailer.call("GET", "/health/live")
        for path in ("/health/ready", "/clients", "/mailings"):
            problem = await mailer.call("GET", path, status=503)
            assert problem["detail"] == WAITING_TEXT
        await mailer.call("POST", "/clients", {"phone": "79160000001"}, 503)
        async with mailer.session.get("/clients") as page:
            assert page.status == 503
            assert WAITING_TEXT in await page.text()
        async with mailer.session.get("/metrics") as metrics:
            assert "mailer_database_up 0.0" in await metrics.text()
        assert not [event for event in mailer.events if event["event"] == "started"]

        async with embedded_postgres(data_dir):
            await mailer.event("started")
            await mailer.call("GET", "/health/ready")
            await mailer.call("POST", "/clients", {"phone": "79160000001"}, 201)
            assert await mailer.stop() == 0


async def test_service_waits_again_when_the_database_is_lost_during_the_start(
    database_url: str,
) -> None:
    engine = create_engine(database_url)
    wait_reasons: list[WaitReason] = []

    async def lose_first_connection() -> None:
        async with engine.connect() as connection:
            if not wait_reasons:
                await connection.execute(text("SELECT pg_terminate_backend(pg_backend_pid())"))

    source = DatabaseSource.of(Settings())
    await prepare_database(
        engine, source, on_wait=wait_reasons.append, on_ready=lose_first_connection
    )
    await engine.dispose()
    assert len(wait_reasons) == 1


async def test_waiting_service_stops_at_once(tmp_path: Path) -> None:
    async with waiting_mailer(f"postgresql://mailer@/mailer?host={tmp_path}") as mailer:
        await mailer.event("database_unavailable")
        assert await mailer.stop() == 0
        assert mailer.events[-1]["event"] == "stopped"


async def test_systemd_is_notified_of_what_the_service_waits_for(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind(str(tmp_path / "notify"))
        systemd.setblocking(False)  # noqa: FBT003  # its only argument
        mailer = MailerProcess(database_url=f"postgresql://mailer@/mailer?host={tmp_path}")
        mailer.environ["NOTIFY_SOCKET"] = str(tmp_path / "notify")
        await mailer.launch()
        loop = asyncio.get_running_loop()
        async with asyncio.timeout(EVENT_TIMEOUT):
            message = (await loop.sock_recv(systemd, 10_000)).decode()
        assert message.startswith(f"READY=1\nSTATUS={WAITING_TEXT} (")
        assert await mailer.stop() == 0
        while not message.startswith("STOPPING=1"):  # it has been sent, so this does not wait
            message = (await loop.sock_recv(systemd, 10_000)).decode()


async def test_service_waits_for_a_standby_to_be_promoted(database_url: str) -> None:
    """Here a database whose transactions are read-only by default, as on a standby."""
    connection = await connect(database_url)
    set_read_only = "ALTER DATABASE {} SET default_transaction_read_only = {}"
    name = await connection.fetchval("SELECT current_database()")
    await connection.execute(set_read_only.format(name, "on"))
    async with waiting_mailer(database_url) as mailer:
        problem = await mailer.call("GET", "/health/ready", status=503)
        assert problem["detail"].startswith("The database is read-only")
        await connection.execute("SET default_transaction_read_only = off")
        await connection.execute(set_read_only.format(name, "off"))
        await mailer.event("started")
    await connection.close()


async def test_service_waits_for_a_database_that_is_closed_to_sessions(
    server_url: str, database_url: str
) -> None:
    connection = await connect(server_url)
    name = urlsplit(database_url).path.lstrip("/")
    await connection.execute(f"ALTER DATABASE {name} ALLOW_CONNECTIONS false")
    async with waiting_mailer(database_url) as mailer:
        await connection.execute(f"ALTER DATABASE {name} ALLOW_CONNECTIONS true")
        await mailer.event("started")
    await connection.close()


def test_command_ends_after_a_timeout_with_a_temporary_status(tmp_path: Path) -> None:
    process = run("migrate", database_url=f"postgresql://mailer@/mailer?host={tmp_path}")
    assert process.returncode == EXIT_TEMPORARY_FAILURE
    assert error_line(process.stderr).startswith("mailer: the database did not become ready: ")


def error_line(stderr: str) -> str:
    """Return the only line that is not a log event in JSON."""
    assert "Traceback" not in stderr
    [line] = [line for line in stderr.splitlines() if not line.startswith("{")]
    return line


async def error_of(url: str) -> str:
    """Return the line with which the start ends for a database that it can never use."""
    process = await asyncio.to_thread(run, "serve", auth="none", port="0", database_url=url)
    assert process.returncode == EXIT_CANNOT_START, process.stderr
    assert "crashed" not in process.stderr
    line = error_line(process.stderr)
    assert line.startswith("mailer: MAILER_DATABASE_URL: ")
    return line


def change_url(
    url: str, *, user: str = "mailer", database: str | None = None, query: str = ""
) -> str:
    """Return a database URL with another user or database, and with `query` appended."""
    parts = urlsplit(url)
    host = f"{user}@{parts.netloc.partition('@')[2]}"
    path = parts.path if database is None else f"/{database}"
    return urlunsplit(parts._replace(netloc=host, path=path, query=parts.query + query))


@pytest.mark.parametrize(
    ("user", "database", "query", "expected"),
    [
        ("stranger", None, "", "stranger"),
        ("mailer", "nowhere", "", '"nowhere" does not exist'),
        ("mailer", None, "&options=-csearch_path%3Dnowhere", "no schema has been selected"),
        ("mailer", None, "&options=-cnonsense%3D1", "nonsense"),
        ("mailer", None, "&options=-cnonsense", "nonsense"),
        ("mailer", None, "&options=-cmax_connections%3D5", "max_connections"),
    ],
)
async def test_url_with_an_unknown_user_database_or_option_is_a_wrong_setting(
    server_url: str, user: str, database: str | None, query: str, expected: str
) -> None:
    url = change_url(server_url, user=user, database=database, query=query)
    assert expected in await error_of(url)


async def test_error_names_a_newer_schema(database_url: str) -> None:
    connection = await connect(database_url)
    await connection.execute("UPDATE alembic_version SET version_num = '9999'")
    await connection.close()
    assert "has the schema 9999 of a newer mailer" in await error_of(database_url)


async def test_error_names_a_second_schema_version(database_url: str) -> None:
    connection = await connect(database_url)
    await connection.execute("INSERT INTO alembic_version VALUES ('0000')")
    await connection.close()
    assert "0000" in await error_of(database_url)


async def test_database_with_tables_of_another_program_is_rejected(server_url: str) -> None:
    async with new_database(server_url, "foreign_tables") as url:
        connection = await connect(url)
        await connection.execute("CREATE TABLE client (name text)")
        await connection.close()
        assert "tables that mailer did not create" in await error_of(url)


@contextlib.asynccontextmanager
async def new_database(server_url: str, name: str, options: str = "") -> AsyncIterator[str]:
    """Create an empty database without mailer's schema, yield its URL, and drop it."""
    connection = await connect(server_url)
    await connection.execute(f"CREATE DATABASE {name} TEMPLATE template0 {options}")
    yield change_url(server_url, database=name)
    await connection.execute(f"DROP DATABASE {name}")
    await connection.close()


@pytest.mark.parametrize("encoding", ["LATIN1", "SQL_ASCII", "WIN1251", "KOI8R"])
async def test_database_with_an_encoding_other_than_utf_8_is_rejected(
    server_url: str, encoding: str
) -> None:
    options = f"ENCODING '{encoding}' LC_COLLATE 'C' LC_CTYPE 'C' LOCALE_PROVIDER libc"
    async with new_database(server_url, f"in_{encoding.lower()}", options) as url:
        assert f"has the encoding {encoding}" in await error_of(url)


@contextlib.asynccontextmanager
async def server_before_tls(answer: bytes, tls: ssl.SSLContext | None) -> AsyncIterator[int]:
    """Run a server that answers a request for TLS as PostgreSQL does; yield its port.

    `answer` is `S` if TLS follows, with the certificate in `tls`, and `N` if not.
    """

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            await reader.readexactly(8)  # the request for TLS
            writer.write(answer)
            if tls is not None:
                await writer.start_tls(tls)
            await reader.read()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        yield server.sockets[0].getsockname()[1]


async def test_certificate_of_another_ca_is_a_wrong_setting(tmp_path: Path) -> None:
    tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    trustme.CA().issue_cert("127.0.0.1").configure_cert(tls)
    trustme.CA().cert_pem.write_to_path(tmp_path / "ca.pem")
    async with server_before_tls(b"S", tls) as port:
        url = f"postgresql://mailer@127.0.0.1:{port}/mailer?sslmode=verify-full"
        error = await error_of(f"{url}&sslrootcert={tmp_path}/ca.pem")
    assert "CERTIFICATE_VERIFY_FAILED" in error


async def test_server_without_required_tls_is_a_wrong_setting() -> None:
    async with server_before_tls(b"N", None) as port:
        error = await error_of(f"postgresql://mailer@127.0.0.1:{port}/mailer?sslmode=require")
    assert "rejected SSL" in error


async def test_invalid_host_is_a_wrong_setting() -> None:
    for host in ("no such host", "1.2.3.4.5", "a" * 64):
        process = await asyncio.to_thread(run, "serve", host=host)
        # a temporary failure if names cannot be resolved at all
        assert process.returncode in {EXIT_CANNOT_START, EXIT_TEMPORARY_FAILURE}
        assert "MAILER_HOST" in error_line(process.stderr)


async def test_limits_of_the_database_do_not_affect_sessions_of_mailer(server_url: str) -> None:
    """Limits such as a statement timeout would end a migration or an import half-way."""
    async with new_database(server_url, "with_limits") as url:
        connection = await connect(url)
        for limit in (
            "statement_timeout = '1ms'",
            "lock_timeout = '1ms'",
            "default_transaction_isolation = 'serializable'",
        ):
            await connection.execute(f"ALTER DATABASE with_limits SET {limit}")
        await connection.close()
        process = await asyncio.to_thread(run, "migrate", database_url=url)
        assert process.returncode == 0, process.stderr
