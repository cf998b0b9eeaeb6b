"""Starts mailer's processes for tests quickly: they are forked by a server with mailer imported.

So a start does not need a second for imports and templates. Each process is separate, runs a
command of mailer as usual, and may be killed like any other.

This file, run as a script, is the prefork server. A test sends it an order through a socket: the
arguments and the environment of a process, with four open files (the socket for the exit status,
and the three standard files). For each order the server forks a monitor. The monitor forks the
process, writes its process id, waits for its end, and writes its exit status. The server ends when
the tests end.
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
"""Names and values of environment variables that are read only when a program is loaded, such as
`LD_PRELOAD`."""


class PreforkedProcess:
    """A process from the prefork server, with the parts of asyncio's `Process` that tests use."""

    def __init__(self, pid: int, stderr: asyncio.StreamReader) -> None:
        self.pid = pid
        self.stderr = stderr
        self.returncode: int | None = None

    def watch_exit(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Start a task that waits until the monitor has written the exit status."""
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
    """Let the prefork server start a process with these standard files.

    Return a socket from which its process id can be read, and then its exit status.
    """
    own_end, monitor_end = socket.socketpair()
    with monitor_end:
        order = json.dumps({"arguments": list(arguments), "environ": dict(environ)}).encode()
        socket.send_fds(_prefork_server(path, loader), [order], [monitor_end.fileno(), *files])
    return own_end


@cache
def _prefork_server(path: Path, loader: Loader) -> socket.socket:
    """Start the prefork server for the code at `path`; return the socket for its orders."""
    own_end, server_end = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    process = subprocess.Popen(  # noqa: S603  # it runs this file
        [sys.executable, "-P", __file__, str(server_end.fileno())],
        env=os.environ | {"PYTHONPATH": str(path)} | dict(loader),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        pass_fds=[server_end.fileno()],
    )
    server_end.close()

    def end_server() -> None:
        own_end.close()
        process.wait()

    atexit.register(end_server)
    return own_end


# ---- in the prefork server ------------------------------------------------------------------


def serve_orders(orders: socket.socket) -> None:
    """Fork a process for each order, until the socket of the orders is closed.

    In a forked process this function runs the ordered command, and does not return.
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
            _monitor(*files)  # returns in the process of the command only
            command = json.loads(order)
            os.environ.clear()
            os.environ.update(command["environ"])
            sys.argv = ["mailer", *command["arguments"]]
            main(command["arguments"])  # it exits
        for file in files:
            os.close(file)


def _monitor(status_file: int, *standard_files: int) -> None:
    """Fork the process, and write its id and its exit status to `status_file`.

    Returns in the forked process only, whose standard files are then `standard_files`.
    """
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
