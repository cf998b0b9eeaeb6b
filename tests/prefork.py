"""Starts mailer's processes for tests by forking a server that has already imported mailer.

So a start takes only the time of mailer's own work, without a second for imports and templates.
Each process is separate, runs a command of mailer as usual, and may be killed like any other.

This file, run as a script, is the prefork server. For each order, which comes with four files, the
server forks a monitor; the monitor forks the process, writes its process id, waits for it and
writes its exit status. The server ends when its tests end.
"""

import asyncio
import atexit
import contextlib
import gc
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from functools import cache
from pathlib import Path

from mailer import worker  # noqa: F401  # imported here, since `serve` imports it when it runs
from mailer.__main__ import main
from mailer.admin.render import load_templates

MAX_ORDER_SIZE = 100_000
"""Bytes; an order contains the environment of a process."""

Loader = tuple[tuple[str, str], ...]
"""Environment variables that are read only when a program is loaded, such as `LD_PRELOAD`."""


class PreforkedProcess:
    """A process from the prefork server, with the parts of asyncio's `Process` that tests use."""

    def __init__(self, pid: int, stderr: asyncio.StreamReader) -> None:
        self.pid = pid
        self.stderr = stderr
        self.returncode: int | None = None

    def watch_exit(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Start a task that waits for the exit status."""
        self._exit_task = asyncio.create_task(self._read_status(reader, writer))

    def send_signal(self, number: int) -> None:
        if self.returncode is None:
            with contextlib.suppress(ProcessLookupError):  # it has just ended
                os.kill(self.pid, number)

    async def wait(self) -> int:
        return await asyncio.shield(self._exit_task)

    async def _read_status(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> int:
        self.returncode = int(await reader.readline())
        writer.close()
        return self.returncode


async def start(environ: Mapping[str, str], path: Path, loader: Loader = ()) -> PreforkedProcess:
    """Start `mailer serve` with exactly this environment, on the code at `path`.

    `loader` must be set before Python starts, so a separate prefork server is started with it.
    """
    read_end, write_end = os.pipe()
    with open(os.devnull, "r+b") as null, os.fdopen(write_end, "wb") as stderr:  # noqa: PTH123  # does not block
        files = [null.fileno(), null.fileno(), stderr.fileno()]
        status_socket = _order(["serve"], environ, path, files, loader)
    reader, writer = await asyncio.open_connection(sock=status_socket)
    stderr_reader = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(stderr_reader), os.fdopen(read_end, "rb")
    )
    process = PreforkedProcess(int(await reader.readline()), stderr_reader)
    process.watch_exit(reader, writer)
    return process


def run(
    arguments: Sequence[str], environ: Mapping[str, str], path: Path, stdin_text: str, within: float
) -> subprocess.CompletedProcess[str]:
    """Run a command of mailer to its end.

    Raises `TimeoutError`, and kills the command, after `within` seconds.
    """
    with ExitStack() as stack:
        stdin, stdout, stderr = (
            stack.enter_context(tempfile.TemporaryFile("w+", encoding="utf-8")) for _ in range(3)
        )
        stdin.write(stdin_text)
        stdin.seek(0)
        files = [stdin.fileno(), stdout.fileno(), stderr.fileno()]
        status_socket = stack.enter_context(_order(arguments, environ, path, files))
        status_socket.settimeout(within)
        lines = stack.enter_context(status_socket.makefile())
        pid = int(lines.readline())
        try:
            status = int(lines.readline())
        except TimeoutError:
            os.kill(pid, signal.SIGKILL)
            raise
        stdout.seek(0)
        stderr.seek(0)
        return subprocess.CompletedProcess(arguments, status, stdout.read(), stderr.read())


def _order(
    arguments: Sequence[str],
    environ: Mapping[str, str],
    path: Path,
    files: Sequence[int],
    loader: Loader = (),
) -> socket.socket:
    """Order a process with these standard files.

    Return a socket from which its process id can be read, and then its exit status.
    """
    near, far = socket.socketpair()
    with far:
        order = json.dumps({"arguments": list(arguments), "environ": dict(environ)}).encode()
        socket.send_fds(_prefork_server(path, loader), [order], [far.fileno(), *files])
    return near


@cache
def _prefork_server(path: Path, loader: Loader) -> socket.socket:
    """Start the prefork server for the code at `path`; return the socket for its orders."""
    near, far = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    process = subprocess.Popen(  # noqa: S603  # it runs this file
        [sys.executable, "-P", __file__, str(far.fileno())],
        env=os.environ | {"PYTHONPATH": str(path)} | dict(loader),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        pass_fds=[far.fileno()],
    )
    far.close()

    def end() -> None:
        near.close()
        process.wait()

    atexit.register(end)
    return near


# ---- in the prefork server ------------------------------------------------------------------


def serve_orders(orders: socket.socket) -> None:
    """Fork a process for each order until the socket is closed.

    In the forked process this runs the command, and does not return.
    """
    load_templates()
    gc.freeze()  # else the garbage collector would copy shared memory in each process
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nothing waits for the monitors
    while True:
        order, files, _, _ = socket.recv_fds(orders, MAX_ORDER_SIZE, 4)
        if not order:
            return
        if os.fork() == 0:
            orders.close()
            _monitor(*files)
            command = json.loads(order)
            os.environ.clear()
            os.environ.update(command["environ"])
            sys.argv = ["mailer", *command["arguments"]]
            main(command["arguments"])  # it exits
        for file in files:
            os.close(file)


def _monitor(status_file: int, *standard_files: int) -> None:
    """Fork the process and write its id and its exit status; returns in the process only."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    pid = os.fork()
    if pid == 0:
        for number, file in enumerate(standard_files):
            os.dup2(file, number)
            os.close(file)
        os.close(status_file)
        return
    for file in standard_files:
        os.close(file)
    os.write(status_file, b"%d\n" % pid)
    _, status = os.waitpid(pid, 0)
    os.write(status_file, b"%d\n" % os.waitstatus_to_exitcode(status))
    os._exit(0)


if __name__ == "__main__":
    serve_orders(socket.socket(fileno=int(sys.argv[1])))
